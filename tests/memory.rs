//! What a verification allocates: nothing that grows with nodes times vocabulary.

#![allow(unsafe_code)] // A global allocator is the only way to count.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use mtp_verify::rows::RawRows;
use mtp_verify::shaping::{Params, Preset};
use mtp_verify::tree::TokenTree;
use mtp_verify::verify::law::{Draft, Law};
use mtp_verify::verify::lazy::{DrafterRows, Source};
use mtp_verify::verify::{Noise, verify};

struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on to the system's allocator; only sizes are counted.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(live, Ordering::Relaxed);
        // SAFETY: the caller's contract is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's contract is the same.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most bytes that were live at once during `work`, beyond those before it.
fn peak_of(work: impl FnOnce()) -> usize {
    let before = LIVE.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    work();
    PEAK.load(Ordering::Relaxed) - before
}

/// Logits without structure, and a drafter's rows that are nearly uniform.
fn rows(nodes: usize, vocab: usize) -> (Vec<f32>, Vec<f32>) {
    let logits = (0..nodes * vocab).map(|i| (i * 7919 % 1013) as f32 / 97.0).collect();
    (logits, vec![1.0 / vocab as f32; nodes * vocab])
}

// One test, so that no other test's allocations are counted.
#[test]
fn scratch_is_at_most_two_rows_whatever_the_number_of_nodes() {
    let vocab = 151_936;
    let row = vocab * size_of::<f64>();
    for (params, bound) in [
        // Nothing truncates: block buffers and block sums only.
        (Params::default(), row / 16),
        // Worst cases of selection: a copy of the row, and a bucket that holds all of it.
        (Params::new(1.0, 100_000, 1.0, 0.0, Preset::Transformers).unwrap(), row),
        (Params::new(1.0, 0, 0.9, 0.0, Preset::Transformers).unwrap(), 2 * row),
        (Params::new(1e6, 0, 0.9, 0.01, Preset::Vllm).unwrap(), 2 * row),
    ] {
        let mut peaks = Vec::new();
        for depth in [2, 16] {
            let (logits, probs) = rows(depth + 1, vocab);
            let tokens = (-1..depth as i64).collect();
            let tree = TokenTree::chain(depth).unwrap();
            let draft = Draft::new(tree, tokens, Law::Chain, None).unwrap();
            let index: Vec<i64> = (0..=depth as i64).collect();
            let drafter = DrafterRows {
                source: Source::Probabilities(RawRows::from_f32(&probs, vocab).unwrap()),
                index: &index,
                vocab: None,
            };
            let target = RawRows::from_f32(&logits, vocab).unwrap();
            for rule in ["token", "block", "target_only", "coupled"] {
                let peak = peak_of(|| {
                    let noise = Noise { seed: 1, position: 7 };
                    verify(&draft, drafter, target, params, rule, None, noise).unwrap();
                });
                assert!(peak <= bound, "{rule}, {depth} nodes: {peak} bytes, bound {bound}");
                peaks.push(peak);
            }
        }
        // Eight times the nodes cost their block sums more (of target and drafter), not rows.
        let sums = 2 * 8 * vocab.div_ceil(2048);
        let growth = peaks[5].saturating_sub(peaks[1]);
        assert!(growth < 2 * 14 * sums, "block: {growth} bytes more for 14 more nodes");
    }
}
