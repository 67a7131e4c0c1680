//! Buffers of the caller's own that results are written into.

use numpy::ndarray::{ArrayView1, ArrayViewMut1, Axis, Dimension};
use numpy::{
    Element, Ix1, PyArray, PyArray1, PyArrayMethods, PyReadwriteArray, PyUntypedArray,
    PyUntypedArrayMethods,
};
use pyo3::prelude::*;

use crate::error::Error;
use crate::python::numbers::or_interrupt;

/// `values` as a new array, or in the caller's buffer if its length is `fitting`, padded with -1.
pub(super) fn give<'py>(
    py: Python<'py>,
    values: Vec<i64>,
    out: Option<Bound<'py, PyAny>>,
    fitting: impl Fn(usize, usize) -> bool,
    wanted: String,
) -> PyResult<Bound<'py, PyAny>> {
    let Some(out) = out else {
        return Ok(PyArray1::from_vec(py, values).into_any());
    };
    let mut buffer = writable::<i64, Ix1>(&out, "int64 with 1 dimension")?;
    let view: ArrayViewMut1<'_, i64> = buffer.as_array_mut();
    if !fitting(view.len(), values.len()) {
        let found = format!("({},)", view.len());
        return Err(PyErr::from(Error::ShapeMismatch { what: "out", found, wanted }));
    }
    fill(view, &values);
    Ok(out)
}

/// Writes `values`, and -1 from there on.
pub(super) fn fill<T: Copy + From<i8>>(line: ArrayViewMut1<'_, T>, values: &[T]) {
    let (mut head, mut rest) = line.split_at(Axis(0), values.len());
    head.assign(&ArrayView1::from(values));
    rest.fill(T::from(-1));
}

/// The caller's own memory: a NumPy array, or whatever NumPy can view through DLPack.
pub(super) fn writable<'py, T: Element, D: Dimension>(
    out: &Bound<'py, PyAny>,
    wanted: &'static str,
) -> PyResult<PyReadwriteArray<'py, T, D>> {
    let refuse = |found: String| {
        PyErr::from(Error::BadTensor {
            what: "out",
            found,
            todo: "pass a writable NumPy array or torch tensor on the host",
        })
    };
    let view = if out.is_instance_of::<PyUntypedArray>() {
        out.clone()
    } else if out.hasattr("__dlpack__")? {
        let numpy = out.py().import("numpy")?;
        let view = numpy.call_method1("from_dlpack", (out,));
        view.map_err(|error| or_interrupt(out, error, refuse))?
    } else {
        return Err(refuse(format!("a {} is no array", out.get_type().name()?)));
    };
    let untyped = view.cast::<PyUntypedArray>()?;
    let Ok(array) = view.cast::<PyArray<T, D>>() else {
        return Err(PyErr::from(Error::BadDtype {
            what: "out",
            found: format!("{} with {} dimensions", untyped.dtype(), untyped.ndim()),
            wanted,
        }));
    };
    array.try_readwrite().map_err(|error| refuse(error.to_string()))
}
