//! The first page: what Halfbyte is, and where to go.

use leptos::prelude::*;

use crate::ui::{Cite, Link, Source};

/// The page.
#[component]
pub(crate) fn Home() -> impl IntoView {
    view! {
        <article class="page">
            <header class="hero">
                <h1>"Fine-tune a language model in four bits"</h1>
                <p class="lede">
                    "Halfbyte is a QLoRA engine in Rust. The base model is frozen in 4-bit NormalFloat, small adapters are trained on top, and the same code runs on CUDA, on any GPU that WebGPU or Vulkan reaches, on a plain CPU, and in this tab."
                </p>
                <div class="buttons">
                    <Link to="playground" attr:class="button main">"Train one now"</Link>
                    <Link to="lessons" attr:class="button">"How it works"</Link>
                </div>
            </header>
            <ul class="doors">
                <Door to="lessons" title="Lessons" text="What QLoRA rests on, one idea to a page, with controls that the engine's own code answers."/>
                <Door to="playground" title="Playground" text="Train a small model here: watch the loss, compare answers before and after, take the adapter with you."/>
                <Door to="calculator" title="Calculator" text="Each byte of a fine-tuning run by its formula, for known models, a pasted config.json or a name of the hub, and the GPUs that hold it."/>
                <Door to="gpu" title="GPU lab" text="Whether the kernels are right on your GPU, and how fast, as a report to compare."/>
            </ul>
            <div class="facts">
                <section>
                    <h2>"Why four bits"</h2>
                    <p>
                        "A frozen weight in NF4 takes 4.127 bits with double quantization, and a 65B model trains in 48 GB instead of more than 780. "
                        <Cite of=Source::QLORA place="sections 2 and 3"/>
                    </p>
                </section>
                <section>
                    <h2>"Nothing leaves the page"</h2>
                    <p>"What you enter is computed in your browser. No other host is asked for anything until you ask for a model by its name on the hub. After the first visit the site works offline."</p>
                </section>
                <section>
                    <h2>"Right by comparison"</h2>
                    <p>"NF4 codes and scales are those of bitsandbytes to the bit; losses and gradients agree with transformers and PEFT. The figures stand in the project's README, with what they were measured on."</p>
                </section>
            </div>
        </article>
    }
}

/// A way into the site.
#[component]
fn Door(to: &'static str, title: &'static str, text: &'static str) -> impl IntoView {
    view! {
        <li><Link to=to><h2>{title}</h2><p>{text}</p></Link></li>
    }
}
