//! Adam's moments on a device, in 32 or in 8 bits, and its two operations, composed from Burn's tensor operations.
//!
//! In 8 bits each moment is held as bitsandbytes holds it (arXiv:2110.02861): a byte per element, an index into a dynamic
//! map, signed for the first moment and unsigned for the second; and a scale per block of 256 elements.

use burn::tensor::backend::Backend;
use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{BasicOps, Bool, DType, Int, IntDType, Tensor, TensorData};

use super::fused::{primitive, tensor};
use crate::nf4::DynamicCode;

/// Elements that share a scale in 8-bit moments.
pub const MOMENT_BLOCK: usize = 256;
/// Words of four codes in a block.
const WORDS: usize = MOMENT_BLOCK / 4;

/// The first and the second moment of one parameter's gradient.
#[derive(Clone, Debug)]
pub enum Moments<B: Backend> {
    /// f32, of the parameter's shape.
    Full([FloatTensor<B>; 2]),
    /// 8 bits, for the parameter's elements in row-major order.
    EightBit {
        /// I32 `[blocks * 64]`: four codes to a word, in memory order; what lies beyond the last element is arbitrary.
        codes: [IntTensor<B>; 2],
        /// f32 `[blocks]`.
        absmax: [FloatTensor<B>; 2],
        /// The data types of both moments.
        tables: DynamicTables<B>,
    },
}

/// A parameter's moments and a gradient.
pub(super) type Moving<B> = (Moments<B>, FloatTensor<B>);

/// The signed and the unsigned dynamic map on a device, for the operations that are composed.
#[derive(Clone, Debug)]
pub struct DynamicTables<B: Backend> {
    /// `[256]` each: the level of a code.
    levels: [FloatTensor<B>; 2],
    /// I32 `[65536]` each: the code of a step from -1 to 1.
    codes: [IntTensor<B>; 2],
}

impl<B: Backend> DynamicTables<B> {
    /// Uploads the tables.
    pub fn new(device: &B::Device) -> Self {
        let both = [DynamicCode::signed(), DynamicCode::unsigned()];
        let codes = both.map(|code| {
            let codes: Vec<i32> = code.codes().iter().map(|code| i32::from(*code)).collect();
            Tensor::<B, 1, Int>::from_data(TensorData::new(codes, [1 << 16]), (device, DType::I32)).into_primitive()
        });
        let levels = both.map(|code| {
            let levels = TensorData::new(code.levels().to_vec(), [256]);
            primitive(Tensor::<B, 1>::from_data(levels, device))
        });
        Self { levels, codes }
    }
}

/// What an update of a parameter depends on beside its moments and its gradient.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamStep {
    /// Decay of the two moments.
    pub betas: [f64; 2],
    /// Keeps the denominator from zero.
    pub eps: f64,
    /// The step, counted from 1, by which the moments' start from zero is corrected.
    pub step: i32,
    /// Learning rate.
    pub rate: f64,
    /// Decoupled weight decay, a share of the learning rate.
    pub decay: f64,
}

impl AdamStep {
    /// `1 - beta1^step` and the square root of `1 - beta2^step`.
    pub(super) fn corrections(&self) -> [f64; 2] {
        let [first, second] = self.betas.map(|beta| 1.0 - beta.powi(self.step));
        [first, second.sqrt()]
    }
}

/// A parameter that a step changes.
#[derive(Clone, Debug)]
pub struct AdamUpdate<B: Backend> {
    /// Its value before the step, f32.
    pub value: FloatTensor<B>,
    /// Its moments before the step.
    pub moments: Moments<B>,
    /// Its gradient, of its shape.
    pub gradient: FloatTensor<B>,
    /// Tensors of its shape and type that no one needs once the step is applied, if there are some: the new value and the clipped gradient
    /// may take their memory.
    pub spare: [Option<FloatTensor<B>>; 2],
    /// How it moves.
    pub step: AdamStep,
}

/// The sum of all elements' squares.
pub(super) fn sum_of_squares<B: Backend>(tensors: Vec<FloatTensor<B>>) -> FloatTensor<B> {
    let square = |x: Tensor<B, 2>| (x.clone() * x).sum();
    let sums = tensors.into_iter().map(|x| square(tensor(x)));
    primitive(sums.reduce(|sum, one| sum + one).expect("there is at least one"))
}

/// The moments after one more gradient; as they were where `next` is 0.
pub(super) fn advance<B: Backend>(
    moments: Moments<B>,
    gradient: FloatTensor<B>,
    next: FloatTensor<B>,
    betas: [f64; 2],
) -> Moments<B> {
    let applied = Applied::<B>::of(next);
    let gradient = tensor(gradient);
    match moments {
        Moments::Full(before) => {
            let before = before.map(tensor::<B, 2>);
            let [first, second] = mix(before.clone(), gradient, betas);
            let [of_first, of_second] = before;
            Moments::Full([applied.or(first, of_first), applied.or(second, of_second)].map(primitive))
        }
        Moments::EightBit { codes, absmax, tables } => {
            let both = decode::<B>(&codes, &absmax, &tables);
            let blocks = both[0].dims()[0];
            let [first, second] = mix(both, padded(gradient, blocks), betas);
            let again = |x, table, codes, absmax| {
                let (new_codes, new_absmax) = encode::<B>(x, table);
                let codes = applied
                    .or(Tensor::<B, 1, Int>::from_primitive(new_codes), Tensor::from_primitive(codes))
                    .into_primitive();
                (codes, primitive(applied.or(tensor::<B, 1>(new_absmax), tensor(absmax))))
            };
            let ([codes1, codes2], [absmax1, absmax2]) = (codes, absmax);
            let (codes1, absmax1) = again(first, &tables.codes[0], codes1, absmax1);
            let (codes2, absmax2) = again(second, &tables.codes[1], codes2, absmax2);
            Moments::EightBit { codes: [codes1, codes2], absmax: [absmax1, absmax2], tables }
        }
    }
}

/// Whether a step is applied, on the device.
struct Applied<B: Backend>(Tensor<B, 1, Bool>);

impl<B: Backend> Applied<B> {
    fn of(factor: FloatTensor<B>) -> Self {
        Self(tensor::<B, 1>(factor).not_equal_elem(0.0))
    }

    /// `new`, or `old` where it is not.
    fn or<const D: usize, K>(&self, new: Tensor<B, D, K>, old: Tensor<B, D, K>) -> Tensor<B, D, K>
    where
        K: BasicOps<B>,
    {
        let everywhere = self.0.clone().reshape([1; D]).expand(new.dims());
        old.mask_where(everywhere, new)
    }
}

/// The parameter's value after a step with this gradient times a factor, from its moments before the step (Adam, arXiv:1412.6980;
/// decoupled decay, arXiv:1711.05101; in the order of `torch.optim.AdamW`), and that product; where the factor is 0, what is `spare`. 8-bit
/// moments are used as they are before they are quantized again, as bitsandbytes does.
pub(super) fn apply<B: Backend>(update: AdamUpdate<B>, factor: FloatTensor<B>) -> [FloatTensor<B>; 2] {
    let AdamUpdate { value, moments, gradient, spare, step } = update;
    let (gradient, value) = (tensor::<B, 2>(gradient), tensor::<B, 2>(value));
    let gradient = gradient * tensor::<B, 1>(factor.clone()).reshape([1, 1]);
    let clipped = gradient.clone();
    let [correction1, correction2] = step.corrections();
    let shape = value.dims();
    let [first, second] = match moments {
        Moments::Full(both) => mix(both.map(tensor), gradient, step.betas),
        Moments::EightBit { codes, absmax, tables } => {
            let both = decode::<B>(&codes, &absmax, &tables);
            let blocks = both[0].dims()[0];
            mix(both, padded(gradient, blocks), step.betas).map(|moment| {
                let flat = moment.reshape([blocks * MOMENT_BLOCK]);
                flat.narrow(0, 0, shape[0] * shape[1]).reshape(shape)
            })
        }
    };
    let denominator = second.sqrt() / correction2 + step.eps;
    let after = value * (1.0 - step.rate * step.decay) - first * (step.rate / correction1) / denominator;
    let [of_value, of_gradient] = spare;
    let applied = Applied::<B>::of(factor);
    let or_spare = |new, spare: Option<FloatTensor<B>>| match spare {
        Some(spare) => applied.or(new, tensor(spare)),
        None => new,
    };
    [or_spare(after, of_value), or_spare(clipped, of_gradient)].map(primitive)
}

fn mix<B: Backend>([first, second]: [Tensor<B, 2>; 2], gradient: Tensor<B, 2>, betas: [f64; 2]) -> [Tensor<B, 2>; 2] {
    let [beta1, beta2] = betas;
    let square = gradient.clone() * (1.0 - beta2) * gradient.clone();
    [first * beta1 + gradient * (1.0 - beta1), second * beta2 + square]
}

/// Elements in row-major order as `[blocks, 256]`, with zeros at the end.
fn padded<B: Backend>(x: Tensor<B, 2>, blocks: usize) -> Tensor<B, 2> {
    let count = x.shape().num_elements();
    let missing = blocks * MOMENT_BLOCK - count;
    let flat = x.reshape([count]);
    let flat = match missing {
        0 => flat,
        _ => Tensor::cat(vec![flat.clone(), Tensor::zeros([missing], &flat.device())], 0),
    };
    flat.reshape([blocks, MOMENT_BLOCK])
}

/// Both moments in f32, `[blocks, 256]`.
fn decode<B: Backend>(
    codes: &[IntTensor<B>; 2],
    absmax: &[FloatTensor<B>; 2],
    tables: &DynamicTables<B>,
) -> [Tensor<B, 2>; 2] {
    std::array::from_fn(|i| {
        let words: Tensor<B, 1, Int> = Tensor::from_primitive(codes[i].clone());
        let absmax: Tensor<B, 1> = tensor(absmax[i].clone());
        let blocks = absmax.dims()[0];
        let bytes = [0, 8, 16, 24].map(|shift| {
            let shifted = words.clone().bitwise_right_shift_scalar(int::<B>(shift));
            shifted.bitwise_and_scalar(int::<B>(255))
        });
        let codes: Tensor<B, 2, Int> = Tensor::stack(bytes.to_vec(), 1);
        let levels: Tensor<B, 1> = tensor(tables.levels[i].clone());
        let values = levels.select(0, codes.reshape([blocks * MOMENT_BLOCK]));
        values.reshape([blocks, MOMENT_BLOCK]) * absmax.reshape([blocks, 1])
    })
}

/// Codes and scales of `[blocks, 256]`.
///
/// A block whose scale has no finite reciprocal is taken for zeros: devices differ in what they do with numbers that small.
fn encode<B: Backend>(x: Tensor<B, 2>, table: &IntTensor<B>) -> (IntTensor<B>, FloatTensor<B>) {
    let blocks = x.dims()[0];
    let absmax = x.clone().abs().max_dim(1);
    let tiny = absmax.clone().lower_elem(f32::MIN_POSITIVE);
    let absmax = absmax.mask_fill(tiny.clone(), 0.0);
    let reciprocal = absmax.clone().mask_fill(tiny, 1.0).recip();
    // The sign makes it step 0 in a block of zeros, whose code is 0 as in bitsandbytes.
    let scaled = ((x * reciprocal).clamp(-1.0, 1.0) + 1.0) * 0.5 * absmax.clone().sign();
    let steps = (scaled * 65535.0 + 0.5).cast(IntDType::I32);
    let table: Tensor<B, 1, Int> = Tensor::from_primitive(table.clone());
    let codes = table.select(0, steps.reshape([blocks * MOMENT_BLOCK])).reshape([blocks * WORDS, 4]);
    let byte = |i: usize| codes.clone().slice([0..blocks * WORDS, i..i + 1]);
    let word = [1, 2, 3]
        .into_iter()
        .fold(byte(0), |word, i| word.bitwise_or(byte(i).bitwise_left_shift_scalar(int::<B>(8 * i as i32))));
    (word.reshape([blocks * WORDS]).into_primitive(), primitive(absmax.reshape([blocks])))
}

fn int<B: Backend>(value: i32) -> B::IntElem {
    burn::tensor::ElementConversion::elem(value)
}
