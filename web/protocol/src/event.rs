//! What the worker tells a page.

use halfbyte_memory::Plan;
use serde::{Deserialize, Serialize};

use crate::compare::Comparison;
use crate::request::{Choice, Part};

/// What the worker tells.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "kebab-case")]
pub enum Event {
    /// The worker listens. What is posted before it may be lost.
    Awake,
    /// The device is chosen.
    Ready(DeviceReport),
    /// Something that takes long goes on.
    Progress(Progress),
    /// What a run would take.
    Planned(ModelReport),
    /// A model is there.
    Loaded(ModelReport),
    /// Training begins, or goes on.
    Started(Started),
    /// A training step was made.
    Step(Step),
    /// The held-out data was looked at.
    Evaluated(Evaluation),
    /// Text that is being written.
    Piece {
        /// The question, by its place.
        prompt: usize,
        /// The next few characters.
        text: String,
    },
    /// Questions were answered.
    Answers {
        /// After how many steps; none outside training.
        step: Option<usize>,
        /// In the order of the questions.
        answers: Vec<Answer>,
    },
    /// A checkpoint is in the browser's storage.
    Saved {
        /// Its step.
        step: usize,
    },
    /// Training waits.
    Paused,
    /// Training goes on.
    Resumed,
    /// Training ended.
    Finished {
        /// Steps that were made, those of before a continuation included.
        step: usize,
        /// Somebody stopped it before its last step.
        stopped: bool,
    },
    /// An adapter as a zip.
    Adapter(Adapter),
    /// An adapter was attached.
    Imported {
        /// Its rank.
        rank: usize,
        /// Layers that it adapts.
        layers: usize,
        /// The model that it says it was trained on.
        base: Option<String>,
    },
    /// The run that storage holds.
    SavedRun {
        /// None where there is none that can be continued.
        run: Option<SavedRun>,
    },
    /// A kernel's comparison.
    Kernel(Kernel),
    /// A kernel's measurement.
    Measured(Measurement),
    /// A matrix on the device beside the same by the plain code.
    Compared(Comparison),
    /// What was asked for is done, and there was nothing else to say.
    Done,
    /// Something worth knowing.
    Note {
        /// For people.
        text: String,
    },
    /// What was asked for failed; the worker listens on.
    Failed(Failure),
    /// The GPU is gone, or the worker can't go on: it has to be started anew.
    Lost(Failure),
}

/// The device, and why it is this one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DeviceReport {
    /// What runs: `webgpu` or `cpu`.
    pub device: Choice,
    /// Its name, for people.
    pub name: String,
    /// Why it was chosen, and what stands in the way of a better one; a sentence.
    pub why: String,
    /// A GPU in software.
    pub software: bool,
    /// Of `GPUAdapterInfo`.
    pub vendor: String,
    /// Of `GPUAdapterInfo`.
    pub architecture: String,
    /// Of `GPUAdapterInfo`; often empty.
    pub device_id: String,
    /// Of `GPUAdapterInfo`.
    pub description: String,
    /// `GPUSupportedFeatures`, in order.
    pub features: Vec<String>,
    /// `GPUSupportedLimits`, in order.
    pub limits: Vec<(String, f64)>,
    /// The browser, by `navigator.userAgent`.
    pub browser: String,
}

/// How far something is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// What goes on.
    pub what: String,
    /// How much is done, in bytes or pieces.
    pub done: u64,
    /// Of how much; 0 where it is not known.
    pub total: u64,
}

/// A model, and what its run takes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelReport {
    /// Its name.
    pub name: String,
    /// Its parameters.
    pub parameters: u64,
    /// Parameters that are trained.
    pub trained: u64,
    /// Bytes that are fetched or read for it.
    pub download: u64,
    /// The memory of a run.
    pub plan: Plan,
    /// What the plan needs.
    pub needed: u64,
    /// Bytes that there are, as far as a browser says.
    pub available: Option<u64>,
    /// Why it does not fit, with a cure.
    pub refusal: Option<String>,
    /// It has a chat template.
    pub chat: bool,
}

/// A run that begins.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Started {
    /// Steps of the whole run.
    pub steps: usize,
    /// Steps that a checkpoint has behind it.
    pub done: usize,
    /// Losses of those steps.
    pub losses: Vec<f64>,
    /// Examples.
    pub examples: usize,
    /// Tokens of them.
    pub tokens: usize,
    /// Tokens that the loss is taken on.
    pub trained_tokens: usize,
    /// Parameters that are trained, and all.
    pub parameters: (usize, usize),
    /// The questions that are answered.
    pub questions: Vec<String>,
    /// What a person should know of the data.
    pub warnings: Vec<String>,
    /// The recipe as it is run, TOML.
    pub recipe: String,
    /// The plan's memory.
    pub plan: Plan,
}

/// A training step.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// The step, counted from 1.
    pub step: usize,
    /// Passes over the data so far.
    pub epoch: f64,
    /// Mean loss over the step's trained tokens.
    pub loss: f64,
    /// Gradient norm before clipping.
    pub grad_norm: f64,
    /// Learning rate.
    pub learning_rate: f64,
    /// Tokens that went through the model.
    pub tokens: usize,
    /// Of the step, in seconds.
    pub seconds: f64,
    /// Bytes that the device's allocator has in use, where it says so.
    pub device_bytes: Option<u64>,
    /// Bytes of the worker's WebAssembly memory.
    pub host_bytes: u64,
}

/// What a model does on held-out data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// After how many steps.
    pub step: usize,
    /// Mean loss.
    pub loss: f64,
    /// Share of the trained tokens that have the largest logit.
    pub accuracy: f64,
}

/// A question and its answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// What was asked.
    pub prompt: String,
    /// What was answered.
    pub text: String,
    /// Tokens per second.
    pub speed: f64,
}

/// An adapter's folder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Adapter {
    /// A name for the file.
    pub file: String,
    /// The zip.
    pub zip: Part,
    /// Its length in bytes.
    pub bytes: u64,
}

/// A run in the browser's storage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SavedRun {
    /// Its base model.
    pub model: String,
    /// The step of the checkpoint.
    pub step: usize,
    /// Steps of the whole run.
    pub steps: usize,
    /// The loss of the last step.
    pub loss: Option<f64>,
}

/// A kernel's comparison with plain formulas.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Kernel {
    /// The kernel and its variant.
    pub kernel: String,
    /// On what.
    pub shapes: String,
    /// Relative error; none where the result is not a number.
    pub error: Option<f64>,
    /// How large it may be.
    pub tolerance: f64,
    /// It is small enough.
    pub passed: bool,
}

/// A kernel's speed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    /// The kernel and its variant.
    pub kernel: String,
    /// `[out, in]` of the weight.
    pub shape: [usize; 2],
    /// Rows of activations.
    pub rows: usize,
    /// Of one run.
    pub seconds: f64,
    /// GB/s.
    pub bandwidth: f64,
    /// GFLOP/s.
    pub arithmetic: f64,
}

/// How a request ended.
pub type Outcome = Result<Event, Failure>;

/// What went wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What sort of thing.
    pub kind: Kind,
    /// What is wrong, where, and the cure.
    pub message: String,
}

/// Sorts of failure, by who can mend them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A file, or a line of one.
    File,
    /// A setting.
    Setting,
    /// Training met a number that is none.
    NonFinite,
    /// The memory will not do.
    Memory,
    /// The device.
    Device,
    /// The network, or what answers there.
    Network,
    /// The browser's storage.
    Storage,
    /// The request does not fit what the worker does.
    Request,
    /// The program itself.
    Bug,
}
