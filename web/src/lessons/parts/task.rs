//! A task that checks itself against the controls, and the memory of which are solved.

use leptos::prelude::*;

/// The lesson that is shown.
#[derive(Clone, Copy)]
pub(super) struct Current(pub(super) &'static str);

fn storage() -> Option<web_sys::Storage> {
    window().local_storage().ok().flatten()
}

fn key(path: &str) -> String {
    format!("solved:{path}")
}

/// Whether this browser remembers a lesson's task as solved.
pub(crate) fn is_solved(path: &str) -> bool {
    storage().and_then(|storage| storage.get_item(&key(path)).ok().flatten()).is_some()
}

/// Something to find with the controls above.
#[component]
pub(crate) fn Task(
    /// What is to be reached, each in words and whether it is.
    #[prop(into)]
    goals: Signal<Vec<(String, bool)>>,
    /// What is learnt by it; shown when it is solved.
    solved: &'static str,
    children: Children,
) -> impl IntoView {
    let done = Memo::new(move |_| goals.with(|goals| !goals.is_empty() && goals.iter().all(|(_, met)| *met)));
    let lesson = use_context::<Current>();
    Effect::new(move |_| {
        // A browser that stores nothing forgets it; the page works the same.
        if done.get()
            && let (Some(storage), Some(lesson)) = (storage(), lesson)
        {
            let _ = storage.set_item(&key(lesson.0), "1");
        }
    });
    let row = |(words, met): (String, bool)| {
        view! {
            <li class:met=met>
                <span class="mark" aria-hidden="true">{if met { "✓" } else { "○" }}</span>
                <span>{words}<span class="unseen">{if met { ": reached" } else { ": not yet" }}</span></span>
            </li>
        }
    };
    view! {
        <section class="card task" class:done=done aria-label="Task">
            <div class="task-text"><span class="tag">"Your task"</span> {children()}</div>
            <ul class="goals">{move || goals.get().into_iter().map(row).collect_view()}</ul>
            <p class="verdict" role="status">{move || done.get().then(|| format!("Solved. {solved}"))}</p>
        </section>
    }
}
