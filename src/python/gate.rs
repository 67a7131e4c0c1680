//! The one gate: whatever panics behind it becomes an exception that users can catch.
//!
//! pyo3's own exception for a panic is no `Exception` and would slip past users' handlers. So every
//! function, constructor, method and getter does all of its work inside [`hold`] or [`enter`], and takes
//! its numbers and lists as objects that it converts there: pyo3's conversion of a list comes before the
//! gate and reserves what `__len__` claims. `tests/architecture.rs` finds what goes around it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};

use pyo3::prelude::*;

use crate::batch::fpmode::Standard;
use crate::error::Error;

use super::errors::internal;

/// Runs what needs the interpreter, in the floating-point mode that Rust assumes; a panic becomes an
/// exception.
pub(super) fn hold<T>(work: impl FnOnce() -> PyResult<T>) -> PyResult<T> {
    let _standard = Standard::enter();
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("a panic without a message");
        Err(internal(text))
    })
}

/// Runs pure Rust detached from the interpreter; errors and panics become exceptions.
pub(super) fn enter<T: Send>(
    py: Python<'_>,
    work: impl FnOnce() -> Result<T, Error> + Send,
) -> PyResult<T> {
    hold(|| Ok(py.detach(work)?))
}

const UNUSABLE: &str = "an earlier internal error left this object unusable";

/// What one thread at a time may use. Only asked for inside [`enter`]: a thread that waits with the
/// interpreter attached could wait for ever.
pub(super) fn locked<T>(state: &Mutex<T>) -> MutexGuard<'_, T> {
    state.lock().expect(UNUSABLE)
}

/// What many threads may read while none writes; asked for as [`locked`] is.
pub(super) fn reading<T>(state: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    state.read().expect(UNUSABLE)
}

/// What one thread writes while none reads; asked for as [`locked`] is.
pub(super) fn writing<T>(state: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    state.write().expect(UNUSABLE)
}
