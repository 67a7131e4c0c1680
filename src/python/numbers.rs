//! Numbers and lists from callers: what cannot be taken is refused by the name of its argument.

use numpy::{PyArray1, PyArrayMethods};
use pyo3::PyClass;
use pyo3::exceptions::{PyException, PyOverflowError, PyRuntimeError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyString, PyTuple};

use crate::error::Error;

/// Entries that one list may have. Half a GiB of numbers is no draft: a longer list is a mistake (such
/// as a `range` of 2**40), which is better refused than carried out.
const MOST_ENTRIES: usize = 1 << 26;

/// Digits of a number that an error message shows.
const MOST_DIGITS: usize = 40;

/// What a list is to be made of, in the words of errors.
struct Form {
    name: &'static str,
    wanted: &'static str,
    range: &'static str,
}

const INTEGERS: Form = Form {
    name: "one-dimensional and integer",
    wanted: "a one-dimensional integer array or list",
    range: "integers of 64 bits",
};

/// A whole number of 64 bits.
pub(super) fn integer(object: &Bound<'_, PyAny>, name: &'static str) -> PyResult<i64> {
    object.extract().map_err(|error| refusal(object, name, error, "an integer of 64 bits"))
}

/// A seed or a position.
pub(super) fn word(object: &Bound<'_, PyAny>, name: &'static str) -> PyResult<u64> {
    object.extract().map_err(|error| refusal(object, name, error, "an integer from 0 to 2**64 - 1"))
}

/// A size.
pub(super) fn count(object: &Bound<'_, PyAny>, name: &'static str) -> PyResult<usize> {
    size(name, integer(object, name)?).map_err(PyErr::from)
}

/// A whole number, 0 or more, that stays an `i64`.
pub(super) fn whole(object: &Bound<'_, PyAny>, name: &'static str) -> PyResult<i64> {
    let value = integer(object, name)?;
    size(name, value).map(|_| value).map_err(PyErr::from)
}

/// A size; 0 if it was left out.
pub(super) fn count_or_0(object: Option<&Bound<'_, PyAny>>, name: &'static str) -> PyResult<usize> {
    object.map_or(Ok(0), |object| count(object, name))
}

/// A size from Python, where every int is possible.
pub(super) fn size(name: &'static str, value: i64) -> Result<usize, Error> {
    usize::try_from(value).map_err(|_| Error::ParamOutOfRange {
        name,
        value: value.to_string(),
        wanted: "an integer >= 0",
    })
}

/// All tokens as the core's ids, or an error that names the first one outside.
pub(super) fn token_ids(tokens: &[i64], name: &'static str) -> Result<Vec<u32>, Error> {
    let check = |(index, &token): (usize, &i64)| {
        u32::try_from(token).map_err(|_| Error::ParamOutOfRange {
            name,
            value: format!("token {token} at index {index}"),
            wanted: "token ids from 0 to 2**32 - 1",
        })
    };
    tokens.iter().enumerate().map(check).collect()
}

/// Whole numbers from a list, a NumPy array or a tensor.
pub(super) fn integers(object: &Bound<'_, PyAny>, what: &'static str) -> PyResult<Vec<i64>> {
    if !is_list(object)
        && let Ok(array) = object.cast::<PyArray1<i64>>()
        && let Ok(view) = array.try_readonly()
    {
        return Ok(view.as_array().to_vec());
    }
    elements(object, what, &INTEGERS)
}

/// Lists of whole numbers from nested lists, a NumPy array or a tensor.
pub(super) fn table(object: &Bound<'_, PyAny>, what: &'static str) -> PyResult<Vec<Vec<i64>>> {
    let form = Form {
        name: "two-dimensional and integer",
        wanted: "a two-dimensional integer array or list of lists",
        ..INTEGERS
    };
    let line = |line: &Bound<'_, PyAny>, _| elements(line, what, &form);
    list(&plain(object, what)?, what, line).map_err(|error| other_form(object, what, error, &form))
}

/// Numbers from a list, a NumPy array or a tensor.
pub(super) fn numbers(object: &Bound<'_, PyAny>, what: &'static str) -> PyResult<Vec<f64>> {
    let form = Form {
        name: "one-dimensional and of numbers",
        wanted: "a one-dimensional array or list of numbers",
        range: "numbers of 64 bits",
    };
    elements(object, what, &form)
}

/// True or False for each place, from a list, a NumPy array or a tensor.
pub(super) fn flags(object: &Bound<'_, PyAny>, what: &'static str) -> PyResult<Vec<bool>> {
    let form = Form {
        name: "one-dimensional and bool",
        wanted: "a one-dimensional bool array or list",
        range: "True or False",
    };
    elements(object, what, &form)
}

/// Sizes from a list, a NumPy array or a tensor.
pub(super) fn counts(object: &Bound<'_, PyAny>, name: &'static str) -> PyResult<Vec<usize>> {
    let sizes = integers(object, name)?.into_iter().map(|value| size(name, value));
    sizes.collect::<Result<_, _>>().map_err(PyErr::from)
}

/// What a list holds, item by item; `one` is given each item's place, too.
///
/// No memory is taken before the items are there, and no more items than were promised: `__len__` may
/// claim anything, and `__getitem__` may never end.
pub(super) fn list<'py, T>(
    object: &Bound<'py, PyAny>,
    what: &'static str,
    one: impl Fn(&Bound<'py, PyAny>, usize) -> PyResult<T>,
) -> PyResult<Vec<T>> {
    let is_like_one = is_list(object)
        || object.hasattr("__len__")?
            && object.hasattr("__getitem__")?
            && !object.is_instance_of::<PyString>()
            && !object.is_instance_of::<PyDict>();
    let no_list = || {
        let found = type_name(object);
        PyTypeError::new_err(format!("{what}: found {found}, wanted a list"))
    };
    if !is_like_one {
        return Err(no_list());
    }
    let claimed = object.len().map_err(|error| {
        // An array without dimensions has the method, and no length.
        if error.is_instance_of::<PyTypeError>(object.py()) { no_list() } else { error }
    })?;
    if claimed > MOST_ENTRIES {
        let limit = MOST_ENTRIES as u64;
        return Err(PyErr::from(Error::Overflow { what, found: claimed as u64, limit }));
    }
    let mut all = Vec::new();
    for (place, item) in object.try_iter()?.enumerate() {
        if place == claimed {
            return Err(PyErr::from(Error::ShapeMismatch {
                what,
                found: "more items".into(),
                wanted: format!("{claimed}, as its length says"),
            }));
        }
        all.push(one(&item?, place)?);
    }
    Ok(all)
}

/// The objects of one class that a list holds.
pub(super) fn instances<'py, T: PyClass>(
    object: &Bound<'py, PyAny>,
    what: &'static str,
    class: &str,
) -> PyResult<Vec<Bound<'py, T>>> {
    list(object, what, |item, place| {
        item.cast::<T>().cloned().map_err(|_| {
            let found = type_name(item);
            PyTypeError::new_err(format!("{what}[{place}]: found {found}, wanted {class}"))
        })
    })
}

/// The elements of a list of one kind.
fn elements<'py, T: for<'a> FromPyObject<'a, 'py, Error = PyErr>>(
    object: &Bound<'py, PyAny>,
    what: &'static str,
    form: &Form,
) -> PyResult<Vec<T>> {
    let element = |item: &Bound<'py, PyAny>, place: usize| {
        item.extract::<T>().map_err(|error| {
            if !error.is_instance_of::<PyOverflowError>(item.py()) {
                return error;
            }
            let value = format!("{} at index {place}", written(item));
            PyErr::from(Error::ParamOutOfRange { name: what, value, wanted: form.range })
        })
    };
    list(&plain(object, what)?, what, element)
        .map_err(|error| other_form(object, what, error, form))
}

/// A list or a tuple: what callers pass most often, and needs no questions.
pub(super) fn is_list(object: &Bound<'_, PyAny>) -> bool {
    object.is_instance_of::<PyList>() || object.is_instance_of::<PyTuple>()
}

/// A NumPy array or a tensor as a list.
fn plain<'py>(object: &Bound<'py, PyAny>, what: &'static str) -> PyResult<Bound<'py, PyAny>> {
    if is_list(object) || !object.hasattr("tolist")? {
        return Ok(object.clone());
    }
    object.call_method0("tolist").map_err(|error| unreadable(object, what, error))
}

/// `refuse` in place of an error; what is none, as Ctrl-C in the middle of a producer's code, stays as it
/// is.
pub(super) fn or_interrupt(
    object: &Bound<'_, PyAny>,
    error: PyErr,
    refuse: impl FnOnce(String) -> PyErr,
) -> PyErr {
    let py = object.py();
    if error.is_instance_of::<PyException>(py) {
        refuse(error.value(py).to_string())
    } else {
        error
    }
}

/// What a tensor says that cannot be read, by the name of its argument; what else is raised is the
/// caller's own.
pub(super) fn unreadable(object: &Bound<'_, PyAny>, what: &'static str, error: PyErr) -> PyErr {
    let py = object.py();
    if !(error.is_instance_of::<PyRuntimeError>(py) || error.is_instance_of::<PyValueError>(py)) {
        return error;
    }
    let found = format!("a {} that cannot be read ({})", type_name(object), error.value(py));
    PyErr::from(Error::BadTensor { what, found, todo: "pass a tensor on the host that has values" })
}

/// The error of a list of something else; other errors stay what they are.
fn other_form(object: &Bound<'_, PyAny>, what: &'static str, error: PyErr, form: &Form) -> PyErr {
    if !error.is_instance_of::<PyTypeError>(object.py()) {
        return error;
    }
    let found = format!("{} that is not {}", type_name(object), form.name);
    PyErr::from(Error::BadDtype { what, found, wanted: form.wanted })
}

/// Why an object is not a number.
fn refusal(
    object: &Bound<'_, PyAny>,
    name: &'static str,
    error: PyErr,
    wanted: &'static str,
) -> PyErr {
    if error.is_instance_of::<PyOverflowError>(object.py()) {
        return PyErr::from(Error::ParamOutOfRange { name, value: written(object), wanted });
    }
    if error.is_instance_of::<PyTypeError>(object.py()) {
        let found = type_name(object);
        return PyTypeError::new_err(format!("{name}: found {found}, wanted {wanted}"));
    }
    error
}

/// A number as text, unless it would fill the message (or is longer than what Python writes).
fn written(object: &Bound<'_, PyAny>) -> String {
    match object.str().map(|text| text.to_string()) {
        Ok(text) if text.len() <= MOST_DIGITS => text,
        Ok(text) => format!("a number of {} digits", text.len()),
        Err(_) => "a number of thousands of digits".into(),
    }
}

/// The name of an object's class, for errors.
pub(super) fn type_name(object: &Bound<'_, PyAny>) -> String {
    object.get_type().name().map_or_else(|_| "object".into(), |name| name.to_string())
}
