//! Attention over the entries of a layer, whose memory is a model's own tensors.

use std::ops::Range;
use std::sync::Mutex;

use half::{bf16, f16};
use pyo3::prelude::*;

use crate::attention::{Cell, Heads, Memory, Rows};
use crate::error::Error;
use crate::rows::simd::Format;

use super::gate::{hold, locked};
use super::given::FLOATS;
use super::numbers::{count, counts as all_counts};
use super::tensor::Tensor;

/// The keys and values of one layer, each (sequences, heads, capacity, dim) without gaps.
#[pyclass(frozen, module = "mtp_verify._core")]
pub(super) struct Entries {
    pub(super) memory: Mutex<[Tensor; 2]>,
}

#[pymethods]
impl Entries {
    #[new]
    fn new(keys: &Bound<'_, PyAny>, values: &Bound<'_, PyAny>) -> PyResult<Self> {
        hold(|| {
            let memory = [Tensor::borrow(keys, "keys")?, Tensor::borrow(values, "values")?];
            let [keys, values] = &memory;
            if keys.shape().len() != 4 || keys.shape() != values.shape() {
                return Err(PyErr::from(Error::ShapeMismatch {
                    what: "values",
                    found: format!("{:?}, keys {:?}", values.shape(), keys.shape()),
                    wanted: "(sequences, heads, capacity, dim), both".into(),
                }));
            }
            Ok(Self { memory: Mutex::new(memory) })
        })
    }
}

/// The rows of one step and their positions; `attend` runs them through one layer.
#[pyclass(frozen, module = "mtp_verify._core")]
pub(super) struct Attention {
    rows: Rows,
    heads: usize,
    turn: [Tensor; 2],
    out: Mutex<Tensor>,
}

#[pymethods]
impl Attention {
    #[new]
    #[pyo3(signature = (pasts, counts, ancestors, *, cos, sin, out, heads))]
    #[allow(clippy::too_many_arguments)] // The public function's.
    fn new(
        pasts: &Bound<'_, PyAny>,
        counts: &Bound<'_, PyAny>,
        ancestors: Option<&Bound<'_, PyAny>>,
        cos: &Bound<'_, PyAny>,
        sin: &Bound<'_, PyAny>,
        out: &Bound<'_, PyAny>,
        heads: &Bound<'_, PyAny>,
    ) -> PyResult<Self> {
        hold(|| {
            let (pasts, counts) = (all_counts(pasts, "pasts")?, all_counts(counts, "counts")?);
            let ancestors = ancestors.map(|all| Tensor::borrow(all, "ancestors")).transpose()?;
            let rows = match &ancestors {
                None => Rows::new(&pasts, &counts, |_, _, _| true)?,
                Some(all) => {
                    let width = counts.iter().copied().max().unwrap_or(0);
                    let (seen, shape) = (all.flags()?, all.shape());
                    let fits = matches!(*shape, [number, wide, high]
                        if number == counts.len() && wide == high && wide >= width);
                    if !fits {
                        return Err(PyErr::from(Error::ShapeMismatch {
                            what: "ancestors",
                            found: format!("{shape:?}"),
                            wanted: format!("({}, W, W), W at least {width}", counts.len()),
                        }));
                    }
                    let width = shape[1];
                    let at = |number, node, other| (number * width + node) * width + other;
                    Rows::new(&pasts, &counts, |number, node, other| {
                        seen[at(number, node, other)] != 0
                    })?
                }
            };
            Ok(Self {
                rows,
                heads: count(heads, "heads")?,
                turn: [Tensor::borrow(cos, "cos")?, Tensor::borrow(sin, "sin")?],
                out: Mutex::new(Tensor::borrow(out, "out")?),
            })
        })
    }

    /// Turns, keeps and attends; fills `out`.
    #[pyo3(signature = (given, entries, first = None))]
    fn attend(
        &self,
        given: &Bound<'_, PyAny>,
        entries: &Entries,
        first: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        hold(|| {
            let given = Tensor::borrow(given, "given")?;
            let first = first.map_or(Ok(0), |first| count(first, "first"))?;
            match given.format() {
                Some(Format::F32) => self.run::<f32>(&given, entries, first),
                Some(Format::Bf16) => self.run::<bf16>(&given, entries, first),
                Some(Format::F16) => self.run::<f16>(&given, entries, first),
                None => {
                    Err(Error::BadDtype { what: "given", found: "another".into(), wanted: FLOATS })
                }
            }
            .map_err(PyErr::from)
        })
    }
}

impl Attention {
    fn run<T: Cell>(&self, given: &Tensor, entries: &Entries, first: usize) -> Result<(), Error> {
        let mut memory = locked(&entries.memory);
        let mut out = locked(&self.out);
        let [keys, values] = &mut *memory;
        let [cos, sin] = &self.turn;
        let spans = [
            out.range()?,
            keys.range()?,
            values.range()?,
            given.range()?,
            cos.range()?,
            sin.range()?,
        ];
        check_apart("out", &spans[..3], &spans[3..])?;
        let &[_, kept, capacity, dim] = keys.shape() else {
            unreachable!("checked when it was made")
        };
        let heads = Heads { queries: self.heads, kept, dim };
        let mut keys = Memory { cells: keys.cells_mut()?, capacity };
        let mut values = Memory { cells: values.cells_mut()?, capacity };
        let turn = (cos.cells()?, sin.cells()?);
        self.rows.attend::<T>(
            heads,
            given.cells()?,
            turn,
            first,
            &mut keys,
            &mut values,
            out.cells_mut()?,
        )
    }
}

/// Checks that memory that is written to meets nothing else; `what` names it.
pub(super) fn check_apart(
    what: &'static str,
    written: &[Range<usize>],
    read: &[Range<usize>],
) -> Result<(), Error> {
    for (number, one) in written.iter().enumerate() {
        let mut others = written[number + 1..].iter().chain(read);
        if others.any(|other| one.start < other.end && other.start < one.end) {
            return Err(Error::BadTensor {
                what,
                found: "memory that another of the tensors has, too".into(),
                todo: "pass tensors that do not overlap",
            });
        }
    }
    Ok(())
}
