//! Rows in memory as production gets them: rounded to a type, logits or probabilities, maybe over a
//! sub-vocabulary.

use crate::error::Result;
use crate::rows::{RawRows, Values};

/// An element type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dtype {
    F64,
    F32,
    F16,
    Bf16,
}

impl Dtype {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::F64 => "f64",
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        }
    }
}

/// A matrix of rounded values.
#[derive(Debug, Clone)]
pub(super) enum Matrix {
    F64(Vec<f64>),
    F32(Vec<f32>),
    F16(Vec<u16>),
    Bf16(Vec<u16>),
}

impl Matrix {
    /// The rows, one after the other, rounded to nearest.
    pub(super) fn of(dtype: Dtype, rows: &[Vec<f64>]) -> Self {
        let values = rows.iter().flat_map(|row| row.iter().copied());
        match dtype {
            Dtype::F64 => Self::F64(values.collect()),
            Dtype::F32 => Self::F32(values.map(|x| x as f32).collect()),
            Dtype::F16 => Self::F16(values.map(|x| half::f16::from_f64(x).to_bits()).collect()),
            Dtype::Bf16 => Self::Bf16(values.map(|x| half::bf16::from_f64(x).to_bits()).collect()),
        }
    }

    /// The matrix as rows of `cols` values.
    pub(super) fn rows(&self, cols: usize) -> Result<RawRows<'_>> {
        let (values, len) = match self {
            Self::F64(values) => (Values::F64(values), values.len()),
            Self::F32(values) => (Values::F32(values), values.len()),
            Self::F16(values) => (Values::F16(values), values.len()),
            Self::Bf16(values) => (Values::Bf16(values), values.len()),
        };
        RawRows::new(values, len / cols.max(1), cols, cols)
    }

    /// The values after rounding.
    pub(super) fn widened(&self, cols: usize) -> Result<Vec<Vec<f64>>> {
        let raw = self.rows(cols)?;
        let row = |row| (0..cols).map(|col| raw.value(row, col)).collect();
        Ok((0..raw.num_rows()).map(row).collect())
    }
}

/// How the drafter's rows come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Logits,
    Probabilities,
}

/// Types and forms of both sides' rows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Format {
    pub(super) target: Dtype,
    pub(super) drafter: Dtype,
    pub(super) kind: Kind,
    /// Whether the drafter's columns are the tokens from the last to the first, those that it never
    /// drafts left out.
    pub(super) is_mapped: bool,
}

impl Format {
    /// Its name in tables.
    pub(super) fn describe(self) -> String {
        let kind = match self.kind {
            Kind::Logits => "logits",
            Kind::Probabilities => "probabilities",
        };
        let mapped = if self.is_mapped { ", sub-vocabulary" } else { "" };
        format!("{} / {} {kind}{mapped}", self.target.name(), self.drafter.name())
    }
}

const fn format(target: Dtype, drafter: Dtype, kind: Kind, is_mapped: bool) -> Format {
    Format { target, drafter, kind, is_mapped }
}

/// Every format of the proof.
pub(super) static FORMATS: [Format; 9] = [
    format(Dtype::F32, Dtype::F32, Kind::Logits, false),
    format(Dtype::F16, Dtype::F16, Kind::Logits, false),
    format(Dtype::Bf16, Dtype::Bf16, Kind::Logits, false),
    format(Dtype::F32, Dtype::F64, Kind::Probabilities, false),
    format(Dtype::F32, Dtype::F32, Kind::Probabilities, false),
    format(Dtype::Bf16, Dtype::F16, Kind::Probabilities, false),
    format(Dtype::F16, Dtype::Bf16, Kind::Probabilities, false),
    format(Dtype::Bf16, Dtype::F32, Kind::Probabilities, true),
    format(Dtype::F32, Dtype::Bf16, Kind::Logits, true),
];
