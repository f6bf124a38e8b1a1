//! A training run in the worker: the engine's trainer, a turn of the event loop between its steps, checkpoints in the storage.

use halfbyte::data::{Dataset, Splits};
use halfbyte::generate::Sampling;
use halfbyte::lora::attach;
use halfbyte::ops::Ops;
use halfbyte::train::{Metrics, Recipe, Run, Trainer, checkpoint_files};
use halfbyte_memory::plan;
use halfbyte_protocol::{DataSource, Evaluation, Event, Kind, Started, Step, Train};
use wasm_bindgen::JsCast;
use web_time::Instant;

use crate::answers::answers;
use crate::error::{Error, Result};
use crate::inbox::{Control, Parts};
use crate::port;
use crate::rest::rest;
use crate::saved::{Asked, Data, Store};
use crate::session::{self, Adapted, Session};

/// A run under way.
struct Course<B: Ops> {
    trainer: Trainer<B>,
    test: Option<Dataset>,
    run: Run,
    train: Train,
    /// None where the browser has no storage to save in, or nothing is to be saved.
    store: Option<Store>,
}

impl<B: Ops> Session<B> {
    /// Trains from the beginning.
    pub(crate) async fn train(&mut self, train: Train, parts: &Parts) -> Result<Event> {
        let model = self.loaded()?.source.clone();
        let (train_name, train_bytes) = read(&train.train, parts).await?;
        let (test_name, test_bytes) = match &train.test {
            Some(test) => read(test, parts).await?,
            None => (String::new(), vec![]),
        };
        let data = Data { train: train_bytes, test: test_bytes };
        let mut recipe = session::recipe(&train.recipe)?;
        (recipe.data.train, recipe.data.test) = (train_name, test_name);
        // As it will be found in the storage.
        let mut kept = train.clone();
        kept.train = DataSource::Text { name: recipe.data.train.clone(), text: String::new() };
        kept.test = train.test.map(|_| DataSource::Text { name: recipe.data.test.clone(), text: String::new() });
        let (mut course, started) = self.course(recipe, kept, &data)?;
        if course.train.save_every > 0 {
            match Store::begin(&Asked { model, train: course.train.clone() }, &data).await {
                Ok(store) => course.store = Some(store),
                Err(error) => note(&format!("this run is not saved: {}", error.0.message)),
            }
        }
        port::post(&Event::Started(started));
        self.go(course).await
    }

    /// Goes on with the run that the storage holds.
    pub(crate) async fn resume(&mut self) -> Result<Event> {
        let nothing = || Error::request("the browser's storage holds no run that can be continued");
        let (store, asked, data) = Store::find().await?.ok_or_else(nothing)?;
        let snapshot = store.last().await?.ok_or_else(nothing)?;
        let mut recipe = session::recipe(&asked.train.recipe)?;
        recipe.data.date = snapshot.run.recipe.data.date;
        let name = |source: &Option<DataSource>| match source {
            Some(DataSource::Text { name, .. } | DataSource::File { name, .. }) => name.clone(),
            _ => String::new(),
        };
        recipe.data.train = name(&Some(asked.train.train.clone()));
        recipe.data.test = name(&asked.train.test);
        let there = self.model.as_ref().is_some_and(|loaded| loaded.source.name() == asked.model.name());
        if !there {
            let report = self.load(asked.model, &recipe, true, &Parts::default()).await?;
            port::post(&Event::Loaded(report));
        }
        let (mut course, mut started) = self.course(recipe, asked.train, &data)?;
        snapshot.check(&course.run)?;
        (started.done, started.losses) = (snapshot.state.global_step, snapshot.state.losses());
        snapshot.restore(&mut course.trainer)?;
        course.store = Some(store);
        port::post(&Event::Started(started));
        self.go(course).await
    }

    /// A trainer at step 0, its data read and checked.
    fn course(&mut self, mut recipe: Recipe, train: Train, data: &Data) -> Result<(Course<B>, Started)> {
        let place = self.place();
        let loaded = self.loaded_mut()?;
        recipe.model = loaded.source.name().into();
        recipe.training.check()?;
        recipe.lora.check()?;
        if recipe.quantization != loaded.quantization {
            return Err(Error::request("the recipe's [quantization] is not that of the loaded model; load it again"));
        }
        recipe.data.date = loaded.tokenizer.settle_date(recipe.data.date);
        let splits = recipe.data.parse(&loaded.tokenizer, recipe.seed, &data.train, &data.test)?;
        recipe.evaluation.check(splits.test.is_some())?;
        let mut warnings = splits.check(&loaded.tokenizer)?;
        warnings.extend(splits.check_model(&loaded.base.config, &loaded.tokenizer)?);
        let Splits { train: examples, test } = splits;
        let run = Run::of(&recipe, &loaded.config, loaded.digest.clone(), &examples, test.as_ref());
        let mut model = loaded.base.clone();
        attach(&mut model, &recipe.lora, recipe.seed)?;
        let parameters = model.parameter_counts();
        let (count, tokens, trained_tokens) =
            (examples.examples.len(), examples.token_count(), examples.trained_count());
        let trainer = Trainer::new(model, examples, recipe.training.clone(), recipe.seed)?;
        let started = Started {
            steps: trainer.total_steps(),
            done: 0,
            losses: vec![],
            examples: count,
            tokens,
            trained_tokens,
            parameters,
            questions: recipe.show.questions.clone(),
            warnings,
            recipe: recipe_text(&recipe)?,
            plan: plan(&loaded.shape, &recipe.memory(&loaded.shape, place)),
        };
        Ok((Course { trainer, test, run, train, store: None }, started))
    }

    /// Trains to the end, or until it is stopped; what was trained so far is the adapter then. That is so too where it fails.
    async fn go(&mut self, mut course: Course<B>) -> Result<Event> {
        self.inbox.forget_controls();
        let ended = self.steps(&mut course).await;
        let lora = course.run.recipe.lora.clone();
        let adapted = Adapted { model: course.trainer.model().clone(), lora };
        if let Some(loaded) = &mut self.model {
            loaded.adapted = Some(adapted);
        }
        let stopped = ended?;
        Ok(Event::Finished { step: course.trainer.state.global_step, stopped })
    }

    /// The loop: a step, and what is due after it. Whether it was stopped.
    async fn steps(&self, course: &mut Course<B>) -> Result<bool> {
        let total = course.trainer.total_steps();
        if course.trainer.state.global_step == 0 {
            self.evaluate(course).await?;
            self.show(course).await?;
        }
        let mut stopped = false;
        loop {
            let begun = Instant::now();
            let Some(metrics) = course.trainer.step().await? else { break };
            if port::refused() {
                let message = "a kernel was refused; the console says which, and what it says belongs into an issue";
                return Err(Error::new(Kind::Device, message));
            }
            let step = metrics.step;
            self.tell(&metrics, begun.elapsed().as_secs_f64());
            let due = |every: usize| every > 0 && step.is_multiple_of(every);
            stopped = step < total && self.steered().await;
            if due(course.train.save_every) || stopped || step == total {
                save(course).await?;
            }
            if due(course.train.answer_every) && step < total && !stopped {
                self.show(course).await?;
            }
            rest().await;
            if stopped {
                break;
            }
        }
        self.evaluate(course).await?;
        self.show(course).await?;
        Ok(stopped)
    }

    /// Hears what was said since the last step, and waits where it was to pause; whether it was to stop.
    async fn steered(&self) -> bool {
        rest().await;
        while let Some(control) = self.inbox.control() {
            let mut control = control;
            if control == Control::Pause {
                port::post(&Event::Paused);
                while control == Control::Pause {
                    control = self.inbox.next_control().await;
                }
                port::post(&Event::Resumed);
            }
            if control == Control::Stop {
                return true;
            }
        }
        false
    }

    /// Answers the recipe's questions with the model as it is now.
    async fn show(&self, course: &Course<B>) -> Result<()> {
        let show = &course.run.recipe.show;
        if show.questions.is_empty() {
            return Ok(());
        }
        let sampling = Sampling { max_new_tokens: show.max_new_tokens, ..Sampling::default() };
        let tokenizer = &self.loaded()?.tokenizer;
        let answers = answers(course.trainer.model(), tokenizer, sampling, &show.questions).await?;
        port::post(&Event::Answers { step: Some(course.trainer.state.global_step), answers });
        Ok(())
    }

    async fn evaluate(&self, course: &mut Course<B>) -> Result<()> {
        let Some(test) = &course.test else { return Ok(()) };
        let found = course.trainer.evaluate(test).await?;
        let (step, loss, accuracy) = (course.trainer.state.global_step, found.loss, found.mean_token_accuracy);
        port::post(&Event::Evaluated(Evaluation { step, loss, accuracy }));
        Ok(())
    }

    fn tell(&self, metrics: &Metrics, seconds: f64) {
        port::post(&Event::Step(Step {
            step: metrics.step,
            epoch: metrics.epoch,
            loss: metrics.loss,
            grad_norm: metrics.grad_norm,
            learning_rate: metrics.learning_rate,
            tokens: metrics.tokens,
            seconds,
            device_bytes: B::bytes_in_use(&self.device),
            host_bytes: host_bytes(),
        }));
    }
}

/// Saves a checkpoint. A storage that refuses ends the saving, not the run.
async fn save<B: Ops>(course: &mut Course<B>) -> Result<()> {
    let Some(store) = &course.store else { return Ok(()) };
    let step = course.trainer.state.global_step;
    let files = checkpoint_files(&mut course.trainer, &course.run).await?;
    match store.save(step, files).await {
        Ok(()) => port::post(&Event::Saved { step }),
        Err(error) => {
            note(&format!("from step {step} on this run is not saved: {}", error.0.message));
            course.store = None;
        }
    }
    Ok(())
}

fn note(text: &str) {
    port::post(&Event::Note { text: text.into() });
}

/// A data file's name and bytes.
async fn read(source: &DataSource, parts: &Parts) -> Result<(String, Vec<u8>)> {
    Ok(match source {
        DataSource::Site { url } => {
            let name = url.rsplit('/').next().unwrap_or(url).to_string();
            (name.clone(), crate::fetch::bytes(url, &name).await?)
        }
        DataSource::Text { name, text } => (name.clone(), text.clone().into_bytes()),
        DataSource::File { name, file } => (name.clone(), parts.bytes(*file).await?),
    })
}

fn recipe_text(recipe: &Recipe) -> Result<String> {
    toml::to_string(recipe).map_err(|e| Error::new(Kind::Bug, format!("the recipe cannot be written: {e}")))
}

/// Bytes of the worker's WebAssembly memory.
fn host_bytes() -> u64 {
    let memory: js_sys::WebAssembly::Memory = wasm_bindgen::memory().unchecked_into();
    let buffer: js_sys::ArrayBuffer = memory.buffer().unchecked_into();
    u64::from(buffer.byte_length())
}
