//! Which kernels are chosen on trust. Those in CUDA C++ that could do a product in another way wait until the self-test has passed on the
//! GPU at hand: the program that ran it says so.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::{Language, SourceRuntime};

/// The text of every kernel in CUDA C++.
const TEXTS: [&str; 37] = [
    include_str!("attention/common.cu"),
    include_str!("attention/d_keys.cu"),
    include_str!("attention/d_queries.cu"),
    include_str!("attention/forward.cu"),
    include_str!("attention/mma.cu"),
    include_str!("attention/simt/common.cu"),
    include_str!("attention/simt/d_keys.cu"),
    include_str!("attention/simt/d_queries.cu"),
    include_str!("attention/simt/forward.cu"),
    include_str!("attention/tensor_cores.cu"),
    include_str!("attention/warpgroup/common.cu"),
    include_str!("attention/warpgroup/d_keys.cu"),
    include_str!("attention/warpgroup/d_queries.cu"),
    include_str!("attention/warpgroup/forward.cu"),
    include_str!("dropout/kernel.cu"),
    include_str!("fetch/kernel.cu"),
    include_str!("half_matmul/kernel.cu"),
    include_str!("half_matmul/warpgroup.cu"),
    include_str!("half_rows/kernel.cu"),
    include_str!("half_skinny/kernel.cu"),
    include_str!("halves.cu"),
    include_str!("low_rank/common.cu"),
    include_str!("low_rank/narrow.cu"),
    include_str!("low_rank/outer.cu"),
    include_str!("nf4_dequantize/kernel.cu"),
    include_str!("nf4_matmul/kernel.cu"),
    include_str!("nf4_mma/kernel.cu"),
    include_str!("nf4_quantize/kernel.cu"),
    include_str!("nf4_skinny/kernel.cu"),
    include_str!("nf4_skinny/tensor_cores.cu"),
    include_str!("nf4_warpgroup/kernel.cu"),
    include_str!("ptx.cu"),
    include_str!("results.cu"),
    include_str!("tiles.cu"),
    include_str!("warpgroup.cu"),
    include_str!("weight.cu"),
    include_str!("wgmma.cu"),
];

static PASSED: AtomicBool = AtomicBool::new(false);

/// Another number for every change of a kernel in CUDA C++: a self-test that was passed by other kernels says nothing of these.
pub fn cuda_kernels() -> u64 {
    let mut hasher = DefaultHasher::new();
    TEXTS.hash(&mut hasher);
    hasher.finish()
}

/// The kernels in CUDA C++ have passed the self-test on the GPUs of this process: it may choose them from now on.
pub fn trust_cuda_kernels() {
    PASSED.store(true, Ordering::Relaxed);
}

/// Whether kernels may be chosen that could be done without.
pub(crate) fn trusted<R: SourceRuntime>() -> bool {
    match R::LANGUAGE {
        Language::Wgsl => true,
        Language::Cuda => PASSED.load(Ordering::Relaxed),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::TEXTS;

    fn texts(folder: &Path, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(folder).expect("the sources are there") {
            let path = entry.expect("an entry").path();
            match path.extension().and_then(|extension| extension.to_str()) {
                _ if path.is_dir() => texts(&path, found),
                Some("cu") => found.push(std::fs::read_to_string(&path).expect("a text")),
                _ => {}
            }
        }
    }

    #[test]
    fn no_kernel_is_forgotten() {
        let mut found = Vec::new();
        texts(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
        let mut known = TEXTS.map(str::to_string).to_vec();
        found.sort();
        known.sort();
        assert!(found == known, "{} texts in the folder, {} in TEXTS", found.len(), known.len());
    }
}
