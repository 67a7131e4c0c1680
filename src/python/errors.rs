//! Core errors as Python exceptions: one exhaustive match, classes from `mtp_verify.errors`.

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyType};

use crate::error::Error;

/// The exception class of an error's family, defined in Python: under abi3 the native base classes
/// cannot be subclassed from here before Python 3.12.
fn family(error: &Error) -> &'static str {
    match error {
        Error::BadParent { .. }
        | Error::ShapeMismatch { .. }
        | Error::BadDtype { .. }
        | Error::BadTensor { .. }
        | Error::TokenOutOfVocabulary { .. }
        | Error::DuplicateSibling { .. }
        | Error::LawShape { .. }
        | Error::LawData { .. }
        | Error::MissingRow { .. }
        | Error::ZeroDraftProbability { .. }
        | Error::NotTheTop { .. }
        | Error::UnknownLaw { .. } => "DraftError",
        Error::ParamOutOfRange { .. } | Error::Overflow { .. } => "ParamsError",
        Error::UnknownRule { .. }
        | Error::IllegalPair { .. }
        | Error::RuleShape { .. }
        | Error::IllegalLossy { .. }
        | Error::GreedyTemperature { .. } => "RuleError",
        Error::RowNotFinite { .. }
        | Error::RowEmpty { .. }
        | Error::RowChanged { .. }
        | Error::RowNotNormalised { .. } => "NumericsError",
        Error::NotAPath { .. }
        | Error::UnknownSequence { .. }
        | Error::DuplicateSequence { .. }
        | Error::NoReservation { .. }
        | Error::OpenReservation { .. }
        | Error::ReservationMismatch { .. }
        | Error::BadState { .. } => "CacheError",
        Error::OutOfBlocks { .. } => "OutOfBlocksError",
        Error::InSequence { source, .. } => family(source),
    }
}

fn class<'py>(py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyType>> {
    Ok(py.import("mtp_verify.errors")?.getattr(name)?.cast_into::<PyType>()?)
}

fn build(py: Python<'_>, error: &Error) -> PyResult<PyErr> {
    let fields = PyDict::new(py);
    if let Error::OutOfBlocks { missing, holders, .. } = error {
        fields.set_item("missing", missing)?;
        fields.set_item("holders", holders)?;
    } else {
        fields.set_item("slug", error.slug())?;
        fields.set_item("node", error.node())?;
        fields.set_item("row", error.row())?;
        fields.set_item("sequence", error.sequence())?;
    }
    let exception = class(py, family(error))?.call((error.to_string(),), Some(&fields))?;
    Ok(PyErr::from_value(exception))
}

/// The Python exception of a core error.
impl From<Error> for PyErr {
    fn from(error: Error) -> Self {
        Python::attach(|py| build(py, &error).unwrap_or_else(|failure| failure))
    }
}

/// An exception, said of one sequence of a batch; one of a caller's own only gets the attribute.
pub(super) fn in_sequence(error: PyErr, sequence: usize) -> PyErr {
    Python::attach(|py| {
        if let Ok(said) = error.value(py).call_method1("in_sequence", (sequence,)) {
            return PyErr::from_value(said);
        }
        // An exception may take no attributes; then it says what it says.
        let _ = error.value(py).setattr("sequence", sequence);
        error
    })
}

/// The Python exception of a panic: `InternalError`, which `except Exception` catches.
pub(super) fn internal(message: &str) -> PyErr {
    Python::attach(|py| {
        let raised = class(py, "InternalError").and_then(|class| {
            let text = format!(
                "internal error: {message}; nothing was changed; please report it with the input"
            );
            class.call1((text,))
        });
        raised.map_or_else(|failure| failure, PyErr::from_value)
    })
}
