//! `halfbyte generate`: one prompt, or a chat.

use std::io::{BufRead, IsTerminal};

use anyhow::{Result, bail};
use halfbyte::generate::{Sampling, Talker};
use halfbyte::model::BaseWeights;
use halfbyte::ops::Ops;
use halfbyte::text::{Message, Tokenizer};
use halfbyte::train::Devices;
use halfbyte_memory::{ComputeDtype, Method, ModelShape, Run};
use pollster::block_on;

use crate::console::{self, note, out};
use crate::device::{self, Choice, Found, Job, Seat};
use crate::held::HeldArguments;
use crate::source::Source;
use crate::talk::{attach_adapter, load_base};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Folder of the base model, or org/name[@revision] on the Hugging Face hub
    model: String,
    /// Folder of a LoRA adapter, or its name on the hub
    #[arg(long)]
    adapter: Option<String>,
    /// What to answer; without it, a chat that ends with Ctrl-D
    #[arg(long, short)]
    prompt: Option<String>,
    /// System message
    #[arg(long, conflicts_with = "raw")]
    system: Option<String>,
    /// Continue the prompt as it is, without the chat template
    #[arg(long, requires = "prompt")]
    raw: bool,
    #[command(flatten)]
    held: HeldArguments,
    /// 0 takes the likeliest token
    #[arg(long, default_value_t = 0.0)]
    temperature: f64,
    /// Keep this many of the likeliest tokens; 0 keeps all
    #[arg(long, default_value_t = 0)]
    top_k: usize,
    /// Keep the likeliest tokens up to this probability
    #[arg(long, default_value_t = 1.0)]
    top_p: f64,
    /// Above 1 turns the model away from tokens that are there already
    #[arg(long, default_value_t = 1.0)]
    repetition_penalty: f64,
    /// Longest answer, in tokens
    #[arg(long, default_value_t = 256)]
    max_new_tokens: usize,
    /// Seed of the choices
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Device to run on
    #[arg(long, value_enum, default_value = "auto")]
    device: Choice,
    /// GPUs of that kind to share the model's layers out among: all, or numbers such as 0,1
    #[arg(long, default_value = "first")]
    devices: Devices,
}

/// Runs the command.
pub(crate) fn run(arguments: Arguments) -> Result<()> {
    let seat = Seat { devices: arguments.devices.clone(), ..Seat::default() };
    device::run_at(arguments.device, seat, Generate(arguments))
}

struct Generate(Arguments);

impl Job for Generate {
    type Output = ();

    fn run<B: Ops>(self, found: Found<B>) -> Result<()> {
        let arguments = self.0;
        let source = Source::open(&arguments.model)?;
        let adapter = arguments.adapter.as_deref().map(Source::open).transpose()?;
        let tokenizer = Tokenizer::from_folder(source.folder())?;
        if arguments.system.is_some() && tokenizer.chat_template().is_none() {
            bail!("--system: the model has no chat template, which would say where a system message goes");
        }
        let adapter = adapter.as_ref().map(Source::weights).transpose()?;
        let base = arguments.held.resolve(adapter)?;
        let map = found.map_for(source.folder(), |shape| Ok(inference(base, shape)))?;
        let mut model = load_base::<B>(source.weights()?, base.as_stored(), &map)?;
        if let Some(adapter) = adapter {
            attach_adapter(&mut model, adapter, &arguments.model)?;
        }
        let sampling = Sampling {
            temperature: arguments.temperature,
            top_k: arguments.top_k,
            top_p: arguments.top_p,
            repetition_penalty: arguments.repetition_penalty,
            max_new_tokens: arguments.max_new_tokens,
            seed: arguments.seed,
        };
        let talker = Talker { model: &model, tokenizer: &tokenizer, sampling };
        let mut messages: Vec<Message> = arguments.system.iter().map(|text| Message::new("system", text)).collect();
        match arguments.prompt {
            Some(prompt) if arguments.raw || tokenizer.chat_template().is_none() => {
                shown(|show| block_on(talker.continue_text(&prompt, true, show)))?;
                Ok(())
            }
            Some(prompt) => {
                messages.push(Message::new("user", prompt));
                shown(|show| block_on(talker.answer(&messages, show)))?;
                Ok(())
            }
            None => chat(&talker, messages, &found.name),
        }
    }
}

/// Answering with a base that is held so, as far as it decides how layers are shared out.
fn inference(base: BaseWeights, shape: &ModelShape) -> Run {
    let (method, weight_bytes) = match base {
        BaseWeights::Nf4 { .. } => (Method::Qlora, shape.file_bytes()),
        BaseWeights::Full => (Method::Lora, 4),
    };
    Run { method, weight_bytes, compute_dtype: ComputeDtype::F32, length: 1, ..Run::default() }
}

/// Shows an answer piece by piece as it comes, and then ends the line.
fn shown(answer: impl FnOnce(&mut dyn FnMut(&str)) -> halfbyte::Result<String>) -> Result<String> {
    let mut written = Ok(());
    let text = answer(&mut |piece| {
        if written.is_ok() {
            written = console::write(format_args!("{piece}"));
        }
    })?;
    written?;
    out!("")?;
    Ok(text)
}

/// Reads a line, answers it, and so on until the input ends.
fn chat<B: Ops>(talker: &Talker<B>, mut messages: Vec<Message>, device: &str) -> Result<()> {
    let terminal = std::io::stdin().is_terminal();
    if terminal {
        out!("on {device}; Ctrl-D ends the chat")?;
    }
    let mut lines = std::io::stdin().lock().split(b'\n');
    loop {
        if terminal {
            console::write(format_args!("> "))?;
        }
        let Some(line) = lines.next().transpose()? else { return Ok(()) };
        let Ok(line) = String::from_utf8(line) else {
            note!("that line is not UTF-8, and is left out; have the terminal send UTF-8, or save the file so");
            continue;
        };
        // A line from Windows ends with a carriage return as well.
        let line = line.trim_end_matches('\r');
        if line.trim().is_empty() {
            continue;
        }
        messages.push(Message::new("user", line));
        let answer = shown(|show| block_on(talker.answer(&messages, show)))?;
        messages.push(Message::new("assistant", answer.trim()));
    }
}
