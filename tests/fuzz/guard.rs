//! An allocator that ends the process with the case's number when a small input asks for a lot of memory.
//!
//! A failed allocation cannot be caught; and whether one fails would depend on the machine.

#![allow(unsafe_code)] // The trait is unsafe; every call is handed on to the system's allocator.

use std::alloc::{GlobalAlloc, Layout, System};
use std::backtrace::Backtrace;
use std::cell::Cell;

/// The largest list that a block table may be asked for (copies of slots); no other input needs as much.
const MOST: usize = 1 << 29;

thread_local! {
    /// The case that this thread works on.
    pub(crate) static CASE: Cell<u64> = const { Cell::new(u64::MAX) };
}

struct Guarded;

#[global_allocator]
static GUARDED: Guarded = Guarded;

fn check(size: usize) {
    if size > MOST {
        let case = CASE.try_with(Cell::get).unwrap_or(u64::MAX);
        // What printing takes itself is far below the limit.
        eprintln!("fuzz: case {case} asks for {size} bytes\n{}", Backtrace::force_capture());
        std::process::abort();
    }
}

// SAFETY: all four hand their arguments on unchanged.
unsafe impl GlobalAlloc for Guarded {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        check(layout.size());
        // SAFETY: the caller's promises are the system's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        check(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        check(size);
        // SAFETY: as above.
        unsafe { System.realloc(block, layout, size) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(block, layout) }
    }
}
