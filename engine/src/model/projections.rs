//! Projections of one input whose results are used side by side: a layer each, or one layer whose product is cut.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use super::linear::Linear;
use super::parameter::{Parameter, Shares, join};
use super::pass::Pass;
use crate::ops::Ops;

/// `N` projections. Families differ in how they store them: `q_proj`, `k_proj` and `v_proj`, or their rows one under the
/// other in `qkv_proj`. The stored names stay, so that checkpoints and adapters of either kind fit.
#[derive(Clone, Debug)]
pub struct Projections<B: Backend, const N: usize> {
    /// The layers as they are stored, with their names: `N`, or one.
    pub linears: Vec<(&'static str, Linear<B>)>,
    /// Columns of each projection.
    pub widths: [usize; N],
}

impl<B: Ops, const N: usize> Projections<B, N> {
    /// `[tokens, hidden] -> [tokens, width]` for each width, in the pass's type of activations.
    pub fn forward(&self, x: Tensor<B, 2>, pass: &Pass<B>) -> [Tensor<B, 2>; N] {
        match self.linears.as_slice() {
            [(_, fused)] => {
                let product = fused.forward(x, pass, pass.activations);
                let mut start = 0;
                self.widths.map(|width| {
                    start += width;
                    product.clone().narrow(1, start - width, width)
                })
            }
            linears => std::array::from_fn(|i| linears[i].1.forward(x.clone(), pass, pass.activations)),
        }
    }

    /// Rebuilds the layers with `f(path, parameter)` in place of every parameter.
    pub fn map<C: Shares<B>>(
        &self,
        path: &str,
        f: &mut impl FnMut(&str, &Parameter<B>) -> Parameter<C>,
    ) -> Projections<C, N> {
        let linears = self.linears.iter().map(|(name, linear)| (*name, linear.map(&join(path, name), f)));
        Projections { linears: linears.collect(), widths: self.widths }
    }

    /// Every layer with its name.
    pub fn linears_mut(&mut self) -> impl Iterator<Item = (&'static str, &mut Linear<B>)> {
        self.linears.iter_mut().map(|(name, linear)| (*name, linear))
    }
}
