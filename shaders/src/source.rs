//! A kernel as source text in both languages, and the task that hands it to CubeCL.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};

use burn_cubecl::CubeRuntime;
use burn_cubecl::template::SourceTemplate;
use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::{Scope, StorageType};
use cubecl::prelude::*;
use cubecl::server::{KernelArguments, MetadataBindingInfo, TensorMapBinding};
use cubecl::{CompilationError, Compiler, CubeCount, CubeDim, CubeTask};

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

/// A kernel in one language, its placeholders filled in. Cloning shares the text.
#[derive(Clone, Debug)]
pub struct Source {
    /// The entry point's name.
    pub name: &'static str,
    /// What language `text` is in.
    pub language: Language,
    /// The source text.
    pub text: Arc<str>,
    /// Threads of a workgroup.
    pub threads: u32,
    /// Bytes of shared memory that a CUDA kernel asks for at its launch, beside what its text declares.
    pub shared: u32,
    /// Of the text.
    hash: u64,
}

impl Source {
    /// Fills `template`, whose placeholders are written `{{ name }}`.
    pub fn fill(
        name: &'static str,
        language: Language,
        threads: u32,
        template: &str,
        values: &[(&'static str, String)],
    ) -> Self {
        let template = SourceTemplate::new(template).register("threads", threads.to_string());
        let text = values.iter().fold(template, |t, (name, value)| t.register(*name, value.clone())).complete();
        let mut hasher = DefaultHasher::new();
        text.hash(&mut hasher);
        Self { name, language, text: text.into(), threads, shared: 0, hash: hasher.finish() }
    }

    /// The same kernel, launched with so many bytes of shared memory.
    pub(crate) fn with_shared_memory(self, bytes: u32) -> Self {
        Self { shared: bytes, ..self }
    }

    /// Runs it over a grid of workgroups; the words of `info`, an even number of them, come after the buffers, as a uniform
    /// or a parameter.
    pub fn launch<R: SourceRuntime>(self, grid: [u32; 3], buffers: &[&CubeTensor<R>], info: &[u32]) {
        self.launch_with(vec![], grid, buffers, info);
    }

    /// The same with matrices that a CUDA kernel copies tiles of: their descriptions come before the buffers, and after those their own.
    pub(crate) fn launch_with<R: SourceRuntime>(
        self,
        tiled: Vec<TensorMapBinding>,
        grid: [u32; 3],
        buffers: &[&CubeTensor<R>],
        info: &[u32],
    ) {
        let client = buffers[0].client.clone();
        let bindings = buffers.iter().map(|tensor| tensor.handle.clone().binding()).collect();
        let info: Vec<u64> = info.chunks(2).map(|pair| u64::from(pair[0]) | u64::from(pair[1]) << 32).collect();
        let length = info.len();
        let info = MetadataBindingInfo::new(info, length);
        let arguments = KernelArguments::new().with_tensor_maps(tiled).with_buffers(bindings).with_info(info);
        client.launch(Box::new(self), CubeCount::Static(grid[0], grid[1], grid[2]), arguments);
    }

    fn cube_dim(&self) -> CubeDim {
        CubeDim::new_1d(self.threads)
    }
}

/// A kernel's source with certain options, filled in at its first use only: a launch must not cost more than it has to.
#[derive(Debug)]
pub(crate) struct Sources<K>(Mutex<Vec<(K, Source)>>);

impl<K: PartialEq> Sources<K> {
    pub(crate) const fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    pub(crate) fn get(&self, key: K, fill: impl FnOnce(&K) -> Source) -> Source {
        let mut sources = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, source)) = sources.iter().find(|(known, _)| *known == key) {
            return source.clone();
        }
        let source = fill(&key);
        sources.push((key, source.clone()));
        source
    }
}

/// A grid in x and y of at least `groups` workgroups: WebGPU allows 65,535 in one dimension.
pub(crate) fn grid(groups: u32) -> [u32; 3] {
    let rows = groups.div_ceil(65_535).max(1);
    [groups.div_ceil(rows), rows, 1]
}

/// A grid of a block for each tile of a matrix, columns first.
pub(crate) fn tile_grid([tile_rows, tile_columns]: [usize; 2], [rows, columns]: [usize; 2]) -> [u32; 3] {
    [columns.div_ceil(tile_columns) as u32, rows.div_ceil(tile_rows) as u32, 1]
}

/// Uses shared memory of so many words.
#[cube]
fn take_shared(#[comptime] words: usize) {
    let mut memory = SharedMemory::<u32>::new(words);
    memory[0] = 0;
}

impl KernelMetadata for Source {
    fn id(&self) -> KernelId {
        // The text is part of the key: compiled kernels are cached on disk across versions of this crate.
        KernelId::new::<Self>().info((self.name, self.hash)).cube_dim(self.cube_dim())
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
            // The CUDA launch reads the shared memory size from the representation and needs one: that of a kernel which
            // does no more than take so much.
            Language::Cuda => {
                let mut body = Scope::root(false);
                if self.shared > 0 {
                    body.register_type::<usize>(address_type);
                    take_shared::expand(&mut body, self.shared as usize / 4);
                }
                let stand_in = KernelDefinition {
                    buffers: vec![],
                    tensor_maps: vec![],
                    scalars: vec![],
                    cube_dim: self.cube_dim(),
                    body,
                    options: Default::default(),
                };
                Some(compiler.compile(stand_in, options, mode, address_type)?)
            }
        };
        Ok(CompiledKernel {
            entrypoint_name: self.name.to_string(),
            debug_name: Some(self.name),
            source: self.text.to_string(),
            repr,
            cube_dim: self.cube_dim(),
            debug_info: None,
        })
    }
}
