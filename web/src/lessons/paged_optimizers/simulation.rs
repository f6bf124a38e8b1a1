//! A few optimizer steps with pages, gone through by the rules that the engine's optimizer goes by.

use halfbyte_memory::{Component, ModelShape, Phase, Residency, Run, optimizer_pages, plan, visits_backwards};

/// Steps that are shown.
pub(super) const STEPS: usize = 6;
/// The step with the long sequence, counted from 1.
pub(super) const LONG: usize = 4;

/// What is simulated.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Setting {
    pub(super) model: ModelShape,
    pub(super) run: Run,
    /// Share of the optimizer's state that may stay on the device.
    pub(super) share: f64,
    /// Tokens of the long sequence.
    pub(super) long: u64,
}

/// A moment of the timeline.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Instant {
    /// Step, counted from 1.
    pub(super) step: usize,
    /// The page that is used; none while the layers are gone through.
    pub(super) page: Option<usize>,
    /// Bytes of optimizer state on the device.
    pub(super) resident: u64,
    /// Everything on the device.
    pub(super) total: u64,
}

/// The timeline and what was moved.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Outcome {
    pub(super) instants: Vec<Instant>,
    /// Bytes of all pages.
    pub(super) state: u64,
    pub(super) pages: usize,
    /// Pages fetched from the host, by step.
    pub(super) fetched: [usize; STEPS],
    /// Bytes fetched in the last step.
    pub(super) moved: u64,
    /// The most that was on the device.
    pub(super) peak: u64,
    /// The most there would be with all state on the device.
    pub(super) unpaged: u64,
}

/// Everything but the optimizer's state: at the peak of the layers and the loss, and while values are updated.
fn others(model: &ModelShape, run: &Run) -> (u64, u64) {
    let plan = plan(model, run);
    let states = plan.lines.iter().filter(|l| l.phase == Phase::Always && l.component == Component::Optimizer);
    let state: u64 = states.map(|line| line.bytes).sum();
    let pass = plan.peak_of(Phase::Layers).max(plan.peak_of(Phase::Loss));
    (pass - state, plan.peak_of(Phase::Update) - state)
}

/// Goes through the steps. `seen` is shown which page is used and what lies on the device, at each visit.
fn steps(setting: &Setting, mut seen: impl FnMut(usize, Option<usize>, &Residency<usize>, bool)) {
    let pages = optimizer_pages(&setting.model, &setting.run);
    let state: u64 = pages.iter().sum();
    let budget = (setting.share.clamp(0.0, 1.0) * state as f64) as u64;
    let mut residency = Residency::new(Some(budget));
    // Pages of zeros that were never used are nowhere, so that bringing them moves nothing.
    let mut stored = vec![false; pages.len()];
    for step in 1..=STEPS {
        seen(step, None, &residency, false);
        let mut order: Vec<usize> = (0..pages.len()).collect();
        if visits_backwards(step) {
            order.reverse();
        }
        for page in order {
            let fetched = !residency.holds(&page) && stored[page];
            if !residency.holds(&page) {
                make_room(&mut residency, pages[page]);
            }
            residency.enter(page, pages[page]);
            stored[page] = true;
            seen(step, Some(page), &residency, fetched);
            make_room(&mut residency, 0);
        }
    }
}

fn make_room(residency: &mut Residency<usize>, incoming: u64) {
    while let Some(page) = residency.excess(incoming).copied() {
        residency.leave(&page);
    }
}

/// The timeline of a setting.
pub(super) fn simulate(setting: &Setting) -> Outcome {
    let pages = optimizer_pages(&setting.model, &setting.run);
    let state = pages.iter().sum();
    let usual = others(&setting.model, &setting.run);
    let long = others(&setting.model, &Run { length: setting.long, ..setting.run.clone() });
    let mut outcome = Outcome {
        instants: vec![],
        state,
        pages: pages.len(),
        fetched: [0; STEPS],
        moved: 0,
        peak: 0,
        unpaged: usual.0.max(long.0) + state,
    };
    steps(setting, |step, page, residency, fetched| {
        let (pass, update) = if step == LONG { long } else { usual };
        let resident = residency.bytes();
        let total = resident + if page.is_some() { update } else { pass };
        outcome.instants.push(Instant { step, page, resident, total });
        outcome.peak = outcome.peak.max(total);
        outcome.fetched[step - 1] += usize::from(fetched);
        if step == STEPS && fetched {
            outcome.moved += page.and_then(|page| pages.get(page)).copied().unwrap_or(0);
        }
    });
    outcome
}

/// Which pages lie on the device at an instant of the timeline.
pub(super) fn places(setting: &Setting, instant: usize) -> Vec<bool> {
    let mut places = vec![false; optimizer_pages(&setting.model, &setting.run).len()];
    let mut now = 0;
    steps(setting, |_, _, residency, _| {
        if now == instant {
            for (page, place) in places.iter_mut().enumerate() {
                *place = residency.holds(&page);
            }
        }
        now += 1;
    });
    places
}

#[cfg(test)]
mod tests {
    use super::super::super::parts::shape;
    use super::*;

    fn setting(share: f64) -> Setting {
        let run = Run { rank: 64, length: 1024, ..Run::default() };
        Setting { model: shape("llama-3.2-1b"), run, share, long: 4096 }
    }

    #[test]
    fn only_what_has_no_room_moves() {
        let all = simulate(&setting(1.0));
        assert_eq!((all.pages, all.fetched, all.moved), (16 * 14, [0; STEPS], 0));
        assert_eq!(all.peak, all.unpaged);
        let half = simulate(&setting(0.5));
        assert!(
            half.fetched[0] == 0 && half.fetched[1..].iter().all(|n| (100..=130).contains(n)),
            "{:?}",
            half.fetched
        );
        assert!(half.instants.iter().all(|i| i.resident <= half.state / 2 + 1));
        let none = simulate(&setting(0.0));
        assert_eq!(none.fetched[1..], [224; STEPS - 1], "every page in every step");
    }

    #[test]
    fn the_long_step_is_the_peak_and_paging_lowers_it_by_what_left() {
        let (all, half) = (simulate(&setting(1.0)), simulate(&setting(0.5)));
        let highest = half.instants.iter().max_by_key(|i| i.total).map(|i| (i.step, i.page));
        assert_eq!(highest, Some((LONG, None)));
        let saved = all.peak - half.peak;
        assert!((0.45..0.55).contains(&(saved as f64 / all.state as f64)), "{saved} of {}", all.state);
    }

    #[test]
    fn places_are_those_of_the_instant() {
        let setting = setting(0.3);
        let outcome = simulate(&setting);
        let pages = optimizer_pages(&setting.model, &setting.run);
        for instant in [0, 1, 200, 700, outcome.instants.len() - 1] {
            let places = places(&setting, instant);
            let bytes: u64 = places.iter().zip(&pages).filter(|(place, _)| **place).map(|(_, bytes)| bytes).sum();
            assert_eq!(bytes, outcome.instants[instant].resident, "{instant}");
        }
    }
}
