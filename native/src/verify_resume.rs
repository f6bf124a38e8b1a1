//! `halfbyte verify-resume RECIPE`: proves on this machine that a run that is stopped and continued ends where one that is
//! not stopped ends, byte for byte.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use halfbyte::ops::Ops;
use halfbyte::train::{Recipe, SavedCheckpoint, save_checkpoint};
use pollster::block_on;

use crate::console::out;
use crate::device::{self, Choice, Found, Job, Seat};
use crate::setup::{RecipeArguments, Setup};

/// What must be the same; the other files name the run's folder.
const COMPARED: [&str; 3] = ["adapter_config.json", "adapter_model.safetensors", "optimizer.safetensors"];

#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    recipe: RecipeArguments,
    /// Steps to train, twice; the stop is in the middle of them
    #[arg(long, default_value_t = 6)]
    steps: usize,
}

/// Runs the command.
pub(crate) fn run(arguments: Arguments) -> Result<()> {
    let recipe = arguments.recipe.recipe()?;
    let (choice, seat) = (Choice::parse(&recipe.device)?, Seat { devices: recipe.devices.clone(), ..Seat::default() });
    device::run_at(choice, seat, Verify { recipe, steps: arguments.steps })
}

struct Verify {
    recipe: Recipe,
    steps: usize,
}

impl Job for Verify {
    type Output = ();

    fn run<B: Ops>(self, found: Found<B>) -> Result<()> {
        let mut setup = Setup::read(self.recipe, None)?;
        setup.run.recipe.checkpoints.save_total_limit = 0;
        let folder = tempfile::tempdir()?;
        let [straight, stopped] = ["straight", "stopped"].map(|name| folder.path().join(name));
        let leg = |output: &Path, from: Option<&Path>, until| leg::<B>(&setup, &found, output, from, until);
        let first = leg(&straight, None, self.steps)?;
        if first.losses.len() < 2 {
            bail!("the run has {} step; 2 are needed to stop between them", first.losses.len());
        }
        let (steps, per_epoch) = (first.losses.len(), first.steps_per_epoch);
        let stop = middle(steps, per_epoch);
        out!(
            "{}: {steps} steps without a stop: loss {:.6} to {:.6}",
            found.name,
            first.losses[0],
            first.losses[steps - 1]
        )?;
        let half = leg(&stopped, None, stop)?;
        out!("stopped after step {stop}: step {} of the {per_epoch} of its epoch", stop % per_epoch)?;
        let second = leg(&stopped, Some(&half.checkpoint), steps)?;
        out!("continued to step {steps}: loss {:.6}", second.losses[steps - 1])?;
        let mut same = true;
        for file in COMPARED {
            let [a, b] = [&first, &second].map(|leg| std::fs::read(leg.checkpoint.join(file)));
            let (a, b) = (a?, b?);
            let differ = a.iter().zip(&b).filter(|(a, b)| a != b).count() + a.len().abs_diff(b.len());
            same &= differ == 0;
            out!("{file}: {differ} of {} bytes differ", a.len())?;
        }
        if same {
            out!("the same: a run that is stopped and continued on this device is exact")?;
            return Ok(());
        }
        let apart = first.losses.iter().zip(&second.losses).position(|(a, b)| a.to_bits() != b.to_bits());
        match apart.map(|step| step + 1) {
            Some(step) if step <= stop => {
                bail!(
                    "not the same: the losses differ at step {step}, before the stop: this device does not repeat itself"
                )
            }
            Some(step) => bail!("not the same: the losses differ from step {step} on"),
            None => bail!("not the same, though all losses are"),
        }
    }
}

/// A part of a run.
struct Leg {
    checkpoint: PathBuf,
    losses: Vec<f64>,
    steps_per_epoch: usize,
}

/// Loads the model, puts it where `from` stood, trains to a step and saves a checkpoint: all that a new process would do.
fn leg<B: Ops>(setup: &Setup, found: &Found<B>, output: &Path, from: Option<&Path>, until: usize) -> Result<Leg> {
    let mut trainer = setup.trainer::<B>(setup.train.clone(), found, None)?;
    if let Some(from) = from {
        let checkpoint = SavedCheckpoint::open(from)?;
        checkpoint.check(&setup.run)?;
        checkpoint.restore(&mut trainer)?;
    }
    while trainer.state.global_step < until && block_on(trainer.step())?.is_some() {}
    let checkpoint = block_on(save_checkpoint(&mut trainer, &setup.run, output))?;
    Ok(Leg { checkpoint, losses: trainer.state.losses(), steps_per_epoch: trainer.steps_per_epoch() })
}

/// The step nearest to the middle of `steps` that ends no epoch, where there is one.
fn middle(steps: usize, per_epoch: usize) -> usize {
    let inside = (1..steps).filter(|step| !step.is_multiple_of(per_epoch));
    inside.min_by_key(|step| (2 * step).abs_diff(steps)).unwrap_or(steps / 2)
}
