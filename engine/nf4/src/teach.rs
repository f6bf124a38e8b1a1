//! Data for lessons: NF4's table against simpler ones, by the error that each makes.

/// The 16 levels that a first reading of "quantiles of a normal distribution" gives: the quantiles at `(i + 0.5) / 16`,
/// scaled so that the outermost are -1 and 1. It is symmetric and has no zero, which is what NF4's own construction
/// (eight levels below zero, seven above, and zero itself) repairs.
pub fn naive_quantile_table() -> [f32; 16] {
    let quantile = |i: usize| normal_quantile((i as f64 + 0.5) / 16.0);
    let outermost = quantile(15);
    std::array::from_fn(|i| (quantile(i) / outermost) as f32)
}

/// 16 levels at equal distances from -1 to 1.
pub fn uniform_table() -> [f32; 16] {
    std::array::from_fn(|i| (2.0 * i as f64 / 15.0 - 1.0) as f32)
}

/// The root mean square error of quantizing `weights` with `table`: each block scaled by its largest magnitude, each
/// element to the nearest level.
pub fn rmse(weights: &[f32], table: &[f32; 16], block_size: usize) -> f64 {
    let mut sum = 0.0;
    for block in weights.chunks(block_size.max(1)) {
        let scale = block.iter().fold(0.0f32, |max, w| max.max(w.abs()));
        for weight in block {
            let error = |level: &f32| f64::from(weight - level * scale).powi(2);
            sum += table.iter().map(error).fold(f64::INFINITY, f64::min);
        }
    }
    (sum / weights.len().max(1) as f64).sqrt()
}

/// The quantile of the standard normal distribution, by bisection of its distribution function.
fn normal_quantile(probability: f64) -> f64 {
    let (mut low, mut high) = (-10.0, 10.0);
    for _ in 0..80 {
        let middle = 0.5 * (low + high);
        if normal_distribution(middle) < probability { low = middle } else { high = middle }
    }
    0.5 * (low + high)
}

/// The distribution function of the standard normal, by the series `1/2 + φ(x) Σ x^(2k+1) / (1·3·…·(2k+1))`.
fn normal_distribution(x: f64) -> f64 {
    let (mut term, mut sum, mut k) = (x, x, 1.0);
    while term.abs() > 1e-17 * f64::abs(sum) && k < 400.0 {
        term *= x * x / (2.0 * k + 1.0);
        sum += term;
        k += 1.0;
    }
    0.5 + sum * (-0.5 * x * x).exp() / std::f64::consts::TAU.sqrt()
}
