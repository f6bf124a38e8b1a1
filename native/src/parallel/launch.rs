//! `--processes N`: starts N ranks of the same command on this machine, passes on what stops them, and ends as they do.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::Silent;
use super::environment::{JOB, MEETING, RANK, WORLD_SIZE};
use crate::console::note;
use crate::interrupt;

/// How long the others may take to end once one has failed; then they are killed.
const GRACE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);

/// Signals so far.
static ASKED: AtomicUsize = AtomicUsize::new(0);

/// Runs this very command as `processes` ranks.
pub(crate) fn launch(processes: usize) -> Result<()> {
    let folder = tempfile::tempdir().context("cannot create a temporary folder for the ranks to meet")?;
    // Another user of this machine cannot be taken for a rank: the hashers' keys are random.
    let secret = || RandomState::new().build_hasher().finish();
    let job = format!("{:016x}{:016x}", secret(), secret());
    let executable = std::env::current_exe().context("cannot find the halfbyte command itself")?;
    ctrlc::set_handler(|| {
        if ASKED.fetch_add(1, Ordering::Relaxed) == 0 {
            interrupt::speak();
        }
    })?;
    let mut ranks = Ranks(Vec::new());
    for rank in 0..processes {
        let mut command = Command::new(&executable);
        command.args(std::env::args_os().skip(1)).stdin(Stdio::piped());
        command.env(RANK, rank.to_string()).env(WORLD_SIZE, processes.to_string()).env(JOB, &job);
        command.env(MEETING, folder.path().join("rank-0"));
        if rank > 0 {
            command.stdout(Stdio::null());
        }
        let child = command.spawn().with_context(|| format!("cannot start rank {rank}"))?;
        ranks.0.push(Rank { child, ended: None });
    }
    ranks.wait()
}

struct Rank {
    child: Child,
    ended: Option<ExitStatus>,
}

struct Ranks(Vec<Rank>);

impl Ranks {
    /// Waits for all of them. The first that fails decides the exit code.
    fn wait(&mut self) -> Result<()> {
        let mut failure: Option<(u8, Instant)> = None;
        let mut stopping = false;
        while self.0.iter().any(|rank| rank.ended.is_none()) {
            let mut failed = Vec::new();
            for (number, rank) in self.0.iter_mut().enumerate().filter(|(_, rank)| rank.ended.is_none()) {
                rank.ended = rank.child.try_wait()?;
                failed.extend(rank.ended.filter(|status| !status.success()).map(|s| (number, rank.child.id(), s)));
            }
            // Of those that ended at once, one that was killed is the cause.
            failed.sort_by_key(|(_, _, status)| status.code().is_some());
            if let (None, Some((number, process, status))) = (&failure, failed.first()) {
                if status.code().is_none() {
                    note!("rank {number} (process {process}) was ended: {status}");
                }
                failure = Some((code(*status), Instant::now()));
            }
            let failed = failure.is_some_and(|(code, _)| code != interrupt::EXIT_CODE);
            // A closed input asks a rank to save and stop. After a failure the ranks that have not met yet are to stop too; the
            // others do so by themselves, with a checkpoint.
            if !stopping && (failed || ASKED.load(Ordering::Relaxed) > 0) {
                stopping = true;
                self.0.iter_mut().for_each(|rank| drop(rank.child.stdin.take()));
            }
            let late = failure.is_some_and(|(_, when)| failed && when.elapsed() > GRACE);
            if late || ASKED.load(Ordering::Relaxed) > 1 {
                self.kill();
            }
            std::thread::sleep(POLL);
        }
        match failure {
            Some((code, _)) => Err(Silent(code).into()),
            None => Ok(()),
        }
    }

    fn kill(&mut self) {
        for rank in self.0.iter_mut().filter(|rank| rank.ended.is_none()) {
            let _ = rank.child.kill();
        }
    }
}

impl Drop for Ranks {
    /// Where one could not be started, or waited for.
    fn drop(&mut self) {
        self.kill();
        self.0.iter_mut().filter(|rank| rank.ended.is_none()).for_each(|rank| drop(rank.child.wait()));
    }
}

/// What a shell would report.
fn code(status: ExitStatus) -> u8 {
    #[cfg(unix)]
    if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&status) {
        return (128 + signal) as u8;
    }
    status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}
