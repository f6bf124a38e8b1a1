//! `halfbyte train RECIPE`: QLoRA fine-tuning, and what it changed.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Result, bail};
use halfbyte::failure::contain;
use halfbyte::generate::{Sampling, Talker};
use halfbyte::lora::trainable_line;
use halfbyte::model::{Stage, Transformer};
use halfbyte::ops::{ComputeDtype, Ops};
use halfbyte::parallel::Group;
use halfbyte::text::{Message, Tokenizer};
use halfbyte::train::{Devices, Recipe, Run, SavedCheckpoint, Trainer, checkpoints, sweep};
use pollster::block_on;

use crate::claim::Claim;
use crate::console::{note, tell};
use crate::device::{self, Choice, Found, Job};
use crate::interrupt;
use crate::limit;
use crate::parallel::{self, Placement, Start as Place};
use crate::recipe_file;
use crate::session::{FINISHED, Session};
use crate::setup::{RecipeArguments, Setup};
use crate::shell::word;
use crate::watch::{Sample, Start, Watch, dashboard};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    recipe: RecipeArguments,
    /// Continue from a checkpoint of the output folder: the latest, or the one that is named
    #[arg(long, value_name = "CHECKPOINT")]
    resume: Option<Option<PathBuf>>,
    /// Train by N processes on this machine, which share each step's examples out among them. torchrun, Kubeflow, SLURM and
    /// Open MPI start the processes themselves: leave it out there
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    processes: Option<u16>,
    /// Show the run's curves on the whole terminal while it goes on
    #[arg(long, conflicts_with = "plan")]
    dashboard: bool,
    /// Print what the run needs, and what would fit, without loading anything
    #[arg(long)]
    plan: bool,
    #[command(flatten)]
    against: crate::plan::Against,
}

impl Arguments {
    /// Whether nothing is run.
    pub(crate) fn plans(&self) -> bool {
        self.plan
    }
}

/// Runs the command.
pub(crate) fn run(arguments: Arguments) -> Result<()> {
    let mut recipe = arguments.recipe.recipe()?;
    let processes = arguments.processes.map(usize::from);
    if arguments.plan {
        return crate::plan::show(&recipe, &arguments.against, processes.unwrap_or(1));
    }
    arguments.against.refuse_without_plan()?;
    let place = match parallel::start(processes)? {
        Place::Launch(processes) => return parallel::launch(processes),
        Place::Rank(place) => {
            place.prepare();
            Some(place)
        }
        Place::Alone => None,
    };
    let leads = place.as_ref().is_none_or(Placement::leads);
    if leads && arguments.dashboard {
        dashboard::check()?;
    }
    let _claim = leads.then(|| Claim::of(&recipe.output)).transpose()?;
    let recipe_file = recipe_file::of(arguments.recipe.path(), Path::new(&recipe.output));
    if recipe.memory_limit.0.is_some() {
        let shape = crate::memory::shape(&recipe.model)?;
        limit::fit(&mut recipe, &shape)?;
    }
    let choice = Choice::parse(&recipe.device)?;
    let mut seat = place.as_ref().map(Placement::seat).unwrap_or_default();
    if place.is_some() && recipe.devices != Devices::First {
        bail!(
            "devices: a data-parallel run gives each of its processes one GPU that holds the whole model; leave devices out, or \
             train by one process"
        );
    }
    seat.devices = recipe.devices.clone();
    let (resume, dashboard) = (arguments.resume, arguments.dashboard);
    device::run_at(choice, seat, Train { recipe, recipe_file, resume, dashboard, place })
}

struct Train {
    recipe: Recipe,
    /// Where it is written to as it was run.
    recipe_file: PathBuf,
    resume: Option<Option<PathBuf>>,
    dashboard: bool,
    /// This process's place among those of a data-parallel run.
    place: Option<Placement>,
}

impl Job for Train {
    type Output = ();

    fn run<B: Ops>(self, found: Found<B>) -> Result<()> {
        let Some(place) = self.place.clone() else { return self.train::<B>(&found, None) };
        let mut group = None;
        let trained = self.train::<B>(&found, Some((&place, &mut group)));
        trained.map_err(|error| {
            if let Some(group) = &group {
                parallel::tell(group, &error);
            }
            place.reported(error)
        })
    }
}

impl Train {
    /// Everything from the data to the report; in a data-parallel run, that part of it which is this rank's.
    fn train<B: Ops>(self, found: &Found<B>, among: Option<(&Placement, &mut Option<Arc<Group>>)>) -> Result<()> {
        let Train { recipe, recipe_file, resume, dashboard, place } = self;
        let name = found.name.as_str();
        let leads = place.as_ref().is_none_or(Placement::leads);
        let output = Path::new(&recipe.output);
        let from = starting_point(output, resume.as_ref().map(Option::as_deref), leads)?;
        let mut setup = Setup::read(recipe.clone(), from.as_ref())?;
        setup.run.world_size = place.as_ref().map_or(1, |place| place.world_size);
        if let Some(from) = &from {
            from.check(&setup.run)?;
        }
        let group = among.map(|(place, met)| -> Result<Arc<Group>> {
            let group = Arc::new(place.join(&setup.run, from.as_ref())?);
            Ok(met.insert(group).clone())
        });
        let train = std::mem::take(&mut setup.train);
        let (examples, tokens, trained) = (train.examples.len(), train.token_count(), train.trained_count());
        let mut trainer = setup.trainer::<B>(train, found, group.transpose()?)?;
        let trainable = trainable_line(trainer.model_mut().parameter_counts());
        if leads {
            tell!("device {name}; model {}; output {}", recipe.model, recipe.output);
            if setup.run.world_size > 1 {
                tell!("{}", setup.run.processes());
            }
            if let stages @ [_, _, ..] = trainer.model().stages.as_slice() {
                tell!("{}", shares(stages));
            }
            if found.mark.as_ref().is_some_and(|mark| !mark.is_set()) {
                tell!("kernels that decode weights on their way wait for `halfbyte selftest --device cuda`, once");
            }
            let quantization = &recipe.quantization;
            let in_f32 = quantization.load_in_4bit && quantization.compute_dtype == ComputeDtype::F32;
            if in_f32 && ComputeDtype::Bf16.check::<B>(&trainer.model().device()).is_ok() {
                tell!("products in f32; quantization.compute_dtype = \"bf16\" would use this GPU's tensor cores");
            }
            tell!("{trainable}");
            tell!("{examples} examples, {tokens} tokens of which {trained} are trained");
            let (limit, steps) = (recipe.training.max_steps, trainer.total_steps());
            if steps < limit {
                let epochs = recipe.training.epochs;
                tell!(
                    "training.max_steps = {limit} is not reached: training.epochs = {epochs} ends after {steps}; 0 for no end"
                );
            }
        }
        let Setup { base, tokenizer, files, test, run, train: _ } = setup;
        // A new adapter changes nothing: these are the base model's answers, whether the run begins or goes on.
        let answers_before = if leads { answers(trainer.model(), &tokenizer, &recipe)? } else { vec![] };
        match &from {
            Some(from) => resume_from(from, &mut trainer, &run, leads)?,
            None => {
                test.as_ref().map(|test| block_on(trainer.evaluate(test))).transpose()?;
            }
        }
        block_on(trainer.agree())?;
        interrupt::listen(place.as_ref().is_none_or(Placement::speaks))?;
        let (steps, done) = (trainer.total_steps(), trainer.state.global_step);
        let processes = run.world_size;
        let mut watch = None;
        if leads {
            let device = name;
            let (recipe, recipe_file, base, trainable) = (&recipe, &recipe_file, &base, trainable);
            let start =
                Start { recipe, recipe_file, base, data: files, device, processes, trainable, steps, done, dashboard };
            watch = Some(Watch::start(start)?);
        }
        let mut session = Session { trainer, test, recipe_file, watch, run, place };
        let carried_out = contain(name, || -> Result<()> {
            if leads {
                sweep(output)?;
            }
            if from.is_none() {
                session.record_last_evaluation()?;
            }
            session.train()?;
            conclude(&mut session, &tokenizer, answers_before)
        });
        carried_out.map_err(anyhow::Error::from).flatten().inspect_err(|error| session.fail(error))
    }
}

/// After the last step: the adapter that is kept, its answers beside those of before, and the report.
fn conclude<B: Ops>(session: &mut Session<B>, tokenizer: &Tokenizer, answers_before: Vec<String>) -> Result<()> {
    let Some((seconds, rate)) = session.watch.as_mut().map(Watch::stop_clock) else { return Ok(()) };
    let kept = session.load_best();
    let adapter = session.save_adapter(FINISHED)?;
    let Session { trainer, run, watch: Some(watch), .. } = session else { return Ok(()) };
    let recipe = &run.recipe;
    let answers_after = answers(trainer.model(), tokenizer, recipe)?;
    let state = &trainer.state;
    let loss_at = |step| state.evaluations().rev().find(|e| e.step == step).map(|e| e.evaluation.loss);
    let held_out = loss_at(0).zip(loss_at(kept));
    let answers = recipe.show.questions.iter().zip(answers_before).zip(answers_after);
    let samples: Vec<Sample> =
        answers.map(|((question, before), after)| Sample { question: question.clone(), before, after }).collect();
    watch.finish(held_out, &samples)?;
    tell!("{} steps in {seconds:.1} s, {rate:.0} tokens/s", watch.steps());
    if let Some(paging) = trainer.paging() {
        tell!("{paging}");
    }
    if let Some((before, after)) = held_out {
        tell!("held-out loss: {before:.4} before, {after:.4} after");
    }
    for Sample { question, before, after } in &samples {
        tell!("\n{question}\n  before: {before}\n  after:  {after}");
    }
    let report = Path::new(&recipe.output).join("report.html");
    tell!("\nadapter: {}; report: {}", adapter.display(), report.display());
    tell!("talk to it: halfbyte generate {} --adapter {}", word(&recipe.model), word(adapter.display()));
    Ok(())
}

/// Which layers each device took, in words.
fn shares<B: Ops>(stages: &[Stage<B>]) -> String {
    let share = |stage: &Stage<B>| match stage.layers.len() {
        0 => "none".to_string(),
        1 => format!("{}", stage.layers.start),
        _ => format!("{} to {}", stage.layers.start, stage.layers.end - 1),
    };
    format!("layers by device: {}", stages.iter().map(share).collect::<Vec<_>>().join(", "))
}

/// The checkpoint that a run goes on from. `resume` is what the flag says: nothing, the latest, or a folder.
fn starting_point(output: &Path, resume: Option<Option<&Path>>, leads: bool) -> Result<Option<SavedCheckpoint>> {
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
            Err(error) if leads => note!("{error}; leaving {} out, for the one before it", path.display()),
            Err(_) => {}
        }
    }
    match there.is_empty() {
        true if !leads => {}
        true => note!("{} has no checkpoint yet; starting at the beginning", output.display()),
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

fn resume_from<B: Ops>(from: &SavedCheckpoint, trainer: &mut Trainer<B>, run: &Run, leads: bool) -> Result<()> {
    let say = |line: String| {
        if leads {
            tell!("{line}");
        }
    };
    from.restore(trainer)?;
    let (path, total) = (from.path.display(), trainer.total_steps());
    say(format!("continuing {path}: step {} of {total}", from.state.global_step));
    if from.run.held_out_sha256 != run.held_out_sha256 && from.state.best_metric.is_some() {
        trainer.state.forget_best();
        say("data.test is not what it was: which evaluation was the best so far is forgotten".into());
    }
    if from.total_steps != total {
        let before = from.total_steps;
        say(format!("the run was to have {before} steps; from here on the learning rate is that of a run of {total}"));
    }
    if from.run.world_size != run.world_size {
        let (before, now) = (from.run.processes(), run.processes());
        say(format!(
            "{before} before, {now} now: the same examples in each step, whose gradients are added in another order"
        ));
    }
    Ok(())
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
