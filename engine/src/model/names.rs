//! What the tensors and modules of a text model are called where it is a part of a multi-modal one.

use super::ModelConfig;

/// A family whose text model is part of a larger one.
pub(super) struct Multimodal {
    /// The class in `architectures`.
    pub(super) architecture: &'static str,
    /// `model_type` of the whole.
    pub(super) model_type: &'static str,
    /// `model_type` of the text model.
    pub(super) part: &'static str,
    /// What the text model's tensors begin with in files, before `model.` and `lm_head.`; transformers' newer classes have it
    /// after `model.`, and their head on the outside.
    pub(super) prefix: &'static str,
}

pub(super) const MULTIMODAL: [Multimodal; 1] = [Multimodal {
    architecture: "Gemma3ForConditionalGeneration",
    model_type: "gemma3",
    part: "gemma3_text",
    prefix: "language_model.",
}];

/// The path in the text model of something that has the name of a part of a multi-modal model, old or new.
pub(crate) fn text_path(name: &str) -> Option<String> {
    MULTIMODAL.iter().find_map(|whole| whole.text_path(name))
}

/// The [`prefix`](Multimodal::prefix) that is in a name; empty where there is none.
pub(crate) fn prefix_of(name: &str) -> &'static str {
    MULTIMODAL.iter().find(|whole| whole.text_path(name).is_some()).map_or("", |whole| whole.prefix)
}

impl Multimodal {
    fn text_path(&self, name: &str) -> Option<String> {
        let newer = || Some(format!("model.{}", name.strip_prefix("model.")?.strip_prefix(self.prefix)?));
        name.strip_prefix(self.prefix).map(str::to_string).or_else(newer)
    }
}

impl ModelConfig {
    /// The path in the text model of a tensor of this model's files; none where it belongs to another part.
    pub(crate) fn path_of(&self, name: &str) -> Option<String> {
        match self.prefix {
            "" => Some(name.to_string()),
            _ => text_path(name).or_else(|| name.starts_with("lm_head.").then(|| name.to_string())),
        }
    }

    /// The names that the parameter at `path` may have in this model's files.
    pub(crate) fn names_in_files(&self, path: &str) -> [String; 2] {
        [format!("{}{path}", self.prefix), module_path(self.prefix, path)]
    }
}

/// The name of the module or parameter at `path` of the text model in the class that transformers loads the folder of a model
/// with this prefix by, which is what PEFT's names go by.
pub(crate) fn module_path(prefix: &str, path: &str) -> String {
    match path.strip_prefix("model.") {
        Some(rest) => format!("model.{prefix}{rest}"),
        None => path.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_of_naming_lead_to_the_text_model() {
        for name in ["language_model.model.norm.weight", "model.language_model.norm.weight"] {
            assert_eq!(text_path(name).as_deref(), Some("model.norm.weight"));
        }
        assert_eq!(text_path("language_model.lm_head.weight").as_deref(), Some("lm_head.weight"));
        for other in ["model.norm.weight", "vision_tower.language_model.weight", "model.vision_tower.norm.weight"] {
            assert_eq!(text_path(other), None);
        }
        assert_eq!(module_path("language_model.", "model.layers.0"), "model.language_model.layers.0");
        assert_eq!(module_path("language_model.", "lm_head.weight"), "lm_head.weight");
        assert_eq!(module_path("", "model.layers.0"), "model.layers.0");
    }
}
