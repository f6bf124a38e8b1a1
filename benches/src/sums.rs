//! Seconds that ranks of a data-parallel run need to add up their gradients, over the number of ranks.
//!
//! `cargo run --release -p halfbyte-benches --bin sums -- 2,4,8` prints a table for processes on this machine, connected over its
//! loopback interface: of a sum of as many f32 as the adapter of Llama 3.1 8B has at rank 16, the time, and the processor time of
//! the rank that needs most of it, which is the time to expect where every rank has a processor to itself. Linux.

use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use halfbyte::parallel::{Collective, Group, Identity, Member, Timing};

/// Trained parameters of Llama 3.1 8B at rank 16 on all seven projections.
const VALUES: usize = 41_943_040;
const SUMS: usize = 8;
/// The unit of processor time in `/proc`, which is the same on every Linux.
const TICK: Duration = Duration::from_millis(10);

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.as_slice() {
        [counts] => measure(counts),
        [address, rank, world_size] => {
            let member = Member { rank: rank.parse()?, world_size: world_size.parse()? };
            let group =
                Group::follow(member, &mut || Some(address.clone()), &identity(), &Timing::default(), &mut |_| {});
            println!("{}", sums(&group?)?[1]);
            Ok(())
        }
        _ => bail!("use: sums RANKS,RANKS,..."),
    }
}

fn identity() -> Identity {
    Identity { job: [0; 32], parts: vec![] }
}

fn measure(counts: &str) -> Result<()> {
    println!("{VALUES} values, {SUMS} sums; seconds of one");
    println!("| ranks | time | processor time of the busiest rank |");
    println!("|---|---|---|");
    for count in counts.split(',') {
        let world_size: usize = count.trim().parse().with_context(|| format!("`{count}` is no number of ranks"))?;
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let address = listener.local_addr()?.to_string();
        let start = |rank: usize| {
            let rank = [address.clone(), rank.to_string(), world_size.to_string()];
            Command::new(std::env::current_exe()?).args(rank).stdout(Stdio::piped()).spawn()
        };
        let others = (1..world_size).map(start).collect::<std::io::Result<Vec<_>>>()?;
        let group = Group::lead(&listener, world_size, &identity(), &Timing::default(), &mut |_| {})?;
        let [time, mut busiest] = sums(&group)?;
        drop(group);
        for other in others {
            let printed = other.wait_with_output()?.stdout;
            busiest = f64::max(busiest, String::from_utf8(printed)?.trim().parse().context("a rank failed")?);
        }
        println!("| {world_size} | {time:.3} | {busiest:.3} |");
    }
    Ok(())
}

/// Of one sum, the time and this process's processor time.
fn sums(group: &Group) -> Result<[f64; 2]> {
    let mut values = vec![group.rank() as f32; VALUES];
    // The first connects, and touches memory.
    group.all_reduce(&mut values)?;
    let (begun, used) = (Instant::now(), processor_time()?);
    for _ in 0..SUMS {
        group.all_reduce(&mut values)?;
    }
    let spent = [begun.elapsed(), processor_time()? - used];
    Ok(spent.map(|time| time.as_secs_f64() / SUMS as f64))
}

/// Of all threads of this process, for itself and for what the system does for it.
fn processor_time() -> Result<Duration> {
    let stat = std::fs::read_to_string("/proc/self/stat").context("/proc/self/stat")?;
    let (_, fields) = stat.rsplit_once(')').context("/proc/self/stat")?;
    let ticks = fields.split_whitespace().skip(11).take(2).map(str::parse::<u32>).sum::<Result<u32, _>>()?;
    Ok(TICK * ticks)
}
