//! What the playground knows, as signals, and how the worker's events change it.

use std::cell::RefCell;
use std::rc::Rc;

use halfbyte_protocol::{
    Answer, Choice, DeviceReport, Evaluation, Event, Failure, ModelReport, ModelSource, Progress, RecipeSource,
    Request, SavedRun, Started, Step,
};
use leptos::prelude::*;
use wasm_bindgen::JsValue;

use crate::ui::download;
use crate::worker::Worker;

/// What goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The worker and its device start.
    Starting,
    /// A model is fetched and loaded.
    Loading,
    /// Nothing.
    Idle,
    /// A run is prepared or trains.
    Training,
    /// A run waits.
    Paused,
    /// A question is answered.
    Answering,
    /// The worker is gone and nothing will bring it back by itself.
    Gone,
}

/// A round of answers to the run's questions.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Round {
    pub(crate) step: usize,
    pub(crate) answers: Vec<Answer>,
}

/// The playground's state. Copies are the same state.
#[derive(Clone, Copy)]
pub(crate) struct Play {
    worker: StoredValue<Rc<RefCell<Option<Worker>>>, LocalStorage>,
    /// The device to start on.
    pub(crate) choice: RwSignal<Choice>,
    pub(crate) phase: RwSignal<Phase>,
    pub(crate) device: RwSignal<Option<DeviceReport>>,
    /// The model that was asked for last.
    pub(crate) source: StoredValue<Option<(ModelSource, RecipeSource)>>,
    pub(crate) planned: RwSignal<Option<ModelReport>>,
    pub(crate) model: RwSignal<Option<ModelReport>>,
    pub(crate) progress: RwSignal<Option<Progress>>,
    pub(crate) started: RwSignal<Option<Started>>,
    pub(crate) losses: RwSignal<Vec<f64>>,
    pub(crate) last: RwSignal<Option<Step>>,
    /// Tokens per second over the last steps.
    pub(crate) speed: RwSignal<f64>,
    pub(crate) evaluations: RwSignal<Vec<Evaluation>>,
    pub(crate) rounds: RwSignal<Vec<Round>>,
    /// What is being written: the question's place and the text so far.
    pub(crate) writing: RwSignal<Option<(usize, String)>>,
    /// Answers to the visitor's own question: without the adapter, and with it.
    pub(crate) own: RwSignal<Vec<Answer>>,
    pub(crate) adapter: RwSignal<Option<String>>,
    pub(crate) saved: RwSignal<Option<SavedRun>>,
    pub(crate) kept: RwSignal<Option<usize>>,
    pub(crate) failure: RwSignal<Option<Failure>>,
    pub(crate) notes: RwSignal<Vec<String>>,
    /// The last time that a lost device was brought back, by the step it was at.
    recovered: StoredValue<Option<usize>>,
}

impl Play {
    /// A worker that starts, and the model that it shall load.
    pub(crate) fn start(model: ModelSource, recipe: RecipeSource) -> Self {
        let play = Self {
            worker: StoredValue::new_local(Rc::new(RefCell::new(None))),
            choice: RwSignal::new(Choice::Auto),
            phase: RwSignal::new(Phase::Starting),
            device: RwSignal::new(None),
            source: StoredValue::new(None),
            planned: RwSignal::new(None),
            model: RwSignal::new(None),
            progress: RwSignal::new(None),
            started: RwSignal::new(None),
            losses: RwSignal::new(vec![]),
            last: RwSignal::new(None),
            speed: RwSignal::new(0.0),
            evaluations: RwSignal::new(vec![]),
            rounds: RwSignal::new(vec![]),
            writing: RwSignal::new(None),
            own: RwSignal::new(vec![]),
            adapter: RwSignal::new(None),
            saved: RwSignal::new(None),
            kept: RwSignal::new(None),
            failure: RwSignal::new(None),
            notes: RwSignal::new(vec![]),
            recovered: StoredValue::new(None),
        };
        play.restart();
        play.load(model, recipe, vec![], false);
        play.post(&Request::FindSaved);
        play
    }

    /// A fresh worker on the chosen device, with nothing loaded.
    pub(crate) fn restart(self) {
        self.phase.set(Phase::Starting);
        self.model.set(None);
        let hear = move |event, parts| {
            // The page may be gone before the worker is.
            if self.phase.try_get_untracked().is_some() {
                self.hear(event, parts);
            }
        };
        let slot = self.worker.get_value();
        *slot.borrow_mut() = None;
        match Worker::start(hear) {
            Ok(worker) => {
                worker.post(&Request::Open { device: self.choice.get_untracked() }, &[]);
                *slot.borrow_mut() = Some(worker);
            }
            Err(failure) => {
                self.failure.set(Some(failure));
                self.phase.set(Phase::Gone);
            }
        }
    }

    /// Restarts on another device, with the same model.
    pub(crate) fn change_device(self) {
        self.restart();
        if let Some((model, recipe)) = self.source.get_value() {
            self.load(without_files(model), recipe, vec![], false);
        }
    }

    /// Ends the worker.
    pub(crate) fn end(self) {
        self.worker.get_value().take();
    }

    pub(crate) fn post(self, request: &Request) {
        self.post_with(request, &[]);
    }

    pub(crate) fn post_with(self, request: &Request, parts: &[JsValue]) {
        if let Some(worker) = &*self.worker.get_value().borrow() {
            worker.post(request, parts);
        }
    }

    /// Loads a model; `anyway` also where the plan says that memory will not do.
    pub(crate) fn load(self, model: ModelSource, recipe: RecipeSource, files: Vec<JsValue>, anyway: bool) {
        self.source.set_value(Some((model.clone(), recipe.clone())));
        self.failure.set(None);
        if self.phase.get_untracked() != Phase::Starting {
            self.phase.set(Phase::Loading);
        }
        self.post_with(&Request::Load { model, recipe, anyway }, &files);
    }

    /// Forgets what an earlier run has shown, and begins one.
    pub(crate) fn begin(self, request: &Request, parts: &[JsValue]) {
        self.clear_run();
        self.recovered.set_value(None);
        self.phase.set(Phase::Training);
        self.post_with(request, parts);
    }

    fn clear_run(self) {
        self.failure.set(None);
        self.started.set(None);
        self.losses.set(vec![]);
        self.last.set(None);
        self.evaluations.set(vec![]);
        self.rounds.set(vec![]);
        self.own.set(vec![]);
        self.notes.set(vec![]);
        self.kept.set(None);
        self.saved.set(None);
    }

    fn hear(self, event: Event, parts: Vec<JsValue>) {
        match event {
            Event::Awake | Event::Done | Event::Kernel(_) | Event::Measured(_) | Event::Compared(_) => {}
            Event::Ready(report) => {
                self.device.set(Some(report));
                if self.phase.get_untracked() == Phase::Starting {
                    self.phase.set(Phase::Loading);
                }
            }
            Event::Progress(progress) => self.progress.set(Some(progress)),
            Event::Planned(report) => {
                self.progress.set(None);
                self.planned.set(Some(report));
            }
            Event::Loaded(report) => {
                self.progress.set(None);
                self.planned.set(None);
                self.adapter.set(None);
                self.model.set(Some(report));
                if self.phase.get_untracked() != Phase::Training {
                    self.phase.set(Phase::Idle);
                }
            }
            Event::Started(started) => {
                self.progress.set(None);
                self.phase.set(Phase::Training);
                self.losses.set(started.losses.clone());
                if started.done > 0 {
                    self.kept.set(Some(started.done));
                }
                self.rounds.update(|rounds| rounds.retain(|round| round.step <= started.done));
                self.started.set(Some(started));
            }
            Event::Step(step) => self.step(step),
            Event::Evaluated(evaluation) => self.evaluations.update(|all| all.push(evaluation)),
            Event::Piece { prompt, text } => self.writing.update(|writing| match writing {
                Some((place, so_far)) if *place == prompt => so_far.push_str(&text),
                other => *other = Some((prompt, text)),
            }),
            Event::Answers { step, answers } => {
                self.writing.set(None);
                match step {
                    Some(step) => self.rounds.update(|rounds| rounds.push(Round { step, answers })),
                    None => {
                        self.own.update(|own| own.extend(answers));
                        self.phase.set(Phase::Idle);
                    }
                }
            }
            Event::Saved { step } => self.kept.set(Some(step)),
            Event::Paused => self.phase.set(Phase::Paused),
            Event::Resumed => self.phase.set(Phase::Training),
            Event::Finished { step, stopped } => {
                let end = if stopped { "stopped" } else { "finished" };
                self.adapter.set(Some(format!("trained here, {end} after step {step}")));
                self.phase.set(Phase::Idle);
            }
            Event::Adapter(adapter) => {
                if let Some(zip) = parts.get(adapter.zip.0) {
                    download::offer(zip, &adapter.file);
                }
            }
            Event::Imported { rank, layers, base } => {
                let base = base.map_or(String::new(), |base| format!(", trained on {base}"));
                self.adapter.set(Some(format!("uploaded: rank {rank} on {layers} layers{base}")));
            }
            Event::SavedRun { run } => self.saved.set(run),
            Event::Note { text } => self.notes.update(|notes| notes.push(text)),
            Event::Failed(failure) => {
                self.progress.set(None);
                self.writing.set(None);
                self.failure.set(Some(failure));
                self.phase.set(Phase::Idle);
            }
            Event::Lost(failure) => self.recover(failure),
        }
    }

    fn step(self, step: Step) {
        // Over about the last ten steps, so that one slow step does not make it jump.
        let now = step.tokens as f64 / step.seconds.max(1e-9);
        self.speed.update(|speed| *speed = if *speed == 0.0 { now } else { 0.9 * *speed + 0.1 * now });
        self.losses.update(|losses| {
            losses.truncate(step.step.saturating_sub(1));
            losses.push(step.loss);
        });
        self.last.set(Some(step));
    }

    /// The device is gone: a fresh worker goes on with the run where its last checkpoint stands. Once for a place: what fails
    /// there again would fail for ever.
    fn recover(self, failure: Failure) {
        self.progress.set(None);
        self.writing.set(None);
        let training = matches!(self.phase.get_untracked(), Phase::Training | Phase::Paused);
        let at = self.kept.get_untracked();
        if training && at.is_some() && self.recovered.get_value() != at {
            self.recovered.set_value(at);
            self.notes.update(|notes| {
                let step = at.unwrap_or_default();
                notes.push(format!("{}. Started anew; the run goes on from step {step}.", failure.message));
            });
            self.restart();
            if self.phase.get_untracked() == Phase::Gone {
                return;
            }
            self.phase.set(Phase::Training);
            self.post(&Request::Continue);
            return;
        }
        self.failure.set(Some(failure));
        self.end();
        self.phase.set(Phase::Gone);
    }
}

/// The same model once its files are in the browser's storage.
fn without_files(mut model: ModelSource) -> ModelSource {
    if let ModelSource::Files { files, .. } = &mut model {
        files.clear();
    }
    model
}
