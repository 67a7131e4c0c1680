//! What every class of data has: what pickle and copy ask for, and short texts.
//!
//! An object is taken apart into its constructor's arguments, so that what comes back from a pickle was
//! checked like any other input.

use std::fmt::Debug;

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::PyType;

use super::numbers::type_name;

/// A class and the arguments that build the object again.
pub(super) type Reduced<'py, A> = (Bound<'py, PyType>, A);

/// Items of a list that a text shows.
const MOST_SHOWN: usize = 16;

/// A list as text: all of a short one, the beginning and the length of a long one.
pub(super) fn shown<T: Debug>(items: &[T]) -> String {
    if items.len() <= MOST_SHOWN {
        return format!("{items:?}");
    }
    let first: Vec<String> =
        items[..MOST_SHOWN / 2].iter().map(|item| format!("{item:?}")).collect();
    format!("[{}, ... {} in all]", first.join(", "), items.len())
}

/// Why an object is neither pickled nor copied.
pub(super) fn refuse_copy<T>(object: &Bound<'_, PyAny>, reason: &str) -> PyResult<T> {
    let class = type_name(object);
    Err(PyTypeError::new_err(format!("{class}: cannot be pickled or copied: {reason}")))
}
