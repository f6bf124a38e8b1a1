//! A kernel as source text in both languages, and the task that hands it to CubeCL.

use std::hash::{DefaultHasher, Hash, Hasher};

use burn_cubecl::CubeRuntime;
use burn_cubecl::template::SourceTemplate;
use cubecl::ir::{Scope, StorageType};
use cubecl::prelude::{CompiledKernel, ExecutionMode, KernelDefinition, KernelId, KernelMetadata};
use cubecl::{CompilationError, Compiler, CubeDim, CubeTask};

/// The languages that kernels are written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Language {
    /// WebGPU's shading language, for the wgpu runtime.
    Wgsl,
    /// CUDA C++, compiled by NVRTC at run time.
    Cuda,
}

/// A CubeCL runtime that compiles kernels from source.
pub trait SourceRuntime: CubeRuntime {
    /// The language that it compiles.
    const LANGUAGE: Language;
}

#[cfg(feature = "wgpu")]
impl SourceRuntime for cubecl::wgpu::WgpuRuntime {
    const LANGUAGE: Language = Language::Wgsl;
}

#[cfg(feature = "cuda")]
impl SourceRuntime for cubecl::cuda::CudaRuntime {
    const LANGUAGE: Language = Language::Cuda;
}

/// A kernel in one language, its placeholders filled in.
#[derive(Clone, Debug)]
pub struct Source {
    /// The entry point's name.
    pub name: &'static str,
    /// What language `text` is in.
    pub language: Language,
    /// The source text.
    pub text: String,
    /// Threads of a workgroup.
    pub threads: u32,
}

impl Source {
    /// Fills `template`, whose placeholders are written `{{ name }}`.
    pub fn fill(
        name: &'static str,
        language: Language,
        threads: u32,
        template: &'static str,
        values: &[(&'static str, String)],
    ) -> Self {
        let template = SourceTemplate::new(template).register("threads", threads.to_string());
        let text = values.iter().fold(template, |t, (name, value)| t.register(*name, value.clone())).complete();
        Self { name, language, text, threads }
    }

    fn cube_dim(&self) -> CubeDim {
        CubeDim::new_1d(self.threads)
    }
}

impl KernelMetadata for Source {
    fn id(&self) -> KernelId {
        // The text is part of the key: compiled kernels are cached on disk across versions of this crate.
        let mut hasher = DefaultHasher::new();
        self.text.hash(&mut hasher);
        KernelId::new::<Self>().info((self.name, hasher.finish())).cube_dim(self.cube_dim())
    }

    fn address_type(&self) -> StorageType {
        cubecl::ir::UIntKind::U32.into()
    }
}

impl<C: Compiler> CubeTask<C> for Source {
    fn compile(
        &self,
        compiler: &mut C,
        options: &C::CompilationOptions,
        mode: ExecutionMode,
        address_type: StorageType,
    ) -> Result<CompiledKernel<C>, CompilationError> {
        let repr = match self.language {
            // Without a representation wgpu derives the bindings from the source.
            Language::Wgsl => None,
            // The CUDA launch reads the shared memory size from the representation and needs one: that of an empty
            // kernel says zero bytes, which is right for kernels that declare their shared memory statically.
            Language::Cuda => {
                let empty = KernelDefinition {
                    buffers: vec![],
                    tensor_maps: vec![],
                    scalars: vec![],
                    cube_dim: self.cube_dim(),
                    body: Scope::root(false),
                    options: Default::default(),
                };
                Some(compiler.compile(empty, options, mode, address_type)?)
            }
        };
        Ok(CompiledKernel {
            entrypoint_name: self.name.to_string(),
            debug_name: Some(self.name),
            source: self.text.clone(),
            repr,
            cube_dim: self.cube_dim(),
            debug_info: None,
        })
    }
}
