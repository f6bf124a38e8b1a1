//! Which pages lie on a device that has room for some: the one that was used least recently goes first.
//!
//! Only the rule; who moves the bytes asks it. The optimizer's pages go by it (`engine/src/optim/pages.rs`).

use alloc::collections::BTreeMap;

#[derive(Clone, Copy, Debug)]
struct Resident {
    bytes: u64,
    /// When it was last used.
    used: u64,
}

/// The pages on a device, by their keys.
#[derive(Clone, Debug)]
pub struct Residency<K> {
    pages: BTreeMap<K, Resident>,
    budget: u64,
    bytes: u64,
    clock: u64,
}

impl<K: Ord> Residency<K> {
    /// A device without pages, that may hold `budget` bytes of them; `None` for no limit.
    pub fn new(budget: Option<u64>) -> Self {
        Self { pages: BTreeMap::new(), budget: budget.unwrap_or(u64::MAX), bytes: 0, clock: 0 }
    }

    /// Bytes of the pages on the device.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether a page lies on the device.
    pub fn holds<Q: Ord + ?Sized>(&self, key: &Q) -> bool
    where
        K: core::borrow::Borrow<Q>,
    {
        self.pages.contains_key(key)
    }

    /// The page that has to go before `incoming` bytes come; none when there is room, or nothing that could go. A page
    /// larger than the budget comes when all others are gone.
    pub fn excess(&self, incoming: u64) -> Option<&K> {
        if self.bytes <= self.budget.saturating_sub(incoming) {
            return None;
        }
        self.pages.iter().min_by_key(|(_, page)| page.used).map(|(key, _)| key)
    }

    /// A page is used now, and comes to the device if it is not there.
    pub fn enter(&mut self, key: K, bytes: u64) {
        self.clock += 1;
        let page = Resident { bytes, used: self.clock };
        let before = self.pages.insert(key, page).map_or(0, |page| page.bytes);
        self.bytes = self.bytes - before + bytes;
    }

    /// A page leaves the device.
    pub fn leave<Q: Ord + ?Sized>(&mut self, key: &Q)
    where
        K: core::borrow::Borrow<Q>,
    {
        self.bytes -= self.pages.remove(key).map_or(0, |page| page.bytes);
    }

    /// All pages leave the device.
    pub fn clear(&mut self) {
        self.pages.clear();
        self.bytes = 0;
    }
}

/// Whether an optimizer's step, counted from 1, visits the parameters from the last to the first: what the step before used
/// last is on the device then, and is used before it has to go.
pub fn visits_backwards(step: usize) -> bool {
    step.is_multiple_of(2)
}

#[cfg(test)]
mod tests {
    use super::{Residency, visits_backwards};

    /// Visits `pages` pages of one byte for some steps, and counts those that had to come to the device, by step.
    fn fetched(pages: u64, budget: u64, steps: usize, turn: bool) -> Vec<u64> {
        let mut residency = Residency::new(Some(budget));
        let step = |step| {
            let mut order: Vec<u64> = (0..pages).collect();
            if turn && visits_backwards(step) {
                order.reverse();
            }
            let mut came = 0;
            for page in order {
                if !residency.holds(&page) {
                    came += 1;
                    while let Some(key) = residency.excess(1).copied() {
                        residency.leave(&key);
                    }
                }
                residency.enter(page, 1);
                assert!(residency.bytes() <= budget.max(1));
                while let Some(key) = residency.excess(0).copied() {
                    residency.leave(&key);
                }
            }
            came
        };
        (1..=steps).map(step).collect()
    }

    #[test]
    fn going_back_and_forth_moves_only_what_has_no_room() {
        assert_eq!(fetched(10, 6, 4, true), [10, 4, 4, 4]);
        // In one direction, the page that is needed next is the one that went.
        assert_eq!(fetched(10, 6, 4, false), [10, 10, 10, 10]);
        assert_eq!(fetched(10, 10, 3, true), [10, 0, 0]);
        assert_eq!(fetched(10, 0, 3, true), [10, 10, 10]);
    }

    #[test]
    fn a_page_counts_once() {
        let mut residency = Residency::new(None);
        residency.enter("a", 3);
        residency.enter("a", 3);
        assert_eq!((residency.bytes(), residency.excess(u64::MAX)), (3, Some(&"a")));
        residency.leave("a");
        assert!(residency.bytes() == 0 && !residency.holds("a"));
    }
}
