//! Ranks as threads over the loopback interface: sums to the bit, and every way in which one can be lost.
#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::frame::{self, CHUNK, Kind};
use super::hello::Hello;
use super::peers::{Calls, Meeting};
use super::rendezvous::{follow, lead};
use super::{Collective, Group, Identity, Member, Timing, digest};
use crate::{Error, Result, Trouble};

/// Silence of five seconds is death: longer than a thread waits for its turn on a busy machine.
fn timing() -> Timing {
    Timing { tick: Duration::from_millis(100), patience: 50, rendezvous: Duration::from_secs(60) }
}

fn identity(job: &str, recipe: &str) -> Identity {
    let parts = vec![("the version".to_string(), digest(b"1")), ("the recipe".to_string(), digest(recipe.as_bytes()))];
    Identity { job: digest(job.as_bytes()), parts }
}

fn listener() -> (TcpListener, String) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (listener, address)
}

fn leader(listener: &TcpListener, world_size: usize) -> Result<Group> {
    Group::lead(listener, world_size, &identity("job", "recipe"), &timing(), &mut |_| {})
}

fn follower(address: &str, rank: usize, world_size: usize) -> Result<Group> {
    let find = &mut || Some(address.to_string());
    Group::follow(Member { rank, world_size }, find, &identity("job", "recipe"), &timing(), &mut |_| {})
}

/// A rank's bare connections, to rank 0 first, which do only what the test makes them do.
fn bare(address: &str, rank: usize, world_size: usize) -> Vec<TcpStream> {
    let (member, identity, timing) = (Member { rank, world_size }, identity("job", "recipe"), timing());
    let found = follow(member, &mut || Some(address.to_string()), &identity, &timing, &mut |_| {});
    let (stream, meeting) = found.unwrap();
    let met = meeting.meet(&identity, &timing, &|| Ok(())).unwrap();
    [stream].into_iter().chain(met.into_values()).collect()
}

/// Runs `work` on each of `world_size` ranks; the results in their order.
fn ranks<T: Send>(world_size: usize, work: impl Fn(Group) -> T + Sync) -> Vec<T> {
    let (listener, address) = listener();
    scope(|threads| {
        let (work, address) = (&work, address.as_str());
        let others: Vec<_> = (1..world_size)
            .map(|rank| threads.spawn(move || work(follower(address, rank, world_size).unwrap())))
            .collect();
        let mut results = vec![work(leader(&listener, world_size).unwrap())];
        results.extend(others.into_iter().map(|thread| thread.join().unwrap()));
        results
    })
}

fn values(rank: usize, count: usize) -> Vec<f32> {
    let mut random = ChaCha8Rng::seed_from_u64((rank * 1_000_003 + count) as u64);
    (0..count).map(|_| random.random_range(-1e3..1e3f32)).collect()
}

#[test]
fn a_sum_is_the_plain_sum_in_the_order_of_the_ranks_to_the_bit_on_each() {
    for world_size in 1..=5 {
        let counts = [0, 1, 2, 7, CHUNK - 1, CHUNK, CHUNK + 3, 4 * CHUNK, 6 * CHUNK + 5, 21 * CHUNK - 2];
        let found = ranks(world_size, |group| {
            counts.map(|count| {
                let mut values = values(group.rank(), count);
                group.all_reduce(&mut values).unwrap();
                values.into_iter().map(f32::to_bits).collect::<Vec<_>>()
            })
        });
        for (i, count) in counts.into_iter().enumerate() {
            let mut sum = values(0, count);
            for rank in 1..world_size {
                sum.iter_mut().zip(values(rank, count)).for_each(|(sum, value)| *sum += value);
            }
            let sum: Vec<u32> = sum.into_iter().map(f32::to_bits).collect();
            assert!(found.iter().all(|rank| rank[i] == sum), "{count} values of {world_size} ranks");
        }
    }
}

#[test]
fn a_flag_of_one_rank_reaches_all() {
    assert_eq!(ranks(3, |group| [2, 9].map(|raises| group.any(group.rank() == raises).unwrap())), [[true, false]; 3]);
}

/// The rank that an error blames, and for what.
fn blamed<T>(result: Result<T>) -> (usize, Trouble, String) {
    match result.err().unwrap() {
        Error::Rank { rank, trouble, reason, .. } => (rank, trouble, reason),
        other => panic!("{other}"),
    }
}

#[test]
fn a_rank_that_holds_something_else_is_named_to_all() {
    for other in [0, 2] {
        let found = ranks(4, |group| {
            group.agree("adapter", digest(b"same")).unwrap();
            let holds: &[u8] = if group.rank() == other { b"other" } else { b"same" };
            blamed(group.agree("adapter", digest(holds)))
        });
        // All differ from rank 0 where rank 0 is the other one.
        let named = if other == 0 { 1 } else { other };
        for (rank, trouble, reason) in found {
            assert_eq!((rank, trouble), (named, Trouble::Differs));
            assert!(reason.contains("does not hold the same adapter as rank 0"), "{reason}");
        }
    }
}

#[test]
fn ranks_that_are_not_in_step_find_out() {
    let found = ranks(3, |group| blamed(group.all_reduce(&mut vec![0.0; 7 + group.rank() / 2])));
    for (rank, trouble, reason) in found {
        assert_eq!((rank, trouble), (2, Trouble::Differs));
        assert!(reason.contains("sum 0 of 8 values where rank 0 is at sum 0 of 7 values"), "{reason}");
    }
}

#[test]
fn a_rank_that_vanishes_is_named_to_all_at_once() {
    // Before a sum, and when it has said that it takes part in one.
    for begins in [false, true] {
        let begun = Instant::now();
        let (listener, address) = listener();
        scope(|threads| {
            let other =
                threads.spawn(|| blamed(follower(&address, 1, 3).unwrap().all_reduce(&mut vec![1.0; 9 * CHUNK])));
            threads.spawn(|| {
                let mut streams = bare(&address, 2, 3);
                let begin = [0u64, 9 * CHUNK as u64].map(u64::to_le_bytes).concat();
                if begins {
                    frame::write(&mut streams[0], Kind::Begin, &begin).unwrap();
                    while frame::read(&mut streams[0], 100).unwrap().kind != Kind::Values {}
                }
            });
            let group = leader(&listener, 3).unwrap();
            let (rank, trouble, reason) = blamed(group.all_reduce(&mut vec![1.0; 9 * CHUNK]));
            assert_eq!((rank, trouble), (2, Trouble::Vanished));
            assert!(reason.contains("is gone"), "{reason}");
            assert!(group.check().is_err());
            let (rank, trouble, _) = other.join().unwrap();
            assert_eq!((rank, trouble), (2, Trouble::Vanished));
        });
        assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    }
}

#[test]
fn rank_0_is_missed_too_even_in_the_middle_of_a_large_message() {
    let (listener, address) = listener();
    scope(|threads| {
        let other = threads.spawn(|| {
            let group = follower(&address, 1, 2).unwrap();
            // More than the system holds for a reader that does not read.
            group.all_reduce(&mut vec![1.0; 64 * CHUNK])
        });
        // It gives no sign of life: stopped, or behind a network that is down.
        let silent = lead(&listener, 2, &identity("job", "recipe"), &timing(), &mut |_| {}).unwrap();
        let (rank, trouble, reason) = blamed(other.join().unwrap());
        assert_eq!((rank, trouble), (0, Trouble::Vanished));
        assert!(reason.contains("silent for 5s"), "{reason}");
        drop(silent);
    });
}

#[test]
fn a_rank_that_takes_long_is_waited_for() {
    ranks(2, |group| {
        if group.rank() == 1 {
            sleep(timing().silence() + Duration::from_secs(1));
        }
        group.all_reduce(&mut [1.0]).unwrap();
    });
}

#[test]
fn a_rank_that_fails_says_why() {
    let found = ranks(3, |group| match group.rank() {
        1 => {
            group.fail("device `cuda`: out of memory");
            (1, Trouble::Failed, "device `cuda`: out of memory".to_string())
        }
        _ => blamed(group.all_reduce(&mut [0.0; 3])),
    });
    for found in found {
        assert_eq!(found, (1, Trouble::Failed, "device `cuda`: out of memory".to_string()));
    }
}

#[test]
fn what_is_no_frame_ends_the_run_and_not_the_process() {
    let mut flipped = Vec::new();
    frame::write(&mut flipped, Kind::Begin, &[0; 16]).unwrap();
    *flipped.last_mut().unwrap() ^= 4;
    let mut unasked = Vec::new();
    frame::write(&mut unasked, Kind::Welcome, &[]).unwrap();
    for (bytes, expected) in [
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), "no frame of halfbyte's"),
        (vec![0xff; 4096], "no frame of halfbyte's"),
        (flipped, "checksum is wrong"),
        (unasked, "is at Welcome where rank 0 is at Begin"),
    ] {
        let (listener, address) = listener();
        scope(|threads| {
            threads.spawn(|| {
                let stream = &mut bare(&address, 1, 2)[0];
                let _ = stream.write_all(&bytes);
                // Open until rank 0 has seen it.
                let _ = frame::read(stream, 100);
            });
            let (rank, _, reason) = blamed(leader(&listener, 2).unwrap().all_reduce(&mut [1.0]));
            assert!(rank == 1 && reason.contains(expected), "{reason}");
        });
    }
}

#[test]
fn whoever_runs_something_else_is_refused_by_name() {
    let start = |member: Member, recipe: &str| {
        let (listener, address) = listener();
        scope(|threads| {
            let find = &mut || Some(address.clone());
            let other = threads.spawn(|| leader(&listener, 2).map(drop));
            let refused = Group::follow(member, find, &identity("job", recipe), &timing(), &mut |_| {}).map(drop);
            (blamed(refused), blamed(other.join().unwrap()))
        })
    };
    for (rank, world_size, recipe, expected) in [
        (1, 2, "another", "runs something else than rank 0: the recipe differs"),
        (1, 3, "recipe", "was started as one of 3, rank 0 as one of 2"),
        (2, 2, "recipe", "has no place among 2"),
        (0, 2, "recipe", "has no place among 2"),
    ] {
        let (refused, refusing) = start(Member { rank, world_size }, recipe);
        assert_eq!(refused, refusing);
        assert_eq!((refused.0, refused.1), (rank, Trouble::Differs));
        assert!(refused.2.contains(expected), "{}", refused.2);
    }
}

#[test]
fn strangers_and_other_jobs_are_turned_away_and_waited_on() {
    let (listener, address) = listener();
    scope(|threads| {
        let lead = threads.spawn(|| leader(&listener, 2).unwrap().any(false));
        // One that says nothing, one that speaks another language, and one of another job.
        let mute = TcpStream::connect(&address).unwrap();
        TcpStream::connect(&address).unwrap().write_all(b"SSH-2.0-OpenSSH_9.2\r\n").unwrap();
        let find = &mut || Some(address.clone());
        let member = Member { rank: 1, world_size: 2 };
        let other = Group::follow(member, find, &identity("another", "recipe"), &timing(), &mut |_| {}).map(drop);
        let (_, trouble, reason) = blamed(other);
        assert!(trouble == Trouble::Failed && reason.contains("is another job"), "{reason}");
        assert!(!follower(&address, 1, 2).unwrap().any(false).unwrap());
        assert!(!lead.join().unwrap().unwrap());
        drop(mute);
    });
}

/// What a rank that rank 0 has let in does next, whose calls are these, and where it listens.
fn meeting(calls: &[u8], member: Member) -> (Meeting, String) {
    let (listener, address) = listener();
    (Meeting { member, listener, calls: Calls::decode(calls, member).unwrap() }, address)
}

#[test]
fn only_ranks_of_the_run_are_met() {
    let member = Member { rank: 1, world_size: 4 };
    let (meeting, address) = meeting(b"", member);
    let calls = [
        b"SSH-2.0-OpenSSH_9.2\r\n".to_vec(),
        Hello::new(Member { rank: 2, world_size: 4 }, 0, &identity("another", "recipe")).encode(),
        Hello::new(Member { rank: 2, world_size: 3 }, 0, &identity("job", "recipe")).encode(),
        Hello::new(member, 0, &identity("job", "recipe")).encode(),
        Hello::new(Member { rank: 0, world_size: 4 }, 0, &identity("job", "recipe")).encode(),
        Hello::new(Member { rank: 4, world_size: 4 }, 0, &identity("job", "recipe")).encode(),
    ];
    let call = |hello: &[u8]| {
        let mut stream = TcpStream::connect(&address).unwrap();
        frame::write(&mut stream, Kind::Hello, hello).unwrap();
        stream
    };
    let _strangers: Vec<TcpStream> = calls.iter().map(|hello| call(hello)).collect();
    let ranks =
        [2, 3].map(|rank| call(&Hello::new(Member { rank, world_size: 4 }, 0, &identity("job", "recipe")).encode()));
    let met = meeting.meet(&identity("job", "recipe"), &timing(), &|| Ok(())).unwrap();
    let found: Vec<_> = met.iter().map(|(rank, stream)| (*rank, stream.peer_addr().unwrap())).collect();
    let expected = [2, 3].into_iter().zip(ranks.iter().map(|stream| stream.local_addr().unwrap()));
    assert_eq!(found, expected.collect::<Vec<_>>());
}

#[test]
fn a_rank_that_is_not_reached_is_named_with_what_may_be_between() {
    let brief = Timing { tick: Duration::from_millis(50), patience: 10, ..timing() };
    let member = Member { rank: 2, world_size: 3 };
    let (closed, address) = listener();
    drop(closed);
    let (calling, _) = meeting(format!("1 {address}\n").as_bytes(), member);
    let (rank, _, reason) = blamed(calling.meet(&identity("job", "recipe"), &brief, &|| Ok(())));
    assert!(
        rank == 1 && reason.starts_with("cannot be reached from rank 2: ") && reason.contains("firewall"),
        "{reason}"
    );
    let (called, address) = meeting(b"", member);
    let missed = said(called.meet(&identity("job", "recipe"), &brief, &|| Ok(())));
    assert!(missed.starts_with(&format!("rank 1 did not come to rank 2 at {address}; ")), "{missed}");
    // What rank 0 has heard comes first.
    let (called, _) = meeting(b"", member);
    let told = said(called.meet(&identity("job", "recipe"), &brief, &|| Err(Error::Invalid("told".into()))));
    assert_eq!(told, "told");
}

#[test]
fn ranks_that_do_not_come_are_named() {
    let brief = Timing { rendezvous: Duration::from_secs(2), ..timing() };
    let (listener, address) = listener();
    let (alone, told) = scope(|threads| {
        let one = threads.spawn(|| said(follower(&address, 2, 4)));
        let alone = Group::lead(&listener, 4, &identity("job", "recipe"), &brief, &mut |_| {});
        (said(alone), one.join().unwrap())
    });
    assert!(alone.starts_with("rank 1, 3 of 4 did not come to 127.0.0.1:"), "{alone}");
    assert!(told.contains("rank 1, 3 of 4 did not come"), "{told}");
    drop(listener);
    let find = &mut || Some(address.clone());
    let member = Member { rank: 1, world_size: 2 };
    let alone = said(Group::follow(member, find, &identity("job", "recipe"), &brief, &mut |_| {}));
    assert!(alone.starts_with("rank 1 did not reach rank 0 within 2s (127.0.0.1:"), "{alone}");
}

fn said<T>(result: Result<T>) -> String {
    result.err().unwrap().to_string()
}
