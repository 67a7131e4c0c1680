//! What the prefix cache reads of a new sequence, as callers give it.

use std::collections::BTreeMap;

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyTuple};

use crate::error::Result;
use crate::kv::{self, Item, Keys};

use super::numbers::{count, integers, list, token_ids, type_name};

/// A prompt before its numbers are checked.
pub(super) struct Prompt {
    tokens: Option<Vec<i64>>,
    keys: BTreeMap<String, String>,
    items: Vec<Item>,
    max_cached: Option<usize>,
}

impl Prompt {
    pub(super) fn of(
        tokens: Option<&Bound<'_, PyAny>>,
        keys: Option<&Bound<'_, PyAny>>,
        items: Option<&Bound<'_, PyAny>>,
        max_cached: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        Ok(Self {
            tokens: tokens.map(|tokens| integers(tokens, "tokens")).transpose()?,
            keys: keys.map_or_else(|| Ok(BTreeMap::new()), texts)?,
            items: items.map_or_else(|| Ok(Vec::new()), |items| list(items, "items", item))?,
            max_cached: max_cached.map(|most| count(most, "max_cached")).transpose()?,
        })
    }

    /// Calls with what the core takes.
    pub(super) fn with<T>(self, call: impl FnOnce(kv::Prompt<'_>) -> Result<T>) -> Result<T> {
        let Self { tokens, keys, items, max_cached } = self;
        let tokens = tokens.map(|tokens| token_ids(&tokens, "tokens")).transpose()?;
        let keys = Keys::new(keys, items)?;
        call(kv::Prompt { tokens: tokens.as_deref(), keys, max_cached })
    }
}

/// Texts by name.
fn texts(keys: &Bound<'_, PyAny>) -> PyResult<BTreeMap<String, String>> {
    let Ok(pairs) = keys.cast::<PyDict>() else {
        let found = type_name(keys);
        return Err(PyTypeError::new_err(format!("keys: found {found}, wanted a dict of texts")));
    };
    pairs.iter().map(|(name, key)| Ok((text(&name, "keys")?, text(&key, "keys")?))).collect()
}

/// An item: `(start, stop, key)`.
fn item(given: &Bound<'_, PyAny>, place: usize) -> PyResult<Item> {
    let parts = match given.cast::<PyTuple>() {
        Ok(parts) => parts.to_list(),
        Err(_) => given.cast::<PyList>().map_or_else(|_| PyList::empty(given.py()), Clone::clone),
    };
    if parts.len() != 3 {
        let found = type_name(given);
        let message = format!("items[{place}]: found a {found}, wanted (start, stop, key)");
        return Err(PyTypeError::new_err(message));
    }
    let (start, stop, key) = (parts.get_item(0)?, parts.get_item(1)?, parts.get_item(2)?);
    Ok(Item {
        start: count(&start, "items")?,
        stop: count(&stop, "items")?,
        key: text(&key, "items")?,
    })
}

fn text(object: &Bound<'_, PyAny>, name: &str) -> PyResult<String> {
    let refused = |_| {
        let found = type_name(object);
        PyTypeError::new_err(format!("{name}: found {found}, wanted a str of valid Unicode"))
    };
    object.extract().map_err(refused)
}
