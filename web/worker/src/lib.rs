//! The engine in a dedicated Web Worker: it hears a page's requests and answers with events, as `halfbyte_protocol` has them.
#![cfg(target_arch = "wasm32")]

mod answers;
mod compare;
mod device;
mod error;
mod fetch;
mod gpu;
mod inbox;
mod lab;
mod model;
mod port;
mod rest;
mod saved;
mod session;
mod storage;
mod train;
mod zip;

use halfbyte::backends::{Cpu, CpuDevice, Wgpu};
use halfbyte_protocol::{Event, Request};
use wasm_bindgen::prelude::*;
use wasm_bindgen_futures::spawn_local;

use crate::device::Opened;
use crate::error::Error;
use crate::inbox::Inbox;

/// Listens, and says so: what a page posts before it hears `awake` may be lost.
#[wasm_bindgen(start)]
pub fn start() {
    port::report_panics();
    port::report_logs();
    let inbox = Inbox::listen();
    port::post(&Event::Awake);
    spawn_local(run(inbox));
}

/// The worker's life: a device is chosen, then everything happens on it.
async fn run(inbox: Inbox) {
    loop {
        let message = inbox.next().await;
        let Request::Open { device } = message.request else {
            port::fail(Error::request("no device is chosen yet; send `open` first"));
            continue;
        };
        match device::open(device).await {
            Err(error) => port::fail(error),
            Ok((opened, report)) => {
                port::post(&Event::Ready(report.clone()));
                return match opened {
                    Opened::Gpu(device) => session::serve::<Wgpu>(device, report, inbox).await,
                    Opened::Cpu => session::serve::<Cpu>(CpuDevice, report, inbox).await,
                };
            }
        }
    }
}
