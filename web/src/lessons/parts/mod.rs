//! What lessons are made of: their frame, predictions, tasks that check themselves, charts, samples.

mod chart;
mod figures;
mod frame;
mod heatmap;
mod model;
mod on_gpu;
mod predict;
mod sample;
mod targets;
mod task;

pub(crate) use chart::{Axis, Chart, Series, Shape};
pub(crate) use figures::Figures;
pub(crate) use frame::{Formula, Lesson};
pub(crate) use heatmap::Heatmap;
pub(crate) use model::{Model, shape};
pub(crate) use on_gpu::{OnGpu, Sample};
pub(crate) use predict::Predict;
pub(crate) use sample::{Distribution, normal};
pub(crate) use targets::{Targets, names};
pub(crate) use task::{Task, is_solved};
