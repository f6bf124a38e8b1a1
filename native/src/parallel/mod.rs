//! Data-parallel runs: which rank this process is, how the ranks find each other, and what one says to the others when it ends.

mod environment;
mod launch;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, ToSocketAddrs};
use std::path::Path;

use anyhow::{Context, Result, bail};
use halfbyte::files::write_atomic;
use halfbyte::parallel::{Group, Identity, Member, Timing};
use halfbyte::train::{Run, SavedCheckpoint};
use halfbyte::{Error, Trouble};

pub(crate) use environment::Placement;
use environment::{Launcher, Meeting, Variables};
pub(crate) use launch::launch;

use crate::console::note;
use crate::device::Seat;
use crate::interrupt::{self, Interrupted};
use crate::shell::word;

/// How a run is to be carried out.
pub(crate) enum Start {
    /// By this process alone.
    Alone,
    /// By so many processes on this machine, which this one starts.
    Launch(usize),
    /// This process is one of several.
    Rank(Placement),
}

/// What `--processes` and the environment ask for.
pub(crate) fn start(processes: Option<usize>) -> Result<Start> {
    let get = |name: &str| std::env::var(name).ok();
    let placement = environment::placement(&Variables(&get)).context("data-parallel training")?;
    Ok(match (placement, processes) {
        (Some(place), Some(processes)) if place.launcher != Launcher::Halfbyte => bail!(
            "--processes {processes} and the environment both start ranks: this process is already rank {} of {}; leave \
             --processes out",
            place.rank,
            place.world_size
        ),
        (Some(place), _) => Start::Rank(place),
        (None, Some(processes)) if processes > 1 => Start::Launch(processes),
        (None, _) => Start::Alone,
    })
}

impl Placement {
    /// Rank 0 writes and prints; the others are quiet.
    pub(crate) fn leads(&self) -> bool {
        self.rank == 0
    }

    /// Whether it is this process's part to say that a signal came: rank 0's, unless the process that started it does.
    pub(crate) fn speaks(&self) -> bool {
        self.leads() && self.launcher != Launcher::Halfbyte
    }

    /// Where on its machine the rank runs. SLURM and Open MPI bind processes to cores themselves.
    pub(crate) fn seat(&self) -> Seat {
        let shared = matches!(self.launcher, Launcher::Halfbyte | Launcher::Torch);
        let share = self.local_size.filter(|_| shared && std::env::var_os("RAYON_NUM_THREADS").is_none());
        let all = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = share.map(|ranks| (all / ranks.max(1)).max(1));
        Seat { local_rank: self.local_rank, threads, ..Seat::default() }
    }

    /// Before anything is read. Under `--processes` rank 0 reads first: what is wrong is said once, and what has to be
    /// downloaded is downloaded once. Ctrl-C is the parent's to pass on.
    pub(crate) fn prepare(&self) {
        let Meeting::File(file) = &self.meeting else { return };
        interrupt::follow_parent();
        while !self.leads() && !file.exists() {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }

    /// Finds the other ranks of `run`, which goes on from the checkpoint `from`.
    pub(crate) fn join(&self, run: &Run, from: Option<&SavedCheckpoint>) -> Result<Group> {
        let identity = self.identity(run, from)?;
        let (member, timing) = (Member { rank: self.rank, world_size: self.world_size }, Timing::default());
        let waiting = &mut |sentence: &str| {
            let srun = self.launcher == Launcher::Slurm && std::env::var_os("SLURM_STEP_ID").is_none();
            let hint = if srun { "; in a batch script tasks are started by srun" } else { "" };
            note!("{sentence}{hint}");
        };
        if self.leads() {
            let listener = self.listen()?;
            if let Meeting::File(file) = &self.meeting {
                write_atomic(file, listener.local_addr()?.to_string().as_bytes())?;
            }
            return Ok(Group::lead(&listener, self.world_size, &identity, &timing, waiting)?);
        }
        let find = &mut || match &self.meeting {
            Meeting::File(file) => std::fs::read_to_string(file).ok(),
            Meeting::Address { port, .. } if self.on_one_machine() => Some(format!("127.0.0.1:{port}")),
            // An IPv6 address in colons of its own.
            Meeting::Address { host, port } if host.contains(':') => Some(format!("[{host}]:{port}")),
            Meeting::Address { host, port } => Some(format!("{host}:{port}")),
        };
        Ok(Group::follow(member, find, &identity, &timing, waiting)?)
    }

    fn identity(&self, run: &Run, from: Option<&SavedCheckpoint>) -> Result<Identity> {
        let digest = |text: &str| halfbyte::parallel::digest(text.as_bytes());
        let mut parts = vec![("the version of halfbyte".to_string(), digest(env!("CARGO_PKG_VERSION")))];
        parts.extend(run.shared()?.into_iter().map(|(name, content)| (name, digest(&content))));
        let from = match from {
            None => String::new(),
            Some(from) => serde_json::to_string(&from.state)?,
        };
        parts.push(("the checkpoint to go on from, in a folder that every machine must see,".into(), digest(&from)));
        Ok(Identity { job: digest(&self.job), parts })
    }

    /// Listens as narrowly as the run allows: on the loopback interface where all ranks are on this machine, else at
    /// `MASTER_ADDR`, and on every interface where that name says nothing of one (Kubeflow calls rank 0 `localhost` to itself,
    /// Debian a host 127.0.1.1).
    fn listen(&self) -> Result<TcpListener> {
        let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let (host, port) = match &self.meeting {
            Meeting::File(_) => return Ok(TcpListener::bind((loopback, 0))?),
            Meeting::Address { host, port } => (host, *port),
        };
        let bound = if self.on_one_machine() {
            TcpListener::bind((loopback, port))
        } else if let Ok(address) = host.parse::<IpAddr>() {
            TcpListener::bind((address, port)).or_else(|e| anywhere(e, port))
        } else {
            let found = (host.as_str(), port).to_socket_addrs();
            let addresses = found.with_context(|| format!("MASTER_ADDR is `{host}`, which cannot be looked up"))?;
            let outer: Vec<SocketAddr> = addresses.filter(|address| !address.ip().is_loopback()).collect();
            match outer.as_slice() {
                [] => anywhere(std::io::ErrorKind::AddrNotAvailable.into(), port),
                outer => TcpListener::bind(outer).or_else(|e| anywhere(e, port)),
            }
        };
        bound.with_context(|| {
            format!("rank 0 cannot listen on port {port}; if another job has it, set MASTER_PORT to a free one for all ranks")
        })
    }

    /// What is added to a command that goes on with the run.
    pub(crate) fn flag(&self) -> String {
        match self.launcher {
            Launcher::Halfbyte => format!(" --processes {}", self.world_size),
            _ => String::new(),
        }
    }

    /// Whether it is this rank's part to save where the run stands after that error: rank 0's, and that of the next where rank 0
    /// is the one that is gone. Ranks that hold other adapters save neither.
    pub(crate) fn saves_after(&self, error: &anyhow::Error) -> bool {
        match error.downcast_ref() {
            Some(Error::Rank { trouble: Trouble::Differs, .. }) => false,
            Some(Error::Rank { rank: 0, trouble: Trouble::Vanished, .. }) => self.rank == 1,
            Some(Error::Rank { .. }) => self.leads(),
            _ => false,
        }
    }

    /// The error as this rank reports it. Of several processes that one terminal shows, one says what they all have met.
    pub(crate) fn reported(&self, error: anyhow::Error) -> anyhow::Error {
        let met_by_all = matches!(error.downcast_ref(), Some(Error::Rank { .. } | Error::NonFinite { .. }));
        match () {
            () if self.leads() => error,
            () if error.is::<Interrupted>() => Silent(interrupt::EXIT_CODE).into(),
            () if met_by_all && !self.saves_after(&error) && self.launcher == Launcher::Halfbyte => Silent(1).into(),
            () => error.context(format!("rank {}", self.rank)),
        }
    }
}

/// Listens on every interface where an address is none of this machine's.
fn anywhere(error: std::io::Error, port: u16) -> std::io::Result<TcpListener> {
    if error.kind() != std::io::ErrorKind::AddrNotAvailable {
        return Err(error);
    }
    TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)))
}

/// Tells the other ranks of an error that they have not met themselves.
pub(crate) fn tell(group: &Group, error: &anyhow::Error) {
    if !error.is::<Interrupted>() && !matches!(error.downcast_ref(), Some(Error::Rank { .. })) {
        group.fail(&format!("{error:#}"));
    }
}

/// An end that another process has said all about.
#[derive(Debug)]
pub(crate) struct Silent(pub(crate) u8);

impl fmt::Display for Silent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ended with code {}", self.0)
    }
}

impl std::error::Error for Silent {}

/// The checkpoint that a run has just saved, and how to go on from it by the recipe as it was run, in words.
pub(crate) fn how_to_go_on(step: usize, saved: &Path, recipe: &Path, flag: &str) -> String {
    let (saved, recipe) = (saved.display(), word(recipe.display()));
    format!("stopped after step {step}; {saved} is saved; continue: halfbyte train {recipe} --resume{flag}")
}
