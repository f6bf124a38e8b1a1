//! QLoRA engine.
