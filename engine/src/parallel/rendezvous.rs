//! How the ranks of a run find each other: rank 0 listens, the others connect and say who they are and what they run, and
//! whoever runs something else is refused by name. Then rank 0 says which of them connects to which.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use super::frame::{self, Frame, Kind};
use super::hello::{Hello, INTRODUCTION, POLL, PROTOCOL, Reception};
use super::link::{Report, lost};
use super::peers::{Calls, Meeting, cannot_listen};
use crate::Trouble;
use crate::{Error, Result};

/// One of the processes of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Which one, from 0.
    pub rank: usize,
    /// How many there are.
    pub world_size: usize,
}

impl Member {
    /// Whether that is another rank than this one and 0.
    pub(super) fn has_peer(&self, rank: usize) -> bool {
        (1..self.world_size).contains(&rank) && rank != self.rank
    }
}

/// What must be the same for processes to be ranks of one run.
#[derive(Clone, Debug, PartialEq)]
pub struct Identity {
    /// The job that started them: a connection of another is turned away, and waited on.
    pub job: [u8; 32],
    /// What they run: names for messages, and digests. At most 16.
    pub parts: Vec<(String, [u8; 32])>,
}

/// How long is waited for what.
#[derive(Clone, Debug, PartialEq)]
pub struct Timing {
    /// Time between two signs of life, and between two looks for one.
    pub tick: Duration,
    /// Ticks in a row without a sign of life after which a rank is taken for dead.
    pub patience: u32,
    /// How long the ranks may take to find each other.
    pub rendezvous: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self { tick: Duration::from_secs(5), patience: 12, rendezvous: Duration::from_secs(600) }
    }
}

impl Timing {
    /// How long a rank may be silent.
    pub(super) fn silence(&self) -> Duration {
        self.tick * self.patience
    }
}

/// A rank that has come: its connection, and where it listens for others.
type Seat = Option<(TcpStream, SocketAddr)>;

/// Waits at `listener` for all other ranks: their connections in their order. `waiting` is told once when it takes long.
pub(super) fn lead(
    listener: &TcpListener,
    world_size: usize,
    identity: &Identity,
    timing: &Timing,
    waiting: &mut dyn FnMut(&str),
) -> Result<Vec<TcpStream>> {
    let mut seats: Vec<Seat> = (1..world_size).map(|_| None).collect();
    let gathered = gather(listener, &mut seats, identity, timing, waiting);
    let (mut streams, addresses): (Vec<_>, Vec<_>) = seats.into_iter().flatten().unzip();
    let welcomed = gathered.and_then(|()| {
        let mut ranks = (1..).zip(streams.iter_mut());
        ranks.try_for_each(|(rank, stream)| welcome(rank, stream, &addresses))
    });
    if let Err(error) = welcomed {
        let report = Report::of(&error, 0).encode();
        for stream in &mut streams {
            // Whoever has gone meanwhile need not be told.
            let _ = frame::write(stream, Kind::Failed, &report);
        }
        return Err(error);
    }
    Ok(streams)
}

/// Lets a rank in. `addresses` are where all but rank 0 listen.
fn welcome(rank: usize, stream: &mut TcpStream, addresses: &[SocketAddr]) -> Result<()> {
    let address = stream.peer_addr().map_or(String::new(), |address| address.to_string());
    frame::write(stream, Kind::Welcome, &Calls::of(rank, addresses).encode()).map_err(|e| Error::Rank {
        rank,
        address,
        reason: lost(&e, Duration::ZERO),
        trouble: Trouble::Vanished,
    })
}

fn gather(
    listener: &TcpListener,
    seats: &mut [Seat],
    identity: &Identity,
    timing: &Timing,
    waiting: &mut dyn FnMut(&str),
) -> Result<()> {
    let world_size = seats.len() + 1;
    let at = listener.local_addr().map_or("its address".into(), |address| address.to_string());
    let failed = |e: std::io::Error| Error::Invalid(format!("rank 0 cannot listen at {at}: {e}"));
    let mut reception = Reception::new(listener).map_err(failed)?;
    let (begun, mut said) = (Instant::now(), false);
    while seats.iter().any(Option::is_none) {
        let missing = || {
            let missing = seats.iter().enumerate().filter(|(_, seat)| seat.is_none()).map(|(i, _)| (i + 1).to_string());
            missing.collect::<Vec<_>>().join(", ")
        };
        if begun.elapsed() > timing.rendezvous {
            return Err(Error::Invalid(format!(
                "rank {} of {world_size} did not come to {at} within {:?}: was each started, and does MASTER_ADDR reach \
                 this machine?",
                missing(),
                timing.rendezvous
            )));
        }
        if !said && begun.elapsed() > INTRODUCTION {
            said = true;
            waiting(&format!("rank 0 waits at {at} for rank {} of {world_size}", missing()));
        }
        let Some((mut stream, hello)) = reception.next().map_err(failed)? else { continue };
        match hello {
            // A process of another job that took this address for its own: not this one's trouble.
            Ok(hello) if hello.job != identity.job => {
                let reason = format!("what listens at {at} is another job; choose another MASTER_PORT for one of them");
                let _ = frame::write(&mut stream, Kind::Failed, &Report::of(&Error::Invalid(reason), 0).encode());
            }
            hello => seat(seats, stream, hello, identity)?,
        }
    }
    Ok(())
}

/// Gives a process its place, or says why it has none.
fn seat(seats: &mut [Seat], mut stream: TcpStream, hello: Result<Hello, u32>, identity: &Identity) -> Result<()> {
    let world_size = seats.len() + 1;
    let from = stream.peer_addr();
    let address = from.as_ref().map_or(String::new(), |address| address.to_string());
    let (rank, port, wrong) = match hello {
        Err(protocol) => (0, 0, Some(format!("speaks version {protocol} of the protocol, rank 0 version {PROTOCOL}"))),
        Ok(Hello { member, port, digests, .. }) => {
            let Member { rank, world_size: theirs } = member;
            let mut parts = identity.parts.iter().zip(&digests);
            let differs = parts.find(|((_, here), there)| here != *there).map(|((name, _), _)| name);
            let wrong = if theirs != world_size {
                Some(format!("was started as one of {theirs}, rank 0 as one of {world_size}"))
            } else if rank == 0 || rank >= world_size {
                Some(format!("has no place among {world_size}, which are counted from 0"))
            } else if seats[rank - 1].is_some() {
                Some("was started twice".into())
            } else if digests.len() != identity.parts.len() {
                Some("is of another version of halfbyte".into())
            } else {
                differs.map(|name| format!("runs something else than rank 0: {name} differs"))
            };
            (rank, port, wrong)
        }
    };
    let Some(wrong) = wrong else {
        // One that is gone already is missed when it is spoken to.
        let ip = from.map_or(Ipv4Addr::UNSPECIFIED.into(), |from| from.ip().to_canonical());
        seats[rank - 1] = Some((stream, SocketAddr::new(ip, port)));
        return Ok(());
    };
    let reason = format!("{wrong}; start every rank by the same command, with the same version, model and data");
    let error = Error::Rank { rank, address, reason, trouble: Trouble::Differs };
    let _ = frame::write(&mut stream, Kind::Failed, &Report::of(&error, 0).encode());
    Err(error)
}

/// Connects to rank 0, which `find` says the address of as soon as it is known, and waits to be let in: the connection, and how the
/// others are met.
pub(super) fn follow(
    member: Member,
    find: &mut dyn FnMut() -> Option<String>,
    identity: &Identity,
    timing: &Timing,
    waiting: &mut dyn FnMut(&str),
) -> Result<(TcpStream, Meeting)> {
    let Member { rank, .. } = member;
    let begun = Instant::now();
    let (mut said, mut last) = (false, String::from("where it listens is not known"));
    while begun.elapsed() < timing.rendezvous {
        let address = find();
        match address.as_deref().map(connect) {
            None => {}
            Some(Ok(stream)) => return admitted(stream, member, identity, timing),
            Some(Err(error)) => last = format!("{}: {error}", address.unwrap_or_default()),
        }
        if !said && begun.elapsed() > INTRODUCTION {
            said = true;
            waiting(&format!("rank {rank} waits for rank 0 ({last})"));
        }
        // Many ranks that start together do not knock all at once.
        std::thread::sleep(POLL * (1 + (rank as u32 % 8)));
    }
    Err(Error::Invalid(format!(
        "rank {rank} did not reach rank 0 within {:?} ({last}): was it started, and does MASTER_ADDR name its machine?",
        timing.rendezvous
    )))
}

pub(super) fn connect(address: impl ToSocketAddrs) -> std::io::Result<TcpStream> {
    let mut last = std::io::Error::new(ErrorKind::NotFound, "the name has no address");
    for address in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, INTRODUCTION) {
            // A port that nobody listens on yet may be given to the very connection to it.
            Ok(stream) if is_own(&stream, address) => {}
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn is_own(stream: &TcpStream, address: SocketAddr) -> bool {
    stream.local_addr().is_ok_and(|own| own == address)
}

/// Introduces itself and waits for the answer, which comes when all are there. The others reach it where rank 0 does.
fn admitted(
    mut stream: TcpStream,
    member: Member,
    identity: &Identity,
    timing: &Timing,
) -> Result<(TcpStream, Meeting)> {
    let address = stream.peer_addr().map_or(String::new(), |address| address.to_string());
    let error = |trouble, reason| Error::Rank { rank: 0, address: address.clone(), reason, trouble };
    let failed = |e: std::io::Error| error(Trouble::Vanished, lost(&e, timing.rendezvous));
    let listen = || -> std::io::Result<_> {
        let mut local = stream.local_addr()?;
        local.set_port(0);
        let listener = TcpListener::bind(local)?;
        Ok((listener.local_addr()?.port(), listener))
    };
    let (port, listener) = listen().map_err(cannot_listen(member))?;
    let ticks = timing.rendezvous.as_millis() / timing.tick.as_millis().max(1);
    stream.set_read_timeout(Some(timing.tick)).map_err(failed)?;
    frame::write(&mut stream, Kind::Hello, &Hello::new(member, port, identity).encode()).map_err(failed)?;
    match frame::read(&mut stream, (ticks as u32).saturating_add(2)).map_err(failed)? {
        Frame { kind: Kind::Welcome, payload } => match Calls::decode(&payload, member) {
            Some(calls) => Ok((stream, Meeting { member, listener, calls })),
            None => Err(error(Trouble::Differs, "sent a list of ranks that cannot be read".into())),
        },
        Frame { kind: Kind::Failed, payload } => match Report::decode(&payload) {
            Some(Report { rank, address, reason, trouble }) if !address.is_empty() => {
                Err(Error::Rank { rank, address, reason, trouble })
            }
            Some(Report { reason, trouble, .. }) => Err(error(trouble, reason)),
            None => Err(error(Trouble::Vanished, "sent a report that cannot be read".into())),
        },
        Frame { kind, .. } => {
            Err(error(Trouble::Differs, format!("answers {kind:?}; what listens there is no rank 0 of halfbyte's")))
        }
    }
}
