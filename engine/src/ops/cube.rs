//! The operations on CubeCL's GPU runtimes, by the kernels of `halfbyte-shaders`.

use burn::tensor::ops::FloatTensor;
use burn_cubecl::{BoolElement, CubeBackend, FloatElement, IntElement};
use halfbyte_shaders::SourceRuntime;

use super::{Nf4Primitive, Ops};
use crate::nf4::NF4_TABLE;

impl<R: SourceRuntime, F: FloatElement, I: IntElement, BT: BoolElement> Ops for CubeBackend<R, F, I, BT> {
    fn matmul(lhs: FloatTensor<Self>, rhs: FloatTensor<Self>) -> FloatTensor<Self> {
        halfbyte_shaders::matmul(lhs, rhs)
    }

    fn nf4_dequantize(weight: &Nf4Primitive<Self>) -> FloatTensor<Self> {
        halfbyte_shaders::nf4_dequantize(&weight.codes, &weight.absmax, &weight.header, weight.shape, &NF4_TABLE)
    }
}
