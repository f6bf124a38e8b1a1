//! The GPU lab: tests and measures the engine's kernels on the visitor's GPU, and compares reports of several.

mod compare;
mod jobs;
mod report;

use halfbyte_protocol::{DeviceReport, Measurement};
use leptos::prelude::*;
use wasm_bindgen::JsValue;

use self::jobs::Lab;
use self::report::{Report, Tested, words};
use crate::ui::{Callout, Kind, download};

/// The page.
#[component]
pub(crate) fn GpuLab() -> impl IntoView {
    let lab = Lab::new();
    on_cleanup(move || lab.end());
    let busy = move || !lab.doing.with(String::is_empty);
    let failure = move || {
        lab.failure.get().map(|text| view! { <Callout kind=Kind::Error title="That did not work">{text}</Callout> })
    };
    view! {
        <article class="page playground">
            <header class="page-head">
                <h1>"GPU lab"</h1>
                <p class="lede">
                    "Whether the engine's kernels are right on your GPU, on shapes that are meant to break them, and how fast they are on the layers of a small model, against your CPU. Nothing is sent; the report is yours."
                </p>
            </header>
            <div class="buttons">
                <button class="button main" on:click=move |_| lab.test() disabled=busy>"Test the kernels"</button>
                <button class="button" on:click=move |_| lab.measure() disabled=busy>"Measure them"</button>
                <button class="button" on:click=move |_| lab.end() disabled=move || !busy()>"Stop"</button>
                <span aria-live="polite" data-testid="doing">{lab.doing}</span>
            </div>
            {failure}
            {move || lab.report.get().map(|report| view! { <Found report=report done=!busy()/> })}
            <compare::Compare/>
        </article>
    }
}

/// What was found so far.
#[component]
fn Found(report: Report, done: bool) -> impl IntoView {
    let (json, markdown) = (serde_json::to_string_pretty(&report).unwrap_or_default(), report.markdown());
    let copied = markdown.clone();
    let copy = move |_| {
        // Where the clipboard is not to be had, the file is.
        let _ = window().navigator().clipboard().write_text(&copied);
    };
    view! {
        <About device=report.device.clone()/>
        {(!report.kernels.is_empty()).then(|| view! { <Kernels kernels=report.kernels.clone()/> })}
        {(!report.gpu.is_empty()).then(|| view! { <Speeds report=report.clone()/> })}
        <div class="buttons">
            <button class="button" disabled=!done on:click=move |_| download::offer(&JsValue::from_str(&json), "gpu-report.json")>"Report as JSON"</button>
            <button class="button" disabled=!done on:click=move |_| download::offer(&JsValue::from_str(&markdown), "gpu-report.md")>"Report as Markdown"</button>
            <button class="button" disabled=!done on:click=copy>"Copy the Markdown"</button>
        </div>
    }
}

#[component]
fn About(device: DeviceReport) -> impl IntoView {
    let DeviceReport { name, why, software, vendor, architecture, features, limits, browser, .. } = device;
    let limit =
        |(name, value): (String, f64)| view! { <tr><th scope="row">{name}</th><td class="number">{value}</td></tr> };
    view! {
        <section class="card" aria-labelledby="device-title">
            <h2 id="device-title">{name}</h2>
            <p>{why} "."</p>
            {software.then(|| view! { <p class="help">"This adapter is software: its speed says nothing of a GPU."</p> })}
            <p class="help">{format!("{vendor} {architecture} · {browser}")}</p>
            <p class="help">{format!("Features: {}", features.join(", "))}</p>
            <details>
                <summary>"Limits"</summary>
                <div class="table" tabindex="0" role="region" aria-label="Limits"><table><tbody>{limits.into_iter().map(limit).collect_view()}</tbody></table></div>
            </details>
        </section>
    }
}

#[component]
fn Kernels(kernels: Vec<Tested>) -> impl IntoView {
    let row = |tested: Tested| {
        let Tested { kernel, count, passed, worst, tolerance, failures } = tested;
        let verdict = if passed == count { "passed" } else { "failed" };
        view! {
            <tr>
                <th scope="row">{kernel}{failures.into_iter().map(|text| view! { <p class="help">{text}</p> }).collect_view()}</th>
                <td>{verdict}</td>
                <td class="number">{format!("{passed}/{count}")}</td>
                <td class="number">{words(worst)}</td>
                <td class="number">{format!("{tolerance:.0e}")}</td>
            </tr>
        }
    };
    view! {
        <section class="card" aria-labelledby="kernels-title">
            <h2 id="kernels-title">"Kernels against plain formulas"</h2>
            <div class="table" tabindex="0" role="region" aria-labelledby="kernels-title" data-testid="kernels">
                <table>
                    <thead>
                        <tr>
                            <th scope="col">"Kernel"</th>
                            <th scope="col">"Verdict"</th>
                            <th scope="col" class="number">"Passed"</th>
                            <th scope="col" class="number">"Worst error"</th>
                            <th scope="col" class="number">"Allowed"</th>
                        </tr>
                    </thead>
                    <tbody>{kernels.into_iter().map(row).collect_view()}</tbody>
                </table>
            </div>
        </section>
    }
}

#[component]
fn Speeds(report: Report) -> impl IntoView {
    let row = |m: &Measurement| {
        let cpu = report.on_cpu(m).map_or("–".into(), |cpu| format!("{:.2}", 1e3 * cpu.seconds));
        let number = |value: f64| view! { <td class="number">{format!("{value:.2}")}</td> };
        view! {
            <tr>
                <th scope="row">{m.kernel.clone()}</th>
                <td>{format!("{:?}", m.shape)}</td>
                <td class="number">{m.rows}</td>
                {number(1e3 * m.seconds)}
                {number(m.bandwidth)}
                {number(m.arithmetic)}
                <td class="number">{cpu}</td>
            </tr>
        }
    };
    let rows = report.gpu.iter().map(row).collect_view();
    let head =
        ["Rows", "ms", "GB/s", "GFLOP/s", "CPU, ms"].map(|word| view! { <th scope="col" class="number">{word}</th> });
    view! {
        <section class="card" aria-labelledby="speeds-title">
            <h2 id="speeds-title">"Speed"</h2>
            <div class="table" tabindex="0" role="region" aria-labelledby="speeds-title" data-testid="speeds">
                <table>
                    <thead><tr><th scope="col">"Kernel"</th><th scope="col">"Weight"</th>{head.into_iter().collect_view()}</tr></thead>
                    <tbody>{rows}</tbody>
                </table>
            </div>
            <p class="help">"The mean of runs over at least 0.3 s, by the page's clock, which browsers round to 0.1 ms."</p>
        </section>
    }
}
