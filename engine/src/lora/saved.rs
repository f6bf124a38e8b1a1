//! Modules that are trained in full beside the adapters: PEFT's `modules_to_save`.

use burn::tensor::FloatDType;

use crate::model::{EMBEDDING, Parameter, Transformer, Weight, in_type};
use crate::ops::Ops;
use crate::{Error, Result};

/// The head's path where it is one of its own.
const HEAD: &str = "lm_head.weight";

/// Whether a module or parameter lies in one of the modules whose paths end in one of these names (PEFT,
/// `_set_trainable`).
pub(crate) fn is_saved(path: &str, names: &[String]) -> bool {
    let ends = path.match_indices('.').map(|(i, _)| i).chain([path.len()]);
    // A parameter's own name, `weight` or `bias`, is no module's.
    let modules =
        ends.map(|end| &path[..end]).filter(|module| !module.ends_with(".weight") && !module.ends_with(".bias"));
    modules.into_iter().any(|module| names.iter().any(|name| !name.is_empty() && module.ends_with(name.as_str())))
}

/// Marks every parameter of these modules as trainable or as frozen. A tied head or embedding among them parts the two:
/// each keeps the values that it has, and only what was named is trained.
///
/// # Errors
/// When a name is not in the model, means a weight in 4 bits, or a table that the device does not hold in one piece; the model is unchanged
/// then.
pub(crate) fn set_trainable<B: Ops>(model: &mut Transformer<B>, names: &[String], trainable: bool) -> Result<()> {
    if names.is_empty() {
        return Ok(());
    }
    let mut paths = vec![HEAD.to_string()];
    model.visit(|path, _| paths.push(path.to_string()));
    let wrong = |name: &str, reason: &str| Err(Error::Invalid(format!("modules_to_save: `{name}` {reason}")));
    for name in names {
        let one = std::slice::from_ref(name);
        let in_4_bits = |linear: &Weight<B>| matches!(linear, Weight::Nf4(_));
        if model.linears_mut().any(|(path, linear)| in_4_bits(&linear.weight) && is_saved(&path, one)) {
            return wrong(name, "is held in 4 bits, which cannot be trained in full; adapt it by target_modules");
        }
        if !paths.iter().any(|path| is_saved(path, one)) {
            return wrong(name, "is no module of this model; usual are lm_head and embed_tokens");
        }
    }
    let tables = [(EMBEDDING, &model.embedding), (HEAD, &model.head.weight)];
    for (path, table) in tables.iter().filter(|(path, _)| is_saved(path, names)) {
        let (needed, most) = (4 * table.dims().iter().product::<usize>() as u64, B::largest_tensor(&table.device()));
        if table.parts().len() > 1 || needed > most {
            let reason = "is larger in f32 than this device holds in one piece; leave it out, or take another device";
            return wrong(path, reason);
        }
    }
    if tables.iter().any(|(path, _)| is_saved(path, names)) {
        model.head.tied = false;
    }
    *model = model.map(|path, parameter| {
        let saved = is_saved(path, names) && !path.contains(".lora_");
        // What is trained is f32, whatever it was held in.
        let value = parameter.value.clone();
        let value = if saved && trainable { in_type(value, FloatDType::F32) } else { value };
        Parameter { value, trainable: if saved { trainable } else { parameter.trainable } }
    });
    Ok(())
}
