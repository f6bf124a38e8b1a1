//! What the CUDA driver says of its devices, and is told.

use std::path::Path;

use cudarc::driver::{result, sys};
use halfbyte::backends::cuda_path;

/// The name of a CUDA device, or a sentence that says what is missing.
pub(crate) fn find(index: usize) -> Result<String, String> {
    // SAFETY: both only try to open a shared library.
    let (driver, nvrtc) = unsafe { (sys::is_culib_present(), cudarc::nvrtc::sys::is_culib_present()) };
    if !driver {
        return Err("no NVIDIA driver (libcuda) was found".into());
    }
    if !nvrtc {
        return Err("the NVIDIA driver is there, but NVRTC (libnvrtc, part of the CUDA toolkit) was not found".into());
    }
    headers(cuda_path().as_deref())?;
    let failed = |e| format!("the NVIDIA driver does not start: {e:?}");
    result::init().map_err(failed)?;
    match result::device::get_count().map_err(failed)? {
        0 => Err("the NVIDIA driver reports no GPU".into()),
        _ => result::device::get(index as i32).and_then(result::device::get_name).map_err(failed),
    }
}

/// Looks for the headers that kernels in CubeCL's language include, in the toolkit where CubeCL takes them from. Without them its
/// thread for the device panics, and what is read of the device is what was there before.
fn headers(toolkit: Option<&Path>) -> Result<(), String> {
    const HEADER: &str = "include/cuda_runtime.h";
    let cure = "install the CUDA toolkit, or set CUDA_PATH to the folder that `include/cuda_runtime.h` is in";
    match toolkit {
        None => Err(format!("NVRTC is there, but CUDA's headers were not found: {cure}")),
        Some(folder) if folder.join(HEADER).exists() => Ok(()),
        Some(folder) => Err(format!("NVRTC is there, but {} is not: {cure}", folder.join(HEADER).display())),
    }
}

/// How many there are; [`find`] has found one.
pub(crate) fn count() -> usize {
    result::device::get_count().map_or(0, |count| usize::try_from(count).unwrap_or(0))
}

/// Has the driver keep what the process gives back, for the next time that it asks: as it comes, the driver returns it to the system
/// whenever the host waits, and to map it again takes as long as some kernels. [`find`] has found the device.
pub(crate) fn keep_memory(index: usize) {
    let mut threshold = u64::MAX;
    let attribute = sys::CUmemPool_attribute_enum::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    let Some(device) = i32::try_from(index).ok().and_then(|index| result::device::get(index).ok()) else { return };
    // SAFETY: the device is the one that `get` returned, the pool is its own, and the attribute's value is 64 bits wide. A driver that
    // has no such pool says so, and then there is nothing to keep.
    unsafe {
        if let Ok(pool) = result::device::get_default_mem_pool(device) {
            let _ = result::mem_pool::set_attribute(pool, attribute, (&raw mut threshold).cast());
        }
    }
}

/// Bytes of a device's memory; [`find`] has found it.
pub(crate) fn memory(index: usize) -> Option<u64> {
    let device = result::device::get(i32::try_from(index).ok()?).ok()?;
    // SAFETY: the device is the one that `get` returned.
    unsafe { result::device::total_mem(device) }.ok().map(|bytes| bytes as u64)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::headers;

    #[test]
    fn headers_that_are_missing_are_named() {
        assert!(headers(None).unwrap_err().contains("CUDA_PATH"));
        let folder = tempfile::tempdir().unwrap();
        let missing = headers(Some(folder.path())).unwrap_err();
        assert!(missing.contains(&folder.path().join("include/cuda_runtime.h").display().to_string()), "{missing}");
        std::fs::create_dir(folder.path().join("include")).unwrap();
        std::fs::write(folder.path().join("include/cuda_runtime.h"), "").unwrap();
        assert_eq!(headers(Some(folder.path())), Ok(()));
    }
}
