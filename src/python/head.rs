//! A draft head's modules, made of a model's own tensors.

use std::sync::{Arc, Mutex};

use half::{bf16, f16};
use pyo3::prelude::*;

use crate::attention::{Cell, Heads, Memory, Rows};
use crate::batch::threads;
use crate::error::Error;
use crate::head::{self, Inputs, Norm, Segment};
use crate::rows::RawRows;
use crate::rows::simd::{BLOCK, Format, Kernels};

use super::attention::{Entries, check_apart};
use super::gate::{hold, locked};
use super::given::FLOATS;
use super::numbers::{count, counts, instances, list};
use super::tensor::Tensor;

/// A matrix (outputs, inputs), rounded to eight bits.
#[pyclass(frozen, module = "mtp_verify._core")]
pub(super) struct Product(Mutex<Arc<head::Product>>);

#[pymethods]
impl Product {
    #[new]
    #[pyo3(signature = (weight, bias = None))]
    fn new(weight: &Bound<'_, PyAny>, bias: Option<&Bound<'_, PyAny>>) -> PyResult<Self> {
        hold(|| {
            let weight = matrix(weight)?;
            let rows = weight.rows(FLOATS, false)?;
            let bias = bias.map(|bias| row(bias, "bias")).transpose()?;
            let made = head::Product::new(rows.num_rows(), rows.num_cols(), bias, reader(&rows))?;
            Ok(Self(Mutex::new(Arc::new(made))))
        })
    }

    /// Adds the rows of another matrix (n, inputs).
    fn extend(&self, weight: &Bound<'_, PyAny>) -> PyResult<()> {
        hold(|| {
            let weight = matrix(weight)?;
            let rows = weight.rows(FLOATS, false)?;
            let mut own = locked(&self.0);
            if rows.num_cols() != own.inputs() {
                return Err(PyErr::from(Error::ShapeMismatch {
                    what: "weight",
                    found: format!("{} numbers a row", rows.num_cols()),
                    wanted: format!("{}", own.inputs()),
                }));
            }
            Ok(Arc::make_mut(&mut own).extend(rows.num_rows(), reader(&rows))?)
        })
    }

    /// Bytes of the rounded weights.
    #[getter]
    fn nbytes(&self) -> PyResult<usize> {
        hold(|| Ok(locked(&self.0).nbytes()))
    }

    /// Numbers that a row becomes.
    #[getter]
    fn outputs(&self) -> PyResult<usize> {
        hold(|| Ok(locked(&self.0).outputs()))
    }

    /// Multiplies rows (n, inputs); their products become the first columns of `out` (n, width), float32.
    ///
    /// `extras`, of one stretch of rows after the other `(count, product)`, multiply these rows too; their
    /// products follow. None does not.
    #[pyo3(signature = (rows, out, extras = None))]
    fn multiply(
        &self,
        rows: &Bound<'_, PyAny>,
        out: &Bound<'_, PyAny>,
        extras: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        hold(|| {
            let (rows, mut out) = (Tensor::borrow(rows, "rows")?, Tensor::borrow(out, "out")?);
            let own = Arc::clone(&locked(&self.0));
            let wide = widened(&rows)?;
            let (number, width) = (wide.len() / own.inputs(), out.shape().last().copied());
            let width = width.unwrap_or(0);
            let extras = match extras {
                Some(extras) => list(extras, "extras", |extra, _| stretch(extra))?,
                None => Vec::new(),
            };
            let out = out.cells_mut::<f32>()?;
            let inner = own.inputs();
            let most = extras.iter().flat_map(|(_, extra)| extra).map(|extra| extra.outputs());
            let widest = own.outputs().saturating_add(most.max().unwrap_or(0));
            if wide.len() % inner != 0 || out.len() != number * width || width < widest {
                return Err(PyErr::from(Error::ShapeMismatch {
                    what: "rows",
                    found: format!("{} numbers, and an out of {}", wide.len(), out.len()),
                    wanted: format!("(n, {inner}), and (n, {widest}) or wider"),
                }));
            }
            let total = extras.iter().fold(0_usize, |sum, (count, _)| sum.saturating_add(*count));
            let is_off = |extra: &Arc<head::Product>| extra.inputs() != inner;
            if !extras.is_empty()
                && (total != number || extras.iter().flat_map(|(_, extra)| extra).any(is_off))
            {
                return Err(PyErr::from(Error::ShapeMismatch {
                    what: "extras",
                    found: format!("stretches of {total} rows, or products of other rows"),
                    wanted: format!("stretches of all {number} rows of {inner} numbers"),
                }));
            }
            if number > 0 {
                let threads = threads::num_threads();
                own.multiply_into(&wide, out, width, 0, threads);
                let mut first = 0;
                for (count, extra) in extras {
                    let (rows, after) = (first..first + count, own.outputs());
                    first = rows.end;
                    if let Some(extra) = extra
                        && count > 0
                    {
                        let out = &mut out[rows.start * width..rows.end * width];
                        let rows = &wide[rows.start * inner..rows.end * inner];
                        extra.multiply_into(rows, out, width, after, threads);
                    }
                }
            }
            Ok(())
        })
    }
}

/// A stretch of rows, and what else multiplies them.
fn stretch(extra: &Bound<'_, PyAny>) -> PyResult<(usize, Option<Arc<head::Product>>)> {
    let (rows, product): (Bound<'_, PyAny>, Option<Bound<'_, Product>>) = extra.extract()?;
    Ok((count(&rows, "extras")?, product.map(|product| Arc::clone(&locked(&product.get().0)))))
}

/// Borrows a matrix.
fn matrix(weight: &Bound<'_, PyAny>) -> PyResult<Tensor> {
    let weight = Tensor::borrow(weight, "weight")?;
    if weight.shape().len() == 2 {
        return Ok(weight);
    }
    let (found, wanted) = (format!("{:?}", weight.shape()), "(outputs, inputs)".into());
    Err(PyErr::from(Error::ShapeMismatch { what: "weight", found, wanted }))
}

/// What reads rows of a matrix, as [`head::Product::new`] takes it.
fn reader(rows: &RawRows<'_>) -> impl FnMut(usize, &mut [f32]) {
    let mut buffer = [0.0; BLOCK];
    move |number, out| {
        for start in rows.blocks() {
            let block = rows.block(Kernels::best(), number, start, &mut buffer);
            out[start..start + block.len()].copy_from_slice(block);
        }
    }
}

/// A transformer block of Llama's form, of one module.
#[pyclass(frozen, module = "mtp_verify._core")]
pub(super) struct HeadBlock(Arc<head::Block>);

#[pymethods]
impl HeadBlock {
    #[new]
    #[pyo3(signature = (joined, mixed, gated, down, *, norm, input_norm, head_norms, eps, heads))]
    #[allow(clippy::too_many_arguments)] // A block's parts.
    fn new(
        joined: &Bound<'_, Product>,
        mixed: &Bound<'_, Product>,
        gated: &Bound<'_, Product>,
        down: &Bound<'_, Product>,
        norm: &Bound<'_, PyAny>,
        input_norm: Option<&Bound<'_, PyAny>>,
        head_norms: Option<&Bound<'_, PyAny>>,
        eps: &Bound<'_, PyAny>,
        heads: &Bound<'_, PyAny>,
    ) -> PyResult<Self> {
        hold(|| {
            let eps = eps.extract::<f64>()? as f32;
            let &[queries, kept, dim] = &counts(heads, "heads")?[..] else {
                let (found, wanted) = (heads.to_string(), "(of queries, of keys, numbers)".into());
                return Err(PyErr::from(Error::ShapeMismatch { what: "heads", found, wanted }));
            };
            let head_norms = head_norms.map(|both| {
                let read = |one: &Bound<'_, PyAny>, _| norm_of(Some(one), "head_norms", eps);
                let read = list(both, "head_norms", read)?.into_iter().flatten();
                <[Norm; 2]>::try_from(read.collect::<Vec<_>>()).map_err(|found| {
                    let (found, wanted) = (format!("{}", found.len()), "two".into());
                    PyErr::from(Error::ShapeMismatch { what: "head_norms", found, wanted })
                })
            });
            let product = |part: &Bound<'_, Product>| Arc::clone(&locked(&part.get().0));
            Ok(Self(Arc::new(head::Block {
                heads: Heads { queries, kept, dim },
                input_norm: norm_of(input_norm, "input_norm", eps)?,
                joined: product(joined),
                head_norms: head_norms.transpose()?,
                mixed: product(mixed),
                norm: Norm { weight: row(norm, "norm")?, eps },
                gated: product(gated),
                down: product(down),
            })))
        })
    }
}

/// One module of a draft head.
#[pyclass(frozen, module = "mtp_verify._core")]
pub(super) struct HeadModule(head::Module);

#[pymethods]
impl HeadModule {
    #[new]
    #[pyo3(signature = (blocks, *, fusion, embed_norm, hidden_norm, norm, eps, is_embed_first,
                        is_stream_normed, is_normed_next))]
    #[allow(clippy::too_many_arguments)] // A module's parts.
    fn new(
        blocks: &Bound<'_, PyAny>,
        fusion: Option<&Bound<'_, Product>>,
        embed_norm: Option<&Bound<'_, PyAny>>,
        hidden_norm: Option<&Bound<'_, PyAny>>,
        norm: Option<&Bound<'_, PyAny>>,
        eps: &Bound<'_, PyAny>,
        is_embed_first: bool,
        is_stream_normed: bool,
        is_normed_next: bool,
    ) -> PyResult<Self> {
        hold(|| {
            let eps = eps.extract::<f64>()? as f32;
            let blocks = instances::<HeadBlock>(blocks, "blocks", "a HeadBlock")?;
            let made = head::Module {
                embed_norm: norm_of(embed_norm, "embed_norm", eps)?,
                hidden_norm: norm_of(hidden_norm, "hidden_norm", eps)?,
                is_embed_first,
                fusion: fusion.map(|fusion| Arc::clone(&locked(&fusion.get().0))),
                is_stream_normed,
                blocks: blocks.iter().map(|block| Arc::clone(&block.get().0)).collect(),
                norm: norm_of(norm, "norm", eps)?,
                is_normed_next,
            };
            made.check()?;
            Ok(Self(made))
        })
    }

    /// Runs rows and keeps their keys and values; `normed` becomes what output heads read, and `next` the
    /// next level's hidden states, all (n, width) and of one dtype.
    ///
    /// A segment is `(past, held, paths, entries)`: committed entries, drafted ones behind them, of each of
    /// its rows the drafted ones that it sees, and by block where keys and values are.
    #[allow(clippy::too_many_arguments)] // The rows of all segments, and where results go.
    fn run(
        &self,
        hidden: &Bound<'_, PyAny>,
        embeds: &Bound<'_, PyAny>,
        cos: &Bound<'_, PyAny>,
        sin: &Bound<'_, PyAny>,
        segments: &Bound<'_, PyAny>,
        normed: &Bound<'_, PyAny>,
        next: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        hold(|| {
            let inputs = [
                Tensor::borrow(hidden, "hidden")?,
                Tensor::borrow(embeds, "embeds")?,
                Tensor::borrow(cos, "cos")?,
                Tensor::borrow(sin, "sin")?,
            ];
            let outputs = [Tensor::borrow(normed, "normed")?, Tensor::borrow(next, "next")?];
            let segments = list(segments, "segments", |segment, _| given(segment))?;
            match inputs[0].format() {
                Some(Format::F32) => self.run_as::<f32>(&inputs, &segments, outputs),
                Some(Format::Bf16) => self.run_as::<bf16>(&inputs, &segments, outputs),
                Some(Format::F16) => self.run_as::<f16>(&inputs, &segments, outputs),
                None => {
                    Err(Error::BadDtype { what: "hidden", found: "another".into(), wanted: FLOATS })
                }
            }
            .map_err(PyErr::from)
        })
    }
}

/// A segment as it is given: what its rows see, and by block their keys and values.
type Given<'py> = (Rows, Vec<Bound<'py, Entries>>);

fn given<'py>(segment: &Bound<'py, PyAny>) -> PyResult<Given<'py>> {
    let (past, held, paths, entries): (
        Bound<'py, PyAny>,
        Bound<'py, PyAny>,
        Bound<'py, PyAny>,
        Bound<'py, PyAny>,
    ) = segment.extract()?;
    let paths = list(&paths, "paths", |path, _| counts(path, "paths"))?;
    let rows = Rows::behind(count(&past, "past")?, count(&held, "held")?, &paths)?;
    Ok((rows, instances::<Entries>(&entries, "entries", "Entries")?))
}

impl HeadModule {
    fn run_as<T: Cell>(
        &self,
        inputs: &[Tensor; 4],
        segments: &[Given<'_>],
        [mut normed, mut next]: [Tensor; 2],
    ) -> Result<(), Error> {
        let all = || segments.iter().flat_map(|(_, entries)| entries);
        // Each is locked once, or this thread would wait for itself.
        for (number, one) in all().enumerate() {
            if all().take(number).any(|other| one.is(other)) {
                return Err(Error::BadTensor {
                    what: "entries",
                    found: "one object twice".into(),
                    todo: "pass those of each sequence and block",
                });
            }
        }
        let mut held: Vec<_> = all().map(|entries| locked(&entries.get().memory)).collect();
        let own = held.iter().flat_map(|memory| memory.iter().map(Tensor::range));
        let others = inputs.iter().chain([&normed, &next]).map(Tensor::range);
        let (own, others) =
            (own.collect::<Result<Vec<_>, _>>()?, others.collect::<Result<Vec<_>, _>>()?);
        check_apart("entries", &own, &others)?;
        let mut left = held.iter_mut();
        let mut run = Vec::with_capacity(segments.len());
        for (rows, entries) in segments {
            let mut memories = Vec::with_capacity(entries.len());
            for memory in left.by_ref().take(entries.len()) {
                let [keys, values] = &mut **memory;
                let capacity = keys.shape()[2];
                memories.push([
                    Memory { cells: keys.cells_mut()?, capacity },
                    Memory { cells: values.cells_mut()?, capacity },
                ]);
            }
            run.push(Segment { rows, memories });
        }
        let [hidden, embeds, cos, sin] = inputs;
        let inputs = Inputs {
            hidden: hidden.cells()?,
            embeds: embeds.cells()?,
            cos: cos.cells()?,
            sin: sin.cells()?,
        };
        let (found, handed) = self.0.run::<T>(inputs, &mut run)?;
        for (tensor, values) in [(&mut normed, found), (&mut next, handed)] {
            let cells = tensor.cells_mut::<T>()?;
            if cells.len() != values.len() {
                let (found, wanted) = (format!("{}", cells.len()), format!("{}", values.len()));
                return Err(Error::ShapeMismatch { what: "normed", found, wanted });
            }
            T::narrow(&values, cells);
        }
        Ok(())
    }
}

fn norm_of(
    weight: Option<&Bound<'_, PyAny>>,
    what: &'static str,
    eps: f32,
) -> PyResult<Option<Norm>> {
    weight.map(|weight| Ok(Norm { weight: row(weight, what)?, eps })).transpose()
}

/// A tensor (n,) of floats.
fn row(object: &Bound<'_, PyAny>, what: &'static str) -> PyResult<Vec<f32>> {
    Ok(widened(&Tensor::borrow(object, what)?)?)
}

/// A tensor's values.
fn widened(tensor: &Tensor) -> Result<Vec<f32>, Error> {
    fn wide<T: Cell>(tensor: &Tensor) -> Result<Vec<f32>, Error> {
        let cells = tensor.cells::<T>()?;
        let mut wide = vec![0.0; cells.len()];
        T::widen(cells, &mut wide);
        Ok(wide)
    }
    match tensor.format() {
        Some(Format::Bf16) => wide::<bf16>(tensor),
        Some(Format::F16) => wide::<f16>(tensor),
        Some(Format::F32) | None => wide::<f32>(tensor),
    }
}
