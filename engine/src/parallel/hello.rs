//! What a process says of itself to one that listens, and how that one takes in whoever connects.

use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use super::frame::{self, Kind};
use super::rendezvous::{Identity, Member};

const MAGIC: &[u8; 8] = b"halfbyte";
/// Of what is said over a connection.
pub(super) const PROTOCOL: u32 = 3;
/// Connections that may be introducing themselves at a time.
const STRANGERS: usize = 64;
/// How long a connection may take to come about, or to introduce itself, without a byte.
pub(super) const INTRODUCTION: Duration = Duration::from_secs(5);
pub(super) const POLL: Duration = Duration::from_millis(20);

/// What a process says of itself.
#[derive(Debug, PartialEq)]
pub(super) struct Hello {
    pub(super) member: Member,
    /// Where it listens for other ranks.
    pub(super) port: u16,
    pub(super) job: [u8; 32],
    pub(super) digests: Vec<[u8; 32]>,
}

impl Hello {
    pub(super) fn new(member: Member, port: u16, identity: &Identity) -> Self {
        let digests = identity.parts.iter().map(|(_, digest)| *digest).collect();
        Self { member, port, job: identity.job, digests }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        let Member { rank, world_size } = self.member;
        for number in [PROTOCOL, rank as u32, world_size as u32, self.port.into()] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.extend(self.job);
        bytes.extend(self.digests.iter().flatten());
        bytes
    }

    /// `None` where it is none; an error of another version's.
    pub(super) fn decode(bytes: &[u8]) -> Option<Result<Self, u32>> {
        let (numbers, rest) = bytes.strip_prefix(MAGIC)?.split_first_chunk::<16>()?;
        let number = |i: usize| u32::from_le_bytes(std::array::from_fn(|byte| numbers[4 * i + byte]));
        let [protocol, rank, world_size, port] = std::array::from_fn(number);
        if protocol != PROTOCOL {
            return Some(Err(protocol));
        }
        let (job, digests) = rest.split_first_chunk::<32>()?;
        let (digests, []) = digests.as_chunks::<32>() else { return None };
        let member = Member { rank: rank as usize, world_size: world_size as usize };
        Some(Ok(Self { member, port: port.try_into().ok()?, job: *job, digests: digests.to_vec() }))
    }
}

/// Who has introduced itself, and as what; an error of another version's.
pub(super) type Introduced = (TcpStream, Result<Hello, u32>);

/// Where connections come in. Each introduces itself on a thread of its own, so that none keeps the others waiting.
pub(super) struct Reception<'a> {
    listener: &'a TcpListener,
    strangers: usize,
    sender: Sender<Option<Introduced>>,
    introduced: Receiver<Option<Introduced>>,
}

impl<'a> Reception<'a> {
    pub(super) fn new(listener: &'a TcpListener) -> std::io::Result<Self> {
        listener.set_nonblocking(true)?;
        let (sender, introduced) = channel();
        Ok(Self { listener, strangers: 0, sender, introduced })
    }

    /// Who has introduced itself next; `None` where nobody has for a moment.
    pub(super) fn next(&mut self) -> std::io::Result<Option<Introduced>> {
        match self.listener.accept() {
            Ok((stream, _)) if self.strangers < STRANGERS => {
                self.strangers += 1;
                let sender = self.sender.clone();
                let introduce = move || drop(sender.send(introduction(stream)));
                std::thread::Builder::new().name("introduction".into()).spawn(introduce)?;
            }
            // Too many at a time, or one that went away at once.
            Ok(_) | Err(_) => {}
        }
        let Ok(introduced) = self.introduced.recv_timeout(POLL) else { return Ok(None) };
        self.strangers -= 1;
        Ok(introduced)
    }
}

/// Reads what a connection says of itself; `None` where that is nothing.
fn introduction(mut stream: TcpStream) -> Option<Introduced> {
    stream.set_nonblocking(false).ok()?;
    stream.set_read_timeout(Some(INTRODUCTION)).ok()?;
    stream.set_write_timeout(Some(INTRODUCTION)).ok()?;
    let frame = frame::read(&mut stream, 1).ok().filter(|frame| frame.kind == Kind::Hello)?;
    stream.set_write_timeout(None).ok()?;
    Some((stream, Hello::decode(&frame.payload)?))
}
