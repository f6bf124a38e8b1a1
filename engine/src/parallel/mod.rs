//! Data-parallel training: processes that hold the same adapter, each of which sees a part of every step's examples, add up
//! their gradients and apply the same update.
//!
//! [`Collective`] is all that training asks of what connects them; [`Group`] is that over TCP. `burn-collective` 0.21 was
//! looked at first and left: a peer that is gone ends its process in a panic (`expect`, `todo!`) or is waited for without
//! end, messages have no upper length, it listens on every interface, its ring refuses tensors with fewer elements than
//! processes, and it brings an asynchronous runtime and an HTTP server, 44 crates more. Its NCCL is that of one process with
//! several GPUs.

#[cfg(not(target_family = "wasm"))]
mod frame;
#[cfg(not(target_family = "wasm"))]
mod group;
#[cfg(not(target_family = "wasm"))]
mod hello;
#[cfg(not(target_family = "wasm"))]
mod link;
#[cfg(not(target_family = "wasm"))]
mod peers;
#[cfg(not(target_family = "wasm"))]
mod rendezvous;
#[cfg(not(target_family = "wasm"))]
mod sum;
#[cfg(all(test, not(target_family = "wasm")))]
mod tests;

#[cfg(not(target_family = "wasm"))]
pub use group::Group;
#[cfg(not(target_family = "wasm"))]
pub use rendezvous::{Identity, Member, Timing};

use sha2::{Digest, Sha256};

use crate::Result;

/// The SHA-256 of what must be the same on every rank.
pub fn digest(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// The processes of a run, `world_size` of them, as one of them sees them. Every rank makes the same calls in the same order.
pub trait Collective: Send + Sync {
    /// This process among them, counted from 0.
    fn rank(&self) -> usize;

    /// How many there are.
    fn world_size(&self) -> usize;

    /// Adds the values of all ranks, element by element and in the order of the ranks, so that each rank is left with the
    /// same bits. Waits for all of them.
    ///
    /// # Errors
    /// [`Error::Rank`](crate::Error::Rank) when another rank is gone, has failed, or has another number of values; what
    /// `values` hold is then of no use.
    fn all_reduce(&self, values: &mut [f32]) -> Result<()>;

    /// Checks that every rank holds the same; `what` says in messages what that is.
    ///
    /// # Errors
    /// [`Error::Rank`](crate::Error::Rank) that names a rank that holds something else than rank 0, or is gone.
    fn agree(&self, what: &str, digest: [u8; 32]) -> Result<()>;

    /// Whether every other rank is there, as far as is known without asking.
    ///
    /// # Errors
    /// [`Error::Rank`](crate::Error::Rank) when one is known to be gone.
    fn check(&self) -> Result<()>;

    /// Whether it is true on any rank.
    ///
    /// # Errors
    /// As [`all_reduce`](Self::all_reduce).
    fn any(&self, here: bool) -> Result<bool> {
        let mut ranks = [f32::from(u8::from(here))];
        self.all_reduce(&mut ranks)?;
        Ok(ranks[0] > 0.0)
    }
}
