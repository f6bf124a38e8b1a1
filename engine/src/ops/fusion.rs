//! Fusion passes products and the decode through as custom operations; what is elementwise around them is fused as usual.

use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Shape, TensorMetadata};
use burn_fusion::client::GlobalFusionClient;
use burn_fusion::stream::{Operation, OperationStreams};
use burn_fusion::{Fusion, FusionBackend, FusionRuntime, FusionTensor};
use burn_ir::{CustomOpIr, HandleContainer, OperationIr, OperationOutput, TensorIr};

use super::{Nf4Primitive, Ops};

/// What reaches the tensors when a fusion stream runs.
type Handles<B> = HandleContainer<<<B as FusionBackend>::FusionRuntime as FusionRuntime>::FusionHandle>;

/// An operation with one result, waiting in a fusion stream; `run` is the operation on the backend beneath.
struct Waiting<B: FusionBackend, const N: usize> {
    description: CustomOpIr,
    run: Run<B, N>,
}

type Run<B, const N: usize> = fn(&mut Handles<B>, &[TensorIr; N], &TensorIr) -> FloatTensor<B>;

impl<B: FusionBackend, const N: usize> std::fmt::Debug for Waiting<B, N> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.description.fmt(f)
    }
}

impl<B: FusionBackend, const N: usize> Operation<B::FusionRuntime> for Waiting<B, N> {
    fn execute(&self, handles: &mut Handles<B>) {
        let (inputs, [out]) = self.description.as_fixed::<N, 1>();
        let result = (self.run)(handles, inputs, out);
        handles.register_float_tensor::<B>(&out.id, result);
    }
}

/// Puts an operation that results in f32 of this shape into the stream of its inputs.
fn register<B: FusionBackend, const N: usize>(
    name: &'static str,
    inputs: [FusionTensor<B::FusionRuntime>; N],
    shape: Shape,
    run: Run<B, N>,
) -> FloatTensor<Fusion<B>> {
    let client: GlobalFusionClient<B::FusionRuntime> = inputs[0].client.clone();
    let streams = OperationStreams::with_inputs(inputs.each_ref());
    let out = TensorIr::uninit(client.create_empty_handle(), shape, DType::F32);
    let description = CustomOpIr::new(name, &inputs.map(FusionTensor::into_ir), &[out]);
    let operation = Waiting::<B, N> { description: description.clone(), run };
    client.register(streams, OperationIr::Custom(description), operation).output()
}

impl<B: FusionBackend + Ops> Ops for Fusion<B> {
    fn matmul(lhs: FloatTensor<Self>, rhs: FloatTensor<Self>) -> FloatTensor<Self> {
        let (mut shape, rank) = (lhs.shape(), lhs.shape().num_dims());
        shape[rank - 1] = rhs.shape()[rank - 1];
        register::<B, 2>("matmul", [lhs, rhs], shape, |handles, inputs, _| {
            let [lhs, rhs] = inputs.each_ref().map(|input| handles.get_float_tensor::<B>(input));
            B::matmul(lhs, rhs)
        })
    }

    fn nf4_dequantize(weight: &Nf4Primitive<Self>) -> FloatTensor<Self> {
        let Nf4Primitive { codes, absmax, header, shape } = weight.clone();
        register::<B, 3>("nf4_dequantize", [codes, absmax, header], shape.into(), |handles, inputs, out| {
            let [codes, absmax, header] = inputs.each_ref().map(|input| handles.get_int_tensor::<B>(input));
            let shape = [out.shape[0], out.shape[1]];
            B::nf4_dequantize(&Nf4Primitive { codes, absmax, header, shape })
        })
    }
}
