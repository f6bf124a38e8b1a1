//! Every page of the site, a line each.

/// Hands the table to the macro `$with`: the path below the site's root, its word in the navigation or `""`, its title, what
/// it is about, and its component. The first page is the home page. `cargo xtask web` reads this file too, and makes a
/// folder for each path, so that a page's address works on any host of files.
macro_rules! routes {
    ($with:ident) => {
        $with! {
            "", "Home", "Halfbyte", "QLoRA fine-tuning, taught and run in a browser tab", crate::home::Home;
            "lessons", "Lessons", "Lessons", "QLoRA in nine pages that compute what they teach", crate::lessons::Lessons;
            "lessons/memory", "", "The memory problem", "Full fine-tuning, LoRA and QLoRA, byte by byte, for a model of any size", crate::lessons::Memory;
            "lessons/nf4", "", "Sixteen levels: NF4", "Why NF4's levels lie where they lie, on weights that you shape and on real ones", crate::lessons::Nf4;
            "lessons/double-quantization", "", "Double quantization", "Where the 0.373 bits per weight come from, and what they cost", crate::lessons::DoubleQuantization;
            "lessons/lora", "", "Low rank: LoRA", "Rank against reconstruction, and the share of a model that is trained", crate::lessons::Lora;
            "lessons/paged-optimizers", "", "Paged optimizers", "How the optimizer's state makes room for one long sequence", crate::lessons::PagedOptimizers;
            "lessons/training-loop", "", "The training loop", "Layers computed again against everything kept, step by step", crate::lessons::TrainingLoop;
            "lessons/hardware", "", "Hardware guide", "Which card trains which model, and what a laptop can do", crate::lessons::Hardware;
            "lessons/qlora-or-lora", "", "QLoRA or LoRA", "A few questions, and an answer with its reasons", crate::lessons::Decision;
            "lessons/inference", "", "After training", "Merge the adapter or keep it, and what servers make of it", crate::lessons::Inference;
            "playground", "Playground", "Playground", "Fine-tune a language model in this tab, and talk with the result", crate::playground::Playground;
            "gpu", "GPU lab", "GPU lab", "Whether the kernels are right on your GPU, and how fast", crate::lab::GpuLab;
            "calculator", "Calculator", "Memory calculator", "What a fine-tuning run needs, byte by byte, and which GPUs hold it", crate::calculator::Calculator;
        }
    };
}
