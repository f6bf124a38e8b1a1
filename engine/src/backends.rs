//! The backends that the engine is built with, under the names that programs choose them by.

#[cfg(feature = "cuda")]
pub use burn_cuda::{Cuda, CudaDevice};
#[cfg(feature = "cpu")]
pub use burn_flex::{Flex as Cpu, FlexDevice as CpuDevice};
#[cfg(feature = "wgpu")]
pub use burn_wgpu::{RuntimeOptions, Wgpu, WgpuDevice, graphics::AutoGraphicsApi, init_setup_async};
#[cfg(feature = "cuda")]
pub use cubecl::cuda::install::cuda_path;
#[cfg(feature = "cuda")]
pub use halfbyte_shaders::{cuda_kernels, trust_cuda_kernels};
