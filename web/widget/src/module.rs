//! What the module exports: `room(n)` gives `n` bytes to write a question into; `answer(at, n)` answers it and gives the
//! place of the answer in the upper half of its result, the length in the lower; `done(at, n)` takes either back.

use alloc::boxed::Box;
use alloc::vec;
use core::panic::PanicInfo;

use lol_alloc::{FreeListAllocator, LockedAllocator};

#[global_allocator]
static ALLOCATOR: LockedAllocator<FreeListAllocator> = LockedAllocator::new(FreeListAllocator::new());

#[panic_handler]
fn stop(_: &PanicInfo<'_>) -> ! {
    core::arch::wasm32::unreachable()
}

/// Space for a question.
#[unsafe(no_mangle)]
extern "C" fn room(length: usize) -> *mut u8 {
    Box::into_raw(vec![0; length].into_boxed_slice()).cast()
}

/// The answer to the question at a place that `room` gave.
///
/// # Safety
/// `length` is what `room` was asked for.
#[unsafe(no_mangle)]
unsafe extern "C" fn answer(at: *const u8, length: usize) -> u64 {
    // SAFETY: the caller's promise.
    let question = unsafe { core::slice::from_raw_parts(at, length) };
    let answer = crate::answer::answer(question).into_boxed_slice();
    let length = answer.len() as u64;
    (Box::into_raw(answer).cast::<u8>() as u64) << 32 | length
}

/// Takes space back.
///
/// # Safety
/// Place and length are those of a question or an answer, and are given back once.
#[unsafe(no_mangle)]
unsafe extern "C" fn done(at: *mut u8, length: usize) {
    // SAFETY: the caller's promise; both were boxed slices.
    drop(unsafe { Box::from_raw(core::ptr::slice_from_raw_parts_mut(at, length)) });
}
