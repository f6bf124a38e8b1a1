//! Operations that wait in a fusion stream until it runs.

use std::marker::PhantomData;

use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Shape, TensorMetadata};
use burn_fusion::client::GlobalFusionClient;
use burn_fusion::stream::{Operation, OperationStreams};
use burn_fusion::{Fusion, FusionBackend, FusionRuntime, FusionTensor};
use burn_ir::{CustomOpIr, HandleContainer, OperationIr, OperationOutput, TensorIr};

use crate::ops::Ops;

/// What reaches the tensors when a fusion stream runs.
pub(super) type Handles<B> = HandleContainer<<<B as FusionBackend>::FusionRuntime as FusionRuntime>::FusionHandle>;

/// An operation waiting in a fusion stream; `run` is the operation on the backend beneath.
struct Waiting<F, const N: usize, const M: usize> {
    description: CustomOpIr,
    run: F,
}

impl<F, const N: usize, const M: usize> std::fmt::Debug for Waiting<F, N, M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.description.fmt(f)
    }
}

impl<R: FusionRuntime, F, const N: usize, const M: usize> Operation<R> for Waiting<F, N, M>
where
    F: Fn(&mut HandleContainer<R::FusionHandle>, &[TensorIr; N], &[TensorIr; M]) + Send + Sync,
{
    fn execute(&self, handles: &mut HandleContainer<R::FusionHandle>) {
        let (inputs, outputs) = self.description.as_fixed::<N, M>();
        (self.run)(handles, inputs, outputs);
    }
}

/// [`Ops::sum_of_squares`], of as many tensors as there are.
struct SumOfSquares<B>(CustomOpIr, PhantomData<B>);

impl<B> std::fmt::Debug for SumOfSquares<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl<B: FusionBackend + Ops> Operation<B::FusionRuntime> for SumOfSquares<B> {
    fn execute(&self, handles: &mut Handles<B>) {
        let tensors = self.0.inputs.iter().map(|input| handles.get_float_tensor::<B>(input)).collect();
        handles.register_float_tensor::<B>(&self.0.outputs[0].id, B::sum_of_squares(tensors));
    }
}

/// Puts [`Ops::sum_of_squares`] into the stream of its inputs.
pub(super) fn enqueue_sum<B: FusionBackend + Ops>(tensors: Vec<FloatTensor<Fusion<B>>>) -> FloatTensor<Fusion<B>> {
    let client = tensors[0].client.clone();
    let streams = OperationStreams::with_inputs(&tensors);
    let sum = TensorIr::uninit(client.create_empty_handle(), [1].into(), DType::F32);
    let inputs: Vec<TensorIr> = tensors.into_iter().map(FusionTensor::into_ir).collect();
    let description = CustomOpIr::new("sum_of_squares", &inputs, &[sum]);
    let operation = SumOfSquares::<B>(description.clone(), PhantomData);
    let [sum] = client.register(streams, OperationIr::Custom(description), operation).outputs();
    sum
}

/// Puts an operation with results of these shapes and types into the stream of its inputs.
pub(super) fn enqueue<B: FusionBackend, const N: usize, const M: usize>(
    name: &'static str,
    inputs: [FusionTensor<B::FusionRuntime>; N],
    results: [(Shape, DType); M],
    run: impl Fn(&mut Handles<B>, &[TensorIr; N], &[TensorIr; M]) + Send + Sync + 'static,
) -> [FusionTensor<B::FusionRuntime>; M] {
    let client: GlobalFusionClient<B::FusionRuntime> = inputs[0].client.clone();
    let streams = OperationStreams::with_inputs(inputs.each_ref());
    let outputs = results.map(|(shape, dtype)| TensorIr::uninit(client.create_empty_handle(), shape, dtype));
    let description = CustomOpIr::new(name, &inputs.map(FusionTensor::into_ir), &outputs);
    let operation = Waiting { description: description.clone(), run };
    client.register(streams, OperationIr::Custom(description), operation).outputs()
}

/// [`enqueue`] with one result, in f32.
pub(super) fn register<B: FusionBackend, const N: usize>(
    name: &'static str,
    inputs: [FusionTensor<B::FusionRuntime>; N],
    shape: Shape,
    run: impl Fn(&mut Handles<B>, &[TensorIr; N]) -> FloatTensor<B> + Send + Sync + 'static,
) -> FloatTensor<Fusion<B>> {
    let [out] = enqueue::<B, N, 1>(name, inputs, [(shape, DType::F32)], move |handles, inputs, [out]| {
        let result = run(handles, inputs);
        handles.register_float_tensor::<B>(&out.id, result);
    });
    out
}

/// [`enqueue`] of an operation on tensors, with results shaped like the first one and of its type.
pub(super) fn alike<B: FusionBackend, const N: usize, const M: usize>(
    name: &'static str,
    inputs: [FusionTensor<B::FusionRuntime>; N],
    run: impl Fn([FloatTensor<B>; N]) -> [FloatTensor<B>; M] + Send + Sync + 'static,
) -> [FloatTensor<Fusion<B>>; M] {
    let results = std::array::from_fn(|_| (inputs[0].shape(), inputs[0].dtype));
    enqueue::<B, N, M>(name, inputs, results, move |handles, inputs, outputs| {
        let inputs = inputs.each_ref().map(|input| handles.get_float_tensor::<B>(input));
        for (out, result) in outputs.iter().zip(run(inputs)) {
            handles.register_float_tensor::<B>(&out.id, result);
        }
    })
}
