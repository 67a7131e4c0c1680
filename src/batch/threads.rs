//! Threads for independent pieces of work: one pool of our own, made on first use.
//!
//! A process that was forked has none of its parent's threads, so the pool remembers its process and
//! a child makes a new one. Results never depend on the number of threads.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::{mem, process, thread};

use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::batch::fpmode;
use crate::error::{Error, Result};

/// The largest number of threads that may be asked for.
pub const MAX_THREADS: usize = 1024;

/// What was asked for; 0: nothing yet.
static ASKED: AtomicUsize = AtomicUsize::new(0);

static POOL: Mutex<Option<Pool>> = Mutex::new(None);

/// The threads beside the calling one.
struct Pool {
    process: u32,
    helpers: usize,
    threads: Arc<ThreadPool>,
}

/// The number of threads that work on a batch: as set, or the cores that this process may use.
pub fn num_threads() -> usize {
    static CORES: OnceLock<usize> = OnceLock::new();
    match ASKED.load(Ordering::Relaxed) {
        0 => *CORES.get_or_init(|| thread::available_parallelism().map_or(1, usize::from)),
        asked => asked,
    }
}

/// Sets [`num_threads`] for all calls from now on.
///
/// # Errors
/// [`Error::ParamOutOfRange`] for 0 and for more than [`MAX_THREADS`].
pub fn set_num_threads(n: usize) -> Result<()> {
    if !(1..=MAX_THREADS).contains(&n) {
        let wanted = "an integer of 1 to 1024";
        return Err(Error::ParamOutOfRange { name: "n", value: n.to_string(), wanted });
    }
    ASKED.store(n, Ordering::Relaxed);
    Ok(())
}

/// The pool with `helpers` threads, or `None` where the caller had better do the work alone.
fn pool(helpers: usize) -> Option<Arc<ThreadPool>> {
    // A fork may have caught this lock in another thread's hands: whoever waits for it there waits for
    // ever.
    let mut held = POOL.try_lock().ok()?;
    let process = process::id();
    if let Some(pool) = &*held
        && (pool.process, pool.helpers) == (process, helpers)
    {
        return Some(Arc::clone(&pool.threads));
    }
    let named = |index| format!("mtp-verify-{index}");
    let threads = ThreadPoolBuilder::new()
        .num_threads(helpers)
        .thread_name(named)
        .start_handler(|_| fpmode::settle_thread())
        .build()
        .ok()?;
    let pool = Pool { process, helpers, threads: Arc::new(threads) };
    let threads = Arc::clone(&pool.threads);
    if let Some(old) = held.replace(pool)
        && old.process != process
    {
        // Its threads are the parent's: there is no one here who could end them.
        mem::forget(old);
    }
    Some(threads)
}

/// The results of `work` for each item, in the order of the items, by at most `threads` threads, the
/// calling one included.
pub fn map<T: Sync, R: Send>(items: &[T], threads: usize, work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let threads = threads.min(num_threads()).min(items.len());
    let Some(pool) = (threads > 1).then(|| pool(num_threads() - 1)).flatten() else {
        return items.iter().map(work).collect();
    };
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::with_capacity(items.len()));
    let take = || {
        let mut mine = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(index) else {
                break;
            };
            mine.push((index, work(item)));
        }
        done.lock().unwrap_or_else(PoisonError::into_inner).extend(mine);
    };
    pool.in_place_scope(|scope| {
        for _ in 1..threads {
            scope.spawn(|_| take());
        }
        take();
    });
    let mut results = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.sort_unstable_by_key(|&(index, _)| index);
    results.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_keep_the_order_of_the_items() {
        let items: Vec<usize> = (0..1000).collect();
        set_num_threads(3).unwrap();
        for threads in [1, 2, 3, 7] {
            assert_eq!(map(&items, threads, |item| item * item)[999], 999 * 999);
            assert!(map(&items, threads, |&item| item).is_sorted());
        }
        assert!(map(&items[..0], 3, |&item| item).is_empty());
    }

    #[test]
    fn a_panic_in_a_helper_reaches_the_caller() {
        let items: Vec<usize> = (0..100).collect();
        let run = || map(&items, 3, |&item| assert!(item != 50));
        assert!(std::panic::catch_unwind(run).is_err());
        assert_eq!(map(&items, 3, |&item| item).len(), 100);
    }

    #[test]
    fn numbers_of_threads_are_checked() {
        assert!(set_num_threads(0).is_err());
        assert!(set_num_threads(MAX_THREADS + 1).is_err());
        assert!(num_threads() >= 1);
    }
}
