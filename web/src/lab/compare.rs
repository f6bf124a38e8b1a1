//! Reports side by side: a column for each device.

use leptos::prelude::*;
use wasm_bindgen::JsCast;
use wasm_bindgen_futures::{JsFuture, spawn_local};
use web_sys::{Event, HtmlInputElement};

use super::report::{Report, words};
use crate::ui::{Callout, Kind, unique};

/// Loads reports and shows them side by side.
#[component]
pub(crate) fn Compare() -> impl IntoView {
    let reports: RwSignal<Vec<Report>> = RwSignal::new(vec![]);
    let failure = RwSignal::new(None::<String>);
    let id = unique("reports");
    let chosen = move |event: Event| {
        let input = event.target().and_then(|target| target.dyn_into::<HtmlInputElement>().ok());
        let Some(files) = input.and_then(|input| input.files()) else { return };
        failure.set(None);
        for file in (0..files.length()).filter_map(|i| files.get(i)) {
            spawn_local(async move {
                let text = JsFuture::from(file.text()).await.ok().and_then(|text| text.as_string()).unwrap_or_default();
                match serde_json::from_str::<Report>(&text) {
                    Ok(report) => reports.update(|reports| reports.push(report)),
                    Err(error) => failure.set(Some(format!("{}: not a report of this lab: {error}", file.name()))),
                }
            });
        }
    };
    let table =
        move || reports.with(|reports| (!reports.is_empty()).then(|| view! { <Table reports=reports.clone()/> }));
    view! {
        <section class="card" aria-labelledby="compare-title">
            <h2 id="compare-title">"Compare reports"</h2>
            <div class="field">
                <label for=id.clone()>"Reports as JSON, as many as you like"</label>
                <input id=id type="file" accept=".json" multiple on:change=chosen/>
            </div>
            {move || failure.get().map(|text| view! { <Callout kind=Kind::Error title="Not a report">{text}</Callout> })}
            {table}
        </section>
    }
}

/// A row: what is compared, and a cell for each report.
type Row = (String, Vec<String>);

/// The rows of kernels that were tested, then of those that were measured.
fn rows(reports: &[Report]) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    let mut row = |label: String, cell: &dyn Fn(&Report) -> Option<String>| {
        if rows.iter().all(|(known, _)| *known != label) {
            let cells = reports.iter().map(|report| cell(report).unwrap_or("–".into())).collect();
            rows.push((label, cells));
        }
    };
    for tested in reports.iter().flat_map(|report| &report.kernels) {
        row(tested.kernel.clone(), &|report| {
            let found = report.kernels.iter().find(|other| other.kernel == tested.kernel)?;
            Some(format!("{}/{}, worst {}", found.passed, found.count, words(found.worst)))
        });
    }
    for measured in reports.iter().flat_map(|report| &report.gpu) {
        let label = format!("{} {:?}, {} rows", measured.kernel, measured.shape, measured.rows);
        row(label, &|report| {
            let same = |m: &&halfbyte_protocol::Measurement| {
                (&m.kernel, m.shape, m.rows) == (&measured.kernel, measured.shape, measured.rows)
            };
            let found = report.gpu.iter().find(same)?;
            Some(format!("{:.2} ms, {:.1} GB/s, {:.1} GFLOP/s", 1e3 * found.seconds, found.bandwidth, found.arithmetic))
        });
    }
    rows
}

#[component]
fn Table(reports: Vec<Report>) -> impl IntoView {
    let head = reports.iter().map(|report| view! { <th scope="col">{report.name()}</th> }).collect_view();
    let body = rows(&reports).into_iter().map(|(label, cells)| {
        let cells = cells.into_iter().map(|cell| view! { <td>{cell}</td> }).collect_view();
        view! { <tr><th scope="row">{label}</th>{cells}</tr> }
    });
    view! {
        <div class="table" tabindex="0" role="region" aria-labelledby="compare-title">
            <table><thead><tr><th scope="col">"Kernel"</th>{head}</tr></thead><tbody>{body.collect_view()}</tbody></table>
        </div>
    }
}

#[cfg(test)]
mod tests {
    use halfbyte_protocol::{DeviceReport, Measurement};

    use super::*;

    #[test]
    fn what_one_report_lacks_has_an_empty_cell() {
        let mut one = Report::new(DeviceReport::default());
        let other = one.clone();
        let kernel = "nf4_dequantize".to_string();
        one.gpu.push(Measurement { kernel, shape: [4, 8], rows: 0, seconds: 1e-3, bandwidth: 2.0, arithmetic: 0.0 });
        let rows = rows(&[one, other]);
        assert_eq!(rows.len(), 1);
        assert_eq!(rows[0].1, ["1.00 ms, 2.0 GB/s, 0.0 GFLOP/s", "–"]);
    }
}
