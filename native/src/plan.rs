//! `halfbyte train RECIPE --plan`: what the recipe's run will need, before anything is loaded.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use bytesize::ByteSize;
use halfbyte::data::read_records;
use halfbyte::train::Recipe;
use halfbyte_memory::{
    ComputeDtype, Device, Gpu, ModelShape, Part, Phase, Plan, Proposal, Run, Workload, bytes, grouped, in_flight,
    longest, parts, plan, proposals, spread,
};
use serde::{Deserialize, Serialize};

use crate::console::out;
use crate::device::{self, Choice, Place};
use crate::memory::{shape, shape_of};

/// Tokens of a sequence up to which the longest that fits is looked for.
const LONGEST: u64 = 1 << 20;
/// The table that is shipped.
const GPUS: &str = include_str!("../gpus.toml");

/// What a plan is compared with.
#[derive(clap::Args, Clone)]
pub(crate) struct Against {
    /// Memory to fit into, such as 24GiB or 24GB
    #[arg(long, value_parser = parse_bytes)]
    pub(crate) memory: Option<u64>,
    /// TOML file of GPUs, their rates and what they cost you, in place of the table that is shipped (native/gpus.toml)
    #[arg(long)]
    pub(crate) gpus: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

impl Against {
    /// What compares a plan does nothing for a run, and a flag that does nothing is a mistake.
    pub(crate) fn refuse_without_plan(&self) -> Result<()> {
        if self.memory.is_some() || self.gpus.is_some() || self.json {
            bail!("--memory, --gpus and --json belong to --plan; add it, or leave them out");
        }
        Ok(())
    }
}

/// `24GiB`, `24GB`, `512MiB`, or a number of bytes.
pub(crate) fn parse_bytes(text: &str) -> Result<u64, String> {
    let size: ByteSize = text.parse().map_err(|_| format!("`{text}` is no size; write 24GiB or 24GB"))?;
    match size.as_u64() {
        0 => Err("nothing fits into no memory; write 24GiB or 24GB".into()),
        bytes => Ok(bytes),
    }
}

/// A name as recipes spell it.
pub(crate) fn parse<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_value(text.into()).map_err(|error| error.to_string())
}

/// A table of GPUs.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Table {
    /// The share of its rate that a GPU is taken to reach.
    pub(crate) utilisation: f64,
    /// When the prices were written down, for whoever reads them.
    prices_as_of: Option<String>,
    gpu: Vec<Gpu>,
}

impl Table {
    /// The file, or the shipped table.
    pub(crate) fn load(path: Option<&Path>) -> Result<Self> {
        let text = match path {
            Some(path) => std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?,
            None => GPUS.to_string(),
        };
        let name = path.map_or("gpus.toml".into(), |path| path.display().to_string());
        let table: Self = toml::from_str(&text).with_context(|| format!("{name}: not a table of GPUs"))?;
        if !(table.utilisation > 0.0 && table.utilisation <= 1.0) {
            bail!("{name}: `utilisation` is {}; it must lie in 0..=1, without 0", table.utilisation);
        }
        Ok(table)
    }

    /// What a run takes on each GPU that holds it and computes in its type.
    pub(crate) fn estimates(&self, needed: u64, dtype: ComputeDtype, work: Option<&Workload>) -> Vec<Estimate> {
        let fitting = self.gpu.iter().filter(|gpu| gpu.holds(needed, dtype));
        let estimate = |gpu: &Gpu| Estimate {
            name: gpu.name.clone(),
            gib: gpu.gib,
            hours: work.and_then(|work| gpu.seconds(work, self.utilisation)).map(|seconds| seconds / 3600.0),
            price: work.and_then(|work| gpu.price(work, self.utilisation)),
        };
        fitting.map(estimate).collect()
    }

    /// Prints the estimates, a line each, and what they rest on.
    pub(crate) fn print(&self, estimates: &[Estimate]) -> Result<()> {
        if estimates.is_empty() {
            return out!("  fits no single GPU of the table that computes in this type");
        }
        for Estimate { name, gib, hours, price } in estimates {
            let hours = hours.map_or(String::new(), |hours| format!(", about {}", duration(hours)));
            let price = price.map_or(String::new(), |price| format!(", {price:.2}"));
            out!("  fits {name} ({gib} GiB){hours}{price}")?;
        }
        if estimates.iter().any(|estimate| estimate.hours.is_some()) {
            let percent = 100.0 * self.utilisation;
            out!("  times: operations over the datasheet's rate at {percent:.0}% of it, which is an assumption")?;
        }
        if estimates.iter().any(|estimate| estimate.price.is_some()) {
            let date = self.prices_as_of.as_deref().unwrap_or("a day that the table does not name");
            out!("  prices: the table's, of {date}")?;
        }
        Ok(())
    }
}

/// Hours in the unit that suits them.
fn duration(hours: f64) -> String {
    match hours {
        hours if hours >= 1.0 => format!("{hours:.1} h"),
        hours if hours >= 1.0 / 60.0 => format!("{:.0} min", 60.0 * hours),
        hours => format!("{:.1} s", 3600.0 * hours),
    }
}

/// A GPU that holds a run, and what the run takes there.
#[derive(Serialize)]
pub(crate) struct Estimate {
    name: String,
    gib: u64,
    hours: Option<f64>,
    price: Option<f64>,
}

/// The device as the plan sees it.
fn device_of(place: &Place) -> Device {
    match place.gpu {
        true => Device::Gpu,
        false => Device::Cpu { threads: place.threads, cache: 1 << 20 },
    }
}

/// The plan of a recipe's run on the model in `folder`, where its configuration can be planned for.
pub(crate) fn of(recipe: &Recipe, folder: &Path) -> Option<Plan> {
    let shape = shape_of(&folder.join("config.json")).ok()?;
    let (shape, run) = fullest(parts_of(recipe, &shape).ok()?)?;
    Some(plan(&shape, &run))
}

/// A recipe's run as the plan takes it, on a device of the kind that the recipe names.
///
/// # Errors
/// When there is no such kind.
pub(crate) fn run_of(recipe: &Recipe, shape: &ModelShape) -> Result<Run> {
    let place = device::place(Choice::parse(&recipe.device)?, &recipe.devices);
    Ok(run_at(&place, recipe, shape))
}

/// The same at a place.
fn run_at(place: &Place, recipe: &Recipe, shape: &ModelShape) -> Run {
    recipe.memory(shape, device_of(place))
}

/// The same as each of the recipe's devices has a part of it, bottom first.
///
/// # Errors
/// As [`run_of`].
pub(crate) fn parts_of(recipe: &Recipe, shape: &ModelShape) -> Result<Vec<(ModelShape, Run)>> {
    let place = device::place(Choice::parse(&recipe.device)?, &recipe.devices);
    Ok(parts_at(&place, recipe, shape, None))
}

/// The parts of a recipe's run at a place, whose devices have `memory` each where that is said.
fn parts_at(place: &Place, recipe: &Recipe, shape: &ModelShape, memory: Option<u64>) -> Vec<(ModelShape, Run)> {
    let memories: Vec<Option<u64>> = place.memories.iter().map(|known| memory.or(*known)).collect();
    let run = run_at(place, recipe, shape);
    if memories.len() == 1 {
        // All stages are on the one device.
        let in_flight = in_flight(recipe.devices.numbers(1).len()) as u64;
        let part = Part { in_flight: in_flight.min(run.accumulation), ..Part::default() };
        return vec![(shape.clone(), Run { part, ..run })];
    }
    let known = memories.iter().all(Option::is_some);
    let memories: Vec<u64> = memories.into_iter().map(|memory| memory.filter(|_| known).unwrap_or(1)).collect();
    parts(shape, &run, &spread(shape, &run, &memories))
}

/// The part that needs most.
pub(crate) fn fullest(parts: Vec<(ModelShape, Run)>) -> Option<(ModelShape, Run)> {
    parts.into_iter().max_by_key(|(shape, run)| plan(shape, run).peak())
}

/// The most tokens that the recipe's steps go through, where its data can be counted.
fn tokens(recipe: &Recipe, processes: usize) -> Option<f64> {
    let training = &recipe.training;
    let per_step = training.batch_size as f64 * training.gradient_accumulation_steps as f64 * processes as f64;
    let mut examples = 0.0;
    let read = read_records(Path::new(&recipe.data.train), &mut |_, _, _| {
        examples += 1.0;
        Ok(())
    });
    let all = read.is_ok().then_some(examples * training.epochs as f64);
    let limit = (training.max_steps > 0).then_some(training.max_steps as f64 * per_step);
    let seen = match (all, limit) {
        (Some(all), Some(limit)) if training.epochs > 0 => all.min(limit),
        (_, Some(limit)) => limit,
        (all, None) => all?,
    };
    Some(seen * recipe.data.max_length as f64)
}

/// A device's part of a run.
#[derive(Serialize)]
struct Share {
    layers: u64,
    needed: u64,
    trained: u64,
}

impl Share {
    fn of((shape, run): &(ModelShape, Run)) -> Self {
        Self { layers: shape.layers, needed: plan(shape, run).peak(), trained: run.trained(shape) }
    }
}

/// What `--json` prints: the run and the plan are those of the device that needs most.
#[derive(Serialize)]
struct Report<'a> {
    model: &'a str,
    parameters: u64,
    devices: &'a [Share],
    run: &'a Run,
    plan: &'a Plan,
    needed: u64,
    memory: Option<u64>,
    fits: Option<bool>,
    proposals: &'a [Proposal],
    longest: Option<u64>,
    tokens: Option<f64>,
    gpus: &'a [Estimate],
}

/// Prints the plan of a recipe that `processes` train; each needs what is planned.
pub(crate) fn show(recipe: &Recipe, against: &Against, processes: usize) -> Result<()> {
    recipe.training.check()?;
    recipe.lora.check()?;
    if recipe.data.max_length < 2 {
        bail!("data.max_length: must be at least 2: one token predicts nothing");
    }
    let model = shape(&recipe.model)?;
    let place = device::place(Choice::parse(&recipe.device)?, &recipe.devices);
    let memory = against.memory.or(place.memories.iter().copied().min().flatten());
    let parts = parts_at(&place, recipe, &model, against.memory);
    let whole = model;
    let shares: Vec<Share> = parts.iter().map(Share::of).collect();
    let Some((model, run)) = fullest(parts) else { return Ok(()) };
    let plan = plan(&model, &run);
    let proposals = memory.map_or(vec![], |memory| proposals(&model, &run, memory));
    let longest = memory.and_then(|memory| longest(&model, &Run { recompute: true, ..run.clone() }, memory, LONGEST));
    let tokens = tokens(recipe, processes);
    let work = tokens.filter(|_| shares.len() == 1).map(|tokens| Workload::of(&model, &run, tokens));
    let table = Table::load(against.gpus.as_deref())?;
    let gpus = table.estimates(plan.peak(), run.compute_dtype, work.as_ref());
    if against.json {
        let (parameters, needed, devices) = (whole.parameters(), plan.peak(), &shares[..]);
        let fits = memory.map(|memory| needed <= memory);
        let (proposals, gpus) = (&proposals[..], &gpus[..]);
        let model = recipe.model.as_str();
        let (run, plan) = (&run, &plan);
        let report =
            Report { model, parameters, devices, run, plan, needed, memory, fits, proposals, longest, tokens, gpus };
        return out!("{}", serde_json::to_string_pretty(&report)?);
    }
    let trained: u64 = shares.iter().map(|share| share.trained).sum();
    out!("{}: {} parameters, {} trained", recipe.model, grouped(whole.parameters()), grouped(trained))?;
    let (batch, length) = (run.batch, run.length);
    out!("{}; micro-batches of {batch} x {length} tokens, {} to a step", place.name, run.accumulation)?;
    if shares.len() > 1 {
        for (i, Share { layers, needed, .. }) in shares.iter().enumerate() {
            out!("device {i}: {layers} layers, {}", bytes(*needed))?;
        }
        out!("micro-batches under way at a time: {}; below, the device that needs most", run.part.in_flight)?;
    }
    print(&plan)?;
    // What has to fit into the memory of the device: on the CPU, all processes.
    let mut together = plan.peak();
    if processes > 1 {
        let all = processes as u64;
        // Gradients go through host memory: what a rank sends, and the same once more while it is put together.
        let sums = 8 * run.trained(&model);
        if place.gpu {
            out!("{all} processes need a device each, and {} of host memory for sums of gradients", bytes(all * sums))?;
        } else {
            together = all * (together + sums);
            out!("{all} processes on this machine, with their sums of gradients: {}", bytes(together))?;
        }
    }
    let tables = ["model.embed_tokens", "lm_head"];
    let uncounted = |name: &&String| !tables.iter().any(|table| table.ends_with(name.as_str()));
    if let Some(name) = recipe.lora.modules_to_save.iter().find(uncounted) {
        out!("not counted: what training `{name}` in full takes; of lora.modules_to_save, head and embedding are")?;
    }
    match memory {
        None => out!("the device's memory is not known; give --memory to compare with it")?,
        Some(memory) if together <= memory => out!("fits {}", bytes(memory))?,
        Some(memory) => out!("does NOT fit {}", bytes(memory))?,
    }
    for p in &proposals {
        out!("  fits: {}", proposed(p))?;
    }
    if let Some(longest) = longest {
        let bound = if longest == LONGEST { "at least " } else { "" };
        out!("  the longest sequence that fits alone: {bound}{} tokens", grouped(longest))?;
    }
    if let Some(tokens) = tokens {
        out!("at most {} tokens, if every example has data.max_length of them", grouped(tokens as u64))?;
    }
    table.print(&gpus)
}

/// A proposal as flags, and what it needs.
pub(crate) fn proposed(p: &Proposal) -> String {
    let recompute = if p.recompute { "layers" } else { "none" };
    let (steps, needs) = (p.accumulation, bytes(p.bytes));
    format!(
        "--set training.batch_size={} --set training.gradient_accumulation_steps={steps} --set data.max_length={} --set \
         training.recompute={recompute} ({needs})",
        p.batch, p.length
    )
}

/// The phases of a run in their order, and what they are called.
pub(crate) const PHASES: [(Phase, &str); 8] = [
    (Phase::Always, "stays for the whole run"),
    (Phase::Load, "loading"),
    (Phase::Layers, "training, in the layers"),
    (Phase::Loss, "training, at the loss"),
    (Phase::Update, "training, optimizer"),
    (Phase::Evaluate, "evaluating"),
    (Phase::Save, "saving the adapter"),
    (Phase::Merge, "merging, on its own"),
];

/// Prints a plan: the peak of each phase, and its components.
pub(crate) fn print(plan: &Plan) -> Result<()> {
    for (phase, title) in PHASES {
        if plan.peak_of(phase) == 0 || plan.lines.iter().all(|line| line.phase != phase) {
            continue;
        }
        out!("{title}: {}", bytes(plan.peak_of(phase)))?;
        for line in plan.lines.iter().filter(|line| line.phase == phase) {
            out!("  {:>9}  {}: {}", bytes(line.bytes), line.name, line.formula)?;
        }
    }
    if plan.paged_out > 0 {
        out!("optimizer state in host memory: {}", bytes(plan.paged_out))?;
    }
    out!("needed: {}", bytes(plan.peak()))
}
