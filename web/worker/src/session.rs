//! What the worker holds on its device, and how it answers requests.

use std::path::Path;

use halfbyte::files::{adapter_files, attach_file};
use halfbyte::generate::Sampling;
use halfbyte::lora::LoraConfig;
use halfbyte::model::{DeviceMap, ModelConfig, Transformer, load_from};
use halfbyte::ops::Ops;
use halfbyte::text::Tokenizer;
use halfbyte::train::{QuantizationConfig, Recipe, parse_override, parse_recipe, shape_of};
use halfbyte_memory::{Device, ModelShape, Plan, bytes, plan};
use halfbyte_protocol::{
    Adapter, Choice, DeviceReport, Event, Kind, ModelReport, ModelSource, Part, RecipeSource, Request,
};

use crate::answers::answers;
use crate::error::{Error, Result};
use crate::inbox::{Inbox, Message, Parts};
use crate::model::{Files, MODELS};
use crate::saved::Store;
use crate::storage::Folder;
use crate::{compare, lab, port, zip};

/// What WebAssembly can address, in all.
const HOST_MEMORY: u64 = 4 << 30;

/// The worker's state on a device.
pub(crate) struct Session<B: Ops> {
    pub(crate) device: B::Device,
    pub(crate) report: DeviceReport,
    pub(crate) inbox: Inbox,
    pub(crate) model: Option<Loaded<B>>,
}

/// A model that was loaded.
pub(crate) struct Loaded<B: Ops> {
    pub(crate) source: ModelSource,
    pub(crate) quantization: QuantizationConfig,
    /// `config.json`.
    pub(crate) config: Vec<u8>,
    /// Of its weights.
    pub(crate) digest: String,
    pub(crate) shape: ModelShape,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) base: Transformer<B>,
    pub(crate) adapted: Option<Adapted<B>>,
}

/// The base model with an adapter.
pub(crate) struct Adapted<B: Ops> {
    pub(crate) model: Transformer<B>,
    pub(crate) lora: LoraConfig,
}

/// Answers requests for the rest of the worker's life.
pub(crate) async fn serve<B: Ops>(device: B::Device, report: DeviceReport, inbox: Inbox) {
    let mut session = Session::<B> { device, report, inbox, model: None };
    loop {
        let Message { request, parts } = session.inbox.next().await;
        match session.answer(request, &parts).await {
            Ok((event, bytes)) => port::post_with(&event, &bytes),
            Err(error) => port::fail(error),
        }
    }
}

/// An event without bytes.
fn plain(event: Event) -> (Event, Vec<Vec<u8>>) {
    (event, vec![])
}

impl<B: Ops> Session<B> {
    async fn answer(&mut self, request: Request, parts: &Parts) -> Result<(Event, Vec<Vec<u8>>)> {
        Ok(plain(match request {
            Request::Plan { model, recipe } => {
                let files = Files::find(&model, parts).await?;
                Event::Planned(self.report_of(&model, &files, &files.config().await?, &self::recipe(&recipe)?).await?)
            }
            Request::Load { model, recipe, anyway } => {
                Event::Loaded(self.load(model, &self::recipe(&recipe)?, anyway, parts).await?)
            }
            Request::Generate { prompts, sampling, adapter } => {
                let loaded = self.loaded()?;
                let model = match (&loaded.adapted, adapter) {
                    (Some(adapted), true) => &adapted.model,
                    (None, true) => return Err(Error::request("there is no adapter; train or import one first")),
                    (_, false) => &loaded.base,
                };
                let halfbyte_protocol::Sampling { temperature, top_p, max_new_tokens, seed } = sampling;
                let sampling = Sampling { temperature, top_p, max_new_tokens, seed, ..Sampling::default() };
                Event::Answers { step: None, answers: answers(model, &loaded.tokenizer, sampling, &prompts).await? }
            }
            Request::Train(train) => self.train(train, parts).await?,
            Request::Continue => self.resume().await?,
            Request::Export => return self.export().await,
            Request::Import { zip } => self.import(parts.bytes(zip).await?)?,
            Request::FindSaved => Event::SavedRun { run: Store::report().await? },
            Request::ForgetSaved => {
                Store::forget().await?;
                Event::Done
            }
            Request::ClearStorage => {
                Store::forget().await?;
                Folder::root().await?.remove(MODELS).await?;
                Event::Done
            }
            Request::Conformance { seed } => lab::test::<B>(&self.device, seed).await?,
            Request::Bench { model, rows } => lab::measure::<B>(&self.device, &model, &rows).await?,
            Request::Compare(matrix) => compare::on::<B>(&self.device, &matrix, parts).await?,
            Request::Open { .. } => return Err(Error::request("the device is chosen already; start another worker")),
            // The inbox keeps these apart.
            Request::Pause | Request::Resume | Request::Stop => Event::Done,
        }))
    }

    pub(crate) fn loaded(&self) -> Result<&Loaded<B>> {
        self.model.as_ref().ok_or_else(not_loaded)
    }

    pub(crate) fn loaded_mut(&mut self) -> Result<&mut Loaded<B>> {
        self.model.as_mut().ok_or_else(not_loaded)
    }

    /// Where the memory plan thinks that tensors live.
    pub(crate) fn place(&self) -> Device {
        match self.report.device {
            Choice::Cpu | Choice::Auto => Device::Cpu { threads: 1, cache: 1 << 20 },
            Choice::Webgpu => Device::Gpu,
        }
    }

    /// What a model is, and what a run of the recipe takes.
    async fn report_of(
        &self,
        source: &ModelSource,
        files: &Files,
        config: &[u8],
        recipe: &Recipe,
    ) -> Result<ModelReport> {
        let shape = shape_of(Path::new(source.name()).join("config.json"), config)?;
        let run = recipe.memory(&shape, self.place());
        let plan = plan(&shape, &run);
        let available = (self.report.device == Choice::Cpu).then_some(HOST_MEMORY);
        let refusal = refusal(&plan, available);
        let download = files.shards().await?.iter().map(|(_, size)| size).sum();
        Ok(ModelReport {
            name: source.name().into(),
            parameters: shape.parameters(),
            trained: run.trained(&shape),
            download,
            needed: plan.peak(),
            plan,
            available,
            refusal,
            chat: false,
        })
    }

    /// Loads a model in place of the one that is there.
    pub(crate) async fn load(
        &mut self,
        source: ModelSource,
        recipe: &Recipe,
        anyway: bool,
        parts: &Parts,
    ) -> Result<ModelReport> {
        let files = Files::find(&source, parts).await?;
        let config = files.config().await?;
        let mut report = self.report_of(&source, &files, &config, recipe).await?;
        if let Some(refusal) = report.refusal.clone().filter(|_| !anyway) {
            return Err(Error::new(Kind::Memory, format!("{}: {refusal}", source.name())));
        }
        // What is there goes first: two models may be one too many.
        self.model = None;
        let name = Path::new(source.name());
        let parsed = ModelConfig::parse(name.join("config.json"), &config)?;
        let shape = shape_of(name.join("config.json"), &config)?;
        let tokenizer = files.tokenizer().await?;
        let weights = files.weights().await?;
        let (mut count, total) = (0, weights.names().len() as u64);
        let map = DeviceMap::Whole(self.device.clone());
        let base = load_from::<B>(parsed, &weights, recipe.quantization.base(), &map, &mut |now| {
            count += 1;
            let progress = halfbyte_protocol::Progress { what: format!("loading {}", now.path), done: count, total };
            port::post(&Event::Progress(progress));
        })?;
        report.chat = tokenizer.chat_template().is_some();
        self.model = Some(Loaded {
            source,
            quantization: recipe.quantization.clone(),
            digest: weights.digest()?,
            shape,
            config,
            tokenizer,
            base,
            adapted: None,
        });
        Ok(report)
    }

    async fn export(&mut self) -> Result<(Event, Vec<Vec<u8>>)> {
        let missing = || Error::request("there is no adapter; train or import one first");
        let loaded = self.model.as_mut().ok_or_else(missing)?;
        let adapted = loaded.adapted.as_mut().ok_or_else(missing)?;
        let files = adapter_files(&mut adapted.model, &adapted.lora, loaded.source.name()).await?;
        let zip = zip::pack("adapter", &files)?;
        let bytes = zip.len() as u64;
        Ok((Event::Adapter(Adapter { file: "adapter.zip".into(), zip: Part(0), bytes }), vec![zip]))
    }

    fn import(&mut self, bytes: Vec<u8>) -> Result<Event> {
        let file = zip::unpack(bytes)?;
        let loaded = self.model.as_mut().ok_or_else(|| Error::request("no model is loaded; send `load` first"))?;
        let mut model = loaded.base.clone();
        attach_file(&mut model, &file, false)?;
        let lora = file.config.lora();
        let (rank, layers, base) = (lora.r, file.layers().len(), file.config.base_model_name_or_path.clone());
        loaded.adapted = Some(Adapted { model, lora });
        Ok(Event::Imported { rank, layers, base })
    }
}

/// Why a run will not do, if so. How much memory its GPU has a browser does not say.
fn refusal(plan: &Plan, available: Option<u64>) -> Option<String> {
    let available = available.filter(|available| plan.peak() > *available)?;
    Some(format!(
        "the run needs {} and a tab on the CPU has {}; take a smaller model, shorter sequences or smaller batches",
        bytes(plan.peak()),
        bytes(available)
    ))
}

/// A recipe with what is put in place of its keys.
pub(crate) fn recipe(source: &RecipeSource) -> Result<Recipe> {
    let overrides = source.set.iter().map(|text| parse_override(text)).collect::<halfbyte::Result<Vec<_>>>()?;
    Ok(parse_recipe(Path::new("recipe"), &source.toml, &overrides)?)
}

fn not_loaded() -> Error {
    Error::request("no model is loaded; send `load` first")
}
