//! What CubeCL's allocator holds beyond what is asked of it (cubecl-runtime 0.10, `memory_management`, sub-slices).
//!
//! Pools of pages of a quarter, a sixteenth, ... of the largest page, down to 8 MiB; the `i`-th of them from the largest
//! takes what is no larger than its page over two to the `i`, and what is too large for all gets a slice of a largest
//! page. A page is never given back. So of each pool that a step asks of the last page is partly empty. What stays for the
//! whole run has memory of its own (`ops/lasting.rs`).

use alloc::vec;
use alloc::vec::Vec;

use crate::run::product;
use crate::{ModelShape, Run};

/// The pools that a largest page gives: page and largest slice, from small to large.
fn pools(page: u64) -> Vec<(u64, u64)> {
    const MIB: u64 = 1 << 20;
    let mut pools = vec![(page, page)];
    let (mut current, mut i) = (page, 1u32);
    while current >= 32 * MIB {
        current /= 4;
        pools.push((current, current >> i));
        i += 1;
    }
    pools.reverse();
    pools
}

/// Bytes that pages hold beyond `peak`: one partly empty page of each pool that a training step asks of.
pub(crate) fn slack(model: &ModelShape, run: &Run, page: u64, peak: u64) -> u64 {
    if page == 0 || peak == u64::MAX {
        return 0;
    }
    let pools = pools(page);
    let pool_of = |bytes: u64| pools.iter().position(|(_, largest)| bytes <= *largest).unwrap_or(pools.len() - 1);
    let mut used = vec![false; pools.len()];
    let tokens = run.tokens();
    let activations = [model.hidden_size, model.intermediate_size].map(|n| product([tokens, n, run.activation_bytes]));
    for bytes in activations.into_iter().chain([product([run.chunk(), model.vocab_size, 4])]) {
        used[pool_of(bytes)] = true;
    }
    let partly = pools.iter().zip(&used).filter(|(_, used)| **used).map(|((page, _), _)| page / 2);
    partly.fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    #[test]
    fn pools_are_those_of_the_allocator() {
        // cubecl's loop for a largest page of 1 GiB.
        let mib = |n: u64| n << 20;
        let expected = [(mib(16), mib(16) >> 3), (mib(64), mib(64) >> 2), (mib(256), mib(256) >> 1)];
        assert_eq!(super::pools(mib(1024)), expected.into_iter().chain([(mib(1024), mib(1024))]).collect::<Vec<_>>());
    }
}
