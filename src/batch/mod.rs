//! Many sequences at once: what belongs to each inside packed arrays, and a verdict for each.
//!
//! A sequence's verdict is the one that [`verify::verify`] gives for it alone, bit for bit: nothing
//! is reduced across sequences, and no number of one is drawn for another. One bad sequence refuses
//! the whole batch, so that no step is half done.

mod changes;
pub mod fpmode;
mod layout;
mod packed;
pub mod threads;

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::error::{Error, Result};
use crate::mutants::mutate;
use crate::rows::RawRows;
use crate::shaping::{Edits, Params, ShapedRows, Side};
use crate::verify::law::Draft;
use crate::verify::lazy::DrafterRows;
use crate::verify::lossy::{self, Lossy};
use crate::verify::top::TopLogprobs;
use crate::verify::{self, Noise, Verdict};

pub use changes::Changes;
pub use layout::Layout;
pub use packed::{Offsets, chains, unpack};

/// Values of logits for each thread below which a thread costs more than it saves: waking one takes
/// some tens of microseconds, in which a core reads about as many.
const VALUES_PER_THREAD: usize = 1 << 18;

/// The noise addresses of a batch's steps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Addresses {
    /// Each sequence's own seed.
    pub seeds: Vec<u64>,
    /// The absolute index of each sequence's root token.
    pub positions: Vec<u64>,
}

impl Addresses {
    /// The address of a sequence's step.
    pub fn noise(&self, sequence: usize) -> Noise {
        let seed = self.seeds[mutate!("batch/seed_of_companion", sequence, 0)];
        let position = self.positions[mutate!("batch/position_of_companion", sequence, 0)];
        Noise { seed, position }
    }
}

/// A value for each sequence, or one for all.
#[derive(Debug, Clone, Copy)]
pub enum Each<'a, T> {
    /// The same for all.
    Same(T),
    /// One for each.
    Own(&'a [T]),
}

impl<T: Copy> Each<'_, T> {
    fn get(&self, sequence: usize) -> T {
        match self {
            Self::Same(value) => *value,
            Self::Own(values) => values[sequence],
        }
    }

    /// A value for each of the sequences.
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`] if there are more or fewer.
    pub fn listed(&self, name: &'static str, sequences: usize) -> Result<Vec<T>> {
        self.check(name, sequences)?;
        Ok((0..sequences).map(|sequence| self.get(sequence)).collect())
    }

    fn check(&self, name: &'static str, sequences: usize) -> Result<()> {
        match self {
            Self::Same(_) => Ok(()),
            Self::Own(values) => check_len(name, values.len(), sequences),
        }
    }
}

/// The target's rows of a batch.
#[derive(Debug, Clone)]
pub enum Logits<'a> {
    /// The rows of all nodes of all sequences, one after the other.
    Packed(RawRows<'a>),
    /// The rows of each sequence; `padded` if rows beyond its nodes are to be left alone.
    Own {
        /// One matrix for each.
        rows: Vec<RawRows<'a>>,
        /// Whether a matrix may have more rows than the sequence has nodes.
        padded: bool,
    },
}

/// A batch: what [`verify::verify`] takes, for each sequence.
#[derive(Debug, Clone)]
pub struct Batch<'a> {
    /// The drafts.
    pub drafts: Vec<&'a Draft>,
    /// The drafter's rows of each draft.
    pub drafters: Vec<DrafterRows<'a>>,
    /// The target's rows.
    pub logits: Logits<'a>,
    /// How rows are shaped.
    pub params: Each<'a, Params>,
    /// Names of rules.
    pub rules: Each<'a, &'a str>,
    /// Lossy acceptances that decide in a rule's place.
    pub lossy: Each<'a, Option<Lossy>>,
    /// Noise addresses.
    pub addresses: Addresses,
    /// What is done to each sequence's rows before they are shaped, or none for nothing at all.
    pub edits: &'a [Edits<'a>],
    /// How many of the most likely tokens to list behind each emitted one.
    pub top_logprobs: Each<'a, usize>,
}

/// One sequence's part of a batch.
struct Request<'a> {
    draft: &'a Draft,
    drafter: DrafterRows<'a>,
    target: ShapedRows<'a>,
    rule: &'a str,
    lossy: Option<Lossy>,
    noise: Noise,
    top_logprobs: usize,
}

impl Request<'_> {
    fn verify(&self) -> Result<(Verdict, Option<TopLogprobs>)> {
        let Self { draft, drafter, target, rule, lossy, noise, top_logprobs: n } = *self;
        let verdict = verify::verify_shaped(draft, drafter, target, rule, lossy, noise)?;
        let top = (n > 0).then(|| TopLogprobs::new(&target, &verdict, n)).transpose()?;
        Ok((verdict, top))
    }
}

/// This error, said of one sequence of the batch.
fn at(sequence: i64) -> impl Fn(Error) -> Error {
    move |error| error.in_sequence(sequence)
}

fn check_len(what: &'static str, found: usize, wanted: usize) -> Result<()> {
    if found == wanted {
        return Ok(());
    }
    Err(Error::ShapeMismatch {
        what,
        found: format!("{found} entries"),
        wanted: format!("{wanted}, one for each draft"),
    })
}

impl<'a> Batch<'a> {
    /// The target's rows of each sequence.
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`] if there are more or fewer than the drafts have nodes; in one of several
    /// matrices that is said by [`Batch::verify`].
    pub fn rows(&self) -> Result<Vec<RawRows<'a>>> {
        let count = self.drafts.len();
        let offsets = Offsets::of(self.drafts.iter().map(|draft| draft.num_nodes()));
        match &self.logits {
            Logits::Packed(rows) if rows.num_rows() != offsets.total() => {
                Err(Error::ShapeMismatch {
                    what: "logits",
                    found: format!("{} rows", rows.num_rows()),
                    wanted: format!("{} rows, one for each node of each draft", offsets.total()),
                })
            }
            Logits::Packed(rows) => (0..count).map(|b| rows.part(offsets.part(b))).collect(),
            Logits::Own { rows, padded } => {
                check_len("logits", rows.len(), count)?;
                let own = |(b, rows): (usize, &RawRows<'a>)| match padded {
                    true => rows.part(0..self.drafts[b].num_nodes()).map_err(at(b as i64)),
                    false => Ok(*rows),
                };
                rows.iter().enumerate().map(own).collect()
            }
        }
    }

    /// The parts of all sequences, once the arrays are seen to fit each other.
    fn requests(&self) -> Result<Vec<Request<'a>>> {
        let count = self.drafts.len();
        check_len("drafter rows", self.drafters.len(), count)?;
        check_len("seeds", self.addresses.seeds.len(), count)?;
        check_len("positions", self.addresses.positions.len(), count)?;
        self.params.check("params", count)?;
        self.rules.check("rule", count)?;
        self.lossy.check("lossy", count)?;
        self.top_logprobs.check("top_logprobs", count)?;
        if !self.edits.is_empty() {
            check_len("histories", self.edits.len(), count)?;
        }
        let rows = self.rows()?;
        (0..count)
            .map(|sequence| {
                let params = self.params.get(sequence);
                let target = ShapedRows::new(rows[sequence], params, Side::Target);
                Ok(Request {
                    draft: self.drafts[sequence],
                    drafter: self.drafters[sequence],
                    target: self.edits.get(sequence).map_or(target, |edits| target.edited(edits)),
                    rule: self.rules.get(sequence),
                    lossy: self.lossy.get(sequence),
                    noise: self.addresses.noise(sequence),
                    top_logprobs: self.top_logprobs.get(sequence),
                })
            })
            .collect()
    }

    /// Verifies all drafts.
    ///
    /// # Errors
    /// Arrays that do not fit each other; else [`Error::InSequence`] with the error of the first
    /// sequence (by its place in the batch) that has one.
    pub fn verify(&self) -> Result<VerdictBatch> {
        let requests = self.requests()?;
        let values: usize =
            requests.iter().map(|r| r.target.num_rows() * r.target.num_cols()).sum();
        // Sequences behind one that failed need no verdict.
        let failed = AtomicUsize::new(usize::MAX);
        let places: Vec<usize> = (0..requests.len()).collect();
        let verdicts = threads::map(&places, values / VALUES_PER_THREAD, |&place| {
            if failed.load(Ordering::Relaxed) < place {
                return None;
            }
            let verdict = requests[place].verify();
            if verdict.is_err() {
                failed.fetch_min(place, Ordering::Relaxed);
            }
            Some(verdict)
        });
        let mut batch = VerdictBatch::default();
        for (sequence, verdict) in (0..).zip(verdicts) {
            if let Some(verdict) = verdict {
                let (verdict, top) = verdict.map_err(at(sequence))?;
                batch.push(&verdict, top);
            }
        }
        Ok(batch)
    }
}

/// The verdicts of a batch, one after the other.
#[derive(Debug, Clone, PartialEq)]
pub struct VerdictBatch {
    /// Emitted tokens.
    pub tokens: Vec<i64>,
    /// Sequence `b` emitted `tokens[offsets[b]..offsets[b + 1]]`; the last of them is not in its path.
    pub offsets: Vec<usize>,
    /// Accepted nodes, numbered from each sequence's root; see [`Self::path_of`].
    pub path: Vec<i64>,
    /// The shaped log-probability of each emitted token under the target.
    pub logprobs: Vec<f32>,
    /// The rule that ran for each sequence.
    pub rules: Vec<&'static str>,
    /// The most likely tokens behind the emitted ones of each sequence, where asked for.
    pub tops: Vec<Option<TopLogprobs>>,
}

impl Default for VerdictBatch {
    fn default() -> Self {
        let (tokens, path, logprobs) = (Vec::new(), Vec::new(), Vec::new());
        Self { tokens, offsets: vec![0], path, logprobs, rules: Vec::new(), tops: Vec::new() }
    }
}

impl VerdictBatch {
    /// The number of sequences.
    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// The batch with one more sequence.
    pub fn push(&mut self, verdict: &Verdict, top: Option<TopLogprobs>) {
        self.tokens.extend(verdict.tokens.iter().map(|&token| i64::from(token)));
        self.path.extend(verdict.path.iter().map(|&node| i64::from(node)));
        self.logprobs.extend(&verdict.logprobs);
        self.offsets.push(self.tokens.len());
        self.rules.push(verdict.rule);
        self.tops.push(top);
    }

    /// Whether the tokens of all sequences have the target's law.
    pub fn is_lossless(&self) -> bool {
        !self.rules.iter().any(|rule| lossy::is_name(rule))
    }

    /// The path of a sequence of the batch.
    pub fn path_of(&self, sequence: usize) -> &[i64] {
        // Each sequence before this one emitted one token more than it accepted.
        &self.path[self.offsets[sequence] - sequence..self.offsets[sequence + 1] - sequence - 1]
    }

    /// The verdict of a sequence of the batch.
    pub fn get(&self, sequence: usize) -> Verdict {
        let part = self.offsets[sequence]..self.offsets[sequence + 1];
        Verdict {
            tokens: self.tokens[part.clone()].iter().map(|&token| token as u32).collect(),
            path: self.path_of(sequence).iter().map(|&node| node as u32).collect(),
            logprobs: self.logprobs[part].to_vec(),
            rule: self.rules[sequence],
        }
    }

    /// The batch with the first `counts[b] >= 1` tokens of each sequence; see [`Verdict::cut`].
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`] for another number of counts, [`Error::ParamOutOfRange`] for a count
    /// of 0 or beyond what was emitted, with the sequence.
    pub fn cut(&self, counts: &[i64]) -> Result<Self> {
        check_len("counts", counts.len(), self.len())?;
        let mut cut = Self::default();
        for (sequence, &count) in counts.iter().enumerate() {
            let mut verdict = self.get(sequence);
            let emitted = verdict.tokens.len();
            let Some(n) = usize::try_from(count).ok().filter(|n| (1..=emitted).contains(n)) else {
                let wanted = "1 <= count <= number of emitted tokens";
                let error =
                    Error::ParamOutOfRange { name: "counts", value: count.to_string(), wanted };
                return Err(at(sequence as i64)(error));
            };
            verdict.cut(n);
            let mut top = self.tops[sequence].clone();
            if let Some(top) = &mut top {
                top.cut(n);
            }
            cut.push(&verdict, top);
        }
        Ok(cut)
    }
}

#[cfg(test)]
mod tests;
