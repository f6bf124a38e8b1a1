//! The sum over all ranks: each adds up one part of the values, in the order of the ranks, and gives it to the others.
//!
//! The parts of all ranks are added up at the same time (a reduce-scatter followed by an all-gather), so that each sends and receives twice
//! the values' size less a share, however many ranks there are. In a ring as much is sent over fewer connections, but each element is
//! added up from another rank on, and a value passes all ranks.

use std::ops::Range;
use std::sync::atomic::Ordering;

use super::frame::{CHUNK, Kind, to_bytes, to_values};
use super::group::{Group, SAME};
use super::link::Link;
use crate::{Result, Trouble};

impl Group {
    /// In rounds of a chunk of each part. A chunk's addends are sent a round before they are taken, and so is its sum: of no link are more
    /// than four frames on the way, which is what a reading thread takes in ([`AHEAD`](super::link::AHEAD)), so that a rank that
    /// sends never waits for one that does.
    pub(super) fn sum(&self, values: &mut [f32]) -> Result<()> {
        self.begin(values.len())?;
        let parts = Parts { length: values.len(), ranks: self.member.world_size };
        let (below, above) = self.links.split_at(self.member.rank);
        // Each begins with the next rank, so that not all send to the same one.
        let others = || above.iter().chain(below);
        let (mut bytes, mut sum) = (Vec::new(), Vec::new());
        for round in 0..parts.rounds() + 2 {
            if round < parts.rounds() {
                for link in others() {
                    to_bytes(&values[parts.chunk(link.rank, round)], &mut bytes);
                    link.send(Kind::Values, &bytes)?;
                }
            }
            if let Some(round) = round.checked_sub(1).filter(|round| *round < parts.rounds()) {
                let own = &mut values[parts.chunk(self.member.rank, round)];
                sum.clear();
                // What changes no value that is added to it.
                sum.resize(own.len(), -0.0);
                below.iter().try_for_each(|link| self.receive_added(link, &mut sum))?;
                add(&mut sum, own.iter().copied());
                above.iter().try_for_each(|link| self.receive_added(link, &mut sum))?;
                own.copy_from_slice(&sum);
                to_bytes(own, &mut bytes);
                others().try_for_each(|link| link.send(Kind::Values, &bytes))?;
            }
            if let Some(round) = round.checked_sub(2) {
                for link in others() {
                    let places = &mut values[parts.chunk(link.rank, round)];
                    let bytes = self.receive_values(link, places.len())?;
                    places.iter_mut().zip(to_values(&bytes)).for_each(|(place, value)| *place = value);
                }
            }
        }
        Ok(())
    }

    /// Rank 0 sees to it that all are at the same sum of as many values.
    fn begin(&self, count: usize) -> Result<()> {
        let number = self.sums.fetch_add(1, Ordering::Relaxed);
        let begin = [number.to_le_bytes(), (count as u64).to_le_bytes()].concat();
        if let Some(root) = self.root() {
            root.send(Kind::Begin, &begin)?;
            return self.receive_begin(root, &begin);
        }
        self.links.iter().try_for_each(|link| self.receive_begin(link, &begin))?;
        self.links.iter().try_for_each(|link| link.send(Kind::Begin, &begin))
    }

    /// The next frame must be the same sum's beginning.
    fn receive_begin(&self, link: &Link, begin: &[u8]) -> Result<()> {
        let found = self.receive(link, Kind::Begin)?;
        if found == begin {
            return Ok(());
        }
        let said = |bytes: &[u8]| {
            let number = |part: &[u8]| part.iter().rev().fold(0u64, |sum, byte| (sum << 8) | u64::from(*byte));
            let (sum, count) = bytes.split_at(bytes.len().min(8));
            format!("sum {} of {} values", number(sum), number(count))
        };
        let reason = format!("is at {} where rank {} is at {}; {SAME}", said(&found), self.member.rank, said(begin));
        Err(link.error(Trouble::Differs, reason))
    }

    fn receive_added(&self, link: &Link, sum: &mut [f32]) -> Result<()> {
        let bytes = self.receive_values(link, sum.len())?;
        add(sum, to_values(&bytes));
        Ok(())
    }

    /// The next frame's values, which must be as many as there are places.
    fn receive_values(&self, link: &Link, count: usize) -> Result<Vec<u8>> {
        let bytes = self.receive(link, Kind::Values)?;
        match bytes.len() == 4 * count {
            true => Ok(bytes),
            false => {
                let reason = format!("sent {} bytes of values where {} were due; {SAME}", bytes.len(), 4 * count);
                Err(link.error(Trouble::Differs, reason))
            }
        }
    }
}

fn add(sum: &mut [f32], values: impl Iterator<Item = f32>) {
    sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
}

/// How values are divided among ranks: evenly, each part in chunks.
struct Parts {
    length: usize,
    ranks: usize,
}

impl Parts {
    /// Chunks of the longest part. Shorter parts end in an empty one.
    fn rounds(&self) -> usize {
        self.length.div_ceil(self.ranks).div_ceil(CHUNK)
    }

    fn chunk(&self, rank: usize, round: usize) -> Range<usize> {
        let [first, end] = [rank, rank + 1].map(|rank| self.length * rank / self.ranks);
        let within = |chunks: usize| (first + chunks * CHUNK).min(end);
        within(round)..within(round + 1)
    }
}
