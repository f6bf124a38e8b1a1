//! A tensor of the shipped model, quantized block by block.

use halfbyte_memory::grouped;
use halfbyte_nf4::{Absmax, NF4_TABLE, Nf4Data, quantize};
use leptos::prelude::*;
use safetensors::{Dtype, SafeTensors};
use wasm_bindgen::JsCast;
use wasm_bindgen_futures::{JsFuture, spawn_local};

use super::outcomes;
use crate::lessons::parts::{Axis, Chart, Figures, OnGpu, Sample, Series, Shape};
use crate::ui::{Callout, Kind, Scale, Select, Slider, address, query_state};

/// Where the site keeps the model.
const FILE: &str = "models/wordnet-4m/model.safetensors";
/// The tensor that is shown first.
const FIRST: &str = "model.layers.0.self_attn.q_proj.weight";

/// The file.
async fn fetch() -> Result<Vec<u8>, String> {
    let said =
        |error: wasm_bindgen::JsValue| format!("{FILE}: {error:?}; is the site complete, and the network there?");
    let response = JsFuture::from(window().fetch_with_str(&address(FILE))).await.map_err(said)?;
    let response: web_sys::Response = response.dyn_into().map_err(said)?;
    if !response.ok() {
        return Err(format!(
            "{FILE}: the server answers {}; build the site with the model's folder",
            response.status()
        ));
    }
    let buffer = JsFuture::from(response.array_buffer().map_err(said)?).await.map_err(said)?;
    Ok(js_sys::Uint8Array::new(&buffer).to_vec())
}

/// The names of the file's matrices in 16 bits.
fn matrices(file: &[u8]) -> Result<Vec<String>, String> {
    let file = SafeTensors::deserialize(file).map_err(|error| format!("{FILE}: {error}"))?;
    let tensors = file.iter().filter(|(_, tensor)| tensor.dtype() == Dtype::BF16 && tensor.shape().len() == 2);
    let mut names: Vec<String> =
        tensors.map(|(name, _)| name.to_owned()).filter(|name| name.contains(".layers.")).collect();
    names.sort();
    Ok(names)
}

/// A matrix of the file in f32, with its shape.
fn matrix(file: &[u8], name: &str) -> Result<(Vec<f32>, [usize; 2]), String> {
    let file = SafeTensors::deserialize(file).map_err(|error| format!("{FILE}: {error}"))?;
    let tensor = file.tensor(name).map_err(|error| format!("{FILE}: `{name}`: {error}"))?;
    let [out, input] = tensor.shape() else { return Err(format!("{FILE}: `{name}` is no matrix")) };
    if tensor.dtype() != Dtype::BF16 {
        return Err(format!("{FILE}: `{name}` is held as {:?}; the lesson reads BF16", tensor.dtype()));
    }
    // bf16 is the upper half of an f32.
    let value = |bytes: &[u8]| f32::from_bits(u32::from_le_bytes([0, 0, bytes[0], bytes[1]]));
    Ok((tensor.data().chunks_exact(2).map(value).collect(), [*out, *input]))
}

/// A tensor and what NF4 makes of it.
#[derive(Clone, PartialEq)]
struct Quantized {
    weights: Vec<f32>,
    data: Nf4Data,
    decoded: Vec<f32>,
    scales: Vec<f32>,
}

impl Quantized {
    fn of(file: &[u8], name: &str, block_size: usize) -> Result<Self, String> {
        let (weights, shape) = matrix(file, name)?;
        let data = quantize(&weights, shape, block_size, true).map_err(|error| error.to_string())?;
        let (decoded, scales) = (data.dequantize(), data.decoded_absmax());
        Ok(Self { weights, data, decoded, scales })
    }

    /// The tensor, for the GPU to do the same with.
    fn sample(&self) -> Sample {
        let Nf4Data { shape, block_size, .. } = self.data;
        Sample { values: self.weights.clone(), shape, block_size, double_quant: true, adapter: None }
    }

    fn blocks(&self) -> usize {
        self.scales.len()
    }

    /// Weight, code and decoded weight of every element of a block.
    fn block(&self, block: usize) -> Vec<(f32, u8, f32)> {
        let start = block * self.data.block_size;
        let end = (start + self.data.block_size).min(self.weights.len());
        let code =
            |i: usize| if i.is_multiple_of(2) { self.data.packed[i / 2] >> 4 } else { self.data.packed[i / 2] & 15 };
        (start..end).map(|i| (self.weights[i], code(i), self.decoded[i])).collect()
    }

    /// The byte that a block's scale is held as.
    fn scale_code(&self, block: usize) -> Option<u8> {
        match &self.data.absmax {
            Absmax::Double { codes, .. } => codes.get(block).copied(),
            Absmax::Plain(_) => None,
        }
    }

    fn largest_error(&self) -> f32 {
        self.weights.iter().zip(&self.decoded).fold(0.0, |most, (weight, decoded)| most.max((weight - decoded).abs()))
    }
}

/// The section.
#[component]
pub(super) fn RealTensor(block_size: Memo<usize>) -> impl IntoView {
    // The address names a tensor once the reader has asked for the file, so that a link shows what its sender saw.
    let name = query_state("tensor", String::new());
    let at = query_state("at", 0.0_f64);
    let file = RwSignal::new(None::<Result<Vec<u8>, String>>);
    let asked = RwSignal::new(false);
    Effect::new(move |_| {
        if name.with(|name| !name.is_empty()) && !asked.get_untracked() {
            asked.set(true);
            spawn_local(async move { file.set(Some(fetch().await)) });
        }
    });
    let quantized = Memo::new(move |_| {
        let name = name.get();
        file.with(|file| match file {
            Some(Ok(file)) if !name.is_empty() => Some(Quantized::of(file, &name, block_size.get())),
            Some(Err(error)) => Some(Err(error.clone())),
            _ => None,
        })
    });
    // What is shown changes less often than the tensor: the controls stay while one moves among blocks and tensors.
    let state =
        Memo::new(move |_| (asked.get(), quantized.with(|all| all.as_ref().map(|all| all.as_ref().err().cloned()))));
    let body = move || {
        match state.get() {
        (false, _) => view! {
            <button class="button main" on:click=move |_| name.set(FIRST.to_owned())>"Load the shipped model (8 MB)"</button>
        }
        .into_any(),
        (true, None) => view! { <p role="status">"Loading ..."</p> }.into_any(),
        (true, Some(Some(error))) => view! { <Callout kind=Kind::Error title="The tensor cannot be shown">{error}</Callout> }.into_any(),
        (true, Some(None)) => {
            let names = file.with_untracked(|file| match file {
                Some(Ok(file)) => matrices(file).unwrap_or_default(),
                _ => vec![],
            });
            let groups = vec![(String::new(), names.into_iter().map(|name| (name.clone(), name)).collect())];
            let sample = move || quantized.with_untracked(|all| Some(all.as_ref()?.as_ref().ok()?.sample()));
            let what = move || format!("this tensor, {}, in blocks of {},", name.get(), block_size.get());
            view! {
                <Select label="Tensor" value=name groups=groups/>
                <Block quantized at/>
                <OnGpu what=Signal::derive(what) sample/>
            }
            .into_any()
        }
    }
    };
    view! {
        <section class="card" aria-labelledby="real-title" id="real">
            <h2 id="real-title">"A real tensor, block by block"</h2>
            <p>"The model that ships with Halfbyte was trained in 16 bits. Its weights, quantized in this tab as the engine does it when it loads a model, to the bits of what bitsandbytes writes."</p>
            {body}
        </section>
    }
}

/// The blocks of a tensor.
#[component]
fn Block(quantized: Memo<Option<Result<Quantized, String>>>, at: RwSignal<f64>) -> impl IntoView {
    let of = move |f: &dyn Fn(&Quantized) -> Vec<(String, String)>| {
        quantized.with(|all| all.as_ref().and_then(|all| all.as_ref().ok()).map(f).unwrap_or_default())
    };
    let blocks = Memo::new(move |_| {
        quantized.with(|all| all.as_ref().and_then(|all| all.as_ref().ok()).map_or(1, Quantized::blocks))
    });
    let place = move || (at.get().max(0.0) as usize).min(blocks.get().saturating_sub(1));
    let block = Memo::new(move |_| {
        quantized.with(|all| {
            all.as_ref().and_then(|all| all.as_ref().ok()).map(|all| all.block(place())).unwrap_or_default()
        })
    });
    let whole = move || {
        of(&|all| {
            let errors =
                outcomes(&all.weights, all.data.block_size).map(|outcome| format!("{:.2} %", 100.0 * outcome.error));
            let [nf4, uniform, naive] = errors;
            vec![
                ("Weights".into(), format!("{} × {}", all.data.shape[0], all.data.shape[1])),
                ("Bits per weight".into(), format!("{:.3}", all.data.bits_per_parameter())),
                ("Error, NF4".into(), nf4),
                ("Error, uniform".into(), uniform),
                ("Error, naive".into(), naive),
                ("Largest error".into(), format!("{:.2e}", all.largest_error())),
            ]
        })
    };
    let of_block = move || {
        of(&|all| {
            let largest = all.block(place()).iter().fold(0.0f32, |most, (weight, ..)| most.max(weight.abs()));
            vec![
                ("Absmax of the block".into(), format!("{largest:.6}")),
                ("Its byte".into(), all.scale_code(place()).map_or("-".into(), |code| code.to_string())),
                ("Absmax, decoded".into(), format!("{:.6}", all.scales.get(place()).copied().unwrap_or(0.0))),
            ]
        })
    };
    let series = move || {
        let points = |f: fn(&(f32, u8, f32)) -> f32| {
            block.with(|all| all.iter().enumerate().map(|(i, one)| (i as f64, f64::from(f(one)))).collect::<Vec<_>>())
        };
        vec![
            Series::new("weight", 1, Shape::Line, points(|(weight, ..)| *weight)),
            Series::new("decoded", 3, Shape::Line, points(|(_, _, decoded)| *decoded)),
        ]
    };
    let y = move || {
        let most = block.with(|all| all.iter().fold(0.0f32, |most, (weight, ..)| most.max(weight.abs()))) * 1.1;
        Axis::even("value", -f64::from(most), f64::from(most), 2, |v| format!("{v:.3}"))
    };
    let rows = move || {
        let row = |(i, (weight, code, decoded)): (usize, (f32, u8, f32))| {
            view! {
                <tr>
                    <th scope="row">{i}</th>
                    <td class="number">{format!("{weight:.6}")}</td>
                    <td class="number">{code}</td>
                    <td class="number">{format!("{:.4}", NF4_TABLE[usize::from(code & 15)])}</td>
                    <td class="number">{format!("{decoded:.6}")}</td>
                    <td class="number">{format!("{:.6}", decoded - weight)}</td>
                </tr>
            }
        };
        block.get().into_iter().enumerate().map(row).collect_view()
    };
    // The number of blocks changes with the tensor, and the slider with it.
    let slider = move || {
        let last = blocks.get().saturating_sub(1) as f64;
        view! { <Slider label="Block" value=at scale=Scale::Even { from: 0.0, to: last, step: 1.0 } format=|at| grouped(at as u64)/> }
    };
    view! {
        <Figures of=Signal::derive(whole)/>
        {slider}
        <Figures of=Signal::derive(of_block)/>
        <Chart
            label="The weights of the block and what they are decoded to"
            x=Signal::derive(move || Axis::even("element of the block", 0.0, block.with(Vec::len).max(2) as f64 - 1.0, 3, |v| format!("{v:.0}")))
            y=Signal::derive(y)
            series=Signal::derive(series)
        />
        <div class="table tall" tabindex="0" role="region" aria-label="The elements of the block">
            <table id="block">
                <thead><tr>
                    <th scope="col">"#"</th><th scope="col" class="number">"weight"</th><th scope="col" class="number">"code"</th>
                    <th scope="col" class="number">"level"</th><th scope="col" class="number">"decoded"</th><th scope="col" class="number">"error"</th>
                </tr></thead>
                <tbody>{rows}</tbody>
            </table>
        </div>
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn shipped() -> Vec<u8> {
        std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/../models/wordnet-4m/model.safetensors")).unwrap()
    }

    #[test]
    fn the_shipped_model_is_read_and_quantized() {
        let file = shipped();
        assert_eq!(matrices(&file).unwrap().len(), 28);
        let all = Quantized::of(&file, FIRST, 64).unwrap();
        assert_eq!((all.data.shape, all.blocks()), ([256, 256], 1024));
        for block in [0, 500, 1023] {
            let scale = all.scales[block];
            for (weight, code, decoded) in all.block(block) {
                assert_eq!(decoded, NF4_TABLE[usize::from(code)] * scale);
                assert!((weight - decoded).abs() < 0.2 * scale, "{weight} {decoded} {scale}");
            }
        }
        assert!(all.data.bits_per_parameter() < 4.14);
    }

    #[test]
    fn what_is_no_model_says_so() {
        assert!(matrices(b"no model").unwrap_err().contains(FILE));
        assert!(matrix(&shipped(), "missing").unwrap_err().contains("missing"));
        assert!(matrix(&shipped(), "model.norm.weight").unwrap_err().contains("no matrix"));
    }
}
