//! A button that has the engine's kernels compute on the visitor's GPU what the page computed on the CPU, and shows both equal.

use std::cell::RefCell;
use std::rc::Rc;

use halfbyte_memory::grouped;
use halfbyte_protocol::{Choice, Comparison, DeviceReport, Event, LowRank, Matrix, Part, Request};
use js_sys::Float32Array;
use leptos::prelude::*;
use wasm_bindgen::JsValue;

use crate::ui::{Callout, Kind, Link};
use crate::worker::Worker;

/// How far a product may be off that is equal but for the order of its sums, as the conformance suite has it.
const PRODUCT: f64 = 1e-5;
/// The same for one number that is computed in f32.
const NUMBER: f64 = 1e-6;

/// A matrix to compare, as [`Matrix`] describes it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Sample {
    pub(crate) values: Vec<f32>,
    pub(crate) shape: [usize; 2],
    pub(crate) block_size: usize,
    pub(crate) double_quant: bool,
    /// `A` `[rank, in]`, `B` `[out, rank]` and the rank of an adapter.
    pub(crate) adapter: Option<(Vec<f32>, Vec<f32>, usize)>,
}

impl Sample {
    /// The request, and the buffers that go with it.
    fn request(&self) -> (Request, Vec<JsValue>) {
        let mut parts = vec![];
        let mut part = |values: &[f32]| {
            parts.push(Float32Array::from(values).buffer().into());
            Part(parts.len() - 1)
        };
        let values = part(&self.values);
        let adapter = self.adapter.as_ref().map(|(a, b, rank)| {
            let (a, b) = (part(a), part(b));
            LowRank { a, b, rank: *rank, scaling: 1.0 }
        });
        let Self { shape, block_size, double_quant, .. } = *self;
        (Request::Compare(Matrix { values, shape, block_size, double_quant, adapter }), parts)
    }

    fn largest(&self) -> f64 {
        self.values.iter().fold(0.0, |most, value| f64::from(value.abs()).max(most))
    }
}

/// Whether the device's results are the plain code's: codes and scales to the bit, decoded numbers and products to rounding.
fn equal(found: &Comparison, sample: &Sample) -> bool {
    let within = |error: Option<f64>, most: f64| error.is_some_and(|error| error <= most);
    found.codes.1 == 0
        && found.scales.1 == 0
        && within(found.scale_error, NUMBER)
        && within(found.weight_error, NUMBER * sample.largest())
        && within(found.product_error, PRODUCT)
        && (sample.adapter.is_none() || within(found.adapter_error, PRODUCT))
}

fn number(error: Option<f64>) -> String {
    match error {
        None => "not a number".into(),
        Some(0.0) => "0".into(),
        Some(error) => format!("{error:.1e}"),
    }
}

fn rows(found: &Comparison, sample: &Sample) -> Vec<(String, String)> {
    let of = |(all, off): (usize, usize)| format!("{} of {}", grouped(off as u64), grouped(all as u64));
    let mut rows =
        vec![("Codes that differ".to_owned(), of(found.codes)), ("Scales that differ".to_owned(), of(found.scales))];
    if sample.double_quant {
        rows.push(("Largest error of a scale from 8 bits".to_owned(), number(found.scale_error)));
    }
    rows.push(("Largest error of a decoded weight".to_owned(), number(found.weight_error)));
    rows.push((format!("Error of a product, {} rows", found.rows), number(found.product_error)));
    if sample.adapter.is_some() {
        rows.push(("The same with the adapter".to_owned(), number(found.adapter_error)));
    }
    rows
}

/// Where the check is.
#[derive(Clone, Debug, PartialEq)]
enum State {
    Idle,
    Working,
    Found(Box<(DeviceReport, Comparison, Sample)>),
    /// No GPU can be used; why.
    Without(String),
    Failed(String),
}

/// A check's parts. Copies are the same check.
#[derive(Clone, Copy)]
struct Check {
    worker: StoredValue<Rc<RefCell<Option<Worker>>>, LocalStorage>,
    device: StoredValue<Option<DeviceReport>>,
    /// What was asked for last, and its words.
    sample: StoredValue<(String, Sample)>,
    state: RwSignal<State>,
    what: Signal<String>,
}

impl Check {
    fn begin(self, sample: Sample) {
        self.sample.set_value((self.what.get_untracked(), sample));
        self.state.set(State::Working);
        if self.device.with_value(Option::is_some) {
            return self.ask();
        }
        let hear = move |event, _| {
            // The page may be gone before the worker is.
            if self.state.try_get_untracked().is_some() {
                self.hear(event);
            }
        };
        match Worker::start(hear) {
            Ok(worker) => {
                worker.post(&Request::Open { device: Choice::Webgpu }, &[]);
                *self.worker.get_value().borrow_mut() = Some(worker);
            }
            Err(failure) => self.state.set(State::Failed(failure.message)),
        }
    }

    fn post(self, request: &Request, parts: &[JsValue]) {
        if let Some(worker) = &*self.worker.get_value().borrow() {
            worker.post(request, parts);
        }
    }

    fn ask(self) {
        let (request, parts) = self.sample.with_value(|(_, sample)| sample.request());
        self.post(&request, &parts);
    }

    fn end(self) {
        self.worker.get_value().take();
        self.device.set_value(None);
    }

    fn hear(self, event: Event) {
        match event {
            Event::Ready(device) if device.device == Choice::Cpu => {
                self.state.set(State::Without(device.why));
                self.end();
            }
            Event::Ready(device) => {
                self.device.set_value(Some(device));
                self.ask();
            }
            Event::Compared(found) => {
                let (words, sample) = self.sample.get_value();
                let device = self.device.get_value().unwrap_or_default();
                let still = words == self.what.get_untracked();
                self.state.set(if still { State::Found(Box::new((device, found, sample))) } else { State::Idle });
            }
            // The best device there is says why that is no GPU.
            Event::Failed(_) if self.device.with_value(Option::is_none) => {
                self.post(&Request::Open { device: Choice::Auto }, &[]);
            }
            Event::Failed(failure) => self.state.set(State::Failed(failure.message)),
            Event::Lost(failure) => {
                self.state.set(State::Failed(failure.message));
                self.end();
            }
            _ => {}
        }
    }
}

/// The check of what stands above it.
#[component]
pub(crate) fn OnGpu<F>(
    /// What is compared, in words. When they change, what was found is of something else, and goes.
    #[prop(into)]
    what: Signal<String>,
    /// The matrix, asked for when the button is pressed.
    sample: F,
) -> impl IntoView
where
    F: Fn() -> Option<Sample> + 'static,
{
    let check = Check {
        worker: StoredValue::new_local(Rc::new(RefCell::new(None))),
        device: StoredValue::new(None),
        sample: StoredValue::new(Default::default()),
        state: RwSignal::new(State::Idle),
        what,
    };
    on_cleanup(move || check.end());
    Effect::new(move |before: Option<String>| {
        let now = what.get();
        if before.is_some_and(|before| before != now) && check.state.get_untracked() != State::Working {
            check.state.set(State::Idle);
        }
        now
    });
    let press = move |_| {
        if let Some(sample) = sample() {
            check.begin(sample);
        }
    };
    view! {
        <div class="on-gpu">
            <h3>"The same on a GPU"</h3>
            <p class="help">{move || format!("The engine's kernels quantize, decode and multiply {} on this device's GPU, through WebGPU, and a worker compares each result with the CPU's. It loads the engine first, about 4 MB. Nothing is sent.", what.get())}</p>
            <div class="buttons">
                <button class="button" disabled=move || check.state.get() == State::Working on:click=press>"Check on this device's GPU"</button>
            </div>
            <div class="on-gpu" aria-live="polite" data-testid="on-gpu">{move || answer(check.state.get())}</div>
        </div>
    }
}

/// What the check has to say.
fn answer(state: State) -> AnyView {
    match state {
        State::Idle => ().into_any(),
        State::Working => view! { <p>"Computing …"</p> }.into_any(),
        State::Without(why) => view! {
            <Callout kind=Kind::Warning title="There is no GPU to check on">
                <p>{why} ". The numbers above do not need one: they are the CPU's. WebGPU needs a browser that has it, with graphics acceleration turned on in its settings; the " <Link to="gpu">"GPU lab"</Link> " shows what a browser offers."</p>
            </Callout>
        }
        .into_any(),
        State::Failed(message) => {
            view! { <Callout kind=Kind::Error title="The GPU could not be asked">{message}</Callout> }.into_any()
        }
        State::Found(found) => {
            let (device, found, sample) = *found;
            let figure = |(what, value): (String, String)| view! { <div><dt>{what}</dt><dd>{value}</dd></div> };
            let (kind, title) = match equal(&found, &sample) {
                true => (Kind::Good, "The GPU's results are the CPU's"),
                false => (Kind::Error, "The GPU's results are not the CPU's"),
            };
            let software = if device.software { " It is software, not a GPU of its own: right, but slow." } else { "" };
            view! {
                <Callout kind title>
                    <p>{format!("On {}.{software} Codes and scales are compared by their bits; the order of sums, which a GPU chooses, moves the last bits of a product.", device.name)}</p>
                </Callout>
                <dl class="figures">{rows(&found, &sample).into_iter().map(figure).collect_view()}</dl>
            }
            .into_any()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAME: Comparison = Comparison {
        codes: (64, 0),
        scales: (1, 0),
        scale_error: Some(0.0),
        weight_error: Some(1e-9),
        rows: 16,
        product_error: Some(3e-7),
        adapter_error: None,
    };

    #[test]
    fn equal_is_equal_in_everything() {
        let plain = Sample { values: vec![-0.1], ..Sample::default() };
        let adapted = Sample { adapter: Some((vec![], vec![], 0)), ..plain.clone() };
        assert!(equal(&SAME, &plain) && !equal(&SAME, &adapted));
        assert!(equal(&Comparison { adapter_error: Some(1e-7), ..SAME }, &adapted));
        let others = [
            Comparison { codes: (64, 1), ..SAME },
            Comparison { scales: (1, 1), ..SAME },
            Comparison { scale_error: None, ..SAME },
            Comparison { weight_error: Some(1e-3), ..SAME },
            Comparison { product_error: Some(1e-3), ..SAME },
            Comparison { product_error: None, ..SAME },
        ];
        assert!(others.iter().all(|found| !equal(found, &plain)));
    }

    #[test]
    fn what_was_not_asked_for_is_not_shown() {
        let words = |sample: &Sample| rows(&SAME, sample).into_iter().map(|(what, _)| what).collect::<Vec<_>>();
        assert_eq!(words(&Sample::default()).len(), 4);
        let all = Sample { double_quant: true, adapter: Some((vec![], vec![], 0)), ..Sample::default() };
        assert_eq!(words(&all).len(), 6);
        assert_eq!(number(Some(0.0)), "0");
        assert_eq!(number(Some(2.34e-7)), "2.3e-7");
    }
}
