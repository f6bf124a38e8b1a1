//! Choosing a device at run time, and running a job that is generic over it.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Result, bail};
use clap::ValueEnum;
use halfbyte::model::DeviceMap;
use halfbyte::ops::Ops;
use halfbyte::train::Devices;
use halfbyte_memory::{ModelShape, Run, spread};

#[cfg(feature = "cuda")]
use crate::cuda;
use crate::memory::shape_of;
use crate::trust::Mark;

/// What the user asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Choice {
    /// CUDA where there is one, else a hardware GPU through wgpu, else the CPU
    Auto,
    /// An NVIDIA GPU
    Cuda,
    /// Any GPU that wgpu reaches; a software rasterizer where there is no other
    Wgpu,
    /// The CPU
    Cpu,
}

impl Choice {
    /// Reads a recipe's `device` key.
    pub(crate) fn parse(name: &str) -> Result<Self> {
        Self::from_str(name, true)
            .map_err(|_| anyhow::anyhow!("device `{name}` is unknown; known are auto, cuda, wgpu and cpu"))
    }
}

/// Work that runs on whatever backend was chosen.
pub(crate) trait Job: Send {
    /// What it results in.
    type Output: Send;

    /// Runs on what was found.
    fn run<B: Ops>(self, found: Found<B>) -> Result<Self::Output>;
}

/// The devices that a job runs on.
pub(crate) struct Found<B: Ops> {
    /// The first of them, all that most jobs use.
    pub(crate) device: B::Device,
    /// What they are called.
    pub(crate) name: String,
    /// Where the first one's self-test is noted, if kernels wait for it.
    pub(crate) mark: Option<Mark>,
    /// All of them, and the bytes of memory of each, which are the same number where the driver does not say them.
    all: Vec<(B::Device, u64)>,
}

impl<B: Ops> Found<B> {
    /// `None` of no devices.
    fn of(all: Vec<(B::Device, String, Option<u64>)>) -> Option<Self> {
        let known = all.iter().all(|(_, _, memory)| memory.is_some());
        let mut names: Vec<(String, usize)> = Vec::new();
        for (_, name, _) in &all {
            match names.last_mut().filter(|(last, _)| last == name) {
                Some((_, count)) => *count += 1,
                None => names.push((name.clone(), 1)),
            }
        }
        let names = names.into_iter().map(|(name, count)| if count > 1 { format!("{count} x {name}") } else { name });
        let name = names.collect::<Vec<_>>().join(", ");
        let all = all.into_iter().map(|(device, _, memory)| (device, memory.filter(|_| known).unwrap_or(1)));
        let all: Vec<_> = all.collect();
        let device = all.first()?.0.clone();
        Some(Self { device, name, mark: None, all })
    }

    /// A model's layers over the devices, so that `run` fills them alike.
    pub(crate) fn map(&self, shape: &ModelShape, run: &Run) -> DeviceMap<B> {
        let (devices, memories): (Vec<_>, Vec<_>) = self.all.iter().cloned().unzip();
        let layers = spread(shape, run, &memories);
        DeviceMap::Shares(devices.into_iter().zip(layers.into_iter().map(|layers| layers as usize)).collect())
    }

    /// [`map`](Self::map) of the model in a folder; one device takes it whole, whatever it is.
    pub(crate) fn map_for(&self, folder: &Path, run: impl FnOnce(&ModelShape) -> Result<Run>) -> Result<DeviceMap<B>> {
        if self.all.len() == 1 {
            return Ok(DeviceMap::Whole(self.device.clone()));
        }
        let shape = shape_of(&folder.join("config.json"))?;
        Ok(self.map(&shape, &run(&shape)?))
    }
}

/// Which of a machine's devices, and how much of it, a process takes that is one of several there.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seat {
    /// The GPU, counted from 0.
    #[cfg_attr(not(any(feature = "cuda", feature = "wgpu")), allow(dead_code))]
    pub(crate) local_rank: usize,
    /// Threads of the CPU; all where that is not said.
    pub(crate) threads: Option<usize>,
    /// What GPUs a process takes that is alone.
    pub(crate) devices: Devices,
}

impl Seat {
    /// Which of `count` devices of a kind are this process's own; `alone` says that a process is shown no other's.
    fn indices(&self, count: usize, alone: bool) -> Result<Vec<usize>> {
        match &self.devices {
            Devices::All => Ok((0..count).collect()),
            Devices::Numbers(numbers) => {
                if let Some(number) = numbers.iter().find(|number| **number >= count) {
                    bail!(
                        "devices: there is no number {number}: this machine has {count} such device(s), counted from 0"
                    );
                }
                // Where there is but one, several stages on it are a way to try this out.
                if count > 1 && distinct(numbers).len() < numbers.len() {
                    bail!("devices: {numbers:?} names one twice");
                }
                Ok(numbers.clone())
            }
            Devices::First => match self.local_rank {
                rank if rank < count => Ok(vec![rank]),
                _ if count == 1 && alone => Ok(vec![0]),
                rank => bail!(
                    "this machine has {count} such GPU(s), and this process is number {rank} on it, counted from 0: start \
                     fewer processes on it, or use --device cpu"
                ),
            },
        }
    }
}

/// The devices that are named, in their order, each once.
fn distinct(numbers: &[usize]) -> Vec<usize> {
    let mut seen = BTreeSet::new();
    numbers.iter().copied().filter(|number| seen.insert(*number)).collect()
}

/// Runs `job` on the chosen device.
pub(crate) fn run<J: Job>(choice: Choice, job: J) -> Result<J::Output> {
    run_at(choice, Seat::default(), job)
}

/// Runs `job` on the chosen device, as one of several processes.
pub(crate) fn run_at<J: Job>(choice: Choice, seat: Seat, job: J) -> Result<J::Output> {
    #[cfg(feature = "cuda")]
    if matches!(choice, Choice::Auto | Choice::Cuda) {
        match cuda::find(0) {
            Ok(_) => {
                // A launcher that gives each process its own GPU says so by this variable.
                let alone = std::env::var_os("CUDA_VISIBLE_DEVICES").is_some();
                let of = |index| {
                    let name = cuda::find(index).map_err(|reason| anyhow::anyhow!("device `cuda`: {reason}"))?;
                    cuda::keep_memory(index);
                    Ok((halfbyte::backends::CudaDevice::new(index), name, cuda::memory(index)))
                };
                let all = seat.indices(cuda::count(), alone)?.into_iter().map(of).collect::<Result<Vec<_>>>()?;
                Mark::recall(all.iter().map(|(_, name, _)| name.as_str()));
                let mark = all.first().and_then(|(_, name, _)| Mark::of(name));
                if let Some(found) = Found::of(all) {
                    let found = Found { mark, ..found };
                    return contained::<halfbyte::backends::Cuda, J>(job, found);
                }
            }
            Err(reason) if choice == Choice::Cuda => bail!("device `cuda`: {reason}"),
            Err(_) => {}
        }
    }
    #[cfg(feature = "wgpu")]
    if matches!(choice, Choice::Auto | Choice::Wgpu) {
        let software = choice == Choice::Wgpu;
        match Found::of(wgpu::find(software, &seat)?) {
            Some(found) => return contained::<halfbyte::backends::Wgpu, J>(job, found),
            None if software => bail!("device `wgpu`: no adapter; a GPU driver with Vulkan, Metal or DX12 is needed"),
            None => {}
        }
    }
    #[cfg(feature = "cpu")]
    if matches!(choice, Choice::Auto | Choice::Cpu) {
        return cpu(job, seat);
    }
    bail!("device `{choice:?}`: this build of halfbyte does not have it; build with its cargo feature")
}

/// Runs `job` on a GPU, whose failures become errors.
#[cfg(any(feature = "cuda", feature = "wgpu"))]
fn contained<B: Ops, J: Job>(job: J, found: Found<B>) -> Result<J::Output> {
    let name = found.name.clone();
    halfbyte::failure::contain(&name, || job.run::<B>(found))?
}

/// Runs `job` on a thread of rayon's pool: a product that is split from outside the pool first hands itself over to it and
/// sleeps, twice a product, which cost a small model a quarter of its speed.
#[cfg(feature = "cpu")]
fn cpu<J: Job>(job: J, seat: Seat) -> Result<J::Output> {
    const STACK: usize = 8 << 20;
    // 0 is as many as there are, or as RAYON_NUM_THREADS says.
    let threads = seat.threads.unwrap_or(0);
    let pool = rayon::ThreadPoolBuilder::new().stack_size(STACK).num_threads(threads).build()?;
    // Ranks share the CPU.
    let stages = Seat { local_rank: 0, ..seat }.indices(1, true)?;
    let all = stages.into_iter().map(|_| (Default::default(), "CPU".to_string(), None));
    let Some(found) = Found::<halfbyte::backends::Cpu>::of(all.collect()) else { bail!("devices: none is named") };
    pool.install(|| job.run::<halfbyte::backends::Cpu>(found))
}

/// Where a run would go, found without starting it.
pub(crate) struct Place {
    /// For people.
    pub(crate) name: String,
    /// A GPU rather than the CPU.
    pub(crate) gpu: bool,
    /// Bytes of the memory of each of the devices, where the driver says so.
    pub(crate) memories: Vec<Option<u64>>,
    /// Threads of the CPU.
    pub(crate) threads: u64,
}

/// The place that [`run`] would choose. A GPU that is asked for by name but is not there is planned for all the same.
pub(crate) fn place(choice: Choice, devices: &Devices) -> Place {
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    #[cfg(feature = "cuda")]
    if matches!(choice, Choice::Auto | Choice::Cuda)
        && let Ok(name) = cuda::find(0)
    {
        let memories = distinct(&devices.numbers(cuda::count())).into_iter().map(cuda::memory).collect();
        return Place { name, gpu: true, memories, threads };
    }
    let unknown = |count: usize| vec![None; distinct(&devices.numbers(count)).len()];
    #[cfg(feature = "wgpu")]
    if matches!(choice, Choice::Auto | Choice::Wgpu) {
        let seat = Seat { devices: devices.clone(), ..Seat::default() };
        if let Some((_, name, _)) =
            wgpu::find(choice == Choice::Wgpu, &seat).ok().and_then(|all| all.into_iter().next())
        {
            return Place { name, gpu: true, memories: unknown(wgpu::count()), threads };
        }
    }
    match choice {
        Choice::Cuda | Choice::Wgpu => {
            let name = if choice == Choice::Cuda { "a CUDA GPU" } else { "a GPU" };
            Place { name: name.into(), gpu: true, memories: unknown(1), threads }
        }
        Choice::Auto | Choice::Cpu => {
            // All stages share the one memory.
            Place { name: format!("CPU, {threads} threads"), gpu: false, memories: vec![host_memory()], threads }
        }
    }
}

/// Bytes of host memory that are free to take, where the system says so.
fn host_memory() -> Option<u64> {
    crate::proc::bytes("/proc/meminfo", "MemAvailable:")
}

/// Every device, usable or not, a line each.
pub(crate) fn list() -> Vec<String> {
    let mut lines = Vec::new();
    #[cfg(feature = "cuda")]
    lines.push(match cuda::find(0) {
        Ok(name) => format!("cuda   {name}"),
        Err(reason) => format!("cuda   unavailable: {reason}"),
    });
    #[cfg(feature = "wgpu")]
    lines.extend(match wgpu::describe() {
        adapters if adapters.is_empty() => vec!["wgpu   unavailable: no adapter".to_string()],
        adapters => adapters.into_iter().map(|adapter| format!("wgpu   {adapter}")).collect(),
    });
    #[cfg(feature = "cpu")]
    lines.push(format!("cpu    {} threads", std::thread::available_parallelism().map_or(1, usize::from)));
    lines
}

#[cfg(feature = "wgpu")]
mod wgpu {
    use anyhow::Result;
    use halfbyte::backends::WgpuDevice;
    use wgpu::{AdapterInfo, Backends, DeviceType, Instance, InstanceDescriptor};

    use super::Seat;

    /// Every adapter, as wgpu reports them. OpenGL's are left out: Burn does not run on them.
    fn adapters() -> Vec<AdapterInfo> {
        let instance = Instance::new(InstanceDescriptor {
            backends: Backends::PRIMARY,
            ..InstanceDescriptor::new_without_display_handle()
        });
        let adapters = pollster::block_on(instance.enumerate_adapters(Backends::PRIMARY));
        adapters.iter().map(wgpu::Adapter::get_info).collect()
    }

    fn is_software(info: &AdapterInfo) -> bool {
        info.device_type == DeviceType::Cpu
    }

    /// The best kind of adapter that there is: discrete before integrated before virtual, a software rasterizer only if allowed.
    fn best(adapters: &[AdapterInfo], software: bool) -> Option<Vec<&AdapterInfo>> {
        let order = [DeviceType::DiscreteGpu, DeviceType::IntegratedGpu, DeviceType::VirtualGpu, DeviceType::Cpu];
        let of = |kind| adapters.iter().filter(|info| info.device_type == kind).collect::<Vec<_>>();
        let best = order.into_iter().map(of).find(|all| !all.is_empty())?;
        best.first().is_some_and(|info| software || !is_software(info)).then_some(best)
    }

    /// How many adapters of the best kind there are.
    pub(crate) fn count() -> usize {
        best(&adapters(), true).map_or(0, |all| all.len())
    }

    /// The adapters of the best kind that are a process's own; any number of them share a software rasterizer. None of a kind that
    /// will do is no error.
    pub(crate) fn find(software: bool, seat: &Seat) -> Result<Vec<(WgpuDevice, String, Option<u64>)>> {
        let adapters = adapters();
        let Some(best) = best(&adapters, software) else { return Ok(vec![]) };
        let of = |index: usize| {
            let info = best.get(index)?;
            let device = match info.device_type {
                DeviceType::DiscreteGpu => WgpuDevice::DiscreteGpu(index),
                DeviceType::IntegratedGpu => WgpuDevice::IntegratedGpu(index),
                DeviceType::VirtualGpu => WgpuDevice::VirtualGpu(index),
                _ => WgpuDevice::Cpu,
            };
            Some((device, line(info), None))
        };
        let shared = best.iter().all(|info| is_software(info));
        let indices = match shared {
            true => Seat { local_rank: 0, ..seat.clone() }.indices(1, false)?,
            false => seat.indices(best.len(), false)?,
        };
        Ok(indices.into_iter().filter_map(of).collect())
    }

    pub(crate) fn describe() -> Vec<String> {
        adapters().iter().map(line).collect()
    }

    fn line(info: &AdapterInfo) -> String {
        let software = if is_software(info) { ", software: only with --device wgpu" } else { "" };
        format!("{} ({}{software})", info.name, info.backend)
    }
}
