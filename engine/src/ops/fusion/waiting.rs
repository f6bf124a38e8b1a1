//! Operations that wait in a fusion stream until it runs.

use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Shape, TensorMetadata};
use burn_fusion::client::GlobalFusionClient;
use burn_fusion::stream::{Operation, OperationStreams};
use burn_fusion::{Fusion, FusionBackend, FusionHandle, FusionRuntime, FusionTensor, NoOp, get_client};
use burn_ir::{CustomOpIr, HandleContainer, InitOperationIr, OperationIr, OperationOutput, TensorIr};

/// What reaches the tensors when a fusion stream runs.
pub(super) type Handles<B> = HandleContainer<FusionHandle<<B as FusionBackend>::FusionRuntime>>;

/// An operation waiting in a fusion stream; `run` is the operation on the backend beneath.
struct Waiting<F> {
    description: CustomOpIr,
    run: F,
}

impl<F> std::fmt::Debug for Waiting<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.description.fmt(f)
    }
}

impl<R: FusionRuntime, F> Operation<R> for Waiting<F>
where
    F: Fn(&mut HandleContainer<R::FusionHandle>, &CustomOpIr) + Send + Sync,
{
    fn execute(&self, handles: &mut HandleContainer<R::FusionHandle>) {
        (self.run)(handles, &self.description);
    }
}

/// Puts an operation on as many tensors as there are, at least one, into their stream; its results have these shapes and types.
fn enqueue_any<B: FusionBackend>(
    name: &'static str,
    inputs: Vec<FusionTensor<B::FusionRuntime>>,
    results: impl IntoIterator<Item = (Shape, DType)>,
    run: impl Fn(&mut Handles<B>, &CustomOpIr) + Send + Sync + 'static,
) -> Vec<FusionTensor<B::FusionRuntime>> {
    let client: GlobalFusionClient<B::FusionRuntime> = inputs[0].client.clone();
    let streams = OperationStreams::with_inputs(&inputs);
    let uninit = |(shape, dtype)| TensorIr::uninit(client.create_empty_handle(), shape, dtype);
    let outputs: Vec<TensorIr> = results.into_iter().map(uninit).collect();
    let inputs: Vec<TensorIr> = inputs.into_iter().map(FusionTensor::into_ir).collect();
    let description = CustomOpIr::new(name, &inputs, &outputs);
    let operation = Waiting { description: description.clone(), run };
    client.register(streams, OperationIr::Custom(description), operation)
}

/// [`enqueue_any`] of an operation that takes and gives floats alone; of none it makes none.
pub(super) fn alike_any<B: FusionBackend>(
    name: &'static str,
    inputs: Vec<FusionTensor<B::FusionRuntime>>,
    results: Vec<(Shape, DType)>,
    run: impl Fn(Vec<FloatTensor<B>>) -> Vec<FloatTensor<B>> + Send + Sync + 'static,
) -> Vec<FloatTensor<Fusion<B>>> {
    if inputs.is_empty() {
        return vec![];
    }
    enqueue_any::<B>(name, inputs, results, move |handles, description| {
        let inputs = description.inputs.iter().map(|input| handles.get_float_tensor::<B>(input)).collect();
        for (out, result) in description.outputs.iter().zip(run(inputs)) {
            handles.register_float_tensor::<B>(&out.id, result);
        }
    })
}

/// [`enqueue_any`] on so many tensors.
pub(super) fn enqueue<B: FusionBackend, const N: usize, const M: usize>(
    name: &'static str,
    inputs: [FusionTensor<B::FusionRuntime>; N],
    results: [(Shape, DType); M],
    run: impl Fn(&mut Handles<B>, &[TensorIr; N], &[TensorIr; M]) + Send + Sync + 'static,
) -> [FusionTensor<B::FusionRuntime>; M] {
    let outputs = enqueue_any::<B>(name, inputs.into(), results, move |handles, description| {
        let (inputs, outputs) = description.as_fixed::<N, M>();
        run(handles, inputs, outputs);
    });
    outputs.outputs()
}

/// [`enqueue`] with one result, in f32.
pub(super) fn register<B: FusionBackend, const N: usize>(
    name: &'static str,
    inputs: [FusionTensor<B::FusionRuntime>; N],
    shape: Shape,
    run: impl Fn(&mut Handles<B>, &[TensorIr; N]) -> FloatTensor<B> + Send + Sync + 'static,
) -> FloatTensor<Fusion<B>> {
    register_as::<B, N>(name, inputs, (shape, DType::F32), run)
}

/// [`enqueue`] with one result.
pub(super) fn register_as<B: FusionBackend, const N: usize>(
    name: &'static str,
    inputs: [FusionTensor<B::FusionRuntime>; N],
    result: (Shape, DType),
    run: impl Fn(&mut Handles<B>, &[TensorIr; N]) -> FloatTensor<B> + Send + Sync + 'static,
) -> FloatTensor<Fusion<B>> {
    let [out] = enqueue::<B, N, 1>(name, inputs, [result], move |handles, inputs, [out]| {
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

/// A tensor of the backend beneath, as its stream knows it.
pub(super) fn arrived<B: FusionBackend>(
    handle: FusionHandle<B::FusionRuntime>,
    (shape, dtype): (Shape, DType),
    device: &B::Device,
) -> FusionTensor<B::FusionRuntime> {
    let client: GlobalFusionClient<B::FusionRuntime> = get_client::<B>(device);
    let description = InitOperationIr::create(shape, dtype, || client.register_tensor_handle(handle));
    let [tensor] =
        client.register(OperationStreams::default(), OperationIr::Init(description), NoOp::<B>::new()).outputs();
    tensor
}
