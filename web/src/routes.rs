//! Every page of the site, a line each.

/// Hands the table to the macro `$with`: the path below the site's root, its word in the navigation or `""`, its title, what
/// it is about, and its component. The first page is the home page. `cargo xtask web` reads this file too, and makes a
/// folder for each path, so that a page's address works on any host of files.
macro_rules! routes {
    ($with:ident) => {
        $with! {
            "", "Home", "Halfbyte", "QLoRA fine-tuning, taught and run in a browser tab", crate::home::Home;
            "playground", "Playground", "Playground", "Fine-tune a language model in this tab, and talk with the result", crate::playground::Playground;
            "gpu", "GPU lab", "GPU lab", "Whether the kernels are right on your GPU, and how fast", crate::lab::GpuLab;
            "calculator", "Calculator", "Memory calculator", "What a fine-tuning run needs, byte by byte, and which GPUs hold it", crate::calculator::Calculator;
        }
    };
}
