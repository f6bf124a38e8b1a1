//! Training: layer-wise backpropagation, the loss over chunks of tokens, accumulation, the schedule and the loop.

mod backprop;
mod checkpoint;
mod config;
mod devices;
mod evaluation;
mod loss;
mod memory;
mod neftune;
mod optimization;
mod pipeline;
mod plan;
mod recipe;
mod reduce;
mod run;
mod schedule;
mod snapshot;
mod state;
mod sums;
mod trainer;

pub use backprop::{Recompute, Step, backpropagate, whole_graph};
pub use checkpoint::{
    CheckpointConfig, SavedCheckpoint, checkpoint_folder, checkpoints, remove_checkpoints, save_checkpoint, sweep,
};
pub use config::TrainerConfig;
pub use devices::Devices;
pub use evaluation::{BestMetric, Evaluation, EvaluationConfig, Strategy, evaluate};
pub use loss::{Targets, head_loss, loss_and_hits};
pub use neftune::noise;
pub use optimization::Optimization;
pub use plan::shape_of;
pub use recipe::{
    EmbeddingDtype, PretrainRecipe, QuantizationConfig, Recipe, ShowConfig, load_recipe, parse_override, parse_recipe,
};
pub use run::{Run, data_digest};
pub use schedule::{LrSchedulerType, Schedule};
pub use snapshot::{CheckpointFiles, Snapshot, checkpoint_files};
pub use state::{Entry, Evaluated, TrainerState};
pub use trainer::{Metrics, Trainer};
