//! A question that comes before its answer: the reader commits to a guess, then the answer is shown.

use leptos::prelude::*;

use crate::ui::{query_state, unique};

/// A question with a few answers to choose from. The guess is in the address, as `guess`, counted from 1.
#[component]
pub(crate) fn Predict(
    /// The question.
    question: &'static str,
    /// The answers.
    options: &'static [&'static str],
    /// The place of the right one, from 0.
    right: usize,
    /// Why it is the right one; shown after the guess.
    children: ChildrenFn,
) -> impl IntoView {
    let guess = query_state("guess", 0usize);
    let picked = RwSignal::new(guess.get_untracked());
    Effect::new(move |_| picked.set(guess.get()));
    let committed = move || (1..=options.len()).contains(&guess.get());
    let name = unique("guess");
    let rows = options.iter().enumerate().map(|(i, option)| {
        let mark = move || match (committed(), i == right, guess.get() == i + 1) {
            (true, true, _) => "right",
            (true, false, true) => "wrong",
            _ => "",
        };
        view! {
            <label class=move || format!("option {}", mark())>
                <input
                    type="radio"
                    name=name.clone()
                    prop:checked=move || picked.get() == i + 1
                    on:change=move |_| picked.set(i + 1)
                />
                <span>{*option}</span>
            </label>
        }
    });
    let verdict = move || {
        let words = options.get(right).copied().unwrap_or_default();
        if guess.get() == right + 1 { format!("Right: {words}.") } else { format!("It is: {words}.") }
    };
    let answer = StoredValue::new(children);
    view! {
        <section class="card predict" aria-label="Predict first">
            <fieldset class="field" prop:disabled=committed>
                <legend><span class="tag">"Predict first"</span> {question}</legend>
                <div class="options">{rows.collect_view()}</div>
            </fieldset>
            <Show when=move || !committed()>
                <div class="buttons">
                    <button class="button main" prop:disabled=move || picked.get() == 0 on:click=move |_| guess.set(picked.get())>
                        "Commit to it"
                    </button>
                </div>
            </Show>
            <div class="answer" role="status">
                <Show when=committed>
                    <p class="verdict">{verdict}</p>
                    {answer.with_value(|answer| answer())}
                    <button class="button quiet" on:click=move |_| guess.set(0)>"Forget my guess"</button>
                </Show>
            </div>
        </section>
    }
}
