//! A mapped file that is read once from front to back: what comes next is fetched while the present is worked on, and what is behind
//! does not stay in the process's memory.

use std::ops::Range;

use memmap2::Mmap;

/// Bytes that the system is asked to fetch ahead: of the order of the largest tensors, so that a disk has work while one is
/// quantized.
#[cfg(unix)]
const AHEAD: usize = 256 << 20;

/// Asks for what follows `now` in the file, and gives back `before`, which is fetched again should it be asked for. Advice that the
/// system does not take changes no result.
#[cfg(unix)]
pub(super) fn turn_to(map: &Mmap, now: &Range<usize>, before: Option<&Range<usize>>) {
    use memmap2::{Advice, UncheckedAdvice};

    let next = now.start..map.len().min(now.end.saturating_add(AHEAD));
    let _ = map.advise_range(Advice::WillNeed, next.start, next.len());
    if let Some(before) = before {
        // SAFETY: the map is a read-only one of a file, of which no page can differ from the file.
        let _ = unsafe { map.unchecked_advise_range(UncheckedAdvice::DontNeed, before.start, before.len()) };
    }
}

/// Nothing: other systems decide for themselves.
#[cfg(not(unix))]
pub(super) fn turn_to(_: &Mmap, _: &Range<usize>, _: Option<&Range<usize>>) {}
