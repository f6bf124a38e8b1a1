//! Fusion passes the decode through as a custom operation; the matmul around it stays Burn's own and is fused as usual.

use std::marker::PhantomData;

use burn::tensor::DType;
use burn::tensor::ops::FloatTensor;
use burn_fusion::stream::{Operation, OperationStreams};
use burn_fusion::{Fusion, FusionBackend, FusionRuntime};
use burn_ir::{CustomOpIr, HandleContainer, OperationIr, OperationOutput, TensorIr};

use super::{Nf4Primitive, Ops};

/// The decode, waiting in a fusion stream.
#[derive(Debug)]
struct Dequantize<B> {
    description: CustomOpIr,
    shape: [usize; 2],
    backend: PhantomData<B>,
}

impl<B: FusionBackend + Ops> Operation<B::FusionRuntime> for Dequantize<B> {
    fn execute(&self, handles: &mut HandleContainer<<B::FusionRuntime as FusionRuntime>::FusionHandle>) {
        let ([codes, absmax, header], [out]) = self.description.as_fixed();
        let weight = Nf4Primitive {
            codes: handles.get_int_tensor::<B>(codes),
            absmax: handles.get_int_tensor::<B>(absmax),
            header: handles.get_int_tensor::<B>(header),
            shape: self.shape,
        };
        handles.register_float_tensor::<B>(&out.id, B::nf4_dequantize(&weight));
    }
}

impl<B: FusionBackend + Ops> Ops for Fusion<B> {
    fn nf4_dequantize(weight: &Nf4Primitive<Self>) -> FloatTensor<Self> {
        let Nf4Primitive { codes, absmax, header, shape } = weight.clone();
        let client = codes.client.clone();
        let streams = OperationStreams::with_inputs([&codes, &absmax, &header]);
        let out = TensorIr::uninit(client.create_empty_handle(), shape.into(), DType::F32);
        let inputs = [codes.into_ir(), absmax.into_ir(), header.into_ir()];
        let description = CustomOpIr::new("nf4_dequantize", &inputs, &[out]);
        let operation = Dequantize::<B> { description: description.clone(), shape, backend: PhantomData };
        client.register(streams, OperationIr::Custom(description), operation).output()
    }
}
