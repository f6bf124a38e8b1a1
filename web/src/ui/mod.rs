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

pub(crate) use callout::{Callout, Kind};
pub(crate) use choice::Choice;
pub(crate) use cite::{Cite, Source};
pub(crate) use query::query_state;
pub(crate) use select::Select;
pub(crate) use site::{Link, address, base, focus, unique};
pub(crate) use slider::{Scale, Slider};
pub(crate) use stack::{Part, Stack};
pub(crate) use theme::Theme;
