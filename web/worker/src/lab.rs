//! The GPU lab: whether the device's kernels are right, and how fast they are.

use halfbyte::lab::{Case, conformance, measure_products, measure_storage};
use halfbyte::ops::Ops;
use halfbyte_memory::{names, preset};
use halfbyte_protocol::{Event, Kernel, Kind, Measurement};

use crate::error::{Error, Result};
use crate::port;
use crate::rest::rest;

/// Runs the conformance suite; each comparison is told as it is made.
pub(crate) async fn test<B: Ops>(device: &B::Device, seed: u64) -> Result<Event> {
    let tell = async |case: &Case| {
        port::post(&Event::Kernel(Kernel {
            kernel: case.kernel.clone(),
            shapes: case.shapes.clone(),
            error: case.error.is_finite().then_some(case.error),
            tolerance: case.tolerance,
            passed: case.passed(),
        }));
        rest().await;
    };
    conformance::<B>(device, seed, tell).await?;
    Ok(Event::Done)
}

/// Measures the kernels on the layers of a known model.
pub(crate) async fn measure<B: Ops>(device: &B::Device, model: &str, rows: &[usize]) -> Result<Event> {
    let shape = preset(model).ok_or_else(|| {
        let known = names().collect::<Vec<_>>().join(", ");
        Error::new(Kind::Setting, format!("`{model}` is no known model; known are: {known}"))
    })?;
    let mut shapes: Vec<[usize; 2]> = shape.linears().iter().map(|l| [l.out as usize, l.input as usize]).collect();
    shapes.sort_unstable();
    shapes.dedup();
    for shape in shapes {
        tell(measure_storage::<B>(device, shape).await?).await;
        for rows in rows {
            tell(measure_products::<B>(device, shape, (*rows).max(1)).await?).await;
        }
    }
    Ok(Event::Done)
}

async fn tell(measured: Vec<halfbyte::lab::Measurement>) {
    for halfbyte::lab::Measurement { kernel, shape, rows, seconds, bandwidth, arithmetic } in measured {
        port::post(&Event::Measured(Measurement { kernel, shape, rows, seconds, bandwidth, arithmetic }));
    }
    rest().await;
}
