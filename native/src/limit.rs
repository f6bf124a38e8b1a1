//! `--memory-limit`: a run is made to fit before it starts, by pages of the optimizer where it has some, and ends with its work saved
//! should it take more all the same.

use anyhow::{Result, bail};
use halfbyte::model::Transformer;
use halfbyte::ops::Ops;
use halfbyte::train::Recipe;
use halfbyte_memory::{ModelShape, Run, bytes, plan, proposals};

use crate::console::tell;
use crate::plan::{fullest, parts_of, proposed};
use crate::proc;

/// What of a limit a plan may fill: it leaves out what is small, and what kernels are compared with that are tried the first time.
fn room(limit: u64) -> u64 {
    limit - limit / 32
}

/// Sets what a paged optimizer keeps on each device, unless the recipe says it, so that the run fits its limit.
///
/// # Errors
/// When it does not fit: what would.
pub(crate) fn fit(recipe: &mut Recipe, shape: &ModelShape) -> Result<()> {
    let Some(limit) = recipe.memory_limit.0 else { return Ok(()) };
    let Some((shape, run)) = fullest(parts_of(recipe, shape)?) else { return Ok(()) };
    let (needed, room) = (|run: &Run| plan(&shape, run).peak(), room(limit));
    if needed(&run) <= room {
        return Ok(());
    }
    let training = &mut recipe.training;
    if training.optim.is_paged() && training.optim_device_budget.0.is_none() {
        let without = needed(&Run { optimizer_budget: Some(0), ..run.clone() });
        if without <= room {
            training.optim_device_budget.0 = Some(room - without);
            tell!(
                "{} of the optimizer's state stay on the device, to keep within {}",
                bytes(room - without),
                bytes(limit)
            );
            return Ok(());
        }
    }
    let fitting: Vec<String> = proposals(&shape, &run, room).iter().map(proposed).collect();
    let cure = match fitting.is_empty() {
        true => "nothing that a recipe can change makes it fit; take a smaller model or a larger limit".to_string(),
        false => format!("these would fit:\n  {}", fitting.join("\n  ")),
    };
    bail!(
        "the run needs {} by its plan, and memory_limit is {}, of which a plan may fill {}; {cure}",
        bytes(needed(&run)),
        bytes(limit),
        bytes(room)
    )
}

/// # Errors
/// When more than the limit was taken from a device, or on the CPU by the process.
pub(crate) fn check<B: Ops>(recipe: &Recipe, model: &Transformer<B>) -> Result<()> {
    let Some(limit) = recipe.memory_limit.0 else { return Ok(()) };
    match taken(model) {
        Some(taken) if taken > limit => {
            bail!("the run has taken {} of memory, and memory_limit is {}", bytes(taken), bytes(limit))
        }
        _ => Ok(()),
    }
}

/// Bytes that were taken from a device at most, of several the most, or on the CPU that the process occupies.
pub(crate) fn taken<B: Ops>(model: &Transformer<B>) -> Option<u64> {
    reserved(model).or_else(resident)
}

/// Bytes that were taken from a device at most, of several the most.
pub(crate) fn reserved<B: Ops>(model: &Transformer<B>) -> Option<u64> {
    model.stages.iter().filter_map(|stage| B::most_reserved(&stage.device)).max()
}

/// Bytes of memory of its own that the process occupies, where the system says so. Files that are mapped are left out: their pages
/// can be taken away at any time.
fn resident() -> Option<u64> {
    proc::bytes("/proc/self/status", "RssAnon:")
}

/// Bytes of memory that the process occupied at most, where the system says so.
pub(crate) fn most_resident() -> Option<u64> {
    proc::bytes("/proc/self/status", "VmHWM:")
}

#[cfg(all(test, feature = "cpu"))]
#[allow(clippy::unwrap_used)]
mod tests {
    use halfbyte::backends::Cpu;
    use halfbyte::model::{ModelConfig, random};
    use halfbyte::optim::{DeviceBudget, Optim};
    use halfbyte_memory::preset;

    use crate::plan::run_of;

    use super::*;

    fn recipe(optim: Optim, limit: u64) -> Recipe {
        let mut recipe = Recipe { device: "cuda".into(), memory_limit: DeviceBudget(Some(limit)), ..Recipe::default() };
        recipe.training.optim = optim;
        recipe
    }

    #[test]
    fn a_paged_optimizer_gets_what_is_left() {
        let shape = preset("llama-3.1-8b").unwrap();
        let needed = |recipe: &Recipe| plan(&shape, &run_of(recipe, &shape).unwrap()).peak();
        let whole = needed(&recipe(Optim::PagedAdamW32bit, 0));
        let limit = whole / 31 * 32 + 64;
        assert!(room(limit) >= whole);
        let mut fitting = recipe(Optim::PagedAdamW32bit, limit);
        fit(&mut fitting, &shape).unwrap();
        assert_eq!(fitting.training.optim_device_budget.0, None);
        let mut paged = recipe(Optim::PagedAdamW32bit, limit - (8 << 20));
        fit(&mut paged, &shape).unwrap();
        assert!(paged.training.optim_device_budget.0.is_some());
        assert!(needed(&paged) <= room(limit - (8 << 20)));
    }

    #[test]
    fn what_does_not_fit_is_refused_with_what_would() {
        let shape = preset("llama-3.1-8b").unwrap();
        let said = fit(&mut recipe(Optim::AdamW, 24 << 30), &shape).unwrap_err().to_string();
        assert!(said.contains("memory_limit is 24.0 GiB") && said.contains("--set training.batch_size="), "{said}");
        let said = fit(&mut recipe(Optim::AdamW, 1 << 20), &shape).unwrap_err().to_string();
        assert!(said.contains("take a smaller model"), "{said}");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_run_that_takes_more_ends() {
        let json =
            br#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 8, "hidden_size": 8,
            "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "rms_norm_eps": 1e-5}"#;
        let config = ModelConfig::parse("config.json", json).unwrap();
        let model = random::<Cpu>(config, 1, &Default::default()).unwrap();
        let said = check(&recipe(Optim::AdamW, 1), &model).unwrap_err().to_string();
        assert!(said.contains("memory_limit is 1 B"), "{said}");
        check(&recipe(Optim::AdamW, 1 << 40), &model).unwrap();
    }
}
