//! Adam's two operations on moments in f32, each in one pass (arXiv:1412.6980; decoupled decay, arXiv:1711.05101), and what gradients
//! are clipped by.
//!
//! By what factor is known to the device before it is to the host, and whether a step is applied at all: it is not where the factor is 0.

use burn_backend::DType;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;
use cubecl::{CubeCount, CubeDim};

use super::{contiguous, elements, empty, lanes, sum_of_cube, sum_of_lanes, sum_of_list};
use crate::{SourceRuntime, view};

/// Cubes that sum the squares of one tensor up.
const CUBES: usize = 16;
/// The threads of a cube.
const THREADS: usize = 256;
/// Tensors that one launch takes at most: an adapter has hundreds, each the work of microseconds.
const AT_ONCE: usize = 16;
/// Cubes for one tensor at most, as many as a grid may have beside each other.
const WIDEST: usize = 65_535;

/// A launch's tensors of one role, each of whose elements a row of cubes takes, again and again where the tensor has more of them.
type Many<N> = Sequence<Array<Vector<f32, N>>>;

#[cube]
fn mixed<N: Size>(moment: Vector<f32, N>, new: Vector<f32, N>, beta: f32, rest: f32) -> Vector<f32, N> {
    moment * Vector::new(beta) + new * Vector::new(rest)
}

#[cube(launch)]
fn advance<N: Size>(
    first: &mut Many<N>,
    second: &mut Many<N>,
    gradient: &Many<N>,
    next: &Array<f32>,
    beta1: f32,
    rest1: f32,
    beta2: f32,
    rest2: f32,
    #[comptime] threads: usize,
) {
    #[unroll]
    for t in 0..gradient.len() {
        if CUBE_POS_Y as usize == t && next[0] != 0.0 {
            let first = first.index_mut(t);
            let second = second.index_mut(t);
            let gradient = gradient.index(t);
            let mut i = CUBE_POS_X as usize * threads + UNIT_POS as usize;
            while i < gradient.len() {
                let new = gradient[i];
                first[i] = mixed(first[i], new, beta1, rest1);
                second[i] = mixed(second[i], new * new, beta2, rest2);
                i += CUBE_COUNT_X as usize * threads;
            }
        }
    }
}

#[cube(launch)]
fn apply<N: Size>(
    value: &Many<N>,
    first: &Many<N>,
    second: &Many<N>,
    gradient: &Many<N>,
    factor: &Array<f32>,
    result: &mut Many<N>,
    clipped: &mut Many<N>,
    beta1: f32,
    rest1: f32,
    beta2: f32,
    rest2: f32,
    kept: f32,
    rate: f32,
    correction: f32,
    eps: f32,
    #[comptime] threads: usize,
) {
    let factor = factor[0];
    #[unroll]
    for t in 0..gradient.len() {
        if CUBE_POS_Y as usize == t && factor != 0.0 {
            let value = value.index(t);
            let first = first.index(t);
            let second = second.index(t);
            let gradient = gradient.index(t);
            let result = result.index_mut(t);
            let clipped = clipped.index_mut(t);
            let mut i = CUBE_POS_X as usize * threads + UNIT_POS as usize;
            while i < gradient.len() {
                let new = gradient[i] * Vector::new(factor);
                let mean = mixed(first[i], new, beta1, rest1);
                let root = mixed(second[i], new * new, beta2, rest2).sqrt();
                let denominator = root / Vector::new(correction) + Vector::new(eps);
                clipped[i] = new;
                result[i] = value[i] * Vector::new(kept) - mean * Vector::new(rate) / denominator;
                i += CUBE_COUNT_X as usize * threads;
            }
        }
    }
}

#[cube(launch)]
fn squares<N: Size>(x: &Many<N>, sums: &mut Array<f32>, first: u32, #[comptime] threads: usize) {
    let mut sum = Vector::<f32, N>::new(0.0);
    #[unroll]
    for t in 0..x.len() {
        if CUBE_POS_Y as usize == t {
            let x = x.index(t);
            let mut i = CUBE_POS_X as usize * threads + UNIT_POS as usize;
            while i < x.len() {
                sum += x[i] * x[i];
                i += CUBE_COUNT_X as usize * threads;
            }
        }
    }
    let sum = sum_of_cube(sum_of_lanes(sum), threads);
    if UNIT_POS == 0 {
        sums[(first + CUBE_POS_Y * CUBE_COUNT_X + CUBE_POS_X) as usize] = sum;
    }
}

/// The shares of both moments and of what is new.
fn shares(betas: [f64; 2]) -> [f32; 4] {
    let [beta1, beta2] = betas;
    [beta1, 1.0 - beta1, beta2, 1.0 - beta2].map(|factor| factor as f32)
}

/// A tensor that nothing else refers to.
fn own<R: SourceRuntime>(tensor: CubeTensor<R>) -> CubeTensor<R> {
    contiguous(if tensor.can_mut() { tensor } else { tensor.copy() })
}

/// Tensors that one launch takes.
struct Launch<'a, T> {
    items: Vec<&'a T>,
    /// Elements that a thread takes at once.
    lanes: usize,
    /// Elements of the longest.
    longest: usize,
}

/// Launches for `items`: together go tensors of which a thread takes as many elements at once, and that move `alike`; as many as fit beside
/// `shared` bindings when each is of so many.
fn launches<'a, R: SourceRuntime, T, K: PartialEq>(
    items: &'a [T],
    tensor: impl Fn(&T) -> &CubeTensor<R>,
    alike: impl Fn(&T) -> K,
    [each, shared]: [usize; 2],
) -> Vec<Launch<'a, T>> {
    let Some(first) = items.first() else { return vec![] };
    let bindings = tensor(first).client.properties().hardware.max_bindings as usize;
    // What the lengths are told by may be a binding, too.
    let most = (bindings.saturating_sub(shared + 1) / each).clamp(1, AT_ONCE);
    let mut launches: Vec<(K, Launch<T>)> = Vec::new();
    for item in items {
        let count = tensor(item).meta.shape().num_elements();
        if count == 0 {
            continue;
        }
        let (alike, lanes) = (alike(item), lanes(count));
        let open = |(of, launch): &(K, Launch<T>)| *of == alike && launch.lanes == lanes && launch.items.len() < most;
        let at = launches.iter().position(open).unwrap_or(launches.len());
        if at == launches.len() {
            launches.push((alike, Launch { items: vec![], lanes, longest: 0 }));
        }
        let launch = &mut launches[at].1;
        launch.items.push(item);
        launch.longest = launch.longest.max(count);
    }
    launches.into_iter().map(|(_, launch)| launch).collect()
}

impl<T> Launch<'_, T> {
    /// A row of cubes for each tensor, with a thread for all that it takes at once.
    fn cubes(&self) -> CubeCount {
        let cubes = (self.longest / self.lanes).div_ceil(THREADS).min(WIDEST);
        CubeCount::Static(cubes as u32, self.items.len() as u32, 1)
    }

    /// The tensors of one role.
    fn many<R: SourceRuntime, N: Size>(
        &self,
        of: impl Fn(&T) -> &CubeTensor<R>,
    ) -> SequenceArg<R, Array<Vector<f32, N>>> {
        self.items.iter().map(|item| elements(of(item))).collect()
    }
}

fn dim() -> CubeDim {
    CubeDim::new_1d(THREADS as u32)
}

/// Both moments of each parameter after one more gradient, f32 tensors of one shape, in their own memory where nothing else refers to it; as
/// they were where `next`, `[1]`, is 0.
pub fn adam_advance<R: SourceRuntime>(
    parameters: Vec<([CubeTensor<R>; 2], CubeTensor<R>)>,
    next: &CubeTensor<R>,
    betas: [f64; 2],
) -> Vec<[CubeTensor<R>; 2]> {
    let moved = parameters.into_iter().map(|(moments, gradient)| (moments.map(own), contiguous(gradient)));
    let moved: Vec<_> = moved.collect();
    let [beta1, rest1, beta2, rest2] = shares(betas);
    for launch in launches(&moved, |(_, gradient)| gradient, |_| (), [3, 1]) {
        advance::launch::<R>(
            &next.client,
            launch.cubes(),
            dim(),
            launch.lanes,
            launch.many(|(moments, _)| &moments[0]),
            launch.many(|(moments, _)| &moments[1]),
            launch.many(|(_, gradient)| gradient),
            elements(next),
            beta1,
            rest1,
            beta2,
            rest2,
            THREADS,
        );
    }
    moved.into_iter().map(|(moments, _)| moments).collect()
}

/// How a parameter moves, beside its moments.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamRates {
    /// Decay of the two moments.
    pub betas: [f64; 2],
    /// What is left of the value: one less the decay.
    pub kept: f64,
    /// The learning rate over the first moment's correction.
    pub rate: f64,
    /// Correction of the second moment's root.
    pub correction: f64,
    /// Keeps the denominator from zero.
    pub eps: f64,
}

/// A parameter that moves: f32 tensors of one shape.
#[derive(Clone, Debug)]
pub struct AdamMove<R: SourceRuntime> {
    /// Its value before the step.
    pub value: CubeTensor<R>,
    /// Its moments before the step.
    pub moments: [CubeTensor<R>; 2],
    /// Its gradient.
    pub gradient: CubeTensor<R>,
    /// What the value and the gradient after it may take the memory of, if nothing else refers to that.
    pub spare: [Option<CubeTensor<R>>; 2],
    /// How it moves.
    pub rates: AdamRates,
}

/// Each parameter's value after a step with its gradient times a factor, `[1]`, and that product. Where the factor is 0, what their spare
/// memory holds, and anything without it.
pub fn adam_apply<R: SourceRuntime>(parameters: Vec<AdamMove<R>>, factor: &CubeTensor<R>) -> Vec<[CubeTensor<R>; 2]> {
    let placed = parameters.into_iter().map(|AdamMove { value, moments, gradient, spare, rates }| {
        let room = |spare: Option<_>| spare.map_or_else(|| empty(&value, value.meta.shape().clone(), DType::F32), own);
        let results = spare.map(room);
        let [value, gradient] = [value, gradient].map(contiguous);
        (AdamMove { value, moments: moments.map(contiguous), gradient, spare: [None, None], rates }, results)
    });
    let placed: Vec<_> = placed.collect();
    for launch in launches(&placed, |(of, _)| &of.gradient, |(of, _)| of.rates, [6, 1]) {
        let AdamRates { betas, kept, rate, correction, eps } = launch.items[0].0.rates;
        let [beta1, rest1, beta2, rest2] = shares(betas);
        let [kept, rate, correction, eps] = [kept, rate, correction, eps].map(|factor| factor as f32);
        apply::launch::<R>(
            &factor.client,
            launch.cubes(),
            dim(),
            launch.lanes,
            launch.many(|(of, _)| &of.value),
            launch.many(|(of, _)| &of.moments[0]),
            launch.many(|(of, _)| &of.moments[1]),
            launch.many(|(of, _)| &of.gradient),
            elements(factor),
            launch.many(|(_, [value, _])| value),
            launch.many(|(_, [_, clipped])| clipped),
            beta1,
            rest1,
            beta2,
            rest2,
            kept,
            rate,
            correction,
            eps,
            THREADS,
        );
    }
    placed.into_iter().map(|(_, results)| results).collect()
}

/// The sum of the squares of all elements of f32 tensors, at least one, on one device: `[1]`.
pub fn sum_of_squares<R: SourceRuntime>(tensors: Vec<CubeTensor<R>>) -> CubeTensor<R> {
    let like = tensors[0].clone();
    let tensors: Vec<_> = tensors.into_iter().map(contiguous).collect();
    let launches = launches(&tensors, |tensor| tensor, |_| (), [1, 1]);
    let count: usize = launches.iter().map(|launch| launch.items.len()).sum();
    if count == 0 {
        return view::zeros(&like, [1].into(), like.dtype);
    }
    let sums = empty(&like, [count * CUBES], DType::F32);
    let mut first = 0;
    for launch in launches {
        let cubes = CubeCount::Static(CUBES as u32, launch.items.len() as u32, 1);
        let x = launch.many(|tensor| tensor);
        squares::launch::<R>(&like.client, cubes, dim(), launch.lanes, x, elements(&sums), first as u32, THREADS);
        first += launch.items.len() * CUBES;
    }
    sum_of_list(&sums)
}
