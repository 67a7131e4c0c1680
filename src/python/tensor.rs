//! Intake of tensors by DLPack, without a copy: the only reader, and writer, of foreign memory.
//!
//! The layout is that of DLPack 1.0 (`dlpack.h`): both the versioned capsule and the older one.

#![allow(unsafe_code)]

use std::ffi::{CStr, c_void};
use std::ops::Range;
use std::ptr::NonNull;

use pyo3::exceptions::PyTypeError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::attention::Cell;
use crate::error::Error;
use crate::python::numbers::{or_interrupt, type_name, unreadable};
use crate::rows::simd::Format;
use crate::rows::{RawRows, Values};

const CPU: i32 = 1;
const CUDA_HOST: i32 = 3;
const FLOAT: u8 = 2;
const BFLOAT: u8 = 4;
const INT: u8 = 0;
const UINT: u8 = 1;
const BOOL: u8 = 6;
/// The flag of a versioned tensor that must not be written to.
const READ_ONLY: u64 = 1;

const NAME: &CStr = c"dltensor";
const USED_NAME: &CStr = c"used_dltensor";
const VERSIONED_NAME: &CStr = c"dltensor_versioned";
const USED_VERSIONED_NAME: &CStr = c"used_dltensor_versioned";

#[repr(C)]
struct DlTensor {
    data: *mut c_void,
    device_type: i32,
    device_id: i32,
    ndim: i32,
    dtype_code: u8,
    dtype_bits: u8,
    dtype_lanes: u16,
    shape: *const i64,
    strides: *const i64,
    byte_offset: u64,
}

#[repr(C)]
struct Managed {
    tensor: DlTensor,
    context: *mut c_void,
    deleter: Option<unsafe extern "C" fn(*mut Managed)>,
}

#[repr(C)]
struct ManagedVersioned {
    major: u32,
    minor: u32,
    context: *mut c_void,
    deleter: Option<unsafe extern "C" fn(*mut ManagedVersioned)>,
    flags: u64,
    tensor: DlTensor,
}

enum Owner {
    Legacy(NonNull<Managed>),
    Versioned(NonNull<ManagedVersioned>),
}

/// A borrowed tensor; its producer keeps the memory alive until this is dropped.
pub(super) struct Tensor {
    owner: Owner,
    what: &'static str,
    shape: Vec<usize>,
    strides: Vec<i64>,
    data: *const u8,
    dtype: (u8, u8),
}

// SAFETY: the memory is read, or written through a unique borrow, and DLPack's deleter may be called
// from any thread (NumPy's and PyTorch's take the interpreter lock themselves where they need it).
unsafe impl Send for Tensor {}
// SAFETY: as above; shared references only read.
unsafe impl Sync for Tensor {}

impl Drop for Tensor {
    fn drop(&mut self) {
        // SAFETY: the capsule was renamed when it was consumed, so the deleter is ours to call, once.
        unsafe {
            match self.owner {
                Owner::Legacy(managed) => {
                    if let Some(delete) = (*managed.as_ptr()).deleter {
                        delete(managed.as_ptr());
                    }
                }
                Owner::Versioned(managed) => {
                    if let Some(delete) = (*managed.as_ptr()).deleter {
                        delete(managed.as_ptr());
                    }
                }
            }
        }
    }
}

impl Tensor {
    /// Borrows an object that speaks DLPack; `what` names it in errors.
    pub(super) fn borrow(object: &Bound<'_, PyAny>, what: &'static str) -> PyResult<Self> {
        let refuse = |found: String, todo| PyErr::from(Error::BadTensor { what, found, todo });
        if !(object.hasattr("__dlpack__")? && object.hasattr("__dlpack_device__")?) {
            return Err(refuse(
                format!("a {} has no __dlpack__ and __dlpack_device__", type_name(object)),
                "pass a NumPy array or any DLPack producer, such as a torch tensor",
            ));
        }
        let device = object.call_method0("__dlpack_device__");
        let device = device.map_err(|error| unreadable(object, what, error))?;
        let (device, _): (i32, i32) = device.extract()?;
        if device != CPU && device != CUDA_HOST {
            return Err(refuse(
                format!("lives on DLPack device type {device}"),
                "copy it to the host first",
            ));
        }
        let arguments = PyDict::new(object.py());
        arguments.set_item("max_version", (1, 0))?;
        let exported = match object.call_method("__dlpack__", (), Some(&arguments)) {
            // Producers older than DLPack 1.0 do not know the argument.
            Err(error) if error.is_instance_of::<PyTypeError>(object.py()) => {
                object.call_method0("__dlpack__")
            }
            other => other,
        };
        let capsule = exported.map_err(|error| {
            let todo = "pass a plain tensor (detached, on the host)";
            or_interrupt(object, error, |found| refuse(found, todo))
        })?;
        Self::consume(&capsule, what)
    }

    fn consume(capsule: &Bound<'_, PyAny>, what: &'static str) -> PyResult<Self> {
        let refuse = |found: String| {
            PyErr::from(Error::BadTensor {
                what,
                found,
                todo: "pass a NumPy array or a torch tensor",
            })
        };
        let pointer = capsule.as_ptr();
        // SAFETY: the capsule's name says which struct it holds; after the renaming no one else calls
        // the deleter, so `owner` is the one owner from here on.
        let (owner, tensor) = unsafe {
            if ffi::PyCapsule_IsValid(pointer, VERSIONED_NAME.as_ptr()) == 1 {
                let raw = ffi::PyCapsule_GetPointer(pointer, VERSIONED_NAME.as_ptr());
                let managed = NonNull::new(raw.cast::<ManagedVersioned>())
                    .ok_or_else(|| refuse("an empty DLPack capsule".into()))?;
                ffi::PyCapsule_SetName(pointer, USED_VERSIONED_NAME.as_ptr());
                (Owner::Versioned(managed), &raw const (*managed.as_ptr()).tensor)
            } else if ffi::PyCapsule_IsValid(pointer, NAME.as_ptr()) == 1 {
                let raw = ffi::PyCapsule_GetPointer(pointer, NAME.as_ptr());
                let managed = NonNull::new(raw.cast::<Managed>())
                    .ok_or_else(|| refuse("an empty DLPack capsule".into()))?;
                ffi::PyCapsule_SetName(pointer, USED_NAME.as_ptr());
                (Owner::Legacy(managed), &raw const (*managed.as_ptr()).tensor)
            } else {
                return Err(refuse("__dlpack__ gave no DLPack capsule".into()));
            }
        };
        let mut borrowed = Self {
            owner,
            what,
            shape: Vec::new(),
            strides: Vec::new(),
            data: std::ptr::null(),
            dtype: (0, 0),
        };
        if let Owner::Versioned(managed) = borrowed.owner {
            // SAFETY: the version comes first in every version of the struct.
            let major = unsafe { (*managed.as_ptr()).major };
            if major != 1 {
                return Err(refuse(format!("DLPack version {major}")));
            }
        }
        // SAFETY: the producer keeps the struct and its arrays of `ndim` values alive until the
        // deleter runs; a null `strides` means row-major without gaps.
        unsafe {
            let dl = &*tensor;
            let ndim = usize::try_from(dl.ndim).unwrap_or(0);
            for axis in 0..ndim {
                borrowed.shape.push(usize::try_from(*dl.shape.add(axis)).unwrap_or(0));
            }
            let mut stride = 1_i64;
            borrowed.strides = vec![0; ndim];
            for axis in (0..ndim).rev() {
                borrowed.strides[axis] =
                    if dl.strides.is_null() { stride } else { *dl.strides.add(axis) };
                stride = stride.saturating_mul(borrowed.shape[axis] as i64);
            }
            borrowed.data = dl.data.cast::<u8>().cast_const().wrapping_add(dl.byte_offset as usize);
            borrowed.dtype =
                if dl.dtype_lanes == 1 { (dl.dtype_code, dl.dtype_bits) } else { (u8::MAX, 0) };
        }
        Ok(borrowed)
    }

    /// The shape.
    pub(super) fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Sees (B, M, V) as one matrix, without a copy.
    pub(super) fn flatten(&mut self, sequences: usize) -> PyResult<Stack> {
        let &[count, height, cols] = &self.shape[..] else {
            return Err(PyErr::from(Error::ShapeMismatch {
                what: self.what,
                found: format!("{:?}", self.shape),
                wanted: format!("({sequences}, M, vocabulary)"),
            }));
        };
        if count != sequences {
            return Err(PyErr::from(Error::ShapeMismatch {
                what: self.what,
                found: format!("{count} matrices"),
                wanted: format!("{sequences}, one for each sequence"),
            }));
        }
        // The stride of an axis of length 1 means nothing.
        let (outer, inner) = match (count, height) {
            (0, _) | (_, 0) => (0, cols as i64),
            (1, _) => (0, self.strides[1]),
            (_, 1) => (self.strides[0], self.strides[0]),
            _ => (self.strides[0], self.strides[1]),
        };
        if inner < 1 || outer < 0 || outer % inner != 0 {
            return Err(PyErr::from(Error::BadTensor {
                what: self.what,
                found: format!("strides {:?}", self.strides),
                todo: "pass a contiguous tensor",
            }));
        }
        let stack = Stack { count, step: (outer / inner) as usize, height };
        let rows = if height == 0 { 0 } else { count.saturating_sub(1) * stack.step + height };
        self.shape = vec![if count == 0 { 0 } else { rows }, cols];
        self.strides = vec![inner, self.strides[2]];
        Ok(stack)
    }

    fn dtype_name(&self) -> String {
        let (code, bits) = self.dtype;
        match code {
            INT => format!("int{bits}"),
            UINT => format!("uint{bits}"),
            FLOAT => format!("float{bits}"),
            BFLOAT => format!("bfloat{bits}"),
            BOOL => "bool".to_owned(),
            _ => format!("DLPack dtype code {code} with {bits} bits"),
        }
    }

    /// The tensor as rows of floats: (R, V), or (V,) as one row; unit stride inside a row.
    pub(super) fn rows(&self, wanted: &'static str, double: bool) -> Result<RawRows<'_>, Error> {
        let (rows, cols, stride) = match (&self.shape[..], &self.strides[..]) {
            (&[cols], &[_]) => (1, cols, cols as i64),
            (&[rows, cols], &[stride, _]) => (rows, cols, stride),
            _ => {
                return Err(Error::ShapeMismatch {
                    what: self.what,
                    found: format!("{:?}", self.shape),
                    wanted: "(rows, vocabulary)".into(),
                });
            }
        };
        if cols == 0 {
            return Err(Error::ShapeMismatch {
                what: self.what,
                found: format!("{:?}", self.shape),
                wanted: "(rows, vocabulary) with at least one token".into(),
            });
        }
        let inner = self.strides.last().copied().unwrap_or(1);
        if rows > 0 && ((inner != 1 && cols > 1) || (rows > 1 && stride < cols as i64)) {
            return Err(Error::BadTensor {
                what: self.what,
                found: format!("strides {:?}", self.strides),
                todo: "pass rows that are contiguous and do not overlap (call .contiguous() or \
                       np.ascontiguousarray)",
            });
        }
        let stride = if rows > 1 { stride as usize } else { cols };
        let len = if rows == 0 { 0 } else { (rows - 1) * stride + cols };
        let values = match self.dtype {
            (FLOAT, 32) => self.slice(len).map(Values::F32),
            (FLOAT, 16) => self.slice(len).map(Values::F16),
            (BFLOAT, 16) => self.slice(len).map(Values::Bf16),
            (FLOAT, 64) if double => self.slice(len).map(Values::F64),
            _ => {
                let found = self.dtype_name();
                Err(Error::BadDtype { what: self.what, found, wanted })
            }
        };
        RawRows::new(values?, rows, cols, stride)
    }

    /// The tensor as rows of 32-bit words: the words, and (rows, width, words from row to row).
    pub(super) fn words(&self) -> Result<(&[i32], [usize; 3]), Error> {
        let (&[rows, width], &[stride, inner]) = (&self.shape[..], &self.strides[..]) else {
            return Err(Error::ShapeMismatch {
                what: self.what,
                found: format!("{:?}", self.shape),
                wanted: "(nodes, words)".into(),
            });
        };
        if self.dtype != (INT, 32) {
            let found = self.dtype_name();
            return Err(Error::BadDtype { what: self.what, found, wanted: "int32" });
        }
        if rows == 0 || width == 0 {
            return Ok((&[], [rows, width, width]));
        }
        if (inner != 1 && width > 1) || (rows > 1 && stride < width as i64) {
            return Err(Error::BadTensor {
                what: self.what,
                found: format!("strides {:?}", self.strides),
                todo: "pass rows that are contiguous and do not overlap",
            });
        }
        let stride = if rows > 1 { stride as usize } else { width };
        Ok((self.slice((rows - 1) * stride + width)?, [rows, width, stride]))
    }

    /// The format of its floats; `None` for other dtypes.
    pub(super) fn format(&self) -> Option<Format> {
        match self.dtype {
            (FLOAT, 32) => Some(Format::F32),
            (FLOAT, 16) => Some(Format::F16),
            (BFLOAT, 16) => Some(Format::Bf16),
            _ => None,
        }
    }

    /// All values of a tensor of `T` without gaps, which the caller knows to be its dtype.
    pub(super) fn cells<T: Cell>(&self) -> Result<&[T], Error> {
        self.slice(self.len_of::<T>()?)
    }

    /// [`Tensor::cells`], to be written to.
    pub(super) fn cells_mut<T: Cell>(&mut self) -> Result<&mut [T], Error> {
        if let Owner::Versioned(managed) = self.owner
            // SAFETY: the producer keeps the struct alive until the deleter runs.
            && unsafe { (*managed.as_ptr()).flags } & READ_ONLY != 0
        {
            let found = "memory that must not be written to".into();
            return Err(Error::BadTensor { what: self.what, found, todo: "pass a copy" });
        }
        let len = self.len_of::<T>()?;
        if len == 0 {
            return Ok(&mut []);
        }
        let pointer = self.pointer::<T>()?.cast_mut();
        // SAFETY: as in `slice`; `self` is borrowed uniquely, and whoever holds two tensors at once has
        // checked `range` for an overlap. The interpreter's lock is held while this lives, so that no
        // other code that asks for it sees half of a write.
        Ok(unsafe { std::slice::from_raw_parts_mut(pointer, len) })
    }

    /// True or False for each place of a tensor without gaps.
    pub(super) fn flags(&self) -> Result<&[u8], Error> {
        if self.dtype != (BOOL, 8) {
            let found = self.dtype_name();
            return Err(Error::BadDtype { what: self.what, found, wanted: "bool" });
        }
        self.slice(self.dense_len()?)
    }

    /// The addresses that it spans, if it is without gaps.
    pub(super) fn range(&self) -> Result<Range<usize>, Error> {
        let start = self.data as usize;
        Ok(start..start + self.dense_len()? * usize::from(self.dtype.1 / 8))
    }

    fn len_of<T: Cell>(&self) -> Result<usize, Error> {
        if self.format() != Some(T::FORMAT) {
            let found = self.dtype_name();
            return Err(Error::BadDtype { what: self.what, found, wanted: T::NAME });
        }
        self.dense_len()
    }

    /// The number of values, where nothing lies between them.
    fn dense_len(&self) -> Result<usize, Error> {
        let mut step = 1;
        for (&size, &stride) in self.shape.iter().zip(&self.strides).rev() {
            if size > 1 && stride != step {
                return Err(Error::BadTensor {
                    what: self.what,
                    found: format!("strides {:?}", self.strides),
                    todo: "pass a contiguous tensor",
                });
            }
            step *= size as i64;
        }
        Ok(step as usize)
    }

    fn pointer<T>(&self) -> Result<*const T, Error> {
        let pointer = self.data.cast::<T>();
        if pointer.is_null() || !pointer.is_aligned() {
            return Err(Error::BadTensor {
                what: self.what,
                found: "memory that is null or not aligned for its dtype".into(),
                todo: "pass a copy",
            });
        }
        Ok(pointer)
    }

    fn slice<T>(&self, len: usize) -> Result<&[T], Error> {
        if len == 0 {
            return Ok(&[]);
        }
        let pointer = self.pointer::<T>()?;
        // SAFETY: the producer promises `shape` and `strides` to describe readable memory of this
        // dtype, which it keeps alive as long as `self`; `len` is the extent that they span.
        Ok(unsafe { std::slice::from_raw_parts(pointer, len) })
    }
}

/// Matrices of equal height inside one matrix.
#[derive(Clone, Copy)]
pub(super) struct Stack {
    count: usize,
    /// Rows from the start of one matrix to that of the next.
    step: usize,
    height: usize,
}

impl Stack {
    /// The rows of each matrix.
    pub(super) fn parts(self) -> impl Iterator<Item = Range<usize>> {
        (0..self.count).map(move |matrix| matrix * self.step..matrix * self.step + self.height)
    }

    /// A row of a matrix.
    pub(super) fn row(self, matrix: usize, row: usize) -> Option<usize> {
        (row < self.height).then_some(matrix * self.step + row)
    }
}
