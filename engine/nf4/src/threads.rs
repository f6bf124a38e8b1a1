//! Work that falls into independent pieces.

/// Does `job` for each of `pieces`: on all cores with the feature `threads`, else one after the other.
pub(super) fn for_each<T: Send>(pieces: impl Iterator<Item = T>, job: impl Fn(T) + Send + Sync) {
    #[cfg(feature = "threads")]
    {
        use rayon::prelude::*;
        pieces.collect::<Vec<_>>().into_par_iter().for_each(job);
    }
    #[cfg(not(feature = "threads"))]
    pieces.for_each(job);
}
