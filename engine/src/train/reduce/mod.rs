//! The gradients of all ranks of a data-parallel run, added up on the host.
//!
//! A thread adds up those of the upper layers while the device computes those of the layers below, as PyTorch's
//! `DistributedDataParallel` does (Li et al., arXiv:2006.15704, section 3.2): what a step waits for is the last part.

#[cfg(all(test, feature = "cpu"))]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use burn::tensor::{DType, Tensor, TensorData, TensorPrimitive, try_read_sync};

use crate::model::{Transformer, in_layer};
use crate::ops::{Held, Ops, Reading, primitive};
use crate::optim::Gradients;
use crate::parallel::Collective;
use crate::{Error, Result, failure};

/// A step's sums over all ranks.
pub(super) struct Reduced<B: Ops> {
    pub(super) gradients: Gradients<B>,
    /// Of the losses of the trained tokens.
    pub(super) loss: f64,
    /// The Euclidean norm of all gradients together. It is taken on the host, in f64 and in one order, so that ranks with other
    /// numbers of threads clip by the same factor.
    pub(super) norm: f64,
    /// Host memory that gradients still come from.
    pub(super) held: Vec<Held>,
}

/// What is trained.
struct Place<B: Ops> {
    path: String,
    shape: [usize; 2],
    device: B::Device,
}

/// What is added up at a time.
struct Part<B: Ops> {
    /// The lowest of its layers; the last part, of what is in no layer, has none.
    lowest: Option<usize>,
    /// How many of this rank's micro-batches have yet to add to it.
    awaited: usize,
    places: Vec<Place<B>>,
}

impl<B: Ops> Part<B> {
    fn bytes(&self) -> usize {
        self.places.iter().map(|place| 4 * place.shape.iter().product::<usize>()).sum()
    }
}

/// What this rank adds to a sum: nothing, where none of its micro-batches has a gradient.
struct Own {
    shape: [usize; 2],
    reading: Option<Reading>,
}

/// A sum over all ranks, in f32.
struct Sum {
    values: TensorData,
    /// Of its elements.
    squares: f64,
}

/// Sums in the order of what was sent; nothing where no rank has anything.
type Found = Result<Vec<Option<Sum>>>;

/// A step's sums over all ranks, on their way. Every rank adds up the same parts in the same order: layers from the top, then the rest with
/// the loss. Memory on the host is 4 bytes for each trained parameter, and those of a part again.
pub(super) struct Reduction<B: Ops> {
    left: VecDeque<Part<B>>,
    /// Whose gradients were sent, in this order.
    sent: Vec<Place<B>>,
    /// To the thread that adds up. Without it, that ends once it has added up what it was sent.
    queue: Option<Sender<Vec<Own>>>,
    thread: Option<JoinHandle<Found>>,
}

impl<B: Ops> Reduction<B> {
    /// Of a step of which this rank has so many micro-batches. Layers of fewer than `least` bytes are added up with those below.
    ///
    /// # Errors
    /// When the system has no thread for it.
    pub(super) fn new(
        collective: Arc<dyn Collective>,
        model: &Transformer<B>,
        micro_batches: usize,
        least: usize,
    ) -> Result<Self> {
        let left = parts(model, least, micro_batches);
        let (queue, received) = channel();
        let adder = Adder { collective, device: format!("{:?}", model.device()) };
        let thread = std::thread::Builder::new().name("gradients".into()).spawn(move || adder.add_up(&received));
        let thread =
            thread.map_err(|e| Error::Invalid(format!("no thread can be started to add up gradients: {e}")))?;
        Ok(Self { left, sent: vec![], queue: Some(queue), thread: Some(thread) })
    }

    /// A micro-batch has gone down through a layer. What all have gone through is sent, and is no longer among the `gradients`.
    pub(super) fn passed(&mut self, layer: usize, gradients: &mut Gradients<B>) {
        if let Some(part) = self.left.iter_mut().find(|part| part.lowest == Some(layer)) {
            part.awaited = part.awaited.saturating_sub(1);
        }
        while let Some(part) = self.left.pop_front_if(|part| part.lowest.is_some() && part.awaited == 0) {
            self.send(part, gradients, None);
        }
    }

    /// Starts to read a part, and gives it to the thread.
    fn send(&mut self, part: Part<B>, gradients: &mut Gradients<B>, loss: Option<Own>) {
        let own = part.places.iter().map(|place| Own {
            shape: place.shape,
            reading: gradients.remove(&place.path).map(|gradient| B::start_read(primitive(gradient))),
        });
        let own = own.chain(loss).collect();
        // A thread that has failed says why when it is asked for its sums.
        let _ = self.queue.as_ref().map(|queue| queue.send(own));
        self.sent.extend(part.places);
    }

    /// Sends what is left, and waits for all sums.
    ///
    /// # Errors
    /// As [`Sums::finish`](super::sums::Sums::finish).
    pub(super) fn finish(
        mut self,
        model: &Transformer<B>,
        mut gradients: Gradients<B>,
        loss: Option<Tensor<B, 1>>,
    ) -> Result<Reduced<B>> {
        while let Some(part) = self.left.pop_front_if(|part| part.lowest.is_some()) {
            self.send(part, &mut gradients, None);
        }
        // Without its last part no rank applies the step: what a device refused must be known before.
        model.check()?;
        let loss = Own { shape: [1, 1], reading: loss.map(|loss| B::start_read(primitive(loss))) };
        if let Some(rest) = self.left.pop_front() {
            self.send(rest, &mut gradients, Some(loss));
        }
        let mut found = self.join()?;
        let loss = found.pop().flatten();
        let loss = loss.map_or(0.0, |loss| loss.values.iter::<f64>().sum());
        let (mut squares, mut held) = (BTreeMap::new(), vec![]);
        for (place, sum) in std::mem::take(&mut self.sent).into_iter().zip(found) {
            // What no rank has a gradient of is left alone, as in one process.
            let Some(sum) = sum else { continue };
            let (gradient, arriving) = B::start_write(sum.values, &place.device);
            squares.insert(place.path.clone(), sum.squares);
            gradients.insert(place.path, Tensor::from_primitive(TensorPrimitive::Float(gradient)));
            held.push(arriving);
        }
        Ok(Reduced { gradients, loss, norm: squares.values().sum::<f64>().sqrt(), held })
    }

    /// What the thread found once it has added up all that it was sent. The other ranks send as much, or tell that they do not.
    fn join(&mut self) -> Found {
        self.queue = None;
        let found = self.thread.take().map(|thread| thread.join().unwrap_or_else(|e| std::panic::resume_unwind(e)));
        found.unwrap_or_else(|| Ok(vec![]))
    }
}

impl<B: Ops> Drop for Reduction<B> {
    /// Whoever goes on may use the connections: the thread no longer does.
    fn drop(&mut self) {
        self.queue = None;
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// What is trained, from the top layer down: as many layers to a part as have so many bytes.
fn parts<B: Ops>(model: &Transformer<B>, least: usize, micro_batches: usize) -> VecDeque<Part<B>> {
    let mut layers: BTreeMap<Option<usize>, Vec<Place<B>>> = BTreeMap::from([(None, vec![])]);
    model.visit(|path, parameter| {
        if parameter.trainable {
            let value = &parameter.value;
            let place = Place { path: path.into(), shape: value.dims(), device: value.device() };
            layers.entry(in_layer(path).map(|(layer, _)| layer)).or_default().push(place);
        }
    });
    let mut parts: VecDeque<Part<B>> = VecDeque::new();
    for (lowest, places) in layers.into_iter().rev() {
        match parts.back_mut().filter(|part| lowest.is_some() && part.bytes() < least) {
            Some(part) => {
                part.lowest = lowest;
                part.places.extend(places);
            }
            None => parts.push_back(Part { lowest, awaited: micro_batches, places }),
        }
    }
    parts
}

/// What the thread has to do with.
struct Adder {
    collective: Arc<dyn Collective>,
    /// What the gradients' device is called in messages.
    device: String,
}

impl Adder {
    /// Adds up what is sent, part by part.
    fn add_up(&self, sent: &Receiver<Vec<Own>>) -> Found {
        let mut sums = vec![];
        for part in sent {
            sums.extend(self.over_ranks(part)?);
        }
        Ok(sums)
    }

    /// The sums of a part: one message of all its elements, and for each gradient whether there is one.
    fn over_ranks(&self, part: Vec<Own>) -> Found {
        let read = part.into_iter().map(|own| Ok((own.shape, own.reading.map(|own| self.arrived(own)).transpose()?)));
        let mut read: Vec<([usize; 2], Option<TensorData>)> = read.collect::<Result<_>>()?;
        let mut all = vec![];
        for (shape, own) in &mut read {
            match own {
                Some(own) => all.extend_from_slice(self.f32s(own)?),
                None => all.resize(all.len() + shape.iter().product::<usize>(), 0.0),
            }
        }
        all.extend(read.iter().map(|(_, own)| f32::from(u8::from(own.is_some()))));
        self.collective.all_reduce(&mut all)?;
        let (mut all, present) = all.split_at(all.len() - read.len());
        let sums = read.into_iter().zip(present).map(|((shape, own), present)| {
            let (sum, rest) = all.split_at(shape.iter().product());
            all = rest;
            if *present == 0.0 {
                return Ok(None);
            }
            // What a device was read into is what it is written from fastest.
            let mut values = own.unwrap_or_else(|| TensorData::zeros::<f32, _>(shape));
            self.f32s(&mut values)?.copy_from_slice(sum);
            Ok(Some(Sum { values, squares: sum.iter().map(|value| f64::from(*value).powi(2)).sum() }))
        });
        sums.collect()
    }

    /// A gradient, once the device has computed it.
    fn arrived(&self, reading: Reading) -> Result<TensorData> {
        let data = try_read_sync(reading).ok_or_else(|| self.failed("this thread cannot wait for it".into()))?;
        let data = data.map_err(|e| self.failed(failure::explained(format!("reading a gradient failed: {e}"))))?;
        Ok(data.convert_dtype(DType::F32))
    }

    fn f32s<'a>(&self, data: &'a mut TensorData) -> Result<&'a mut [f32]> {
        // Where there is nothing, it lies at an address that is none of an f32.
        match data.num_elements() {
            0 => Ok(&mut []),
            _ => data.as_mut_slice().map_err(|e| self.failed(format!("a gradient is not f32: {e:?}"))),
        }
    }

    fn failed(&self, reason: String) -> Error {
        Error::Device { device: self.device.clone(), reason }
    }
}
