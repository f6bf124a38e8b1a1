//! The same questions before, while and after; and a question of the visitor's own, with the adapter and without.

use halfbyte_protocol::{Request, Sampling};
use leptos::prelude::*;

use super::state::{Phase, Play, Round};
use crate::ui::unique;

/// The questions of the run, a column for the base and one for each round that is shown.
#[component]
pub(crate) fn Rounds(play: Play) -> impl IntoView {
    let head = move || {
        let title = |round: &Round| match round.step {
            0 => "Before".to_string(),
            step => format!("After step {step}"),
        };
        play.rounds.with(|rounds| shown(rounds).map(|r| view! { <th scope="col">{title(r)}</th> }).collect_view())
    };
    let rows = move || {
        play.rounds.with(|rounds| {
            let prompts = rounds.first().map_or(vec![], |r| r.answers.iter().map(|a| a.prompt.clone()).collect());
            let row = |(i, prompt): (usize, String)| {
                let cells = shown(rounds).map(|round| {
                    let text = round.answers.get(i).map_or(String::new(), |answer| answer.text.clone());
                    view! { <td>{text}</td> }
                });
                view! { <tr><th scope="row">{prompt}</th>{cells.collect_view()}</tr> }
            };
            prompts.into_iter().enumerate().map(row).collect_view()
        })
    };
    let writing = move || {
        let training = matches!(play.phase.get(), Phase::Training);
        play.writing.get().filter(|_| training).map(|(_, text)| view! { <p class="help">"Writing: " {text}</p> })
    };
    view! {
        <section class="card" aria-labelledby="rounds-title" hidden=move || play.started.with(Option::is_none)>
            <h2 id="rounds-title">"Before and after"</h2>
            <div class="table" tabindex="0" role="region" aria-labelledby="rounds-title" data-testid="rounds">
                <table>
                    <thead><tr><th scope="col">"Question"</th>{head}</tr></thead>
                    <tbody>{rows}</tbody>
                </table>
            </div>
            {writing}
        </section>
    }
}

/// The first round and the last two: more do not fit side by side.
fn shown(rounds: &[Round]) -> impl Iterator<Item = &Round> {
    let later = rounds.len().saturating_sub(2).max(1);
    rounds.iter().take(1).chain(rounds.iter().skip(later))
}

/// A question of the visitor's own.
#[component]
pub(crate) fn Own(play: Play) -> impl IntoView {
    let question = RwSignal::new("What kind of thing is this: a small bird that sings at night?".to_string());
    let id = unique("question");
    let ready = move || play.phase.get() == Phase::Idle && play.model.with(Option::is_some);
    let ask = move |_| {
        let prompts = vec![question.get_untracked()];
        play.own.set(vec![]);
        play.failure.set(None);
        play.phase.set(Phase::Answering);
        let ask = |adapter| {
            play.post(&Request::Generate { prompts: prompts.clone(), sampling: Sampling::default(), adapter })
        };
        ask(false);
        if play.adapter.with_untracked(Option::is_some) {
            ask(true);
        }
    };
    let answers = move || {
        let titles = ["Base model", "With the adapter"];
        let answers = play.own.get();
        let card = |(title, answer): (&str, halfbyte_protocol::Answer)| {
            view! {
                <div>
                    <h3>{title.to_string()}</h3>
                    <p>{answer.text}</p>
                    <p class="help">{format!("{:.1} tokens per second", answer.speed)}</p>
                </div>
            }
        };
        titles.into_iter().zip(answers).map(card).collect_view()
    };
    let writing = move || {
        let answering = play.phase.get() == Phase::Answering;
        play.writing.get().filter(|_| answering).map(|(_, text)| view! { <p>{text}</p> })
    };
    view! {
        <section class="card" aria-labelledby="own-title">
            <h2 id="own-title">"Ask it yourself"</h2>
            <div class="field row">
                <div class="field">
                    <label for=id.clone()>"Question"</label>
                    <input
                        id=id
                        type="text"
                        prop:value=question
                        on:input:target=move |event| question.set(event.target().value())
                    />
                </div>
                <button class="button" on:click=ask disabled=move || !ready()>"Ask"</button>
            </div>
            <div class="grid" aria-live="polite" data-testid="own">{answers}{writing}</div>
        </section>
    }
}
