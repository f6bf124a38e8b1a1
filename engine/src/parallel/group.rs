//! A run's ranks over TCP, each connected with each: what ends one is known to all at once, and by name.

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

use super::Collective;
use super::frame::{Frame, Kind};
use super::link::{Link, Report};
use super::rendezvous::{Identity, Member, Timing, follow, lead};
use crate::Trouble;
use crate::{Error, Result};

/// How often a rank that waits for one looks whether another is gone.
const LOOK: Duration = Duration::from_millis(100);

/// The ranks of a run, as one of them is connected with them. Connections are neither encrypted nor secret, as with NCCL and
/// Gloo: they belong on a network whose machines are trusted.
pub struct Group {
    pub(super) member: Member,
    /// To the other ranks, in their order.
    pub(super) links: Arc<Vec<Link>>,
    /// Sums so far, so that ranks that have lost step find out.
    pub(super) sums: AtomicU64,
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

    /// Another rank: connects to rank 0 at the `HOST:PORT` that `find` gives as soon as it is known, waits until all are
    /// there, and connects with each.
    ///
    /// # Errors
    /// When rank 0 is not found in time, or refuses this rank; the reason is its own. When another rank does not get through to this one, or
    /// this one to it.
    pub fn follow(
        member: Member,
        find: &mut dyn FnMut() -> Option<String>,
        identity: &Identity,
        timing: &Timing,
        waiting: &mut dyn FnMut(&str),
    ) -> Result<Self> {
        let (stream, meeting) = follow(member, find, identity, timing, waiting)?;
        let root = Link::new(0, stream, timing).map_err(unusable(member))?;
        let met = meeting.meet(identity, timing, &|| root.check()).inspect_err(|error| {
            root.part(Kind::Failed, &Report::of(error, member.rank).encode());
            root.heard();
        })?;
        let others = met.into_iter().map(|(rank, stream)| Link::new(rank, stream, timing));
        Self::over(member, std::iter::once(Ok(root)).chain(others).collect(), timing)
    }

    fn over(member: Member, links: std::io::Result<Vec<Link>>, timing: &Timing) -> Result<Self> {
        let links = Arc::new(links.map_err(unusable(member))?);
        let (pulse, ended) = channel::<()>();
        let (beating, tick) = (links.clone(), timing.tick);
        let beat = move || {
            while matches!(ended.recv_timeout(tick), Err(RecvTimeoutError::Timeout)) {
                beating.iter().for_each(Link::beat);
            }
        };
        std::thread::Builder::new().name("pulse".into()).spawn(beat).map_err(unusable(member))?;
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

    /// Passes a trouble on to the others, so that it is not taken for this rank's.
    fn relayed<T>(&self, result: Result<T>) -> Result<T> {
        result.inspect_err(|error| self.tell(error))
    }

    /// Whether every other rank is there, as far as its connection has told.
    fn look(&self) -> Result<()> {
        self.links.iter().try_for_each(Link::check)
    }

    /// The connection to rank 0, on another rank.
    pub(super) fn root(&self) -> Option<&Link> {
        self.links.first().filter(|_| self.member.rank > 0)
    }

    /// The next frame from a rank, which must be of this kind.
    pub(super) fn receive(&self, link: &Link, kind: Kind) -> Result<Vec<u8>> {
        loop {
            // A rank that left because of another is not the one to blame.
            match link.receive(LOOK).or_else(|error| self.look().and(Err(error)))? {
                Some(Frame { kind: found, payload }) if found == kind => return Ok(payload),
                Some(Frame { kind: found, .. }) => {
                    let reason = format!("is at {found:?} where rank {} is at {kind:?}; {SAME}", self.member.rank);
                    return Err(link.error(Trouble::Differs, reason));
                }
                None => self.look()?,
            }
        }
    }

    fn compare(&self, what: &str, digest: [u8; 32]) -> Result<()> {
        if let Some(root) = self.root() {
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
pub(super) const SAME: &str = "start every rank by the same command";

fn unusable(member: Member) -> impl Fn(std::io::Error) -> Error {
    move |e| Error::Invalid(format!("rank {} cannot use its connections: {e}", member.rank))
}

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
        self.relayed(self.look())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if !self.parted.swap(true, Ordering::Relaxed) {
            self.links.iter().for_each(|link| link.part(Kind::Bye, &[]));
        }
    }
}
