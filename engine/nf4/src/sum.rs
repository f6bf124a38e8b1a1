//! The mean of f32 values, bit for bit as `torch.mean` computes it on one x86-64 thread.
//!
//! The offset of double quantization is such a mean, and its last bit decides codes; so the order of torch's additions
//! (ATen, `SumKernel.cpp`, `cascade_sum`) is part of the format: eight lanes, four rows side by side, and partial sums
//! that are carried up four levels so that the rounding error stays small.

const LANES: usize = 8;
const ROWS: usize = 4;
const LEVELS: usize = 4;

type Lanes = [f32; LANES];

fn add(a: &mut Lanes, b: &Lanes) {
    for (a, b) in a.iter_mut().zip(b) {
        *a += b;
    }
}

/// The sum over groups of four vectors, each row of the group apart.
fn rows(vectors: &[Lanes]) -> [Lanes; ROWS] {
    let groups = vectors.len() / ROWS;
    let ceil_log2 = if groups <= 1 { 0 } else { (usize::BITS - (groups - 1).leading_zeros()) as usize };
    let power = (ceil_log2 / LEVELS).max(4);
    let step = 1 << power;
    let mut levels = [[[0.0f32; LANES]; ROWS]; LEVELS];
    let mut done = 0;
    while done + step <= groups {
        for group in vectors[done * ROWS..(done + step) * ROWS].chunks_exact(ROWS) {
            for (sum, vector) in levels[0].iter_mut().zip(group) {
                add(sum, vector);
            }
        }
        done += step;
        for level in 1..LEVELS {
            let below = std::mem::replace(&mut levels[level - 1], [[0.0; LANES]; ROWS]);
            for (sum, part) in levels[level].iter_mut().zip(&below) {
                add(sum, part);
            }
            if done & ((step - 1) << (level * power)) != 0 {
                break;
            }
        }
    }
    for group in vectors[done * ROWS..groups * ROWS].chunks_exact(ROWS) {
        for (sum, vector) in levels[0].iter_mut().zip(group) {
            add(sum, vector);
        }
    }
    let [mut total, upper @ ..] = levels;
    for level in upper {
        for (sum, part) in total.iter_mut().zip(&level) {
            add(sum, part);
        }
    }
    total
}

/// The sum in torch's order.
fn sum(values: &[f32]) -> f32 {
    if values.len() < LANES {
        return short_sum(values);
    }
    let (vectors, tail) = values.as_chunks::<LANES>();
    let [mut lanes, second, third, fourth] = rows(vectors);
    for vector in &vectors[vectors.len() / ROWS * ROWS..] {
        add(&mut lanes, vector);
    }
    for row in [second, third, fourth] {
        add(&mut lanes, &row);
    }
    let mut total = 0.0;
    for value in tail.iter().chain(&lanes) {
        total += value;
    }
    total
}

/// Fewer elements than lanes: four partial sums of one group, the rest added to the first of them.
fn short_sum(values: &[f32]) -> f32 {
    let (group, rest) = values.split_at(values.len() / ROWS * ROWS);
    let mut total = group.first().copied().unwrap_or(0.0);
    for value in rest.iter().chain(group.get(1..).unwrap_or(&[])) {
        total += value;
    }
    total
}

/// The mean; zero of nothing.
pub(super) fn mean(values: &[f32]) -> f32 {
    if values.is_empty() { 0.0 } else { sum(values) / values.len() as f32 }
}
