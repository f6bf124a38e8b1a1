//! Choosing a device at run time, and running a job that is generic over it.

use anyhow::{Result, bail};
use clap::ValueEnum;
use halfbyte::ops::Ops;

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

    /// Runs on `device`, which `name` describes.
    fn run<B: Ops>(self, device: B::Device, name: &str) -> Result<Self::Output>;
}

/// Which of a machine's devices, and how much of it, a process takes that is one of several there.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seat {
    /// The GPU, counted from 0.
    #[cfg_attr(not(any(feature = "cuda", feature = "wgpu")), allow(dead_code))]
    pub(crate) local_rank: usize,
    /// Threads of the CPU; all where that is not said.
    pub(crate) threads: Option<usize>,
}

impl Seat {
    /// The GPU of `count` of a kind that is this process's own; `alone` says that a process is shown no other's.
    #[cfg(any(feature = "cuda", feature = "wgpu"))]
    fn gpu(self, count: usize, alone: bool) -> Result<usize> {
        match self.local_rank {
            rank if rank < count => Ok(rank),
            _ if count == 1 && alone => Ok(0),
            rank => bail!(
                "this machine has {count} such GPU(s), and this process is number {rank} on it, counted from 0: start fewer \
                 processes on it, or use --device cpu"
            ),
        }
    }
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
                let index = seat.gpu(cuda::count(), alone)?;
                let name = cuda::find(index).map_err(|reason| anyhow::anyhow!("device `cuda`: {reason}"))?;
                let device = halfbyte::backends::CudaDevice::new(index);
                return contained::<halfbyte::backends::Cuda, J>(job, device, &name);
            }
            Err(reason) if choice == Choice::Cuda => bail!("device `cuda`: {reason}"),
            Err(_) => {}
        }
    }
    #[cfg(feature = "wgpu")]
    if matches!(choice, Choice::Auto | Choice::Wgpu) {
        let software = choice == Choice::Wgpu;
        match wgpu::find(software, seat)? {
            Some((device, name)) => return contained::<halfbyte::backends::Wgpu, J>(job, device, &name),
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
fn contained<B: Ops, J: Job>(job: J, device: B::Device, name: &str) -> Result<J::Output> {
    halfbyte::failure::contain(name, || job.run::<B>(device, name))?
}

/// Runs `job` on a thread of rayon's pool: a product that is split from outside the pool first hands itself over to it and
/// sleeps, twice a product, which cost a small model a quarter of its speed.
#[cfg(feature = "cpu")]
fn cpu<J: Job>(job: J, seat: Seat) -> Result<J::Output> {
    const STACK: usize = 8 << 20;
    // 0 is as many as there are, or as RAYON_NUM_THREADS says.
    let threads = seat.threads.unwrap_or(0);
    let pool = rayon::ThreadPoolBuilder::new().stack_size(STACK).num_threads(threads).build()?;
    pool.install(|| job.run::<halfbyte::backends::Cpu>(Default::default(), "CPU"))
}

/// Where a run would go, found without starting it.
pub(crate) struct Place {
    /// For people.
    pub(crate) name: String,
    /// A GPU rather than the CPU.
    pub(crate) gpu: bool,
    /// Bytes of its memory, where the driver says so.
    pub(crate) memory: Option<u64>,
    /// Its allocator's pages are a quarter of the memory.
    pub(crate) pages: bool,
    /// Threads of the CPU.
    pub(crate) threads: u64,
}

/// The place that [`run`] would choose. A GPU that is asked for by name but is not there is planned for all the same.
pub(crate) fn place(choice: Choice) -> Place {
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    #[cfg(feature = "cuda")]
    if matches!(choice, Choice::Auto | Choice::Cuda)
        && let Ok(name) = cuda::find(0)
    {
        return Place { name, gpu: true, memory: cuda::memory(), pages: true, threads };
    }
    #[cfg(feature = "wgpu")]
    if matches!(choice, Choice::Auto | Choice::Wgpu)
        && let Ok(Some((_, name))) = wgpu::find(choice == Choice::Wgpu, Seat::default())
    {
        return Place { name, gpu: true, memory: None, pages: false, threads };
    }
    match choice {
        Choice::Cuda | Choice::Wgpu => {
            let pages = choice == Choice::Cuda;
            let name = if pages { "a CUDA GPU" } else { "a GPU" };
            Place { name: name.into(), gpu: true, memory: None, pages, threads }
        }
        Choice::Auto | Choice::Cpu => {
            Place { name: format!("CPU, {threads} threads"), gpu: false, memory: host_memory(), pages: false, threads }
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

#[cfg(feature = "cuda")]
mod cuda {
    use cudarc::driver::{result, sys};

    /// The name of a CUDA device, or a sentence that says what is missing.
    pub(crate) fn find(index: usize) -> Result<String, String> {
        // SAFETY: both only try to open a shared library.
        let (driver, nvrtc) = unsafe { (sys::is_culib_present(), cudarc::nvrtc::sys::is_culib_present()) };
        if !driver {
            return Err("no NVIDIA driver (libcuda) was found".into());
        }
        if !nvrtc {
            return Err(
                "the NVIDIA driver is there, but NVRTC (libnvrtc, part of the CUDA toolkit) was not found".into()
            );
        }
        let failed = |e| format!("the NVIDIA driver does not start: {e:?}");
        result::init().map_err(failed)?;
        match result::device::get_count().map_err(failed)? {
            0 => Err("the NVIDIA driver reports no GPU".into()),
            _ => result::device::get(index as i32).and_then(result::device::get_name).map_err(failed),
        }
    }

    /// How many there are; [`find`] has found one.
    pub(crate) fn count() -> usize {
        result::device::get_count().map_or(0, |count| usize::try_from(count).unwrap_or(0))
    }

    /// Bytes of the first device's memory; [`find`] has found it.
    pub(crate) fn memory() -> Option<u64> {
        let device = result::device::get(0).ok()?;
        // SAFETY: the device is the one that `get` returned.
        unsafe { result::device::total_mem(device) }.ok().map(|bytes| bytes as u64)
    }
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

    /// The best adapter: discrete before integrated before virtual, a software rasterizer only if allowed, which any number of
    /// processes share.
    pub(crate) fn find(software: bool, seat: Seat) -> Result<Option<(WgpuDevice, String)>> {
        let adapters = adapters();
        let order = [DeviceType::DiscreteGpu, DeviceType::IntegratedGpu, DeviceType::VirtualGpu, DeviceType::Cpu];
        let of = |kind: DeviceType| adapters.iter().filter(move |info| info.device_type == kind);
        let Some(kind) = order.into_iter().find(|kind| of(*kind).next().is_some()) else { return Ok(None) };
        let index = if kind == DeviceType::Cpu { 0 } else { seat.gpu(of(kind).count(), false)? };
        let device = match kind {
            DeviceType::DiscreteGpu => WgpuDevice::DiscreteGpu(index),
            DeviceType::IntegratedGpu => WgpuDevice::IntegratedGpu(index),
            DeviceType::VirtualGpu => WgpuDevice::VirtualGpu(index),
            _ if software => WgpuDevice::Cpu,
            _ => return Ok(None),
        };
        Ok(of(kind).nth(index).map(|info| (device, line(info))))
    }

    pub(crate) fn describe() -> Vec<String> {
        adapters().iter().map(line).collect()
    }

    fn line(info: &AdapterInfo) -> String {
        let software = if is_software(info) { ", software: only with --device wgpu" } else { "" };
        format!("{} ({}{software})", info.name, info.backend)
    }
}
