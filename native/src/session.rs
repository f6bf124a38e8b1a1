//! A fine-tuning run under way: its steps, what is due between them, and how it ends early.

use std::path::{Path, PathBuf};

use anyhow::Result;
use halfbyte::Error;
use halfbyte::data::Dataset;
use halfbyte::files::save_adapter;
use halfbyte::ops::Ops;
use halfbyte::train::{Recipe, Run, SavedCheckpoint, Trainer, checkpoint_folder, save_checkpoint};
use pollster::block_on;

use crate::console::{note, tell};
use crate::interrupt::{self, Interrupted};
use crate::limit;
use crate::parallel::{Placement, how_to_go_on};
use crate::watch::Watch;

/// The adapter of a run that was finished.
pub(crate) const FINISHED: &str = "adapter";
/// That of a run that an error ended. It is no result, and takes no other's place.
const STOPPED: &str = "adapter-stopped";

/// A run under way. In a data-parallel one each rank makes the same calls; one watches, and writes.
pub(crate) struct Session<B: Ops> {
    pub(crate) trainer: Trainer<B>,
    pub(crate) test: Option<Dataset>,
    /// Where the recipe is written to as it was run.
    pub(crate) recipe_file: PathBuf,
    /// What the rank that leads shows and records.
    pub(crate) watch: Option<Watch>,
    pub(crate) run: Run,
    /// This process's place among others.
    pub(crate) place: Option<Placement>,
}

impl<B: Ops> Session<B> {
    /// Trains to the end. Whatever else ends the run early, the last good adapter is saved.
    pub(crate) fn train(&mut self) -> Result<()> {
        let Err(ended) = self.steps() else { return Ok(()) };
        self.fail(&ended);
        if ended.is::<Interrupted>() {
            return Err(ended);
        }
        if let Some(Error::Rank { .. }) = ended.downcast_ref() {
            return Err(self.without_the_others(ended));
        }
        let Some(watch) = &self.watch else { return Err(ended) };
        if watch.steps() == 0 {
            // Nothing was trained that is worth more than what is there; after a resume the checkpoint itself may be the bad one.
            return Err(ended.context("stopped before a step was made; no adapter was written"));
        }
        Err(match self.save_adapter(STOPPED) {
            Ok(saved) => {
                let finished = saved.with_file_name(FINISHED);
                let other = match finished.exists() {
                    true => format!("; {} is of an earlier run", finished.display()),
                    false => String::new(),
                };
                ended.context(format!("stopped; the last good adapter is in {}{other}", saved.display()))
            }
            Err(error) => ended.context(format!("stopped, and the adapter could not be saved: {error:#}")),
        })
    }

    /// Has `run.json` say that the run ended by an error.
    pub(crate) fn fail(&mut self, error: &anyhow::Error) {
        if let Some(watch) = &mut self.watch {
            watch.fail(&format!("{error:#}"));
        }
    }

    /// Another rank is gone, or has failed. The step that it was missed in was not applied, so that the model is that of the last
    /// whole step, on every rank: one of them saves it.
    fn without_the_others(&mut self, ended: anyhow::Error) -> anyhow::Error {
        let Some(place) = self.place.clone() else { return ended };
        let step = self.trainer.state.global_step;
        if !place.saves_after(&ended) || step == 0 {
            return ended;
        }
        let output = Path::new(&self.run.recipe.output);
        match block_on(save_checkpoint(&mut self.trainer, &self.run, output)) {
            Ok(saved) => ended.context(how_to_go_on(step, &saved, &self.recipe_file, &place.flag())),
            Err(error) => ended.context(format!("stopped after step {step}, which could not be saved: {error:#}")),
        }
    }

    /// The loop: a step, and what is due after it.
    fn steps(&mut self) -> Result<()> {
        let Recipe { evaluation, checkpoints, .. } = self.run.recipe.clone();
        let (total, per_epoch) = (self.trainer.total_steps(), self.trainer.steps_per_epoch());
        while !self.trainer.state.has_stopped(&evaluation)
            && let Some(metrics) = block_on(self.trainer.step())?
        {
            if let Some(watch) = &mut self.watch {
                watch.step(&metrics)?;
            }
            limit::check(&self.run.recipe, self.trainer.model())?;
            // All stop after the same step, whichever of them was asked to.
            let asked = interrupt::asked();
            let (step, stop) = (metrics.step, self.trainer.collective().map_or(Ok(asked), |ranks| ranks.any(asked))?);
            let evaluate = step == total || evaluation.eval_strategy.due(step, evaluation.eval_steps, per_epoch);
            let best = evaluate && self.evaluate()? && evaluation.load_best_model_at_end;
            if best || stop || checkpoints.due(step, total, per_epoch) {
                self.save()?;
            }
            if stop && step < total {
                return Err(self.interrupted());
            }
        }
        // A run that was made shorter while it stood still has not been evaluated here; its checkpoint is to know of it.
        let last = self.trainer.state.evaluations().next_back().map(|e| e.step);
        if self.test.is_some() && last != Some(self.trainer.state.global_step) {
            self.evaluate()?;
            self.save()?;
        }
        Ok(block_on(self.trainer.agree())?)
    }

    /// Evaluates the model as it is now; whether it is the best so far.
    fn evaluate(&mut self) -> Result<bool> {
        let (trainer, Some(test)) = (&mut self.trainer, &self.test) else { return Ok(false) };
        let evaluation = aside(&mut self.watch, || block_on(trainer.evaluate(test)))?;
        let best = trainer.state.judge(&evaluation, &self.run.recipe.evaluation);
        self.record_last_evaluation()?;
        Ok(best)
    }

    pub(crate) fn record_last_evaluation(&mut self) -> Result<()> {
        let (Some(last), Some(watch)) = (self.trainer.state.evaluations().next_back(), &mut self.watch) else {
            return Ok(());
        };
        watch.evaluation(last)
    }

    /// Saves where the run stands, once it is known that all ranks stand there.
    fn save(&mut self) -> Result<()> {
        let output = Path::new(&self.run.recipe.output);
        let (trainer, run, writes) = (&mut self.trainer, &self.run, self.watch.is_some());
        aside(&mut self.watch, || {
            block_on(trainer.agree())?;
            if writes {
                block_on(save_checkpoint(trainer, run, output))?;
            }
            Ok(())
        })
    }

    fn interrupted(&self) -> anyhow::Error {
        let (step, output) = (self.trainer.state.global_step, Path::new(&self.run.recipe.output));
        let flag = self.place.as_ref().map_or(String::new(), Placement::flag);
        Interrupted(how_to_go_on(step, &checkpoint_folder(output, step), &self.recipe_file, &flag)).into()
    }

    /// Puts the best adapter in the model's place, if that was asked for and it is another. The work of a run is not lost over a
    /// checkpoint that somebody removed: its last adapter is kept then. Gives the step that the adapter is of.
    pub(crate) fn load_best(&mut self) -> usize {
        let state = &self.trainer.state;
        let last = state.global_step;
        let other = state.best_global_step.filter(|best| *best != last);
        let Some(best) = other.filter(|_| self.run.recipe.evaluation.load_best_model_at_end) else { return last };
        let folder = checkpoint_folder(Path::new(&self.run.recipe.output), best);
        let restored = SavedCheckpoint::open(&folder).and_then(|saved| {
            saved.check(&self.run)?;
            saved.restore_adapter(&mut self.trainer)
        });
        match restored {
            Ok(()) => {
                tell!("the best evaluation was after step {best}: its adapter is that of {}", folder.display());
                best
            }
            Err(error) => {
                note!("the best evaluation was after step {best}, but the last adapter is kept: {error}");
                last
            }
        }
    }

    /// Saves the adapter in a folder of this name in the output.
    pub(crate) fn save_adapter(&mut self, name: &str) -> Result<PathBuf> {
        let recipe = &self.run.recipe;
        let folder = Path::new(&recipe.output).join(name);
        block_on(save_adapter(self.trainer.model_mut(), &recipe.lora, &recipe.model, &folder))?;
        Ok(folder)
    }
}

/// Does what is no training, whose time does not count where it is measured.
fn aside<T>(watch: &mut Option<Watch>, work: impl FnOnce() -> T) -> T {
    match watch {
        Some(watch) => watch.aside(work),
        None => work(),
    }
}
