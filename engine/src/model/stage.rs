//! Which device holds which layers of a model.

use std::ops::Range;

use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData, TensorPrimitive, try_read_sync};

use crate::ops::{Held, Ops, Reading};
use crate::{Error, Result};

/// Consecutive decoder layers, and the device that holds them. The first stage's device holds the embedding too, the last one's the
/// norm and the head behind the layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage<B: Backend> {
    /// Where they are.
    pub device: B::Device,
    /// Which they are, counted from the bottom.
    pub layers: Range<usize>,
}

/// What devices a model is put on.
#[derive(Clone, Debug)]
pub enum DeviceMap<B: Backend> {
    /// All of it on one.
    Whole(B::Device),
    /// The layers over several, bottom first: how many of them each device takes. A device that is named twice has two stages.
    Shares(Vec<(B::Device, usize)>),
}

impl<B: Backend> DeviceMap<B> {
    /// The stages of a model of this many layers.
    ///
    /// # Errors
    /// When the shares are not those of so many layers.
    pub fn stages(&self, layers: usize) -> Result<Vec<Stage<B>>> {
        let shares = match self {
            Self::Whole(device) => return Ok(vec![Stage { device: device.clone(), layers: 0..layers }]),
            Self::Shares(shares) => shares,
        };
        let mut end = 0usize;
        let stages = shares.iter().map(|(device, count)| {
            let begin = end;
            end = end.saturating_add(*count);
            Stage { device: device.clone(), layers: begin..end }
        });
        let stages: Vec<Stage<B>> = stages.collect();
        match end == layers && !stages.is_empty() {
            true => Ok(stages),
            false => Err(Error::Invalid(format!("the model has {layers} layers, and {end} are shared out to devices"))),
        }
    }
}

/// A tensor on a device, whichever it was on.
///
/// Between two devices it goes through host memory: Burn 0.21 has CUDA move it with NCCL, which need not be there, and wgpu not at
/// all. This waits for what computes the tensor, and for nothing else.
pub(crate) fn moved<B: Ops, const D: usize>(x: Tensor<B, D>, device: &B::Device) -> Tensor<B, D> {
    if x.device() == *device {
        return x;
    }
    let data = to_host(x);
    let dtype = data.dtype;
    Tensor::from_data(data, (device, dtype))
}

/// Waits for the device.
fn to_host<B: Ops, const D: usize>(x: Tensor<B, D>) -> TensorData {
    Away::leave(x).arrived()
}

/// A tensor in host memory, or on its way there.
pub(crate) enum Away {
    /// The device may still have to compute it.
    Leaving(Reading),
    /// It is there.
    Arrived(TensorData),
}

impl Away {
    /// Starts the copy, without waiting for the device.
    pub(crate) fn leave<B: Ops, const D: usize>(x: Tensor<B, D>) -> Self {
        Self::Leaving(B::start_read(x.into_primitive().tensor()))
    }

    /// Waits for the copy, after which the device's memory is free.
    ///
    /// # Panics
    /// When the device failed; and in a browser, whose thread cannot wait: it has one device, and is refused what asks for host
    /// memory ([`TrainerConfig::check`](crate::train::TrainerConfig::check)).
    pub(crate) fn arrived(self) -> TensorData {
        match self {
            Self::Arrived(data) => data,
            Self::Leaving(reading) => {
                let data = try_read_sync(reading).expect("this thread can wait for a device");
                data.unwrap_or_else(|error| panic!("a tensor could not be read from its device: {error:?}"))
            }
        }
    }

    /// Brings it to a device; see [`Ops::start_write`].
    pub(crate) fn back<B: Ops, const D: usize>(self, device: &B::Device) -> (Tensor<B, D>, Held) {
        let (tensor, held) = B::start_write(self.arrived(), device);
        (Tensor::from_primitive(TensorPrimitive::Float(tensor)), held)
    }

    /// The same in place.
    pub(crate) fn wait(&mut self) {
        let data = std::mem::replace(self, Self::Arrived(TensorData::from([0.0f32; 0]))).arrived();
        *self = Self::Arrived(data);
    }
}

#[cfg(all(test, feature = "cpu"))]
mod tests {
    use super::*;
    use crate::backends::Cpu;

    #[test]
    fn shares_are_of_all_layers() {
        let device = burn::tensor::Device::<Cpu>::default();
        let shares = |counts: &[usize]| DeviceMap::<Cpu>::Shares(counts.iter().map(|n| (device, *n)).collect());
        let ranges = |map: DeviceMap<Cpu>| {
            let bounds = |stage: Stage<Cpu>| (stage.layers.start, stage.layers.end);
            map.stages(5).map(|stages| stages.into_iter().map(bounds).collect::<Vec<_>>())
        };
        assert_eq!(ranges(DeviceMap::Whole(device)).ok(), Some(vec![(0, 5)]));
        assert_eq!(ranges(shares(&[2, 0, 3])).ok(), Some(vec![(0, 2), (2, 2), (2, 5)]));
        for wrong in [&[][..], &[4], &[5, 1], &[usize::MAX, 6]] {
            assert!(ranges(shares(wrong)).is_err(), "{wrong:?}");
        }
    }
}
