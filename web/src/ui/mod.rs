//! What pages are made of: controls with labels, figures, callouts, sources, and state that the address keeps.

mod callout;
mod choice;
mod cite;
pub(crate) mod download;
mod query;
mod select;
mod site;
mod slider;
mod stack;
mod theme;

pub use callout::{Callout, Kind};
pub use choice::Choice;
pub use cite::{Cite, Source};
pub use query::query_state;
pub use select::{Group, Select};
pub use site::{Link, address, base, focus, unique};
pub use slider::{Scale, Slider};
pub use stack::{Part, Stack};
pub use theme::Theme;
