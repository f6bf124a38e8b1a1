//! The memory calculator: a model, a run, and what they need, by the plan that `halfbyte memory` prints.

mod gpus;
mod hub;
mod lines;
mod model;
mod question;
mod result;
mod settings;
mod share;

use leptos::prelude::*;

use crate::ui::{Cite, Source};

use gpus::Gpus;
use lines::Lines;
use model::Model;
use question::Question;
use result::Summary;
use settings::Settings;
use share::Share;

pub(crate) use model::groups as models;

/// The page.
#[component]
pub(crate) fn Calculator() -> impl IntoView {
    let question = Question::of_address();
    view! {
        <article class="page">
            <header class="page-head">
                <h1>"Memory calculator"</h1>
                <p class="lede">
                    "What a fine-tuning run needs, byte by byte, from the model's configuration alone. The plan goes through a run tensor by tensor in the order in which the engine allocates them; on a CPU it was measured to within 5% of the allocator's peak."
                </p>
            </header>
            <div class="workbench">
                <section class="card" aria-labelledby="run-title">
                    <h2 id="run-title">"The run"</h2>
                    <Model question/>
                    <hr/>
                    <Settings question/>
                </section>
                <div class="answers">
                    <Summary question/>
                    <Gpus question/>
                    <Share question/>
                </div>
            </div>
            <Lines question/>
            <p class="source">
                "Sources: 4-bit weights and double quantization, " <Cite of=Source::QLORA place="section 3"/>
                "; the states of full fine-tuning, " <Cite of=Source::ZERO place="section 3.1"/>
                ". Not counted: the driver's context, compiled kernels, other programs."
            </p>
        </article>
    }
}
