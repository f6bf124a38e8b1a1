//! Optimizer state on the host: the form that pages are spilled in, and the one that is saved.

use std::collections::BTreeMap;

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Int, Tensor, TensorData, TensorPrimitive, Transaction};
use safetensors::Dtype;

use crate::nf4::DynamicCode;
use crate::ops::{DynamicTables, MOMENT_BLOCK, Moments, Ops};
use crate::{Error, Result};

/// One tensor of an optimizer's state, on the host.
#[derive(Clone, Debug, PartialEq)]
pub struct StateTensor {
    /// F32 or U8.
    pub dtype: Dtype,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its elements, little-endian and row-major.
    pub bytes: Vec<u8>,
}

/// Both moments of a parameter in host memory, in the form that a device holds them in.
#[derive(Clone, Debug)]
pub(super) struct HostMoments {
    /// f32 values, or words of codes.
    moments: [TensorData; 2],
    /// The scales of codes.
    absmax: Option<[TensorData; 2]>,
}

/// How the moments of one parameter are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) shape: [usize; 2],
    pub(super) eight_bit: bool,
}

impl Layout {
    fn count(self) -> usize {
        self.shape[0] * self.shape[1]
    }

    fn blocks(self) -> usize {
        self.count().div_ceil(MOMENT_BLOCK)
    }

    /// Bytes of both moments.
    pub(super) fn bytes(self) -> u64 {
        let moment = if self.eight_bit { self.blocks() * (MOMENT_BLOCK + 4) } else { 4 * self.count() };
        2 * moment as u64
    }

    /// Moments that have seen nothing, on a device; `tables` are asked for where they are held in 8 bits.
    pub(super) fn zeros<B: Backend>(self, device: &B::Device, tables: impl FnOnce() -> DynamicTables<B>) -> Moments<B> {
        if !self.eight_bit {
            let moment = || Tensor::<B, 2>::zeros(self.shape, (device, DType::F32)).into_primitive().tensor();
            return Moments::Full([moment(), moment()]);
        }
        let blocks = self.blocks();
        let codes = || Tensor::<B, 1, Int>::zeros([blocks * MOMENT_BLOCK / 4], (device, DType::I32)).into_primitive();
        let absmax = || Tensor::<B, 1>::zeros([blocks], (device, DType::F32)).into_primitive().tensor();
        Moments::EightBit { codes: [codes(), codes()], absmax: [absmax(), absmax()], tables: tables() }
    }

    /// The tensors of [`HostMoments`], in the order of [`HostMoments::collect`].
    fn parts(self) -> Vec<Part> {
        let part = |suffix, saved, held| Part { suffix, saved, held };
        let whole = || (Dtype::F32, self.shape.to_vec());
        let held = || (DType::F32, self.shape.to_vec());
        if !self.eight_bit {
            return vec![part("exp_avg", whole(), held()), part("exp_avg_sq", whole(), held())];
        }
        let blocks = self.blocks();
        let codes = |suffix| {
            let words = vec![blocks * MOMENT_BLOCK / 4];
            part(suffix, (Dtype::U8, self.shape.to_vec()), (DType::I32, words))
        };
        let absmax = |suffix| part(suffix, (Dtype::F32, vec![blocks]), (DType::F32, vec![blocks]));
        vec![codes("exp_avg"), codes("exp_avg_sq"), absmax("exp_avg.absmax"), absmax("exp_avg_sq.absmax")]
    }

    /// The tensors that are saved for a parameter.
    pub(super) fn save(self, path: &str, moments: HostMoments) -> Vec<(String, StateTensor)> {
        let HostMoments { moments, absmax } = moments;
        let parts = self.parts().into_iter().zip(moments.into_iter().chain(absmax.into_iter().flatten()));
        parts
            .map(|(Part { suffix, saved: (dtype, shape), .. }, data)| {
                let mut bytes = data.bytes.to_vec();
                // Codes are held in whole blocks and saved without what is beyond the last element.
                bytes.truncate(size(dtype, &shape));
                (format!("{path}.{suffix}"), StateTensor { dtype, shape, bytes })
            })
            .collect()
    }

    /// Takes a parameter's tensors out of a saved state.
    pub(super) fn load(self, path: &str, state: &mut BTreeMap<String, StateTensor>) -> Result<HostMoments> {
        let load = |Part { suffix, saved: (dtype, shape), held: (held, held_shape) }| {
            let name = format!("{path}.{suffix}");
            let refuse = |what: String| {
                let cure = "resume with the model, `lora` and `training.optim` that the checkpoint was saved with";
                Err(Error::Invalid(format!("optimizer state `{name}` {what}; {cure}")))
            };
            let Some(found) = state.remove(&name) else { return refuse("is missing".into()) };
            let StateTensor { dtype: found_dtype, shape: found_shape, mut bytes } = found;
            if (found_dtype, &found_shape) != (dtype, &shape) {
                return refuse(format!("is {found_dtype:?} {found_shape:?}, but this run keeps {dtype:?} {shape:?}"));
            }
            let expected = size(dtype, &shape);
            if bytes.len() != expected {
                return refuse(format!("holds {} bytes, not the {expected} of its shape", bytes.len()));
            }
            if dtype == Dtype::F32 {
                let mut values = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
                // A negative second moment has no root, and a scale is a magnitude.
                let signed = suffix == "exp_avg";
                if !values.all(|v| v.is_finite() && (signed || v >= 0.0)) {
                    return refuse("holds a value that it cannot have".into());
                }
            }
            // What fills the last block up counts in its scale where blocks are decoded whole: there it is zero, in the first
            // moment's signed map the code in the middle.
            let zero = if suffix == "exp_avg" { DynamicCode::signed().codes()[1 << 15] } else { 0 };
            bytes.resize(held_shape.iter().product::<usize>() * held.size(), zero);
            Ok(TensorData::from_bytes_vec(bytes, held_shape, held))
        };
        let tensors: Vec<TensorData> = self.parts().into_iter().map(load).collect::<Result<_>>()?;
        HostMoments::collect(tensors).ok_or_else(|| Error::Invalid(format!("optimizer state of `{path}` is missing")))
    }
}

/// One tensor of a parameter's moments: as it is saved, and as it is held.
struct Part {
    suffix: &'static str,
    saved: (Dtype, Vec<usize>),
    held: (DType, Vec<usize>),
}

/// Bytes of a saved tensor.
fn size(dtype: Dtype, shape: &[usize]) -> usize {
    dtype.bitsize() / 8 * shape.iter().product::<usize>()
}

impl HostMoments {
    /// From both moments and, where they are held in 8 bits, both moments' scales.
    fn collect(tensors: Vec<TensorData>) -> Option<Self> {
        let mut tensors = tensors.into_iter();
        let mut two = || Some([tensors.next()?, tensors.next()?]);
        Some(Self { moments: two()?, absmax: two() })
    }

    /// Uploads the moments; `tables` are asked for where they are held in 8 bits.
    pub(super) fn upload<B: Backend>(
        self,
        device: &B::Device,
        tables: impl FnOnce() -> DynamicTables<B>,
    ) -> Moments<B> {
        let moment = |data| Tensor::<B, 2>::from_data(data, (device, DType::F32)).into_primitive().tensor();
        let scales = |data| Tensor::<B, 1>::from_data(data, (device, DType::F32)).into_primitive().tensor();
        let words = |data| Tensor::<B, 1, Int>::from_data(data, (device, DType::I32)).into_primitive();
        match self.absmax {
            None => Moments::Full(self.moments.map(moment)),
            Some(absmax) => {
                Moments::EightBit { codes: self.moments.map(words), absmax: absmax.map(scales), tables: tables() }
            }
        }
    }

    /// Reads moments from their device in one go.
    pub(super) async fn read<B: Ops>(moments: Moments<B>, device: &B::Device) -> Result<Self> {
        let transaction = Transaction::<B>::default();
        let transaction = match moments {
            Moments::Full(both) => both.into_iter().fold(transaction, |transaction, moment| {
                transaction.register(Tensor::<B, 2>::from_primitive(TensorPrimitive::Float(moment)))
            }),
            Moments::EightBit { codes, absmax, .. } => {
                let transaction = codes.into_iter().fold(transaction, |transaction, codes| {
                    transaction.register(Tensor::<B, 1, Int>::from_primitive(codes))
                });
                absmax.into_iter().fold(transaction, |transaction, absmax| {
                    transaction.register(Tensor::<B, 1>::from_primitive(TensorPrimitive::Float(absmax)))
                })
            }
        };
        let failed = |e: &dyn std::fmt::Debug| Error::Device {
            device: format!("{device:?}"),
            reason: format!("reading optimizer state failed: {e:?}"),
        };
        let tensors = transaction.execute_async().await;
        B::check(device).map_err(|reason| failed(&reason))?;
        let tensors = tensors.map_err(|e| failed(&e))?;
        Self::collect(tensors).ok_or_else(|| failed(&"tensors are missing"))
    }
}
