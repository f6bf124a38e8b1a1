//! A run's ranks over TCP: rank 0 adds, in the order of the ranks, and gives each the sum.
//!
//! A star rather than a ring: the order of the additions is the same for every element, each rank knows the one that keeps
//! it waiting by name, and adapters are small. What passes rank 0 grows with the number of ranks; sums go out while values still come in.

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

use super::Collective;
use super::frame::{CHUNK, Frame, Kind, to_bytes, to_values};
use super::link::{AHEAD, Link, Report};
use super::rendezvous::{Identity, Member, Timing, follow, lead};
use crate::Trouble;
use crate::{Error, Result};

/// Frames of values that a rank sends before it takes the first sum.
const ON_THE_WAY: usize = AHEAD - 1;

/// How often a rank that waits for one looks whether another is gone.
const LOOK: Duration = Duration::from_millis(100);

/// The ranks of a run, as one of them is connected with them. Connections are neither encrypted nor secret, as with NCCL and
/// Gloo: they belong on a network whose machines are trusted.
pub struct Group {
    member: Member,
    /// Of rank 0: to the others in their order; of another: to rank 0.
    links: Arc<Vec<Link>>,
    /// Sums so far, so that ranks that have lost step find out.
    sums: AtomicU64,
    parted: AtomicBool,
    /// Dropped, it ends the thread that gives signs of life.
    _pulse: Sender<()>,
}

impl Group {
    /// Rank 0 of `world_size`: waits at `listener` for the others, and for all of them. `waiting` is given a sentence for the
    /// user when that takes longer than a few seconds.
    ///
    /// # Errors
    /// When one does not come in time, or runs something else; it is named, and those that came are told.
    pub fn lead(
        listener: &TcpListener,
        world_size: usize,
        identity: &Identity,
        timing: &Timing,
        waiting: &mut dyn FnMut(&str),
    ) -> Result<Self> {
        let streams = lead(listener, world_size, identity, timing, waiting)?;
        let links = streams.into_iter().enumerate().map(|(i, stream)| Link::new(i + 1, stream, timing));
        Self::over(Member { rank: 0, world_size }, links.collect(), timing)
    }

    /// Another rank: connects to rank 0 at the `HOST:PORT` that `find` gives as soon as it is known, and waits until all are
    /// there.
    ///
    /// # Errors
    /// When rank 0 is not found in time, or refuses this rank; the reason is its own.
    pub fn follow(
        member: Member,
        find: &mut dyn FnMut() -> Option<String>,
        identity: &Identity,
        timing: &Timing,
        waiting: &mut dyn FnMut(&str),
    ) -> Result<Self> {
        let stream = follow(member, find, identity, timing, waiting)?;
        Self::over(member, Link::new(0, stream, timing).map(|link| vec![link]), timing)
    }

    fn over(member: Member, links: std::io::Result<Vec<Link>>, timing: &Timing) -> Result<Self> {
        let failed = |e| Error::Invalid(format!("rank {} cannot use its connection: {e}", member.rank));
        let links = Arc::new(links.map_err(failed)?);
        let (pulse, ended) = channel::<()>();
        let (beating, tick) = (links.clone(), timing.tick);
        let beat = move || {
            while matches!(ended.recv_timeout(tick), Err(RecvTimeoutError::Timeout)) {
                beating.iter().for_each(Link::beat);
            }
        };
        std::thread::Builder::new().name("pulse".into()).spawn(beat).map_err(failed)?;
        Ok(Self { member, links, sums: AtomicU64::new(0), parted: AtomicBool::new(false), _pulse: pulse })
    }

    /// Tells the others that this rank's run has ended early, and why, so that their messages say it. An error that is about
    /// another rank has been told already.
    pub fn fail(&self, reason: &str) {
        self.tell(&Error::Invalid(reason.into()));
    }

    fn tell(&self, error: &Error) {
        if self.parted.swap(true, Ordering::Relaxed) {
            return;
        }
        let report = Report::of(error, self.member.rank).encode();
        let others = || self.links.iter().filter(|link| link.trouble().is_none());
        others().for_each(|link| link.part(Kind::Failed, &report));
        others().for_each(Link::heard);
    }

    /// Passes a trouble that rank 0 met on to the others.
    fn relayed<T>(&self, result: Result<T>) -> Result<T> {
        if let Err(error) = &result
            && self.member.rank == 0
        {
            self.tell(error);
        }
        result
    }

    /// The next frame from a rank, which must be of this kind.
    fn receive(&self, link: &Link, kind: Kind) -> Result<Vec<u8>> {
        loop {
            match link.receive(LOOK)? {
                Some(Frame { kind: found, payload }) if found == kind => return Ok(payload),
                Some(Frame { kind: found, .. }) => {
                    let reason = format!("is at {found:?} where rank {} is at {kind:?}; {SAME}", self.member.rank);
                    return Err(link.error(Trouble::Differs, reason));
                }
                None => self.check()?,
            }
        }
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

    fn sum(&self, values: &mut [f32]) -> Result<()> {
        let number = self.sums.fetch_add(1, Ordering::Relaxed);
        let begin = [number.to_le_bytes(), (values.len() as u64).to_le_bytes()].concat();
        if self.member.rank > 0 {
            return self.links.first().map_or(Ok(()), |root| self.contribute(root, &begin, values));
        }
        self.links.iter().try_for_each(|link| self.receive_begin(link, &begin))?;
        self.links.iter().try_for_each(|link| link.send(Kind::Begin, &begin))?;
        let mut sums = Vec::new();
        values.chunks_mut(CHUNK).try_for_each(|chunk| {
            for link in self.links.iter() {
                let bytes = self.receive_values(link, chunk.len())?;
                chunk.iter_mut().zip(to_values(&bytes)).for_each(|(place, value)| *place += value);
            }
            to_bytes(chunk, &mut sums);
            self.links.iter().try_for_each(|link| link.send(Kind::Values, &sums))
        })
    }

    /// Another rank's part of a sum: values go to rank 0 while the sums of those before come back. Of no more of them than the other end
    /// has room for, or both would wait for the other one to read.
    fn contribute(&self, root: &Link, begin: &[u8], values: &mut [f32]) -> Result<()> {
        let length = values.len();
        let chunk = |nth: usize| (nth * CHUNK).min(length)..((nth + 1) * CHUNK).min(length);
        root.send(Kind::Begin, begin)?;
        let mut bytes = Vec::new();
        let chunks = length.div_ceil(CHUNK);
        for nth in 0..chunks + ON_THE_WAY {
            if nth < chunks {
                to_bytes(&values[chunk(nth)], &mut bytes);
                root.send(Kind::Values, &bytes)?;
            }
            if nth == ON_THE_WAY.min(chunks) {
                self.receive_begin(root, begin)?;
            }
            if let Some(sum) = nth.checked_sub(ON_THE_WAY) {
                let places = &mut values[chunk(sum)];
                let bytes = self.receive_values(root, places.len())?;
                places.iter_mut().zip(to_values(&bytes)).for_each(|(place, value)| *place = value);
            }
        }
        Ok(())
    }

    fn compare(&self, what: &str, digest: [u8; 32]) -> Result<()> {
        if self.member.rank > 0 {
            let Some(root) = self.links.first() else { return Ok(()) };
            root.send(Kind::Digest, &digest)?;
            return self.receive(root, Kind::Same).map(drop);
        }
        for link in self.links.iter() {
            if self.receive(link, Kind::Digest)? != digest {
                let reason = format!("does not hold the same {what} as rank 0");
                return Err(link.error(Trouble::Differs, reason));
            }
        }
        self.links.iter().try_for_each(|link| link.send(Kind::Same, &[]))
    }
}

/// The cure for ranks that are not in step.
const SAME: &str = "start every rank by the same command";

impl Collective for Group {
    fn rank(&self) -> usize {
        self.member.rank
    }

    fn world_size(&self) -> usize {
        self.member.world_size
    }

    fn all_reduce(&self, values: &mut [f32]) -> Result<()> {
        self.relayed(self.sum(values))
    }

    fn agree(&self, what: &str, digest: [u8; 32]) -> Result<()> {
        self.relayed(self.compare(what, digest))
    }

    fn check(&self) -> Result<()> {
        self.links.iter().find_map(Link::trouble).map_or(Ok(()), Err)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if !self.parted.swap(true, Ordering::Relaxed) {
            self.links.iter().for_each(|link| link.part(Kind::Bye, &[]));
        }
    }
}
