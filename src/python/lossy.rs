//! The class of lossy acceptances; made by the functions of `mtp_verify.verifier.lossy`.

#![allow(clippy::doc_markdown)] // The comments on the class and its methods are Python docstrings.

use std::hash::{Hash, Hasher};

use pyo3::prelude::*;

use crate::python::gate::hold;
use crate::python::numbers::numbers;
use crate::python::state::Reduced;
use crate::verify::lossy;

/// An acceptance that changes the law of the output.
///
/// Args:
///     name: "typical", "threshold", "topk" or "ensemble".
///     values: The numbers that the function of this name takes.
///
/// Raises:
///     ParamsError: An unknown name, or a number out of its range.
#[pyclass(frozen, module = "mtp_verify.verifier.lossy", eq, hash)]
#[derive(PartialEq)]
pub(super) struct Lossy(pub(super) lossy::Lossy);

impl Hash for Lossy {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // Values are above 0, where equal numbers have equal bits.
        self.0.name().hash(state);
        for value in self.0.values() {
            value.to_bits().hash(state);
        }
    }
}

#[pymethods]
impl Lossy {
    #[new]
    fn new(name: &str, values: &Bound<'_, PyAny>) -> PyResult<Self> {
        hold(|| {
            let lossy = lossy::Lossy::new(name, &numbers(values, "values")?);
            lossy.map(Self).map_err(PyErr::from)
        })
    }

    /// The function's name.
    #[getter]
    fn name(&self) -> PyResult<&'static str> {
        hold(|| Ok(self.0.name()))
    }

    /// The numbers that it was made with.
    #[getter]
    fn values(&self) -> PyResult<Vec<f64>> {
        hold(|| Ok(self.0.values()))
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<Reduced<'py, (&'static str, Vec<f64>)>> {
        hold(|| Ok((slf.get_type(), (slf.get().0.name(), slf.get().0.values()))))
    }

    fn __repr__(&self) -> PyResult<String> {
        hold(|| {
            let values: Vec<String> = self.0.values().iter().map(f64::to_string).collect();
            Ok(format!("mv.lossy.{}({})", self.0.name(), values.join(", ")))
        })
    }
}
