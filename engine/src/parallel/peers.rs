//! How the ranks other than 0 connect with each other, once all have come to rank 0.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Instant;

use super::frame::{self, Kind};
use super::hello::{Hello, POLL, Reception};
use super::rendezvous::{Identity, Member, Timing, connect};
use crate::Trouble;
use crate::{Error, Result};

/// What a failed meeting is put down to.
const PORTS: &str = "ranks connect with each other on ports that the system chooses, which no firewall between their machines may close";

/// The ranks that a rank connects to, and where they listen; all others connect to it.
#[derive(Debug, PartialEq)]
pub(super) struct Calls(BTreeMap<usize, SocketAddr>);

impl Calls {
    /// Those of `rank`, where `addresses` are of the ranks from 1 on as rank 0 sees them. Of two ranks the later one calls; but one that
    /// came to rank 0 by the loopback interface is seen under an address that means nothing to other machines, and calls.
    pub(super) fn of(rank: usize, addresses: &[SocketAddr]) -> Self {
        let here = |rank: usize| addresses[rank - 1].ip().is_loopback();
        let calls = |other: &usize| (here(rank), rank) > (here(*other), *other);
        Self((1..=addresses.len()).filter(calls).map(|other| (other, addresses[other - 1])).collect())
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        self.0.iter().map(|(rank, address)| format!("{rank} {address}\n")).collect::<String>().into_bytes()
    }

    /// `None` where it is no list of others than this rank.
    pub(super) fn decode(bytes: &[u8], member: Member) -> Option<Self> {
        let call = |line: &str| {
            let (rank, address) = line.split_once(' ')?;
            Some((rank.parse().ok()?, address.parse().ok()?))
        };
        let calls: BTreeMap<usize, SocketAddr> =
            std::str::from_utf8(bytes).ok()?.lines().map(call).collect::<Option<_>>()?;
        calls.keys().all(|rank| member.has_peer(*rank)).then_some(Self(calls))
    }
}

/// How a rank meets the others but 0.
pub(super) struct Meeting {
    /// Who it is.
    pub(super) member: Member,
    /// Where those call that it does not call.
    pub(super) listener: TcpListener,
    pub(super) calls: Calls,
}

impl Meeting {
    /// Connects with all of them, in half the time after which a rank is taken for dead. `check` tells of what rank 0 has heard.
    pub(super) fn meet(
        self,
        identity: &Identity,
        timing: &Timing,
        check: &dyn Fn() -> Result<()>,
    ) -> Result<BTreeMap<usize, TcpStream>> {
        let Self { member, listener, calls } = self;
        let deadline = Instant::now() + timing.silence() / 2;
        let hello = Hello::new(member, 0, identity);
        let call = |(rank, address)| Ok((rank, call(&hello, rank, address, deadline, check)?));
        let mut met: BTreeMap<usize, TcpStream> = calls.0.into_iter().map(call).collect::<Result<_>>()?;
        let failed = cannot_listen(member);
        let mut reception = Reception::new(&listener).map_err(&failed)?;
        let missing = |met: &BTreeMap<usize, TcpStream>| {
            (1..member.world_size).find(|rank| member.has_peer(*rank) && !met.contains_key(rank))
        };
        while let Some(missing) = missing(&met) {
            check()?;
            if Instant::now() > deadline {
                let at = listener.local_addr().map_err(&failed)?;
                let reason = format!("rank {missing} did not come to rank {} at {at}; {PORTS}", member.rank);
                return Err(Error::Invalid(reason));
            }
            // Whoever else comes is no rank of this run.
            if let Some((stream, Ok(Hello { member: Member { rank, world_size }, job, .. }))) =
                reception.next().map_err(&failed)?
                && (job, world_size) == (identity.job, member.world_size)
                && member.has_peer(rank)
            {
                met.entry(rank).or_insert(stream);
            }
        }
        Ok(met)
    }
}

/// What it means that a rank has no port for others.
pub(super) fn cannot_listen(member: Member) -> impl Fn(std::io::Error) -> Error {
    move |e| Error::Invalid(format!("rank {} cannot listen for others: {e}", member.rank))
}

/// Connects to a rank, which listens since before it came to rank 0, and introduces itself.
fn call(
    hello: &Hello,
    rank: usize,
    address: SocketAddr,
    deadline: Instant,
    check: &dyn Fn() -> Result<()>,
) -> Result<TcpStream> {
    loop {
        let called = connect(address).and_then(|mut stream| {
            frame::write(&mut stream, Kind::Hello, &hello.encode())?;
            Ok(stream)
        });
        let error = match called {
            Ok(stream) => return Ok(stream),
            Err(error) => error,
        };
        // Where it is gone rank 0 knows, or will in a moment.
        check()?;
        if Instant::now() > deadline {
            let reason = format!("cannot be reached from rank {}: {error}; {PORTS}", hello.member.rank);
            return Err(Error::Rank { rank, address: address.to_string(), reason, trouble: Trouble::Vanished });
        }
        std::thread::sleep(POLL);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn calls(addresses: &[SocketAddr]) -> Vec<Vec<usize>> {
        (1..=addresses.len()).map(|rank| Calls::of(rank, addresses).0.into_keys().collect()).collect()
    }

    #[test]
    fn of_two_ranks_one_calls_and_none_is_called_where_only_its_own_machine_reaches_it() {
        let [a, b, own] = ["10.0.0.1:1", "10.0.0.2:1", "127.0.0.1:1"].map(|address| address.parse().unwrap());
        assert_eq!(calls(&[a, b, a]), [vec![], vec![1], vec![1, 2]]);
        assert_eq!(calls(&[own; 3]), [vec![], vec![1], vec![1, 2]]);
        assert_eq!(calls(&[own, a, own, b]), [vec![2, 4], vec![], vec![1, 2, 4], vec![2]]);
        assert!(calls(&[]).is_empty());
    }

    #[test]
    fn a_list_of_calls_comes_back_and_what_is_none_is_refused() {
        let member = Member { rank: 3, world_size: 4 };
        let addresses = ["10.0.0.1:1", "[fe80::1]:65535", "10.0.0.3:3"].map(|address| address.parse().unwrap());
        let list = Calls::of(3, &addresses);
        assert_eq!(Calls::decode(&list.encode(), member), Some(list));
        assert_eq!(Calls::decode(b"", member), Some(Calls(BTreeMap::new())));
        for broken in
            ["1", "1 10.0.0.1", "x 10.0.0.1:1", "0 10.0.0.1:1", "3 10.0.0.1:1", "4 10.0.0.1:1", "1 a:1\n2 b:1"]
        {
            assert_eq!(Calls::decode(broken.as_bytes(), member), None, "{broken}");
        }
        assert_eq!(Calls::decode(&[0xff], member), None);
    }
}
