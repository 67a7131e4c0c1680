//! The class of lossy acceptances; made by the functions of `mtp_verify.lossy`.

use pyo3::prelude::*;

use crate::bindings::gate::hold;
use crate::bindings::numbers::numbers;
use crate::verify::lossy;

/// An acceptance that changes the law of the output.
#[pyclass(frozen, module = "mtp_verify", eq)]
#[derive(PartialEq)]
pub(super) struct Lossy(pub(super) lossy::Lossy);

#[pymethods]
impl Lossy {
    #[new]
    fn new(name: &str, values: &Bound<'_, PyAny>) -> PyResult<Self> {
        hold(|| {
            let lossy = lossy::Lossy::new(name, &numbers(values, "values")?);
            lossy.map(Self).map_err(PyErr::from)
        })
    }

    #[getter]
    fn name(&self) -> PyResult<&'static str> {
        hold(|| Ok(self.0.name()))
    }

    #[getter]
    fn values(&self) -> PyResult<Vec<f64>> {
        hold(|| Ok(self.0.values()))
    }

    fn __repr__(&self) -> PyResult<String> {
        hold(|| {
            let values: Vec<String> = self.0.values().iter().map(f64::to_string).collect();
            Ok(format!("mv.lossy.{}({})", self.0.name(), values.join(", ")))
        })
    }
}
