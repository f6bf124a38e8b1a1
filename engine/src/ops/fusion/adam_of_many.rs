//! Adam of many parameters as one operation: to fusion an operation costs more than to launch a small kernel.

use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Shape, TensorMetadata};
use burn_fusion::{Fusion, FusionBackend};

use super::waiting::alike_any;
use crate::ops::{AdamUpdate, Moments, Moving, Ops, adam};

/// [`Ops::adam_advance`]; moments in 8 bits are composed from operations.
pub(super) fn advance<B: FusionBackend + Ops>(
    parameters: Vec<Moving<Fusion<B>>>,
    next: FloatTensor<Fusion<B>>,
    betas: [f64; 2],
) -> Vec<Moments<Fusion<B>>> {
    let (mut inputs, mut advanced) = (Vec::new(), Vec::new());
    for (moments, gradient) in parameters {
        advanced.push(match moments {
            Moments::Full(both) => {
                inputs.extend(both);
                inputs.push(gradient);
                None
            }
            moments => Some(adam::advance::<Fusion<B>>(moments, gradient, next.clone(), betas)),
        });
    }
    let results = inputs.chunks(3).flat_map(|of| &of[..2]).map(|moment| (moment.shape(), moment.dtype)).collect();
    let run = move |mut tensors: Vec<FloatTensor<B>>| {
        let next = tensors.pop().expect("it comes last");
        let mut tensors = tensors.into_iter();
        let parameter = || Some((Moments::Full([tensors.next()?, tensors.next()?]), tensors.next()?));
        let advanced = B::adam_advance(std::iter::from_fn(parameter).collect(), next, betas);
        let both = |moments| match moments {
            Moments::Full(both) => both,
            Moments::EightBit { .. } => unreachable!("moments keep their kind"),
        };
        advanced.into_iter().flat_map(both).collect()
    };
    let mut full = of_any::<B>("adam_advance", inputs, next, results, run);
    let mut next = || full.next().expect("two for each parameter");
    advanced.into_iter().map(|moments| moments.unwrap_or_else(|| Moments::Full([next(), next()]))).collect()
}

/// [`Ops::adam_apply`]; from moments in 8 bits it is composed from operations.
pub(super) fn apply<B: FusionBackend + Ops>(
    parameters: Vec<AdamUpdate<Fusion<B>>>,
    factor: FloatTensor<Fusion<B>>,
) -> Vec<[FloatTensor<Fusion<B>>; 2]> {
    let (mut inputs, mut results, mut steps, mut applied) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for update in parameters {
        applied.push(match update {
            AdamUpdate { value, moments: Moments::Full([first, second]), gradient, spare, step } => {
                results.extend(std::iter::repeat_n((value.shape(), value.dtype), 2));
                steps.push((step, spare.each_ref().map(Option::is_some)));
                inputs.extend([value, first, second, gradient].into_iter().chain(spare.into_iter().flatten()));
                None
            }
            update => Some(adam::apply::<Fusion<B>>(update, factor.clone())),
        });
    }
    let run = move |mut tensors: Vec<FloatTensor<B>>| {
        let factor = tensors.pop().expect("it comes last");
        let mut tensors = tensors.into_iter();
        let mut next = || tensors.next().expect("four for each parameter, and what is spare");
        let updates = steps.iter().map(|(step, spare)| AdamUpdate {
            value: next(),
            moments: Moments::Full([next(), next()]),
            gradient: next(),
            spare: spare.map(|there| there.then(&mut next)),
            step: *step,
        });
        B::adam_apply(updates.collect(), factor).into_iter().flatten().collect()
    };
    let mut full = of_any::<B>("adam_apply", inputs, factor, results, run);
    let mut next = || full.next().expect("two for each parameter");
    applied.into_iter().map(|both| both.unwrap_or_else(|| [next(), next()])).collect()
}

/// An operation on the tensors of parameters, and a factor that comes after them; of no parameters there is none.
fn of_any<B: FusionBackend + Ops>(
    name: &'static str,
    mut inputs: Vec<FloatTensor<Fusion<B>>>,
    factor: FloatTensor<Fusion<B>>,
    results: Vec<(Shape, DType)>,
    run: impl Fn(Vec<FloatTensor<B>>) -> Vec<FloatTensor<B>> + Send + Sync + 'static,
) -> impl Iterator<Item = FloatTensor<Fusion<B>>> {
    if !inputs.is_empty() {
        inputs.push(factor);
    }
    alike_any::<B>(name, inputs, results, run).into_iter()
}
