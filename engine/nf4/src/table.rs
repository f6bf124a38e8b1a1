//! The levels of the 4-bit and the 8-bit data type.

use std::sync::LazyLock;

/// The 16 levels of 4-bit NormalFloat (QLoRA, arXiv:2305.14314, appendix E).
pub static NF4_TABLE: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// The signed dynamic 8-bit map (8-bit optimizers, arXiv:2110.02861, section 1.3; bitsandbytes, `create_dynamic_map`):
/// 256 levels in rising order. Seven decades, each with twice the levels of the one below, on both sides of zero.
pub fn dynamic_map() -> &'static [f32; 256] {
    static MAP: LazyLock<[f32; 256]> = LazyLock::new(|| map(true));
    &MAP
}

/// The unsigned dynamic 8-bit map: the same decades on the positive side only, with twice the levels in each.
pub fn unsigned_dynamic_map() -> &'static [f32; 256] {
    static MAP: LazyLock<[f32; 256]> = LazyLock::new(|| map(false));
    &MAP
}

fn map(signed: bool) -> [f32; 256] {
    let mut levels = vec![0.0f32, 1.0];
    for exponent in 0..7 {
        let count = (1usize << (exponent + i32::from(!signed))) + 1;
        let boundary = |i: usize| linspace(count, i);
        // The power of ten is rounded to f32 before the product, which is done in f32.
        let scale = 10f64.powi(exponent - 6) as f32;
        for i in 0..count - 1 {
            let mean = scale * ((boundary(i) + boundary(i + 1)) / 2.0);
            levels.push(mean);
            if signed {
                levels.push(-mean);
            }
        }
    }
    levels.sort_by(f32::total_cmp);
    std::array::from_fn(|i| levels[i])
}

/// Element `i` of `torch.linspace(0.1, 1, count)` in f32: each half is counted from its own end.
fn linspace(count: usize, i: usize) -> f32 {
    let (start, end) = (0.1f32, 1.0f32);
    let step = (end - start) / (count - 1) as f32;
    if i < count / 2 { step.mul_add(i as f32, start) } else { (-step).mul_add((count - i - 1) as f32, end) }
}
