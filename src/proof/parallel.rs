//! Independent pieces of the proof over the pool's threads.

use crate::batch::threads;

/// The results of `work` for each item, in the order of the items.
pub(super) fn map<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    threads::map(items, threads::num_threads(), work)
}
