//! How the ranks of a run find each other: rank 0 listens, the others connect and say who they are and what they run, and
//! whoever runs something else is refused by name.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use super::frame::{self, Frame, Kind};
use super::link::{Report, lost};
use crate::Trouble;
use crate::{Error, Result};

const MAGIC: &[u8; 8] = b"halfbyte";
/// Of what is said over a connection.
const PROTOCOL: u32 = 2;
/// Connections that may be introducing themselves at a time.
const STRANGERS: usize = 64;
/// How long a connection may take to introduce itself, without a byte.
const INTRODUCTION: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(20);

/// One of the processes of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Which one, from 0.
    pub rank: usize,
    /// How many there are.
    pub world_size: usize,
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

/// What a process says of itself.
#[derive(Debug, PartialEq)]
struct Hello {
    member: Member,
    job: [u8; 32],
    digests: Vec<[u8; 32]>,
}

impl Hello {
    fn new(member: Member, identity: &Identity) -> Self {
        Self { member, job: identity.job, digests: identity.parts.iter().map(|(_, digest)| *digest).collect() }
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        for number in [PROTOCOL, self.member.rank as u32, self.member.world_size as u32] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.extend(self.job);
        bytes.extend(self.digests.iter().flatten());
        bytes
    }

    /// `None` where it is none; an error of another version's.
    fn decode(bytes: &[u8]) -> Option<Result<Self, u32>> {
        let rest = bytes.strip_prefix(MAGIC)?;
        let (numbers, rest) = rest.split_first_chunk::<12>()?;
        let number = |at: usize| u32::from_le_bytes([numbers[at], numbers[at + 1], numbers[at + 2], numbers[at + 3]]);
        if number(0) != PROTOCOL {
            return Some(Err(number(0)));
        }
        let (job, digests) = rest.split_first_chunk::<32>()?;
        let (digests, []) = digests.as_chunks::<32>() else { return None };
        let member = Member { rank: number(4) as usize, world_size: number(8) as usize };
        Some(Ok(Self { member, job: *job, digests: digests.to_vec() }))
    }
}

/// Waits at `listener` for all other ranks: their connections in their order. `waiting` is told once when it takes long.
pub(super) fn lead(
    listener: &TcpListener,
    world_size: usize,
    identity: &Identity,
    timing: &Timing,
    waiting: &mut dyn FnMut(&str),
) -> Result<Vec<TcpStream>> {
    let mut seats: Vec<Option<TcpStream>> = (1..world_size).map(|_| None).collect();
    let gathered = gather(listener, &mut seats, identity, timing, waiting);
    let mut streams: Vec<TcpStream> = seats.into_iter().flatten().collect();
    if let Err(error) = gathered {
        let report = Report::of(&error, 0).encode();
        for stream in &mut streams {
            // Whoever has gone meanwhile need not be told.
            let _ = frame::write(stream, Kind::Failed, &report);
        }
        return Err(error);
    }
    for (i, stream) in streams.iter_mut().enumerate() {
        let address = stream.peer_addr().map_or(String::new(), |address| address.to_string());
        frame::write(stream, Kind::Welcome, &[]).map_err(|e| Error::Rank {
            rank: i + 1,
            address,
            reason: lost(&e, Duration::ZERO),
            trouble: Trouble::Vanished,
        })?;
    }
    Ok(streams)
}

fn gather(
    listener: &TcpListener,
    seats: &mut [Option<TcpStream>],
    identity: &Identity,
    timing: &Timing,
    waiting: &mut dyn FnMut(&str),
) -> Result<()> {
    let world_size = seats.len() + 1;
    let at = listener.local_addr().map_or("its address".into(), |address| address.to_string());
    let failed = |e: std::io::Error| Error::Invalid(format!("rank 0 cannot listen at {at}: {e}"));
    listener.set_nonblocking(true).map_err(failed)?;
    let begun = Instant::now();
    let (mut said, mut strangers) = (false, 0);
    let (sender, introduced): (Sender<Introduced>, Receiver<Introduced>) = channel();
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
        match listener.accept() {
            Ok((stream, _)) if strangers < STRANGERS => {
                strangers += 1;
                let sender = sender.clone();
                let introduce = move || drop(sender.send(introduction(stream)));
                std::thread::Builder::new().name("introduction".into()).spawn(introduce).map_err(failed)?;
            }
            // Too many at a time, or one that went away at once.
            Ok(_) | Err(_) => {}
        }
        let Ok(introduced) = introduced.recv_timeout(POLL) else { continue };
        strangers -= 1;
        let Some((mut stream, hello)) = introduced else { continue };
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

type Introduced = Option<(TcpStream, Result<Hello, u32>)>;

/// Reads what a connection says of itself; `None` where that is nothing.
fn introduction(mut stream: TcpStream) -> Introduced {
    stream.set_nonblocking(false).ok()?;
    stream.set_read_timeout(Some(INTRODUCTION)).ok()?;
    stream.set_write_timeout(Some(INTRODUCTION)).ok()?;
    let frame = frame::read(&mut stream, 1).ok().filter(|frame| frame.kind == Kind::Hello)?;
    stream.set_write_timeout(None).ok()?;
    Some((stream, Hello::decode(&frame.payload)?))
}

/// Gives a process its place, or says why it has none.
fn seat(
    seats: &mut [Option<TcpStream>],
    mut stream: TcpStream,
    hello: Result<Hello, u32>,
    identity: &Identity,
) -> Result<()> {
    let world_size = seats.len() + 1;
    let address = stream.peer_addr().map_or(String::new(), |address| address.to_string());
    let (rank, wrong) = match hello {
        Err(protocol) => (0, Some(format!("speaks version {protocol} of the protocol, rank 0 version {PROTOCOL}"))),
        Ok(Hello { member, digests, .. }) => {
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
            (rank, wrong)
        }
    };
    let Some(wrong) = wrong else {
        seats[rank - 1] = Some(stream);
        return Ok(());
    };
    let reason = format!("{wrong}; start every rank by the same command, with the same version, model and data");
    let error = Error::Rank { rank, address, reason, trouble: Trouble::Differs };
    let _ = frame::write(&mut stream, Kind::Failed, &Report::of(&error, 0).encode());
    Err(error)
}

/// Connects to rank 0, which `find` says the address of as soon as it is known, and waits to be let in.
pub(super) fn follow(
    member: Member,
    find: &mut dyn FnMut() -> Option<String>,
    identity: &Identity,
    timing: &Timing,
    waiting: &mut dyn FnMut(&str),
) -> Result<TcpStream> {
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

fn connect(address: &str) -> std::io::Result<TcpStream> {
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

/// Introduces itself and waits for the answer, which comes when all are there.
fn admitted(mut stream: TcpStream, member: Member, identity: &Identity, timing: &Timing) -> Result<TcpStream> {
    let address = stream.peer_addr().map_or(String::new(), |address| address.to_string());
    let error = |trouble, reason| Error::Rank { rank: 0, address: address.clone(), reason, trouble };
    let failed = |e: std::io::Error| error(Trouble::Vanished, lost(&e, timing.rendezvous));
    let ticks = timing.rendezvous.as_millis() / timing.tick.as_millis().max(1);
    stream.set_read_timeout(Some(timing.tick)).map_err(failed)?;
    frame::write(&mut stream, Kind::Hello, &Hello::new(member, identity).encode()).map_err(failed)?;
    match frame::read(&mut stream, (ticks as u32).saturating_add(2)).map_err(failed)? {
        Frame { kind: Kind::Welcome, .. } => Ok(stream),
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
