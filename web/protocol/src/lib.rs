//! What a page and its training worker say to each other: values as JSON, large bytes beside it.
//!
//! A message in either direction is an object `{ json, parts }`: `json` is the text of a [`Request`] or an [`Event`], `parts` a
//! list of `ArrayBuffer`s, which change hands without being copied, or `File`s. A value that has bytes holds their place in
//! the list. The worker does one thing at a time, in the order of the requests; what stops it or makes it wait is heard between
//! two training steps.

mod compare;
mod event;
mod request;

pub use compare::{Comparison, LowRank, Matrix};
pub use event::{
    Adapter, Answer, DeviceReport, Evaluation, Event, Failure, Kernel, Kind, Measurement, ModelReport, Outcome,
    Progress, SavedRun, Started, Step,
};
pub use halfbyte_memory::Plan;
pub use request::{Choice, DataSource, ModelSource, Part, RecipeSource, Request, Sampling, Train};
