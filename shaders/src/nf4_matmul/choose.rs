//! Which variant computes a product: each is timed at the first product of a class of shapes, the fastest is remembered for
//! the device, on disk too (CubeCL's autotuner).

use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};

use burn_cubecl::CubeTuneId;
use cubecl::AutotuneKey;
use cubecl::tune::{LocalTuner, Tunable, TunableSet, local_tuner};
use serde::{Deserialize, Serialize};

use super::{Operands, Variant};
use crate::SourceRuntime;

/// A class of shapes.
#[derive(Hash, Eq, PartialEq, Debug, Clone, Serialize, Deserialize, AutotuneKey)]
struct ProductKey {
    gradient: bool,
    out: usize,
    input: usize,
    /// Of the branch beside the weight, where there is one.
    rank: usize,
    #[autotune(anchor)]
    rows: usize,
}

fn key<R: SourceRuntime>(operands: &Operands<R>) -> ProductKey {
    let [out, input] = operands.weight.shape;
    let rank = operands.product.update().map_or(0, |update| update.low.meta.shape()[1]);
    ProductKey::new(operands.gradient(), out, input, rank, operands.rows())
}

/// What the kernels are made of: a choice on disk is not one between kernels that have changed since.
const TEXTS: [&str; 4] = [
    include_str!("kernel.wgsl"),
    include_str!("../nf4_skinny/kernel.wgsl"),
    include_str!("../nf4_skinny/branch.wgsl"),
    include_str!("../weight.wgsl"),
];

/// Runs the product by the fastest variant.
pub(super) fn run<R: SourceRuntime>(operands: Operands<R>) {
    static TUNER: LocalTuner<ProductKey, CubeTuneId> = local_tuner!("nf4-matmul");
    let tunables = TUNER.init(|| {
        let inputs = |_: &ProductKey, operands: &Operands<R>| Operands { y: operands.y.copy(), ..operands.clone() };
        let version = BuildHasherDefault::<DefaultHasher>::default().hash_one(TEXTS);
        let all = [Variant::Decoded, Variant::Skinny, Variant::SkinnyShared, Variant::Tiled];
        all.into_iter().fold(TunableSet::new(key::<R>, inputs), |set, variant| {
            let run = move |operands: Operands<R>| match operands.variants().contains(&variant) {
                true => {
                    operands.run(variant);
                    Ok::<_, String>(())
                }
                false => Err(format!("{variant:?} can't compute this product")),
            };
            set.with(Tunable::new(&format!("{variant:?} {version:x}"), run))
        })
    });
    let (client, device) = (operands.x.client.clone(), operands.x.device.clone());
    TUNER.execute(&CubeTuneId::new(&client, &device), &client, tunables, operands)
}
