//! Choosing the device: WebGPU where it can be used, else the CPU, and a sentence that says why.

use std::sync::Arc;

use halfbyte::backends::{AutoGraphicsApi, RuntimeOptions, WgpuDevice, init_setup_async};
use halfbyte_protocol::{Choice, DeviceReport, Event, Failure, Kind};

use crate::error::{Error, Result};
use crate::gpu::{self, Facts};
use crate::port;

/// The device that was chosen.
pub(crate) enum Opened {
    Gpu(WgpuDevice),
    Cpu,
}

/// Opens the device that was asked for, or the best that can be used.
pub(crate) async fn open(choice: Choice) -> Result<(Opened, DeviceReport)> {
    let found = gpu::look().await;
    let why = match (choice, &found) {
        (Choice::Webgpu, Err(obstacle)) => {
            return Err(Error::new(Kind::Setting, format!("WebGPU cannot be used: {obstacle}; choose the CPU")));
        }
        (Choice::Webgpu, Ok(facts)) if facts.is_software() => {
            "WebGPU was asked for; its adapter is software, slower than the CPU itself".into()
        }
        (Choice::Webgpu, Ok(_)) => "WebGPU was asked for".into(),
        (Choice::Cpu, _) => "the CPU was asked for".into(),
        (Choice::Auto, Ok(facts)) if !facts.is_software() => "WebGPU has a hardware adapter".into(),
        (Choice::Auto, Ok(facts)) => {
            format!("WebGPU's only adapter is software ({}), slower than the CPU itself", facts.name())
        }
        (Choice::Auto, Err(obstacle)) => format!("WebGPU cannot be used: {obstacle}"),
    };
    let gpu = match (choice, &found) {
        (Choice::Webgpu, _) => true,
        (Choice::Auto, Ok(facts)) => !facts.is_software(),
        _ => false,
    };
    let facts = found.unwrap_or_default();
    if gpu {
        return Ok((Opened::Gpu(open_gpu().await), report(Choice::Webgpu, facts.name(), why, facts)));
    }
    Ok((Opened::Cpu, report(Choice::Cpu, "the CPU, one thread with SIMD".into(), why, facts)))
}

/// Makes the device, and listens to what it says on its own.
async fn open_gpu() -> WgpuDevice {
    let device = WgpuDevice::DefaultDevice;
    let setup = init_setup_async::<AutoGraphicsApi>(&device, RuntimeOptions::default()).await;
    setup.device.set_device_lost_callback(|reason, message| {
        let message = format!("the GPU is gone ({reason:?}): {message}; what was saved can be continued");
        port::post(&Event::Lost(Failure { kind: Kind::Device, message }));
    });
    setup.device.on_uncaptured_error(Arc::new(|error| {
        port::post(&Event::Lost(Failure {
            kind: Kind::Device,
            message: format!("the GPU refused something: {error}"),
        }));
    }));
    device
}

fn report(device: Choice, name: String, why: String, facts: Facts) -> DeviceReport {
    DeviceReport {
        device,
        name,
        why,
        software: device == Choice::Webgpu && facts.is_software(),
        vendor: facts.vendor,
        architecture: facts.architecture,
        device_id: facts.device_id,
        description: facts.description,
        features: facts.features,
        limits: facts.limits,
        browser: port::scope().navigator().user_agent().unwrap_or_default(),
    }
}
