//! The lessons: nine pages, each with controls that the project's own code answers, a question to predict, and a task.

mod decision;
mod double_quantization;
mod hardware;
mod inference;
mod lora;
mod memory;
mod nf4;
mod paged_optimizers;
mod parts;
mod training_loop;

pub(crate) use decision::Decision;
pub(crate) use double_quantization::DoubleQuantization;
pub(crate) use hardware::Hardware;
pub(crate) use inference::Inference;
pub(crate) use lora::Lora;
pub(crate) use memory::Memory;
pub(crate) use nf4::Nf4;
pub(crate) use paged_optimizers::PagedOptimizers;
pub(crate) use training_loop::TrainingLoop;

use leptos::prelude::*;

use crate::ui::Link;

/// A lesson as the table of pages knows it.
#[derive(Clone, Copy)]
struct Entry {
    path: &'static str,
    title: &'static str,
    about: &'static str,
}

macro_rules! entries {
    ($($path:tt, $word:tt, $title:tt, $about:tt, $view:path;)*) => {
        const PAGES: &[Entry] = &[$(Entry { path: $path, title: $title, about: $about }),*];
    };
}
routes!(entries);

/// The lessons in the order of the path through them.
fn lessons() -> impl Iterator<Item = Entry> {
    PAGES.iter().filter(|page| page.path.starts_with("lessons/")).copied()
}

/// The parts of the path: a title, why one goes there, and how many lessons it has.
const PARTS: [(&str, &str, usize); 4] = [
    ("The problem", "Where the memory of a fine-tuning run goes, and which part of it each method takes away.", 1),
    ("The base in four bits", "How weights are held in 4.127 bits each, and what that costs in precision.", 2),
    ("Training on top", "What is trained, where its state lies, and how the layers are gone through.", 3),
    ("Deciding", "Which GPU, which method, and what to do with the adapter afterwards.", 3),
];

/// The overview.
#[component]
pub(crate) fn Lessons() -> impl IntoView {
    let mut all = lessons().enumerate();
    let entry = |(i, lesson): (usize, Entry)| {
        let solved = parts::is_solved(lesson.path);
        view! {
            <li>
                <Link to=lesson.path>
                    <span class="number" aria-hidden="true">{i + 1}</span>
                    <span class="name">{lesson.title}</span>
                    <span class="about">{lesson.about}</span>
                    {solved.then(|| view! { <span class="solved">"solved"</span> })}
                </Link>
            </li>
        }
    };
    let parts = PARTS.map(|(title, why, count)| {
        let entries = all.by_ref().take(count).map(entry).collect_view();
        view! {
            <section class="path-part">
                <div class="path-head"><h2>{title}</h2><p>{why}</p></div>
                <ol class="path">{entries}</ol>
            </section>
        }
    });
    view! {
        <article class="page">
            <header class="page-head">
                <h1>"Lessons"</h1>
                <p class="lede">
                    "QLoRA in nine pages. Nothing on them is a picture: every number and every curve is computed in this tab, by the code that trains, from the settings that you choose. Each page asks you to predict before it answers, and ends with a task that checks itself."
                </p>
            </header>
            {parts.collect_view()}
            <p class="source">"The address of a lesson holds its settings, so a link shows others what you see. Solved tasks are remembered in this browser only."</p>
        </article>
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_path_goes_through_all_lessons() {
        assert_eq!(super::lessons().count(), super::PARTS.iter().map(|(_, _, count)| count).sum::<usize>());
    }
}
