//! Training: layer-wise backpropagation, the loss over chunks of tokens, accumulation, the schedule and the loop.

mod backprop;
mod config;
mod loss;
mod neftune;
mod optimization;
mod recipe;
mod schedule;
mod trainer;

pub use backprop::{Recompute, Step, backpropagate, whole_graph};
pub use config::TrainerConfig;
pub use loss::{Targets, head_loss, loss_sum};
pub use neftune::noise;
pub use optimization::Optimization;
pub use recipe::{PretrainRecipe, QuantizationConfig, Recipe, ShowConfig, load_recipe, parse_override, parse_recipe};
pub use schedule::{LrSchedulerType, Schedule};
pub use trainer::{Evaluation, Metrics, Trainer, evaluate};
