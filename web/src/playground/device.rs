//! The device that computes, and why it is this one; a run that an earlier visit left.

use halfbyte_protocol::{Choice as Wanted, Request};
use leptos::prelude::*;

use super::state::{Phase, Play};
use crate::ui::{Callout, Choice, Kind};

/// The device, and the choice of another.
#[component]
pub(crate) fn Device(play: Play) -> impl IntoView {
    Effect::new(move |before: Option<Wanted>| {
        let choice = play.choice.get();
        if before.is_some_and(|before| before != choice) {
            play.change_device();
        }
        choice
    });
    let line = move || match (play.device.get(), play.phase.get()) {
        (Some(device), _) => format!("On {}: {}.", device.name, device.why),
        (None, Phase::Gone) => "No device.".into(),
        (None, _) => "Looking for a device…".into(),
    };
    let options = vec![(Wanted::Auto, "Best"), (Wanted::Webgpu, "WebGPU"), (Wanted::Cpu, "CPU")];
    view! {
        <section class="card" aria-label="Device">
            <Choice label="Device" value=play.choice options=options/>
            <p aria-live="polite" data-testid="device">{line}</p>
        </section>
    }
}

/// A run that the browser's storage holds.
#[component]
pub(crate) fn Saved(play: Play) -> impl IntoView {
    let go_on = move |_| {
        play.begin(&Request::Continue, &[]);
    };
    let forget = move |_| {
        play.saved.set(None);
        play.post(&Request::ForgetSaved);
    };
    let idle = move || play.phase.get() == Phase::Idle;
    move || {
        play.saved.get().filter(|_| play.started.get().is_none()).map(|saved| {
            let loss = saved.loss.map_or(String::new(), |loss| format!(", at a loss of {loss:.3}"));
            let (model, step, steps) = (saved.model, saved.step, saved.steps);
            let open = step < steps;
            view! {
                <Callout kind=Kind::Note title="A run is kept in this browser">
                    <p>{format!("{model}, step {step} of {steps}{loss}.")}</p>
                    <div class="buttons">
                        <button class="button main" on:click=go_on disabled=move || !idle()>
                            {if open { "Go on with it" } else { "Bring its adapter back" }}
                        </button>
                        <button class="button" on:click=forget>"Forget it"</button>
                    </div>
                </Callout>
            }
        })
    }
}
