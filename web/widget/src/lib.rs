//! The memory calculator for any web page: the memory plan in a WebAssembly module of its own, small because it has neither
//! the standard library nor generated bindings. `halfbyte-memory.js` is its other half.

#![cfg_attr(target_arch = "wasm32", no_std)]

extern crate alloc;

mod answer;
mod lines;
#[cfg(target_arch = "wasm32")]
mod module;
