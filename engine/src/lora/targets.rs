//! Attaching adapters: matching layers as PEFT does, and PEFT's initialisation.

use fancy_regex::Regex;
use halfbyte_memory::grouped;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::layers::{Layers, compile};
use super::{Dora, LoraBranch, LoraConfig, Targets, saved};
use crate::model::{Parameter, Transformer};
use crate::ops::Ops;
use crate::{Error, Result};

/// The layers that a configuration targets.
struct Matcher<'a> {
    targets: Kind<'a>,
    /// What finds a layer's number in its path, and the numbers that are adapted; without numbers every layer is.
    number: Vec<Regex>,
    numbers: &'a [usize],
    /// Modules trained in full get no adapter.
    saved: &'a [String],
}

enum Kind<'a> {
    All,
    Names(&'a [String]),
    Pattern(Regex),
}

impl<'a> Matcher<'a> {
    fn new(config: &'a LoraConfig) -> Result<Self> {
        let targets = match &config.target_modules {
            all if all.is_all() => Kind::All,
            Targets::Pattern(pattern) => {
                Kind::Pattern(compile("target_modules", pattern, &format!("^(?:{pattern})$"))?)
            }
            Targets::Names(names) => Kind::Names(names),
        };
        // The number behind the last `.NAME.`, where NAME is anything or one of the patterns (PEFT,
        // `check_target_module_exists`).
        let numbered = |pattern: &str| compile("layers_pattern", pattern, &format!(r"^.*\.{pattern}\.(\d+)\."));
        let number = match &config.layers_pattern {
            none if none.is_empty() => vec![numbered("[^.]*")?],
            patterns => patterns.iter().map(|pattern| numbered(pattern)).collect::<Result<_>>()?,
        };
        Ok(Self { targets, number, numbers: &config.layers_to_transform, saved: &config.modules_to_save })
    }

    fn matches(&self, path: &str) -> bool {
        let target = match &self.targets {
            Kind::All => true,
            Kind::Names(names) => names.iter().any(|name| is_named(path, name)),
            Kind::Pattern(regex) => regex.is_match(path).unwrap_or(false),
        };
        target && !saved::is_saved(path, self.saved) && (self.numbers.is_empty() || self.is_numbered(path))
    }

    fn is_numbered(&self, path: &str) -> bool {
        let found = self.number.iter().find_map(|regex| regex.captures(path).ok().flatten());
        let number = found.and_then(|found| found.iter().flatten().last()?.as_str().parse().ok());
        number.is_some_and(|number: usize| self.numbers.contains(&number))
    }

    /// What was asked for and is not among these layers. PEFT passes over such a name; here it is taken for a mistake.
    fn missing(&self, paths: &[String]) -> Option<String> {
        let named = |name: &&String| !paths.iter().any(|path| is_named(path, name));
        match &self.targets {
            Kind::Names(names) if names.iter().any(|name| named(&name)) => names.iter().find(named).cloned(),
            _ => (!paths.iter().any(|path| self.matches(path))).then(|| match self.numbers {
                [] => "the pattern".to_string(),
                numbers => format!("what is left by layers_to_transform = {numbers:?}"),
            }),
        }
    }
}

/// Whether a layer's path ends with this name.
fn is_named(path: &str, name: &str) -> bool {
    path.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// Gives every targeted layer an adapter with PEFT's initial values: `A` Kaiming-uniform with `a = sqrt(5)`, which is
/// uniform in `±1 / sqrt(in)`, `B` zero, and DoRA's magnitudes the lengths of the weight's rows. Each layer's values depend
/// on the seed and its path alone. Modules to save become trainable; a head that was tied to the embedding is then one of
/// its own, as it is for PEFT.
///
/// # Errors
/// When the configuration is out of range, or what it targets is not in the model; the model is unchanged then.
pub fn attach<B: Ops>(model: &mut Transformer<B>, config: &LoraConfig, seed: u64) -> Result<()> {
    let layers = Layers::new(config)?;
    let matcher = Matcher::new(config)?;
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
    saved::set_trainable(model, &config.modules_to_save, true)?;
    for (path, linear) in model.linears_mut().filter(|(path, _)| matcher.matches(path)) {
        let ([out, input], rank) = (linear.weight.shape(), layers.rank(&path));
        let place = place(&path);
        let mut random = ChaCha8Rng::seed_from_u64(seed ^ place);
        let bound = 1.0 / (input as f32).sqrt();
        let a = (0..rank * input).map(|_| random.random_range(-bound..bound)).collect();
        let device = linear.weight.device();
        let trainable = |values, shape| Parameter { trainable: true, ..Parameter::frozen(values, shape, &device) };
        let dora = config.use_dora.then(|| Dora::new(&linear.weight));
        linear.lora = Some(LoraBranch {
            a: trainable(a, [rank, input]),
            b: trainable(vec![0.0; out * rank], [out, rank]),
            dora,
            scaling: layers.scaling(&path),
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
