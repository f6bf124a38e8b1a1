//! Which rank of a data-parallel run this process is, by the variables that whatever started it has set: `halfbyte` itself,
//! torchrun and Kubeflow, Open MPI, SLURM.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

/// What `--processes` tells its processes.
pub(crate) const RANK: &str = "HALFBYTE_RANK";
pub(crate) const WORLD_SIZE: &str = "HALFBYTE_WORLD_SIZE";
pub(crate) const MEETING: &str = "HALFBYTE_MEETING";
pub(crate) const JOB: &str = "HALFBYTE_JOB";

/// What started the ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Launcher {
    /// `--processes`.
    Halfbyte,
    /// torchrun, Kubeflow's PyTorchJob, or whatever sets the same variables.
    Torch,
    OpenMpi,
    Slurm,
}

/// Where rank 0 is found.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Meeting {
    /// It writes its address into this file.
    File(PathBuf),
    /// It listens here.
    Address { host: String, port: u16 },
}

/// A rank's place in its run.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Placement {
    pub(crate) rank: usize,
    pub(crate) world_size: usize,
    /// This process among those on its machine, which is the GPU that it takes.
    pub(crate) local_rank: usize,
    /// How many those are, where the launcher says so.
    pub(crate) local_size: Option<usize>,
    pub(crate) meeting: Meeting,
    /// The same for all ranks of a run, and for no other run.
    pub(crate) job: String,
    pub(crate) launcher: Launcher,
}

impl Placement {
    /// All ranks are on this machine.
    pub(crate) fn on_one_machine(&self) -> bool {
        self.local_size == Some(self.world_size)
    }
}

/// Variables by their names.
pub(crate) struct Variables<'a>(pub(crate) &'a dyn Fn(&str) -> Option<String>);

impl Variables<'_> {
    fn text(&self, name: &str) -> Option<String> {
        (self.0)(name).map(|value| value.trim().to_string()).filter(|value| !value.is_empty())
    }

    fn number(&self, name: &str) -> Result<Option<usize>> {
        let parse = |text: String| text.parse().with_context(|| format!("{name} is `{text}`, which is no number"));
        self.text(name).map(parse).transpose()
    }

    fn needed(&self, name: &str, because: &str) -> Result<usize> {
        self.number(name)?.with_context(|| format!("{name} is not set, though {because}; set both, or neither"))
    }

    /// `MASTER_ADDR` and `MASTER_PORT`, each or what stands for it.
    fn meeting(&self, host: Option<String>, port: Option<u16>, how: &str) -> Result<Meeting> {
        let missing = |name| format!("{name} is not set: {how}");
        let host = self.text("MASTER_ADDR").or(host).with_context(|| missing("MASTER_ADDR"))?;
        let port = match self.number("MASTER_PORT")? {
            Some(port) => {
                Some(u16::try_from(port).with_context(|| format!("MASTER_PORT is {port}, which is no port"))?)
            }
            None => port,
        };
        Ok(Meeting::Address { host, port: port.with_context(|| missing("MASTER_PORT"))? })
    }
}

/// This process's place; `None` where it is to train alone.
pub(crate) fn placement(variables: &Variables<'_>) -> Result<Option<Placement>> {
    let found = match variables {
        v if v.text(RANK).is_some() => halfbyte(v)?,
        v if v.text("RANK").is_some() || v.text("WORLD_SIZE").is_some() => torch(v)?,
        v if v.text("OMPI_COMM_WORLD_RANK").is_some() || v.text("OMPI_COMM_WORLD_SIZE").is_some() => open_mpi(v)?,
        v => slurm(v)?,
    };
    match found {
        Some(Placement { rank, world_size, .. }) if rank >= world_size => {
            bail!(
                "this process is rank {rank} of {world_size}, which are counted from 0: look at the launcher's variables"
            )
        }
        found => Ok(found),
    }
}

fn halfbyte(v: &Variables<'_>) -> Result<Option<Placement>> {
    let because = format!("{RANK} is");
    let [rank, world_size] = [v.needed(RANK, &because)?, v.needed(WORLD_SIZE, &because)?];
    let text = |name| v.text(name).with_context(|| format!("{name} is not set, though {because}"));
    Ok(Some(Placement {
        rank,
        world_size,
        local_rank: rank,
        local_size: Some(world_size),
        meeting: Meeting::File(text(MEETING)?.into()),
        job: text(JOB)?,
        launcher: Launcher::Halfbyte,
    }))
}

fn torch(v: &Variables<'_>) -> Result<Option<Placement>> {
    let rank = v.needed("RANK", "WORLD_SIZE is")?;
    let world_size = v.needed("WORLD_SIZE", "RANK is")?;
    if world_size == 1 {
        return Ok(None);
    }
    let mut meeting = v.meeting(None, None, "where rank 0 is found; torchrun and Kubeflow set it")?;
    // There torchrun itself listens on the port that it tells.
    if let Meeting::Address { port, .. } = &mut meeting
        && v.text("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|used| used.eq_ignore_ascii_case("true"))
    {
        *port = port.checked_add(1).context("MASTER_PORT is 65535: the port after it is needed; choose another")?;
    }
    let run = ["TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT"].map(|name| v.text(name).unwrap_or_default());
    Ok(Some(Placement {
        rank,
        world_size,
        // Kubeflow has one process in a pod, and does not count it.
        local_rank: v.number("LOCAL_RANK")?.unwrap_or(0),
        local_size: v.number("LOCAL_WORLD_SIZE")?,
        meeting,
        job: format!("torch {}", run.join(" ")),
        launcher: Launcher::Torch,
    }))
}

fn open_mpi(v: &Variables<'_>) -> Result<Option<Placement>> {
    let rank = v.needed("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE is")?;
    let world_size = v.needed("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK is")?;
    if world_size == 1 {
        return Ok(None);
    }
    let how = "give mpirun the machine of rank 0, and a free port: -x MASTER_ADDR=HOST -x MASTER_PORT=29500";
    Ok(Some(Placement {
        rank,
        world_size,
        local_rank: v.number("OMPI_COMM_WORLD_LOCAL_RANK")?.unwrap_or(0),
        local_size: v.number("OMPI_COMM_WORLD_LOCAL_SIZE")?,
        meeting: v.meeting(None, None, how)?,
        job: format!("mpi {}", v.text("PMIX_NAMESPACE").unwrap_or_default()),
        launcher: Launcher::OpenMpi,
    }))
}

fn slurm(v: &Variables<'_>) -> Result<Option<Placement>> {
    // An interactive shell in an allocation of many tasks is a step of one.
    let tasks = match v.number("SLURM_STEP_NUM_TASKS")? {
        Some(tasks) => Some(tasks),
        None => v.number("SLURM_NTASKS")?,
    };
    let (world_size, rank) = match (tasks, v.number("SLURM_PROCID")?) {
        (None | Some(1), None | Some(0)) => return Ok(None),
        (Some(tasks), None) => bail!(
            "SLURM_PROCID is not set, though SLURM_NTASKS is {tasks}: start the tasks by srun halfbyte train ..., or one \
             process by env -u SLURM_NTASKS halfbyte train ..."
        ),
        (None, Some(rank)) => bail!("SLURM_NTASKS is not set, though SLURM_PROCID is {rank}; start the tasks by srun"),
        (Some(tasks), Some(rank)) => (tasks, rank),
    };
    let nodes = ["SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST"].into_iter().find_map(|name| v.text(name));
    // srun's own machine may be one that no rank is on.
    let host = nodes.as_deref().and_then(first_host).or_else(|| v.text("SLURM_LAUNCH_NODE_IPADDR"));
    // Jobs that share a machine take other ports; PyTorch Lightning's rule.
    let job = v.number("SLURM_JOB_ID")?;
    let port = job.map(|job| 15000 + (job % 10_000) as u16);
    let machines = match v.number("SLURM_STEP_NUM_NODES")? {
        Some(machines) => Some(machines),
        None => v.number("SLURM_NNODES")?,
    };
    let step = v.text("SLURM_STEP_ID").unwrap_or_default();
    Ok(Some(Placement {
        rank,
        world_size,
        local_rank: v.number("SLURM_LOCALID")?.unwrap_or(0),
        local_size: (machines == Some(1)).then_some(world_size),
        meeting: v.meeting(
            host,
            port,
            "where rank 0 is found; SLURM_JOB_NODELIST and SLURM_JOB_ID stand for it under srun",
        )?,
        job: format!("slurm {} {step}", job.unwrap_or_default()),
        launcher: Launcher::Slurm,
    }))
}

/// The first host of a list as SLURM writes it: of `gpu[03-07,9],login`, `gpu03`.
fn first_host(list: &str) -> Option<String> {
    let mut host = String::new();
    let mut rest = list;
    loop {
        let end = rest.find(['[', ',']).unwrap_or(rest.len());
        host.push_str(&rest[..end]);
        let Some(range) = rest[end..].strip_prefix('[') else { break };
        let (range, after) = range.split_once(']')?;
        host.push_str(range.split([',', '-']).next()?);
        rest = after;
    }
    Some(host).filter(|host| !host.is_empty())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn of(variables: &[(&str, &str)]) -> Result<Option<Placement>> {
        let get = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| value.to_string());
        placement(&Variables(&get))
    }

    fn refused(variables: &[(&str, &str)]) -> String {
        format!("{:#}", of(variables).unwrap_err())
    }

    fn at(host: &str, port: u16) -> Meeting {
        Meeting::Address { host: host.into(), port }
    }

    const MASTER: [(&str, &str); 2] = [("MASTER_ADDR", "10.0.0.1"), ("MASTER_PORT", "29500")];

    #[test]
    fn torchrun_and_kubeflow() {
        let torch = [("RANK", "3"), ("WORLD_SIZE", "4")];
        let place = of(&[&torch[..], &MASTER, &[("LOCAL_RANK", "1"), ("LOCAL_WORLD_SIZE", "2")]].concat());
        let place = place.unwrap().unwrap();
        assert_eq!((place.rank, place.world_size, place.local_rank), (3, 4, 1));
        assert_eq!((place.meeting.clone(), place.on_one_machine()), (at("10.0.0.1", 29500), false));
        // Kubeflow does not count the processes of a pod.
        let pod = of(&[&torch[..], &MASTER].concat()).unwrap().unwrap();
        assert_eq!((pod.local_rank, pod.local_size), (0, None));
        // There torchrun listens on its port itself.
        let agent = [("TORCHELASTIC_USE_AGENT_STORE", "True"), ("TORCHELASTIC_RUN_ID", "7")];
        let agent = of(&[&torch[..], &MASTER, &agent].concat()).unwrap().unwrap();
        assert_eq!(agent.meeting, at("10.0.0.1", 29501));
        assert_ne!(agent.job, pod.job);
        assert_eq!(of(&[("RANK", "0"), ("WORLD_SIZE", "1")]).unwrap(), None);
        assert!(refused(&[("RANK", "0")]).starts_with("WORLD_SIZE is not set, though RANK is"));
        assert!(refused(&[("WORLD_SIZE", "2")]).starts_with("RANK is not set"));
        assert!(refused(&torch).starts_with("MASTER_ADDR is not set"));
        assert!(refused(&[&torch[..], &MASTER[..1]].concat()).starts_with("MASTER_PORT is not set"));
        assert!(refused(&[&[("RANK", "4"), ("WORLD_SIZE", "4")], &MASTER[..]].concat()).contains("rank 4 of 4"));
        assert!(refused(&[("RANK", "x"), ("WORLD_SIZE", "4")]).contains("RANK is `x`, which is no number"));
        let port = [("MASTER_ADDR", "a"), ("MASTER_PORT", "70000")];
        assert!(refused(&[&torch[..], &port].concat()).contains("70000, which is no port"));
    }

    #[test]
    fn open_mpi() {
        let two = [("OMPI_COMM_WORLD_RANK", "1"), ("OMPI_COMM_WORLD_SIZE", "2")];
        let local = [("OMPI_COMM_WORLD_LOCAL_RANK", "1"), ("OMPI_COMM_WORLD_LOCAL_SIZE", "2")];
        // mpirun is itself a task of the allocation that it runs in.
        let slurm = [("SLURM_PROCID", "0"), ("SLURM_NTASKS", "9")];
        let place = of(&[&two[..], &local, &MASTER, &slurm].concat()).unwrap().unwrap();
        assert_eq!((place.rank, place.local_rank, place.launcher), (1, 1, Launcher::OpenMpi));
        assert!(place.on_one_machine());
        assert_eq!(of(&[("OMPI_COMM_WORLD_RANK", "0"), ("OMPI_COMM_WORLD_SIZE", "1")]).unwrap(), None);
        assert!(refused(&two).contains("-x MASTER_ADDR"));
        assert!(refused(&two[..1]).starts_with("OMPI_COMM_WORLD_SIZE is not set"));
        assert!(refused(&two[1..]).starts_with("OMPI_COMM_WORLD_RANK is not set"));
    }

    #[test]
    fn slurm() {
        let task = [("SLURM_PROCID", "2"), ("SLURM_NTASKS", "4"), ("SLURM_LOCALID", "0")];
        let job = [("SLURM_JOB_ID", "1234567"), ("SLURM_JOB_NODELIST", "gpu[03-04]"), ("SLURM_NNODES", "2")];
        let launch = [("SLURM_LAUNCH_NODE_IPADDR", "192.168.0.9")];
        let place = of(&[&task[..], &job, &launch].concat()).unwrap().unwrap();
        assert_eq!((place.rank, place.world_size, place.local_rank), (2, 4, 0));
        assert_eq!((place.meeting.clone(), place.on_one_machine()), (at("gpu03", 19567), false));
        let place = of(&[&task[..], &launch, &MASTER[1..]].concat()).unwrap().unwrap();
        assert_eq!(place.meeting, at("192.168.0.9", 29500));
        let place = of(&[&task[..], &job, &MASTER].concat()).unwrap().unwrap();
        assert_eq!(place.meeting, at("10.0.0.1", 29500));
        let place = of(&[&task[..], &job[..2], &[("SLURM_NNODES", "1")]].concat()).unwrap().unwrap();
        assert!(place.on_one_machine());
        // Shells: of one task, interactive in a larger allocation, and a batch script that names no number.
        let shell = [("SLURM_NTASKS", "1"), ("SLURM_PROCID", "0")];
        assert_eq!(of(&shell).unwrap(), None);
        assert_eq!(of(&shell[..1]).unwrap(), None);
        assert_eq!(of(&shell[1..]).unwrap(), None);
        let interactive = [("SLURM_NTASKS", "4"), ("SLURM_PROCID", "0"), ("SLURM_STEP_NUM_TASKS", "1")];
        assert_eq!(of(&interactive).unwrap(), None);
        assert_eq!(of(&[]).unwrap(), None);
        assert!(refused(&[("SLURM_NTASKS", "4")]).contains("SLURM_PROCID is not set, though SLURM_NTASKS is 4"));
        assert!(refused(&[("SLURM_PROCID", "1")]).starts_with("SLURM_NTASKS is not set"));
        assert!(refused(&task).starts_with("MASTER_ADDR is not set"));
        assert!(refused(&[&task[..], &launch].concat()).starts_with("MASTER_PORT is not set"));
    }

    #[test]
    fn lists_of_hosts() {
        for (list, first) in [
            ("node1", "node1"),
            ("a,b", "a"),
            ("gpu[03-07,9],login", "gpu03"),
            ("gpu[5,3]", "gpu5"),
            ("r[1-2]n[3-4].cluster", "r1n3.cluster"),
        ] {
            assert_eq!(first_host(list).as_deref(), Some(first), "{list}");
        }
        for broken in ["", "gpu[1-2", ","] {
            assert_eq!(first_host(broken), None, "{broken}");
        }
    }
}
