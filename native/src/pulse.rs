//! How a run stands, line by line, where no bar can show it: the log of a batch system is to say that the run is alive.

use std::time::{Duration, Instant};

/// Time between two lines.
const INTERVAL: Duration = Duration::from_secs(10);

/// Which steps get a line.
#[derive(Default)]
pub(crate) struct Pulse {
    last: Option<Instant>,
    untold: Option<String>,
}

impl Pulse {
    /// The line of a step that ends at `now`, where it is to be printed: that of the first, and of one every while.
    pub(crate) fn beat(&mut self, now: Instant, line: String) -> Option<String> {
        if self.last.is_some_and(|last| now.duration_since(last) < INTERVAL) {
            self.untold = Some(line);
            return None;
        }
        (self.last, self.untold) = (Some(now), None);
        Some(line)
    }

    /// The line of the last step, unless it was printed.
    pub(crate) fn rest(&mut self) -> Option<String> {
        self.untold.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_and_the_last_step_get_a_line_and_one_every_ten_seconds() {
        let (mut pulse, start) = (Pulse::default(), Instant::now());
        let told = |pulse: &mut Pulse| {
            let at = |step: u64| start + Duration::from_secs(3 * step);
            (0..9).filter_map(|step| pulse.beat(at(step), step.to_string())).collect::<Vec<_>>()
        };
        assert_eq!(told(&mut pulse), ["0", "4", "8"]);
        assert_eq!(pulse.rest(), None);
        pulse.beat(start + Duration::from_secs(25), "9".into());
        assert_eq!(pulse.rest().as_deref(), Some("9"));
        assert_eq!(pulse.rest(), None);
    }
}
