//! A fixed hash, so that every choice made by it is the same on every machine.

use crate::wordnet::Id;

/// FNV-1a over `salt`, the part of speech and the offset, finished by SplitMix64's mixer so that its low bits are good.
/// `salt` makes choices independent of each other.
pub(crate) fn hash(salt: &str, id: Id) -> u64 {
    let bytes = salt.bytes().chain([id.0 as u8]).chain(id.1.to_le_bytes());
    let mut h = bytes.fold(0xcbf2_9ce4_8422_2325, |h: u64, byte| (h ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    h = (h ^ (h >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    h = (h ^ (h >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    h ^ (h >> 31)
}

/// A choice from `0..n`.
pub(crate) fn choose(salt: &str, id: Id, n: usize) -> usize {
    (hash(salt, id) % n as u64) as usize
}
