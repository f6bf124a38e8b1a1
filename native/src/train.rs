//! `halfbyte train RECIPE`: QLoRA fine-tuning, and what it changed.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use halfbyte::files::save_adapter;
use halfbyte::generate::{Sampling, Talker};
use halfbyte::lora::trainable_line;
use halfbyte::model::Transformer;
use halfbyte::ops::Ops;
use halfbyte::text::{Message, Tokenizer};
use halfbyte::train::{Recipe, Run, SavedCheckpoint, Trainer, checkpoint_folder, checkpoints, save_checkpoint, sweep};
use pollster::block_on;

use crate::device::{self, Choice, Job};
use crate::interrupt::{self, Interrupted};
use crate::limit;
use crate::setup::{RecipeArguments, Setup};
use crate::watch::{Sample, Start, Watch};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    recipe: RecipeArguments,
    /// Continue from a checkpoint of the output folder: the latest, or the one that is named
    #[arg(long, value_name = "CHECKPOINT")]
    resume: Option<Option<PathBuf>>,
    /// Show the run's curves on the whole terminal while it goes on
    #[arg(long, conflicts_with = "plan")]
    dashboard: bool,
    /// Print what the run needs, and what would fit, without loading anything
    #[arg(long)]
    plan: bool,
    #[command(flatten)]
    against: crate::plan::Against,
}

/// Runs the command.
pub(crate) fn run(arguments: Arguments) -> Result<()> {
    let mut recipe = arguments.recipe.recipe()?;
    if arguments.plan {
        return crate::plan::show(&recipe, &arguments.against);
    }
    arguments.against.refuse_without_plan()?;
    if recipe.memory_limit.0.is_some() {
        let shape = crate::memory::shape(&recipe.model)?;
        limit::fit(&mut recipe, &shape)?;
    }
    let (resume, dashboard) = (arguments.resume, arguments.dashboard);
    device::run(Choice::parse(&recipe.device)?, Train { recipe, resume, dashboard })
}

struct Train {
    recipe: Recipe,
    resume: Option<Option<PathBuf>>,
    dashboard: bool,
}

impl Job for Train {
    type Output = ();

    fn run<B: Ops>(self, device: B::Device, name: &str) -> Result<()> {
        let Train { recipe, resume, dashboard } = self;
        let output = Path::new(&recipe.output);
        let setup = Setup::read(&recipe)?;
        let from = starting_point(output, resume.as_ref().map(Option::as_deref))?;
        if let Some(from) = &from {
            from.check(&setup.run)?;
        }
        let mut trainer = setup.trainer::<B>(&device)?;
        println!("device {name}; model {}; output {}", recipe.model, recipe.output);
        let trainable = trainable_line(trainer.model_mut().parameter_counts());
        println!("{trainable}");
        let (all, trained) = (setup.train.token_count(), setup.train.trained_count());
        println!("{} examples, {all} tokens of which {trained} are trained", setup.train.examples.len());
        let Setup { base, tokenizer, files, test, run, train: _ } = setup;
        // A new adapter changes nothing: these are the base model's answers, whether the run begins or goes on.
        let answers_before = answers(trainer.model(), &tokenizer, &recipe)?;
        match &from {
            Some(from) => resume_from(from, &mut trainer, &run)?,
            None => {
                test.as_ref().map(|test| block_on(trainer.evaluate(test))).transpose()?;
            }
        }
        let (steps, done) = (trainer.total_steps(), trainer.state.global_step);
        let start =
            Start { recipe: &recipe, base: &base, data: files, device: name, trainable, steps, done, dashboard };
        let watch = Watch::start(start)?;
        sweep(output)?;
        interrupt::listen()?;
        let mut session = Session { trainer, test, watch, run };
        if from.is_none() {
            session.record_last_evaluation()?;
        }
        session.train()?;
        let (seconds, rate) = session.watch.stop_clock();
        session.load_best();
        let adapter = session.save_adapter()?;
        let Session { trainer, mut watch, .. } = session;
        let answers_after = answers(trainer.model(), &tokenizer, &recipe)?;
        let state = &trainer.state;
        let loss_at = |step| state.evaluations().rev().find(|e| Some(e.step) == step).map(|e| e.evaluation.loss);
        let kept =
            if recipe.evaluation.load_best_model_at_end { state.best_global_step } else { Some(state.global_step) };
        let held_out = loss_at(Some(0)).zip(loss_at(kept));
        let answers = recipe.show.questions.iter().zip(answers_before).zip(answers_after);
        let samples: Vec<Sample> =
            answers.map(|((question, before), after)| Sample { question: question.clone(), before, after }).collect();
        watch.finish(held_out, &samples)?;
        println!("{} steps in {seconds:.1} s, {rate:.0} tokens/s", watch.steps());
        if let Some(paging) = trainer.paging() {
            println!("{paging}");
        }
        if let Some((before, after)) = held_out {
            println!("held-out loss: {before:.4} before, {after:.4} after");
        }
        for Sample { question, before, after } in &samples {
            println!("\n{question}\n  before: {before}\n  after:  {after}");
        }
        println!("\nadapter: {}; report: {}", adapter.display(), output.join("report.html").display());
        println!("talk to it: halfbyte generate {} --adapter {}", recipe.model, adapter.display());
        Ok(())
    }
}

/// The checkpoint that a run goes on from. `resume` is what the flag says: nothing, the latest, or a folder.
fn starting_point(output: &Path, resume: Option<Option<&Path>>) -> Result<Option<SavedCheckpoint>> {
    let there = checkpoints(output)?;
    let Some(named) = resume else {
        let Some((_, last)) = there.last() else { return Ok(None) };
        let (last, output) = (last.display(), output.display());
        bail!(
            "{last} is of an earlier run: continue it with --resume, or remove it, or choose another output than {output}"
        );
    };
    if let Some(path) = named {
        let error = match SavedCheckpoint::open(path) {
            Ok(checkpoint) => {
                refuse_later(&checkpoint, &there)?;
                return Ok(Some(checkpoint));
            }
            Err(error) => error,
        };
        let mut before = there.iter().rev().skip_while(|(_, p)| p.file_name() != path.file_name()).skip(1);
        match before.find(|(_, path)| SavedCheckpoint::open(path).is_ok()) {
            Some((_, whole)) => bail!("{error}; the one before it is whole: --resume {}", whole.display()),
            None => bail!(error),
        }
    }
    for (_, path) in there.iter().rev() {
        match SavedCheckpoint::open(path) {
            Ok(checkpoint) => return Ok(Some(checkpoint)),
            Err(error) => eprintln!("{error}; leaving {} out, for the one before it", path.display()),
        }
    }
    match there.is_empty() {
        true => eprintln!("{} has no checkpoint yet; starting at the beginning", output.display()),
        false => bail!("none of the checkpoints in {} is whole; remove them to start anew", output.display()),
    }
    Ok(None)
}

/// A run that goes on from an earlier checkpoint leaves the later ones behind, which the next `--resume` would take for its own.
fn refuse_later(from: &SavedCheckpoint, there: &[(usize, PathBuf)]) -> Result<()> {
    let here = |path: &Path| path.parent().and_then(|folder| folder.canonicalize().ok());
    let later = |(step, path): &&(usize, PathBuf)| {
        *step > from.state.global_step && here(path) == here(&from.path) && SavedCheckpoint::open(path).is_ok()
    };
    match there.iter().find(later) {
        Some((_, path)) => bail!(
            "{} lies beyond {}: remove it, or write into another folder with --output",
            path.display(),
            from.path.display()
        ),
        None => Ok(()),
    }
}

fn resume_from<B: Ops>(from: &SavedCheckpoint, trainer: &mut Trainer<B>, run: &Run) -> Result<()> {
    from.restore(trainer)?;
    let (path, total) = (from.path.display(), trainer.total_steps());
    println!("continuing {path}: step {} of {total}", from.state.global_step);
    if from.run.held_out_sha256 != run.held_out_sha256 && from.state.best_metric.is_some() {
        trainer.state.forget_best();
        println!("data.test is not what it was: which evaluation was the best so far is forgotten");
    }
    if from.total_steps != total {
        println!(
            "the run was to have {} steps; from here on the learning rate is that of a run of {total}",
            from.total_steps
        );
    }
    Ok(())
}

/// A run under way.
struct Session<B: Ops> {
    trainer: Trainer<B>,
    test: Option<halfbyte::data::Dataset>,
    watch: Watch,
    run: Run,
}

impl<B: Ops> Session<B> {
    /// Trains to the end. Whatever else ends the run early, the last good adapter is saved.
    fn train(&mut self) -> Result<()> {
        let Err(ended) = self.steps() else { return Ok(()) };
        self.watch.fail(&format!("{ended:#}"));
        if ended.is::<Interrupted>() {
            return Err(ended);
        }
        if self.watch.steps() == 0 {
            // Nothing was trained that is worth more than what is there; after a resume the checkpoint itself may be the bad one.
            return Err(ended.context("stopped before a step was made; no adapter was written"));
        }
        Err(match self.save_adapter() {
            Ok(saved) => ended.context(format!("stopped; the last good adapter is in {}", saved.display())),
            Err(error) => ended.context(format!("stopped, and the adapter could not be saved: {error:#}")),
        })
    }

    /// The loop: a step, and what is due after it.
    fn steps(&mut self) -> Result<()> {
        let Recipe { evaluation, checkpoints, .. } = self.run.recipe.clone();
        let (total, per_epoch) = (self.trainer.total_steps(), self.trainer.steps_per_epoch());
        while !self.trainer.state.has_stopped(&evaluation)
            && let Some(metrics) = block_on(self.trainer.step())?
        {
            self.watch.step(&metrics)?;
            limit::check::<B>(&self.run.recipe, &self.trainer.model().device())?;
            let (step, stop) = (metrics.step, interrupt::asked());
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
        Ok(())
    }

    /// Evaluates the model as it is now; whether it is the best so far.
    fn evaluate(&mut self) -> Result<bool> {
        let (trainer, Some(test)) = (&mut self.trainer, &self.test) else { return Ok(false) };
        let evaluation = self.watch.aside(|| block_on(trainer.evaluate(test)))?;
        let best = trainer.state.judge(&evaluation, &self.run.recipe.evaluation);
        self.record_last_evaluation()?;
        Ok(best)
    }

    fn record_last_evaluation(&mut self) -> Result<()> {
        let Some(last) = self.trainer.state.evaluations().next_back() else { return Ok(()) };
        self.watch.evaluation(last)
    }

    fn save(&mut self) -> Result<PathBuf> {
        let output = Path::new(&self.run.recipe.output);
        let (trainer, run) = (&mut self.trainer, &self.run);
        Ok(self.watch.aside(|| block_on(save_checkpoint(trainer, run, output)))?)
    }

    fn interrupted(&self) -> anyhow::Error {
        let (step, output) = (self.trainer.state.global_step, Path::new(&self.run.recipe.output));
        let (saved, recipe) = (checkpoint_folder(output, step), output.join("recipe.toml"));
        let (saved, recipe) = (saved.display(), recipe.display());
        Interrupted(format!("stopped after step {step}; {saved} is saved; continue: halfbyte train {recipe} --resume"))
            .into()
    }

    /// Puts the best adapter in the model's place, if that was asked for and it is another. The work of a run is not lost over a
    /// checkpoint that somebody removed: its last adapter is kept then.
    fn load_best(&mut self) {
        let state = &self.trainer.state;
        let other = state.best_global_step.filter(|best| *best != state.global_step);
        let Some(best) = other.filter(|_| self.run.recipe.evaluation.load_best_model_at_end) else { return };
        let folder = checkpoint_folder(Path::new(&self.run.recipe.output), best);
        let restored = SavedCheckpoint::open(&folder).and_then(|saved| {
            saved.check(&self.run)?;
            saved.restore_adapter(&mut self.trainer)
        });
        match restored {
            Ok(()) => {
                println!("the best evaluation was after step {best}: its adapter is that of {}", folder.display())
            }
            Err(error) => eprintln!("the best evaluation was after step {best}, but the last adapter is kept: {error}"),
        }
    }

    fn save_adapter(&mut self) -> Result<PathBuf> {
        let recipe = &self.run.recipe;
        let folder = Path::new(&recipe.output).join("adapter");
        block_on(save_adapter(self.trainer.model_mut(), &recipe.lora, &recipe.model, &folder))?;
        Ok(folder)
    }
}

/// The recipe's questions, answered greedily, each on one line.
fn answers<B: Ops>(model: &Transformer<B>, tokenizer: &Tokenizer, recipe: &Recipe) -> Result<Vec<String>> {
    let sampling = Sampling { max_new_tokens: recipe.show.max_new_tokens, ..Sampling::default() };
    let talker = Talker { model, tokenizer, sampling };
    let answer = |question: &String| -> Result<String> {
        let text = block_on(talker.answer(&[Message::new("user", question)], |_| {}))?;
        Ok(text.split_whitespace().collect::<Vec<_>>().join(" "))
    };
    recipe.show.questions.iter().map(answer).collect()
}
