//! The frame of a lesson: where it stands in the path through them, its title, its formulas, and the way on.

use leptos::prelude::*;

use super::super::lessons;
use super::task::Current;
use crate::ui::Link;

/// A lesson.
#[component]
pub(crate) fn Lesson(
    /// Its path, as `routes.rs` has it.
    path: &'static str,
    /// What it answers.
    lede: &'static str,
    children: Children,
) -> impl IntoView {
    provide_context(Current(path));
    let all: Vec<_> = lessons().collect();
    let place = all.iter().position(|lesson| lesson.path == path).unwrap_or(0);
    let title = all.get(place).map_or("", |lesson| lesson.title);
    let neighbour = |place: Option<usize>, word: &'static str, class: &'static str| {
        let lesson = all.get(place?).copied()?;
        Some(view! {
            <Link to=lesson.path attr:class=class>
                <span class="way">{word}</span>
                {lesson.title}
            </Link>
        })
    };
    view! {
        <article class="page lesson">
            <header class="page-head">
                <p class="lesson-place">
                    <Link to="lessons">"Lessons"</Link>
                    {format!(" · {} of {}", place + 1, all.len())}
                </p>
                <h1>{title}</h1>
                <p class="lede">{lede}</p>
            </header>
            {children()}
            <nav class="lesson-way" aria-label="Lessons">
                {neighbour(place.checked_sub(1), "Before", "before")}
                {neighbour(place.checked_add(1), "Next", "next")}
            </nav>
        </article>
    }
}

/// A formula on a line of its own, as MathML.
#[component]
pub(crate) fn Formula(
    /// What stands between `<math>` and `</math>`.
    math: &'static str,
) -> impl IntoView {
    view! { <div class="math" tabindex="0" role="group" aria-label="Formula" inner_html=format!("<math display=\"block\">{math}</math>")></div> }
}
