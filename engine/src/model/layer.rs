//! One decoder layer: attention and MLP, each behind a norm and added to the residual stream.

use burn::tensor::backend::Backend;
use burn::tensor::{FloatDType, Tensor};

use super::attention::{Attention, LayerCache};
use super::mlp::Mlp;
use super::norm::RmsNorm;
use super::parameter::{Parameter, Shares, join};
use super::pass::Pass;
use crate::ops::Ops;

/// A pre-norm decoder layer, its blocks' results normed too in some families.
#[derive(Clone, Debug)]
pub struct DecoderLayer<B: Backend> {
    /// Norm before attention.
    pub input_layernorm: RmsNorm<B>,
    /// Attention.
    pub self_attn: Attention<B>,
    /// Norm before the MLP; of attention's result where there are norms around the MLP.
    pub post_attention_layernorm: RmsNorm<B>,
    /// MLP.
    pub mlp: Mlp<B>,
    /// `pre_feedforward_layernorm` and `post_feedforward_layernorm`, before the MLP and of its result (Gemma 2,
    /// arXiv:2408.00118, section 2).
    pub around_mlp: Option<[RmsNorm<B>; 2]>,
}

impl<B: Ops> DecoderLayer<B> {
    /// `[tokens, hidden] -> [tokens, hidden]`, f32.
    pub fn forward(&self, x: Tensor<B, 2>, pass: &Pass<B>, cache: Option<&mut Option<LayerCache<B>>>) -> Tensor<B, 2> {
        self.compute(x, pass, cache, Mlp::forward)
    }

    /// [`forward`](Self::forward) for the gradients that go through it alone: what the result is, no one sees.
    pub fn unseen(&self, x: Tensor<B, 2>, pass: &Pass<B>) -> Tensor<B, 2> {
        self.compute(x, pass, None, Mlp::unseen)
    }

    /// The layer, `last` in place of the MLP where that comes last.
    fn compute(
        &self,
        x: Tensor<B, 2>,
        pass: &Pass<B>,
        cache: Option<&mut Option<LayerCache<B>>>,
        last: impl FnOnce(&Mlp<B>, Tensor<B, 2>, &Pass<B>) -> Tensor<B, 2>,
    ) -> Tensor<B, 2> {
        let inner = pass.activations;
        let attended = self.self_attn.forward(self.input_layernorm.forward(x.clone(), inner), pass, cache);
        match &self.around_mlp {
            None => {
                let x = x + attended;
                x.clone() + last(&self.mlp, self.post_attention_layernorm.forward(x, inner), pass)
            }
            Some([before, after]) => {
                let x = x + self.post_attention_layernorm.forward(attended, FloatDType::F32);
                x.clone() + after.forward(self.mlp.forward(before.forward(x, inner), pass), FloatDType::F32)
            }
        }
    }

    /// Rebuilds the layer with `f(path, parameter)` in place of every parameter.
    pub fn map<C: Shares<B>>(
        &self,
        path: &str,
        f: &mut impl FnMut(&str, &Parameter<B>) -> Parameter<C>,
    ) -> DecoderLayer<C> {
        DecoderLayer {
            input_layernorm: self.input_layernorm.map(&join(path, "input_layernorm"), f),
            self_attn: self.self_attn.map(&join(path, "self_attn"), f),
            post_attention_layernorm: self.post_attention_layernorm.map(&join(path, "post_attention_layernorm"), f),
            mlp: self.mlp.map(&join(path, "mlp"), f),
            around_mlp: self.around_mlp.as_ref().map(|[before, after]| {
                let before = before.map(&join(path, "pre_feedforward_layernorm"), f);
                [before, after.map(&join(path, "post_feedforward_layernorm"), f)]
            }),
        }
    }
}
