//! What a talk with a model begins with: the base, loaded, and its adapter.

use std::path::Path;

use anyhow::Result;
use halfbyte::files::load_adapter;
use halfbyte::model::{Base, DeviceMap, Loading, Transformer, load_mapped};
use halfbyte::ops::Ops;

use crate::console::note;
use crate::progress::bytes_bar;

/// Loads a base model under a bar of bytes.
pub(crate) fn load_base<B: Ops>(folder: &Path, base: impl Into<Base>, map: &DeviceMap<B>) -> Result<Transformer<B>> {
    let bar = bytes_bar(&format!("loading {}", folder.display()))?;
    let model = load_mapped(folder, base, map, &mut |now: Loading| {
        bar.set_length(now.all);
        bar.set_position(now.read);
    });
    bar.finish_and_clear();
    Ok(model?)
}

/// Attaches an adapter for inference, and says so when it was made for another base.
pub(crate) fn attach_adapter<B: Ops>(model: &mut Transformer<B>, folder: &Path, base: &str) -> Result<()> {
    let config = load_adapter(model, folder, false)?;
    if let Some(trained_on) =
        config.base_model_name_or_path.filter(|name| name.trim_end_matches('/') != base.trim_end_matches('/'))
    {
        note!("note: the adapter says that it was trained on `{trained_on}`, not `{base}`");
    }
    Ok(())
}
