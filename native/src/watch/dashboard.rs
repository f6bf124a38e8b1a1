//! A run on a whole terminal: its curves, where it stands and how fast it is, drawn anew a few times a second.
//!
//! The terminal stays in its ordinary mode, so that Ctrl-C interrupts the run as it does without a dashboard.

use std::io::{IsTerminal, stdout};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use ratatui::backend::{Backend, CrosstermBackend};
use ratatui::crossterm::cursor::{Hide, Show};
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{EnterAlternateScreen, LeaveAlternateScreen};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Stylize};
use ratatui::symbols::Marker;
use ratatui::text::{Line, Text};
use ratatui::widgets::{Axis, Block, Chart, Dataset, Gauge, GraphType, Paragraph};
use ratatui::{Frame, Terminal};

use super::chart::{Curves, thinned};
use crate::console::Outlasting;

/// Time between two pictures; a small model makes hundreds of steps in it.
const INTERVAL: Duration = Duration::from_millis(200);

/// What is shown beside the curves.
pub(super) struct Figures<'a> {
    /// What runs where.
    pub(super) title: &'a str,
    pub(super) step: usize,
    pub(super) steps: usize,
    pub(super) tokens_per_second: f64,
    pub(super) elapsed: Duration,
    pub(super) left: Duration,
    /// Names and values, a line each.
    pub(super) lines: &'a [(&'static str, String)],
}

/// # Errors
/// When there is no terminal to draw on.
pub(crate) fn check() -> Result<()> {
    if !stdout().is_terminal() {
        bail!("--dashboard: the output is no terminal; leave it out to have a line for each evaluation");
    }
    Ok(())
}

/// The terminal while it is taken.
pub(super) struct Dashboard {
    terminal: Terminal<CrosstermBackend<Outlasting>>,
    drawn: Option<Instant>,
}

impl Dashboard {
    /// Takes the terminal. Should it go away later, the run goes on without it.
    pub(super) fn open() -> Result<Self> {
        let terminal = Terminal::new(CrosstermBackend::new(Outlasting))?;
        execute!(Outlasting, EnterAlternateScreen, Hide)?;
        Ok(Self { terminal, drawn: None })
    }

    /// Draws, where it is time to.
    pub(super) fn show(&mut self, curves: &Curves, figures: &Figures<'_>) -> Result<()> {
        if self.drawn.is_some_and(|drawn| drawn.elapsed() < INTERVAL) && figures.step < figures.steps {
            return Ok(());
        }
        self.drawn = Some(Instant::now());
        draw(&mut self.terminal, curves, figures)
    }
}

impl Drop for Dashboard {
    fn drop(&mut self) {
        let _ = execute!(Outlasting, LeaveAlternateScreen, Show);
    }
}

fn draw<B: Backend>(terminal: &mut Terminal<B>, curves: &Curves, figures: &Figures<'_>) -> Result<()>
where
    B::Error: Send + Sync + 'static,
{
    terminal.draw(|frame| layout(frame, curves, figures))?;
    Ok(())
}

fn layout(frame: &mut Frame<'_>, curves: &Curves, figures: &Figures<'_>) {
    let [title, gauge, rest] =
        Layout::vertical([Constraint::Length(1), Constraint::Length(1), Constraint::Min(0)]).areas(frame.area());
    frame.render_widget(Line::from(figures.title).bold(), title);
    let share = figures.step as f64 / figures.steps.max(1) as f64;
    let clock = |time: Duration| format!("{}:{:02}", time.as_secs() / 60, time.as_secs() % 60);
    let label = format!(
        "step {} of {}, {:.0} tokens/s, {} gone, {} left",
        figures.step,
        figures.steps,
        figures.tokens_per_second,
        clock(figures.elapsed),
        clock(figures.left)
    );
    frame.render_widget(Gauge::default().ratio(share.clamp(0.0, 1.0)).label(label).gauge_style(Color::Blue), gauge);
    let [left, right] = Layout::horizontal([Constraint::Fill(3), Constraint::Fill(1)]).areas(rest);
    chart(frame, left, "loss", &curves.loss, &curves.held_out);
    let [grad_norm, rate, text] =
        Layout::vertical([Constraint::Fill(1), Constraint::Fill(1), Constraint::Min(figures.lines.len() as u16 + 2)])
            .areas(right);
    chart(frame, grad_norm, "gradient norm", &curves.grad_norm, &[]);
    chart(frame, rate, "learning rate", &curves.learning_rate, &[]);
    let lines: Vec<Line<'_>> =
        figures.lines.iter().map(|(name, value)| Line::from(format!("{name} {value}"))).collect();
    frame.render_widget(Paragraph::new(Text::from(lines)).block(Block::bordered()), text);
}

/// A line over the steps, and dots for what was measured on held-out data.
fn chart(frame: &mut Frame<'_>, area: Rect, name: &str, line: &[(usize, f64)], held_out: &[(usize, f64)]) {
    let points = |curve: &[(usize, f64)]| -> Vec<(f64, f64)> {
        let finite = thinned(curve).into_iter().filter(|(_, value)| value.is_finite());
        finite.map(|(step, value)| (step as f64, value)).collect()
    };
    let (line, held_out) = (points(line), points(held_out));
    let all = || line.iter().chain(&held_out);
    let last = all().map(|(step, _)| *step).fold(1.0, f64::max);
    let highest = all().map(|(_, value)| *value).fold(0.0, f64::max);
    let highest = if highest > 0.0 { 1.05 * highest } else { 1.0 };
    let sets = vec![
        Dataset::default().marker(Marker::Braille).graph_type(GraphType::Line).cyan().data(&line),
        Dataset::default().marker(Marker::Dot).graph_type(GraphType::Scatter).red().data(&held_out),
    ];
    let label = |value: f64| if highest < 0.01 { format!("{value:.1e}") } else { format!("{value:.2}") };
    let axis = |end, labels: [String; 2]| Axis::default().bounds([0.0, end]).labels(labels).dim();
    let chart = Chart::new(sets)
        .block(Block::bordered().title(name.to_string()))
        .x_axis(axis(last, ["0".into(), format!("{last:.0}")]))
        .y_axis(axis(highest, ["0".into(), label(highest)]));
    frame.render_widget(chart, area);
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use ratatui::backend::TestBackend;

    use super::*;

    fn shown(width: u16, height: u16, curves: &Curves) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        let figures = Figures {
            title: "models/wordnet-4m on CPU",
            step: 40,
            steps: 160,
            tokens_per_second: 8_700.0,
            elapsed: Duration::from_secs(65),
            left: Duration::from_secs(195),
            lines: &[("held-out loss", "0.2345".into())],
        };
        draw(&mut terminal, curves, &figures).unwrap();
        terminal.backend().to_string()
    }

    #[test]
    fn a_run_is_shown_on_a_terminal_of_any_size() {
        let curves = Curves {
            loss: (1..=40).map(|step| (step, 4.0 / step as f64)).collect(),
            grad_norm: vec![(1, 2.0), (2, f64::NAN)],
            learning_rate: vec![(1, 1e-5)],
            held_out: vec![(0, 4.5), (40, 0.2345)],
        };
        let text = shown(100, 30, &curves);
        for part in ["models/wordnet-4m on CPU", "step 40 of 160, 8700 tokens/s, 1:05 gone, 3:15 left", "gradient norm"]
        {
            assert!(text.contains(part), "{part}:\n{text}");
        }
        assert!(text.contains("held-out loss 0.2345") && text.contains("4.73") && text.contains("1.1e-5"), "{text}");
        for (width, height) in [(1, 1), (20, 5), (40, 12)] {
            shown(width, height, &curves);
        }
        shown(80, 24, &Curves::default());
    }
}
