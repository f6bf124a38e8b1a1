//! Attaching adapters: matching layers as PEFT does, and PEFT's initialisation.

use fancy_regex::Regex;
use halfbyte_memory::grouped;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{LoraBranch, LoraConfig, Targets};
use crate::model::{Parameter, Transformer};
use crate::ops::Ops;
use crate::{Error, Result};

/// The layers that a configuration targets.
enum Matcher {
    All,
    Names(Vec<String>),
    Pattern(Regex),
}

impl Matcher {
    fn new(targets: &Targets) -> Result<Self> {
        Ok(match targets {
            Targets::Pattern(all) if all.eq_ignore_ascii_case("all-linear") => Self::All,
            Targets::Pattern(pattern) => {
                Self::Pattern(Regex::new(&format!("^(?:{pattern})$")).map_err(|e| {
                    Error::Invalid(format!("target_modules: `{pattern}` is no regular expression: {e}"))
                })?)
            }
            Targets::Names(names) => Self::Names(names.clone()),
        })
    }

    fn matches(&self, path: &str) -> bool {
        match self {
            Self::All => true,
            Self::Names(names) => names.iter().any(|name| is_named(path, name)),
            Self::Pattern(regex) => regex.is_match(path).unwrap_or(false),
        }
    }

    /// What was asked for and is not among these layers. PEFT passes over such a name; here it is taken for a mistake.
    fn missing<'a>(&'a self, paths: &[String]) -> Option<&'a str> {
        match self {
            Self::Names(names) => {
                names.iter().find(|name| !paths.iter().any(|path| is_named(path, name))).map(String::as_str)
            }
            _ => (!paths.iter().any(|path| self.matches(path))).then_some("the pattern"),
        }
    }
}

/// Whether a layer's path ends with this name.
fn is_named(path: &str, name: &str) -> bool {
    path.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// Gives every targeted layer an adapter with PEFT's initial values: `A` Kaiming-uniform with `a = sqrt(5)`, which is
/// uniform in `±1 / sqrt(in)`, and `B` zero. Each layer's values depend on the seed and its path alone.
///
/// # Errors
/// When the configuration is out of range, or what it targets is not in the model; the model is unchanged then.
pub fn attach<B: Ops>(model: &mut Transformer<B>, config: &LoraConfig, seed: u64) -> Result<()> {
    if config.r == 0 {
        return Err(Error::Invalid("lora: r = 0 trains nothing; use 4 to 64".into()));
    }
    if !(0.0..1.0).contains(&config.lora_dropout) {
        return Err(Error::Invalid(format!("lora: lora_dropout = {} must lie in 0..1", config.lora_dropout)));
    }
    let matcher = Matcher::new(&config.target_modules)?;
    let device = model.device();
    let paths: Vec<String> = model.linears_mut().map(|(path, _)| path).collect();
    if let Some(missing) = matcher.missing(&paths) {
        let mut names: Vec<&str> = paths.iter().filter_map(|path| path.rsplit('.').next()).collect();
        names.sort_unstable();
        names.dedup();
        return Err(Error::Invalid(format!(
            "target_modules: {missing} matches no layer; this model's linear layers are: {}",
            names.join(", ")
        )));
    }
    for (path, linear) in model.linears_mut().filter(|(path, _)| matcher.matches(path)) {
        let [out, input] = linear.weight.shape();
        let place = place(&path);
        let mut random = ChaCha8Rng::seed_from_u64(seed ^ place);
        let bound = 1.0 / (input as f32).sqrt();
        let a = (0..config.r * input).map(|_| random.random_range(-bound..bound)).collect();
        let trainable = |values, shape| Parameter { trainable: true, ..Parameter::frozen(values, shape, &device) };
        linear.lora = Some(LoraBranch {
            a: trainable(a, [config.r, input]),
            b: trainable(vec![0.0; out * config.r], [out, config.r]),
            scaling: config.scaling(),
            dropout: config.lora_dropout,
            place,
        });
    }
    Ok(())
}

/// A layer's place as a number: FNV-1a of its path.
pub(crate) fn place(path: &str) -> u64 {
    path.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

/// The line that PEFT's `print_trainable_parameters` prints.
pub fn trainable_line((trained, all): (usize, usize)) -> String {
    let share = 100.0 * trained as f64 / all.max(1) as f64;
    let [trained, all] = [trained, all].map(|count| grouped(count as u64));
    format!("trainable params: {trained} || all params: {all} || trainable%: {share:.4}")
}
