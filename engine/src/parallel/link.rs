//! A connection to another rank: a thread reads it all the time, so that the end of the other is known when it happens and a
//! write to it never waits for ever.

use std::io::ErrorKind;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::frame::{self, Frame, Kind, TEXT};
use super::rendezvous::Timing;
use crate::Trouble;
use crate::{Error, Result};

/// Frames that wait to be taken; a rank that is ahead waits with the rest in its own hands.
pub(super) const AHEAD: usize = 4;
/// How long a last word may take, and the reason for a failed write may be waited for.
const PARTING: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(10);

/// A connection, as the thread that trains holds it.
pub(super) struct Link {
    /// The rank at the other end.
    pub(super) rank: usize,
    pub(super) address: SocketAddr,
    writer: Mutex<TcpStream>,
    incoming: Mutex<Receiver<Frame>>,
    ended: Arc<Mutex<Option<Ended>>>,
}

/// Why nothing more comes.
#[derive(Clone, Debug)]
enum Ended {
    /// The other has done all that it had to do.
    Done,
    /// It said what happened, to itself or to another.
    Told(Report),
    /// It is gone, or not to be believed.
    Lost(String),
}

/// What a [`Kind::Failed`] frame says.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Report {
    pub(super) trouble: Trouble,
    /// Whose trouble it is, and where that rank is; empty where the sender is meant.
    pub(super) rank: usize,
    pub(super) address: String,
    pub(super) reason: String,
}

const TROUBLES: [Trouble; 3] = [Trouble::Vanished, Trouble::Failed, Trouble::Differs];

impl Report {
    /// What an error of this run is to the others; `rank` is this one.
    pub(super) fn of(error: &Error, rank: usize) -> Self {
        match error {
            Error::Rank { rank, address, reason, trouble } => {
                Self { trouble: *trouble, rank: *rank, address: address.clone(), reason: reason.clone() }
            }
            other => Self { trouble: Trouble::Failed, rank, address: String::new(), reason: other.to_string() },
        }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let trouble = TROUBLES.iter().position(|t| *t == self.trouble).unwrap_or_default();
        let mut bytes = vec![trouble as u8];
        bytes.extend((self.rank as u32).to_le_bytes());
        bytes.extend(format!("{}\n{}", self.address, self.reason).bytes().take(TEXT));
        bytes
    }

    /// Control characters, which could do things to a terminal, are left out.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (head, text) = bytes.split_at_checked(5)?;
        let rank = u32::from_le_bytes([head[1], head[2], head[3], head[4]]) as usize;
        let text = String::from_utf8_lossy(text);
        let (address, reason) = text.split_once('\n')?;
        let plain = |text: &str| text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let trouble = *TROUBLES.get(usize::from(head[0]))?;
        Some(Self { trouble, rank, address: plain(address), reason: plain(reason) })
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Link {
    /// Takes over a connection to a rank that was let in.
    pub(super) fn new(rank: usize, stream: TcpStream, timing: &Timing) -> std::io::Result<Self> {
        let address = stream.peer_addr()?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(timing.tick))?;
        let (reader, ended) = (stream.try_clone()?, Arc::new(Mutex::new(None)));
        let (sender, incoming) = sync_channel(AHEAD);
        let (verdict, timing) = (ended.clone(), timing.clone());
        std::thread::Builder::new()
            .name(format!("rank {rank}"))
            .spawn(move || listen(reader, &sender, &verdict, &timing))?;
        Ok(Self { rank, address, writer: Mutex::new(stream), incoming: Mutex::new(incoming), ended })
    }

    /// Sends a frame.
    pub(super) fn send(&self, kind: Kind, payload: &[u8]) -> Result<()> {
        let written = frame::write(&mut *locked(&self.writer), kind, payload);
        written.map_err(|error| {
            // The reading thread knows more than that a pipe is broken, or will in a moment.
            let begun = Instant::now();
            while locked(&self.ended).is_none() && begun.elapsed() < PARTING {
                std::thread::sleep(POLL);
            }
            self.trouble().unwrap_or_else(|| self.error(Trouble::Vanished, lost(&error, Duration::ZERO)))
        })
    }

    /// A sign of life, unless the connection is in use, which is one.
    pub(super) fn beat(&self) {
        if let Ok(mut writer) = self.writer.try_lock() {
            // A connection that has ended is the reading thread's to notice.
            let _ = frame::write(&mut *writer, Kind::Alive, &[]);
        }
    }

    /// The next frame; `None` where there is none for so long.
    pub(super) fn receive(&self, wait: Duration) -> Result<Option<Frame>> {
        match locked(&self.incoming).recv_timeout(wait) {
            Ok(frame) => Ok(Some(frame)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(self.trouble().unwrap_or_else(|| {
                let reason = "ended its run while others have not: were all started by the same command?".into();
                self.error(Trouble::Vanished, reason)
            })),
        }
    }

    /// What ended the connection, if that is known and was no regular end.
    pub(super) fn trouble(&self) -> Option<Error> {
        match locked(&self.ended).clone()? {
            Ended::Done => None,
            Ended::Lost(reason) => Some(self.error(Trouble::Vanished, reason)),
            Ended::Told(Report { trouble, rank, address, reason }) => {
                let address = if address.is_empty() { self.address.to_string() } else { address };
                Some(Error::Rank { rank, address, reason, trouble })
            }
        }
    }

    /// Whether the other is there, as far as is known.
    pub(super) fn check(&self) -> Result<()> {
        self.trouble().map_or(Ok(()), Err)
    }

    /// An error about the rank at the other end.
    pub(super) fn error(&self, trouble: Trouble, reason: String) -> Error {
        Error::Rank { rank: self.rank, address: self.address.to_string(), reason, trouble }
    }

    /// Says a last word, and no longer writes. Whoever is being written to at this moment is given a little time.
    pub(super) fn part(&self, kind: Kind, payload: &[u8]) {
        let begun = Instant::now();
        while begun.elapsed() < PARTING && locked(&self.ended).is_none() {
            if let Ok(mut writer) = self.writer.try_lock() {
                let _ = writer.set_write_timeout(Some(PARTING));
                let _ = frame::write(&mut *writer, kind, payload);
                let _ = writer.shutdown(Shutdown::Write);
                return;
            }
            std::thread::sleep(POLL);
        }
    }

    /// Waits a little for the other to have heard the last word: a process that exits at once may take it back.
    pub(super) fn heard(&self) {
        let begun = Instant::now();
        while begun.elapsed() < PARTING && locked(&self.ended).is_none() {
            std::thread::sleep(POLL);
        }
    }
}

/// Reads a connection to its end.
fn listen(mut stream: TcpStream, sender: &SyncSender<Frame>, ended: &Mutex<Option<Ended>>, timing: &Timing) {
    let end = loop {
        match frame::read(&mut stream, timing.patience) {
            Ok(Frame { kind: Kind::Alive, .. }) => {}
            Ok(Frame { kind: Kind::Bye, .. }) => break Ended::Done,
            Ok(Frame { kind: Kind::Failed, payload }) => match Report::decode(&payload) {
                Some(report) => break Ended::Told(report),
                None => break Ended::Lost("sent a report that cannot be read".into()),
            },
            Ok(frame) => {
                if sender.send(frame).is_err() {
                    break Ended::Done;
                }
            }
            Err(error) => break Ended::Lost(lost(&error, timing.silence())),
        }
    };
    *locked(ended) = Some(end);
    // Who is writing to it stops waiting.
    let _ = stream.shutdown(Shutdown::Both);
}

/// What an error of a connection means.
pub(super) fn lost(error: &std::io::Error, silence: Duration) -> String {
    match error.kind() {
        ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted | ErrorKind::BrokenPipe => {
            "is gone: the connection was closed without a word; its own output, or the system's log of processes killed \
             for want of memory, says why"
                .into()
        }
        ErrorKind::TimedOut => {
            format!("has been silent for {silence:?}: its process is stopped, or the network between is down")
        }
        ErrorKind::InvalidData => error.to_string(),
        _ => format!("the connection failed: {error}"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_report_comes_back_and_does_nothing_to_a_terminal() {
        let error = Error::Rank {
            rank: 3,
            address: "10.0.0.1:99".into(),
            reason: "is \u{1b}[2Jgone".into(),
            trouble: Trouble::Vanished,
        };
        let report = Report::decode(&Report::of(&error, 0).encode()).unwrap();
        assert_eq!(report.reason, "is  [2Jgone");
        assert_eq!((report.rank, report.address.as_str(), report.trouble), (3, "10.0.0.1:99", Trouble::Vanished));
        let long = Report::of(&Error::Invalid("ä".repeat(TEXT)), 2).encode();
        assert_eq!(long.len(), 5 + TEXT);
        assert_eq!(Report::decode(&long).unwrap().trouble, Trouble::Failed);
        for broken in [&[][..], &[0; 4], &[9, 0, 0, 0, 0, b'\n'], &[0; 9]] {
            assert_eq!(Report::decode(broken), None);
        }
    }
}
