//! Packed arrays: which part belongs to which sequence, and the drafts that they hold.

use std::ops::Range;

use super::{Each, at, check_len};
use crate::error::{Error, Result};
use crate::mutants::mutate;
use crate::tree::TokenTree;
use crate::verify::law::{Draft, Law};

/// Where each sequence's part of packed arrays lies: `offsets[b]..offsets[b + 1]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offsets(Vec<usize>);

impl Offsets {
    /// Checks that the parts follow each other from 0 on, none of them empty: each has its root.
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`] names the first sequence whose part is wrong.
    pub fn new(offsets: &[i64]) -> Result<Self> {
        let wrong = |found, wanted: &str| {
            Err(Error::ShapeMismatch { what: "offsets", found, wanted: wanted.into() })
        };
        if offsets.first() != Some(&0) {
            let found = offsets.first().map_or("()".into(), |first| format!("({first}, ...)"));
            return wrong(found, "(B+1,), from 0 on");
        }
        for (sequence, pair) in (0..).zip(offsets.windows(2)) {
            if pair[0] >= pair[1] {
                let found = format!("{}, then {}", pair[0], pair[1]);
                return wrong(found, "ascending: a root at least").map_err(at(sequence));
            }
        }
        Ok(Self(offsets.iter().map(|&offset| offset as usize).collect()))
    }

    /// Parts of the given sizes.
    pub fn of(sizes: impl Iterator<Item = usize>) -> Self {
        let mut offsets = vec![0];
        let mut end = 0;
        offsets.extend(sizes.map(|size| {
            end += size;
            end
        }));
        Self(offsets)
    }

    /// The number of sequences.
    pub fn len(&self) -> usize {
        self.0.len() - 1
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The length of a packed array.
    pub fn total(&self) -> usize {
        self.0.last().copied().unwrap_or(0)
    }

    /// The part of a sequence.
    pub fn part(&self, sequence: usize) -> Range<usize> {
        let (start, end) = (self.0[sequence], self.0[sequence + 1]);
        mutate!("batch/rows_of_companion", start..end, self.of_companion(sequence))
    }

    /// All of them.
    pub fn values(&self) -> &[usize] {
        &self.0
    }

    /// As many places, from where the sequence before has its part.
    #[cfg(feature = "mutants")]
    fn of_companion(&self, sequence: usize) -> Range<usize> {
        let start = self.0[sequence.saturating_sub(1)];
        start..start + self.0[sequence + 1] - self.0[sequence]
    }
}

/// The drafts of packed arrays, each with its nodes numbered from its own root.
///
/// # Errors
/// Arrays of different lengths, or what [`TokenTree::new`] and [`Draft::new`] refuse, with the
/// sequence.
pub fn unpack(
    offsets: &Offsets,
    parents: &[i64],
    tokens: &[i64],
    laws: Each<'_, Law>,
    sampled: Option<&[bool]>,
) -> Result<Vec<Draft>> {
    let total = offsets.total();
    laws.check("law", offsets.len())?;
    let lengths = [
        ("parents", parents.len()),
        ("tokens", tokens.len()),
        ("sampled", sampled.map_or(total, <[bool]>::len)),
    ];
    for (what, found) in lengths {
        if found != total {
            return Err(Error::ShapeMismatch {
                what,
                found: format!("({found},)"),
                wanted: format!("({total},), one for each node"),
            });
        }
    }
    (0..offsets.len())
        .map(|sequence| {
            let part = offsets.part(sequence);
            let law = laws.get(sequence);
            // Of different laws only some take flags.
            let takes = matches!(laws, Each::Same(_)) || law.takes_sampled();
            let flags = sampled.filter(|_| takes).map(|flags| flags[part.clone()].to_vec());
            TokenTree::new(&parents[part.clone()])
                .and_then(|tree| Draft::new(tree, tokens[part].to_vec(), law, flags))
                .map_err(at(sequence as i64))
        })
        .collect()
}

/// Chains of the first `lengths[b]` tokens of each row, below the given roots.
///
/// # Errors
/// Arrays of different lengths, [`Error::ParamOutOfRange`] for a length beyond the row, or what
/// [`Draft::new`] refuses, with the sequence.
pub fn chains(tokens: &[Vec<i64>], lengths: &[i64], roots: &[i64], law: Law) -> Result<Vec<Draft>> {
    check_len("lengths", lengths.len(), tokens.len())?;
    check_len("roots", roots.len(), tokens.len())?;
    let chain = |sequence: usize| {
        let (row, length) = (&tokens[sequence], lengths[sequence]);
        let Some(kept) = usize::try_from(length).ok().and_then(|length| row.get(..length)) else {
            return Err(Error::ParamOutOfRange {
                name: "lengths",
                value: format!("{length} of {} tokens", row.len()),
                wanted: "0 <= length <= K",
            });
        };
        let tokens = [&roots[sequence..=sequence], kept].concat();
        Draft::new(TokenTree::chain(kept.len())?, tokens, law, None)
    };
    (0..tokens.len()).map(|sequence| chain(sequence).map_err(at(sequence as i64))).collect()
}
