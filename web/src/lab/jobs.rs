//! What the lab has its workers do: one thing after another, on the GPU and on the CPU.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use halfbyte_protocol::{Choice, Event, Request};
use leptos::prelude::*;

use super::report::Report;
use crate::worker::Worker;

/// The model whose layers are measured: small enough for a GPU in software.
const MODEL: &str = "qwen2.5-0.5b";
/// Rows of activations: decoding, and training.
const ROWS: [usize; 2] = [1, 128];

/// The lab's state. Copies are the same state.
#[derive(Clone, Copy)]
pub(crate) struct Lab {
    worker: StoredValue<Rc<RefCell<Option<Worker>>>, LocalStorage>,
    jobs: StoredValue<VecDeque<(Choice, Request)>>,
    /// The device of the worker that runs.
    on: StoredValue<Option<Choice>>,
    pub(crate) report: RwSignal<Option<Report>>,
    /// What goes on; empty for nothing.
    pub(crate) doing: RwSignal<String>,
    pub(crate) failure: RwSignal<Option<String>>,
}

impl Lab {
    /// One that does nothing yet.
    pub(crate) fn new() -> Self {
        Self {
            worker: StoredValue::new_local(Rc::new(RefCell::new(None))),
            jobs: StoredValue::new(VecDeque::new()),
            on: StoredValue::new(None),
            report: RwSignal::new(None),
            doing: RwSignal::new(String::new()),
            failure: RwSignal::new(None),
        }
    }

    /// Tests the kernels on the GPU.
    pub(crate) fn test(self) {
        self.report.update(|report| report.iter_mut().for_each(|report| report.kernels.clear()));
        self.run([(Choice::Webgpu, Request::Conformance { seed: 1 })]);
    }

    /// Measures the kernels on the GPU, then on the CPU.
    pub(crate) fn measure(self) {
        self.report.update(|report| {
            if let Some(report) = report {
                (report.gpu, report.cpu) = (vec![], vec![]);
            }
        });
        let bench = Request::Bench { model: MODEL.into(), rows: ROWS.to_vec() };
        self.run([(Choice::Webgpu, bench.clone()), (Choice::Cpu, bench)]);
    }

    /// Ends what goes on.
    pub(crate) fn end(self) {
        self.jobs.update_value(VecDeque::clear);
        self.worker.get_value().take();
        self.on.set_value(None);
        self.doing.set(String::new());
    }

    fn run(self, jobs: impl IntoIterator<Item = (Choice, Request)>) {
        self.failure.set(None);
        self.jobs.update_value(|queue| queue.extend(jobs));
        self.next();
    }

    /// Begins the next job, on a fresh worker where it is for another device.
    fn next(self) {
        let Some((device, request)) = self.jobs.try_update_value(VecDeque::pop_front).flatten() else {
            self.doing.set(String::new());
            return;
        };
        let place = if device == Choice::Cpu { "the CPU" } else { "the GPU" };
        let what = if matches!(request, Request::Bench { .. }) { "Measuring" } else { "Testing" };
        self.doing.set(format!("{what} on {place}…"));
        let slot = self.worker.get_value();
        if self.on.get_value() != Some(device) {
            *slot.borrow_mut() = None;
            let hear = move |event, _| {
                if self.doing.try_get_untracked().is_some() {
                    self.hear(event);
                }
            };
            match Worker::start(hear) {
                Ok(worker) => {
                    worker.post(&Request::Open { device }, &[]);
                    self.on.set_value(Some(device));
                    *slot.borrow_mut() = Some(worker);
                }
                Err(failure) => return self.fail(failure.message),
            }
        }
        if let Some(worker) = &*slot.borrow() {
            worker.post(&request, &[]);
        }
    }

    fn fail(self, message: String) {
        self.failure.set(Some(message));
        self.end();
    }

    fn hear(self, event: Event) {
        let on_cpu = self.on.get_value() == Some(Choice::Cpu);
        match event {
            Event::Ready(device) if !on_cpu => self.report.update(|report| match report {
                Some(report) => report.device = device,
                None => *report = Some(Report::new(device)),
            }),
            Event::Kernel(kernel) => self.report.update(|report| report.iter_mut().for_each(|r| r.add(kernel.clone()))),
            Event::Measured(measured) => self.report.update(|report| {
                if let Some(report) = report {
                    if on_cpu { report.cpu.push(measured) } else { report.gpu.push(measured) }
                }
            }),
            Event::Done => self.next(),
            Event::Failed(failure) | Event::Lost(failure) => self.fail(failure.message),
            _ => {}
        }
    }
}
