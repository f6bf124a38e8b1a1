//! A matrix as a picture: zero is white, the two signs have two colours, the same in both themes.

use leptos::html::Canvas;
use leptos::prelude::*;
use wasm_bindgen::{Clamped, JsCast};
use web_sys::{CanvasRenderingContext2d, ImageData};

/// Red, green, blue at the ends of the scale.
const ENDS: [[f64; 3]; 2] = [[178.0, 82.0, 43.0], [15.0, 95.0, 107.0]];

/// The colour of a value from -1 to 1.
fn colour(value: f64) -> [u8; 4] {
    let end = ENDS[usize::from(value > 0.0)];
    let share = value.abs().min(1.0);
    let channel = |i: usize| (255.0 + (end[i] - 255.0) * share) as u8;
    [channel(0), channel(1), channel(2), 255]
}

/// A square matrix.
#[component]
pub(crate) fn Heatmap(
    /// What it is.
    #[prop(into)]
    label: Signal<String>,
    /// Rows and columns.
    side: usize,
    /// Row by row.
    #[prop(into)]
    values: Signal<Vec<f64>>,
    /// What is shown in full colour.
    #[prop(into)]
    most: Signal<f64>,
) -> impl IntoView {
    let canvas = NodeRef::<Canvas>::new();
    Effect::new(move |_| {
        let Some(canvas) = canvas.get() else { return };
        let most = most.get().max(f64::MIN_POSITIVE);
        let pixels: Vec<u8> = values.with(|values| values.iter().flat_map(|value| colour(value / most)).collect());
        let context = canvas.get_context("2d").ok().flatten();
        let context = context.and_then(|context| context.dyn_into::<CanvasRenderingContext2d>().ok());
        let image = ImageData::new_with_u8_clamped_array(Clamped(&pixels), side as u32);
        // A browser that refuses to draw leaves the words and numbers, which say the same.
        if let (Some(context), Ok(image)) = (context, image) {
            let _ = context.put_image_data(&image, 0.0, 0.0);
        }
    });
    view! {
        <figure class="heatmap">
            <canvas node_ref=canvas width=side height=side role="img" aria-label=label></canvas>
            <figcaption aria-hidden="true">{label}</figcaption>
        </figure>
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn zero_is_white_and_signs_differ() {
        assert_eq!(super::colour(0.0), [255; 4]);
        assert_eq!(super::colour(2.0), super::colour(1.0));
        assert_ne!(super::colour(0.5), super::colour(-0.5));
    }
}
