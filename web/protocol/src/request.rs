//! What a page asks of the worker.

use serde::{Deserialize, Serialize};

use crate::compare::Matrix;

/// What a page asks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub enum Request {
    /// Chooses the device, for the worker's life; the first request. Answered by `ready`.
    Open {
        /// Which.
        device: Choice,
    },
    /// What a model is and what a run of the recipe would take, from its configuration alone: `planned`.
    Plan {
        /// The model.
        model: ModelSource,
        /// The run.
        recipe: RecipeSource,
    },
    /// Loads a model, in place of one that is there: `progress` while it comes, then `loaded`.
    Load {
        /// The model.
        model: ModelSource,
        /// What will be done with it: how its weights are held, and whether the run's memory fits.
        recipe: RecipeSource,
        /// Also where the plan says that memory will not do.
        anyway: bool,
    },
    /// Answers questions, or continues texts: `piece` while it writes, then `answers`.
    Generate {
        /// User messages; plain text where the model has no chat template.
        prompts: Vec<String>,
        /// How tokens are chosen.
        sampling: Sampling,
        /// With the adapter that was trained or loaded, rather than the base model alone.
        adapter: bool,
    },
    /// Trains an adapter: `started`, `answers` of the base model, then `step`s, and `finished`.
    Train(Train),
    /// Goes on with the run that storage holds, from its last checkpoint; its model is loaded first where it is not there.
    Continue,
    /// Waits after the step that is being made: `paused`.
    Pause,
    /// Goes on: `resumed`.
    Resume,
    /// Ends training after the step that is being made.
    Stop,
    /// The adapter as a zip of PEFT's folder: `adapter`.
    Export,
    /// Attaches the adapter of a zip of PEFT's folder: `imported`.
    Import {
        /// The zip.
        zip: Part,
    },
    /// The run that storage holds, if any: `saved-run`.
    FindSaved,
    /// Removes the run that storage holds.
    ForgetSaved,
    /// Removes the models that storage holds, and the run.
    ClearStorage,
    /// Tests the device's kernels against plain formulas: `kernel`s, then `done`.
    Conformance {
        /// Decides all values.
        seed: u64,
    },
    /// Measures the device's kernels on the layers of a known model: `measured`s, then `done`.
    Bench {
        /// A name that `halfbyte_memory::preset` knows.
        model: String,
        /// Rows of activations.
        rows: Vec<usize>,
    },
    /// Takes a matrix through the device and through the plain code: `compared`.
    Compare(Matrix),
}

/// A device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Choice {
    /// WebGPU where there is a hardware adapter that can be used, else the CPU.
    #[default]
    Auto,
    /// WebGPU, be it by a software adapter; an error where there is none.
    Webgpu,
    /// The CPU, by WebAssembly's SIMD.
    Cpu,
}

/// The place of bytes in a message's `parts`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part(pub usize);

/// Where a model comes from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "from", rename_all = "kebab-case")]
pub enum ModelSource {
    /// A folder of this site.
    Site {
        /// What recipes and adapters call it.
        name: String,
        /// Its address, which ends in a slash.
        url: String,
    },
    /// Files of the user's machine, which are copied into the browser's storage.
    Files {
        /// What recipes and adapters call it.
        name: String,
        /// Names and contents: `config.json`, `tokenizer.json`, `*.safetensors` and what else the folder holds.
        files: Vec<(String, Part)>,
    },
    /// A repository of the Hugging Face hub, which is kept in the browser's storage.
    Hub {
        /// `org/name` or `org/name@revision`.
        name: String,
        /// The hub's address, `https://huggingface.co` where it is empty.
        endpoint: String,
    },
}

impl ModelSource {
    /// What recipes and adapters call it.
    pub fn name(&self) -> &str {
        match self {
            Self::Site { name, .. } | Self::Files { name, .. } | Self::Hub { name, .. } => name,
        }
    }
}

/// A recipe as the command reads it, and what is put in place of its keys.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RecipeSource {
    /// TOML.
    pub toml: String,
    /// `key=value`, as the command's `--set` takes them.
    pub set: Vec<String>,
}

/// A run to begin.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Train {
    /// How to train.
    pub recipe: RecipeSource,
    /// What to train on.
    pub train: DataSource,
    /// What is held out, if anything.
    pub test: Option<DataSource>,
    /// Steps between two rounds of answers to the recipe's `show.questions`; 0 for before and after alone.
    pub answer_every: usize,
    /// Steps between two checkpoints in the browser's storage; 0 for none.
    pub save_every: usize,
}

/// A data file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "from", rename_all = "kebab-case")]
pub enum DataSource {
    /// A file of this site.
    Site {
        /// Its address.
        url: String,
    },
    /// What was pasted.
    Text {
        /// A name, whose extension says the format.
        name: String,
        /// The file's text.
        text: String,
    },
    /// A file of the user's machine.
    File {
        /// Its name, whose extension says the format.
        name: String,
        /// Its content.
        file: Part,
    },
}

/// How tokens are chosen; the likeliest where all is zero.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// 0 takes the likeliest token.
    pub temperature: f64,
    /// Keeps the likeliest tokens up to this probability; 1 keeps all.
    pub top_p: f64,
    /// Longest answer, in tokens.
    pub max_new_tokens: usize,
    /// Seed of the choices.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 0.0, top_p: 1.0, max_new_tokens: 64, seed: 0 }
    }
}
