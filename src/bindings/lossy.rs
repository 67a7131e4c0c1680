//! The class of lossy acceptances; made by the functions of `mtp_verify.lossy`.

use pyo3::prelude::*;

use crate::bindings::errors::to_py;
use crate::verify::lossy;

/// An acceptance that changes the law of the output.
#[pyclass(frozen, module = "mtp_verify", eq)]
#[derive(PartialEq)]
pub(super) struct Lossy(pub(super) lossy::Lossy);

#[pymethods]
impl Lossy {
    #[new]
    #[allow(clippy::needless_pass_by_value)] // Python's list.
    fn new(name: &str, values: Vec<f64>) -> PyResult<Self> {
        lossy::Lossy::new(name, &values).map(Self).map_err(|error| to_py(&error))
    }

    #[getter]
    fn name(&self) -> &'static str {
        self.0.name()
    }

    #[getter]
    fn values(&self) -> Vec<f64> {
        self.0.values()
    }

    fn __repr__(&self) -> String {
        let values: Vec<String> = self.0.values().iter().map(f64::to_string).collect();
        format!("mv.lossy.{}({})", self.0.name(), values.join(", "))
    }
}
