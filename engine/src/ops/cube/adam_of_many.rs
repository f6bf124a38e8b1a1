//! Adam of many parameters by kernels that take several of them at once.

use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{BoolElement, CubeBackend, FloatElement, IntElement};
use halfbyte_shaders::{AdamMove, AdamRates, SourceRuntime};

use super::taken;
use crate::ops::{AdamStep, AdamUpdate, Moments, Moving, adam};

/// [`Ops::adam_advance`](crate::ops::Ops::adam_advance); moments in 8 bits are composed from operations.
pub(super) fn advance<R: SourceRuntime, F: FloatElement, I: IntElement, BT: BoolElement>(
    parameters: Vec<Moving<CubeBackend<R, F, I, BT>>>,
    next: &CubeTensor<R>,
    betas: [f64; 2],
) -> Vec<Moments<CubeBackend<R, F, I, BT>>> {
    let (mut full, mut advanced) = (Vec::new(), Vec::new());
    for (moments, gradient) in parameters {
        advanced.push(match moments {
            Moments::Full(both) if taken([&gradient]) => {
                full.push((both, gradient));
                None
            }
            moments => Some(adam::advance(moments, gradient, next.clone(), betas)),
        });
    }
    let mut full = halfbyte_shaders::adam_advance(full, next, betas).into_iter().map(Moments::Full);
    advanced.into_iter().filter_map(|moments| moments.or_else(|| full.next())).collect()
}

/// [`Ops::adam_apply`](crate::ops::Ops::adam_apply); from moments in 8 bits it is composed from operations.
pub(super) fn apply<R: SourceRuntime, F: FloatElement, I: IntElement, BT: BoolElement>(
    parameters: Vec<AdamUpdate<CubeBackend<R, F, I, BT>>>,
    factor: &CubeTensor<R>,
) -> Vec<[CubeTensor<R>; 2]> {
    let (mut full, mut applied) = (Vec::new(), Vec::new());
    for update in parameters {
        applied.push(match update {
            AdamUpdate { value, moments: Moments::Full(moments), gradient, spare, step }
                if taken([&gradient, &value]) =>
            {
                let AdamStep { betas, eps, rate, decay, .. } = step;
                let [first, correction] = step.corrections();
                let rates = AdamRates { betas, kept: 1.0 - rate * decay, rate: rate / first, correction, eps };
                full.push(AdamMove { value, moments, gradient, spare, rates });
                None
            }
            update => Some(adam::apply(update, factor.clone())),
        });
    }
    let mut full = halfbyte_shaders::adam_apply(full, factor).into_iter();
    applied.into_iter().filter_map(|both| both.or_else(|| full.next())).collect()
}
