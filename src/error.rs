//! Every way in which input can be wrong, each with the place, what was found and what was wanted.
//!
//! A variant keeps its facts as fields; the message is put together only when it is printed. The
//! bindings map each variant to a Python exception in one exhaustive match.

use thiserror::Error;

/// The result of everything here that can fail.
pub type Result<T> = std::result::Result<T, Error>;

/// What can be wrong. Messages say where, what was found, what was wanted and what to do.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum Error {
    /// `parents` does not describe a tree in topological order.
    #[error(
        "node {node}: parent {parent} is not an earlier node; order the nodes so that \
         parents[0] = -1 and 0 <= parents[i] < i"
    )]
    BadParent {
        /// The node whose parent is wrong.
        node: usize,
        /// The parent found.
        parent: i64,
    },
    /// A size disagrees with another one.
    #[error("{what}: found {found}, wanted {wanted}")]
    ShapeMismatch {
        /// Which array.
        what: &'static str,
        /// The shape found.
        found: String,
        /// The shape wanted.
        wanted: String,
    },
    /// An array has an element type that is not read.
    #[error("{what}: dtype {found} is not supported; use {wanted}")]
    BadDtype {
        /// Which array.
        what: &'static str,
        /// The dtype found.
        found: String,
        /// The dtypes that are read.
        wanted: &'static str,
    },
    /// A tensor lives where the core cannot read it, or in a form that it cannot borrow.
    #[error("{what}: {found}; {todo}")]
    BadTensor {
        /// Which array.
        what: &'static str,
        /// What is wrong with it.
        found: String,
        /// What to do.
        todo: &'static str,
    },
    /// A token id is outside the vocabulary of the rows.
    #[error("node {node}: token {token} is outside the vocabulary of {vocab} tokens")]
    TokenOutOfVocabulary {
        /// The node that carries the token.
        node: usize,
        /// The token found.
        token: i64,
        /// The number of tokens in a row.
        vocab: usize,
    },
    /// Two children of one node carry the same token under a law that draws without replacement.
    #[error(
        "node {node}: token {token} repeats its sibling node {sibling}; law \"{law}\" has distinct \
         siblings (only \"iid\" may repeat)"
    )]
    DuplicateSibling {
        /// The later sibling.
        node: usize,
        /// The earlier sibling.
        sibling: usize,
        /// The token of both.
        token: u32,
        /// The declared law.
        law: &'static str,
    },
    /// A draft's tree has a form that its law cannot have.
    #[error("node {node}: law \"{law}\" {reason}")]
    LawShape {
        /// The node where it shows.
        node: usize,
        /// The declared law.
        law: &'static str,
        /// Why the law forbids it.
        reason: &'static str,
    },
    /// A law that needs the drafter's rows came without them, or the other way round.
    #[error("law \"{law}\" {reason}")]
    LawData {
        /// The declared law.
        law: &'static str,
        /// What is missing or too much.
        reason: &'static str,
    },
    /// A node's parent has no drafter row although the node was sampled from it.
    #[error("node {node}: its parent, node {parent}, has no drafter row (rows[{parent}] = {row})")]
    MissingRow {
        /// The sampled node.
        node: usize,
        /// Its parent.
        parent: usize,
        /// The row index found.
        row: i64,
    },
    /// A drafted token has no probability under the law it is said to be drawn from.
    #[error(
        "node {node}: the drafter's row gives token {token} the probability {found}; a sampled \
         token has q > 0 (2^-900 at least), so this row is not the one it was drawn from"
    )]
    ZeroDraftProbability {
        /// The sampled node.
        node: usize,
        /// Its token.
        token: u32,
        /// The value found.
        found: String,
    },
    /// A deterministic child of a top-plus-one draft that is not among the most likely tokens.
    #[error(
        "node {node}: token {token} has q = {found}, and token {better} outside the set has {most}; \
         law \"top_plus_one\" keeps the most likely tokens (another set is law \"mixed\")"
    )]
    NotTheTop {
        /// The child.
        node: usize,
        /// Its token.
        token: u32,
        /// Its probability.
        found: String,
        /// A token that is more likely and was left out.
        better: u32,
        /// That token's probability.
        most: String,
    },
    /// An unknown law.
    #[error("law \"{found}\" is unknown; use one of: {known}")]
    UnknownLaw {
        /// What was asked.
        found: String,
        /// The known laws.
        known: String,
    },
    /// A parameter outside its range.
    #[error("{name}: found {value}, wanted {wanted}")]
    ParamOutOfRange {
        /// The parameter.
        name: &'static str,
        /// The value found.
        value: String,
        /// The legal range.
        wanted: &'static str,
    },
    /// An unknown rule.
    #[error("rule \"{found}\" is unknown; use \"auto\" or one of: {known}")]
    UnknownRule {
        /// What was asked.
        found: String,
        /// The known rules.
        known: String,
    },
    /// A rule that is not lossless for the draft's law.
    #[error("rule \"{rule}\" cannot verify law \"{law}\"; use rule=\"auto\" or one of: {legal}")]
    IllegalPair {
        /// The rule asked for.
        rule: String,
        /// The draft's law.
        law: &'static str,
        /// The rules that are lossless for it.
        legal: String,
    },
    /// A rule that is lossless for the law, but not on trees of this form.
    #[error("rule \"{rule}\" needs {wanted}; node {node} {found}; use rule=\"auto\"")]
    RuleShape {
        /// The rule asked for.
        rule: &'static str,
        /// The form that the rule verifies.
        wanted: &'static str,
        /// The node where the tree departs from it.
        node: usize,
        /// How it departs.
        found: &'static str,
    },
    /// `rule="greedy"` with a temperature above 0.
    #[error("rule \"greedy\" needs temperature 0, found {temperature}; set temperature=0")]
    GreedyTemperature {
        /// The temperature found.
        temperature: f64,
    },
    /// A lossy acceptance where it cannot be.
    #[error("lossy acceptance \"{lossy}\": found {found}, wanted {wanted}")]
    IllegalLossy {
        /// Its name.
        lossy: &'static str,
        /// What it came with.
        found: String,
        /// What it needs.
        wanted: &'static str,
    },
    /// A row holds a value that no distribution has.
    #[error("{side} row {row}: {found} at token {token}; {wanted}")]
    RowNotFinite {
        /// "target" or "drafter".
        side: &'static str,
        /// The row.
        row: usize,
        /// The token where it was found.
        token: usize,
        /// The value found.
        found: String,
        /// What a row may hold.
        wanted: &'static str,
    },
    /// A row leaves nothing to draw from.
    #[error("{side} row {row}: no token is left to draw from ({reason})")]
    RowEmpty {
        /// "target" or "drafter".
        side: &'static str,
        /// The row.
        row: usize,
        /// Why nothing is left.
        reason: &'static str,
    },
    /// A row of probabilities does not sum to 1.
    #[error("drafter row {row}: probabilities sum to {sum}, wanted 1 within 1e-2")]
    RowNotNormalised {
        /// The row.
        row: usize,
        /// The sum found.
        sum: f64,
    },
    /// A row gave other values when it was read again.
    #[error(
        "{side} row {row}: the row changed while it was read; it must not be written to until the call \
         returns"
    )]
    RowChanged {
        /// "target" or "drafter".
        side: &'static str,
        /// The row.
        row: usize,
    },
    /// Nodes that are not a path of the tree from the root down.
    #[error("path[{index}] = {node}: {reason}")]
    NotAPath {
        /// The place in the path.
        index: usize,
        /// The node found there.
        node: i64,
        /// Why it cannot stand there.
        reason: &'static str,
    },
    /// A number too large for the index type of what it counts.
    #[error("{what}: {found} overflows; wanted at most {limit}")]
    Overflow {
        /// What is counted.
        what: &'static str,
        /// The number found.
        found: u64,
        /// The largest legal one.
        limit: u64,
    },
    /// A sequence that is not in the table.
    #[error("sequence {sequence} is not in the table (never added, or released); add it first")]
    UnknownSequence {
        /// The sequence asked for.
        sequence: i64,
    },
    /// A sequence where another one was needed.
    #[error("sequence {sequence} {reason}")]
    DuplicateSequence {
        /// The sequence.
        sequence: i64,
        /// Where it is already, and what to do.
        reason: &'static str,
    },
    /// More blocks are needed than are free.
    #[error(
        "{missing} more blocks are needed than are free (the pool has {total}); release or roll back \
         sequences: the error's holders, the largest first"
    )]
    OutOfBlocks {
        /// How many are missing.
        missing: usize,
        /// All blocks of the pool.
        total: usize,
        /// The sequences that hold blocks, the largest first.
        holders: Vec<i64>,
    },
    /// A sequence without an open reservation.
    #[error("sequence {sequence} has no open reservation; call reserve before this")]
    NoReservation {
        /// The sequence.
        sequence: i64,
    },
    /// A sequence whose reservation is still open.
    #[error(
        "sequence {sequence} has an open reservation of {reserved} slots; commit it, or drop it with \
         rollback to the sequence's length"
    )]
    OpenReservation {
        /// The sequence.
        sequence: i64,
        /// The slots reserved.
        reserved: usize,
    },
    /// A tree that is not the one that slots were reserved for.
    #[error(
        "sequence {sequence}: the tree has {nodes} nodes with its root, {reserved} slots are reserved; \
         reserve as many slots as the tree has nodes"
    )]
    ReservationMismatch {
        /// The sequence.
        sequence: i64,
        /// The nodes of the tree.
        nodes: usize,
        /// The slots reserved.
        reserved: usize,
    },
    /// The numbers of a block table that no sequence of calls leads to.
    #[error("state: found {found}, wanted what pickling a BlockTable of these sizes gives")]
    BadState {
        /// What does not hold.
        found: String,
    },
    /// Any other error, at one sequence of a batch.
    #[error("sequence {sequence}: {source}")]
    InSequence {
        /// The sequence.
        sequence: i64,
        /// What is wrong there.
        source: Box<Error>,
    },
}

impl Error {
    /// The stable short name of this kind of error.
    pub fn slug(&self) -> &'static str {
        match self {
            Self::BadParent { .. } => "bad_parent",
            Self::ShapeMismatch { .. } => "shape_mismatch",
            Self::BadDtype { .. } => "bad_dtype",
            Self::BadTensor { .. } => "bad_tensor",
            Self::TokenOutOfVocabulary { .. } => "token_out_of_vocabulary",
            Self::DuplicateSibling { .. } => "duplicate_sibling",
            Self::LawShape { .. } => "law_shape",
            Self::LawData { .. } => "law_data",
            Self::MissingRow { .. } => "missing_row",
            Self::ZeroDraftProbability { .. } => "zero_draft_probability",
            Self::NotTheTop { .. } => "not_the_top",
            Self::UnknownLaw { .. } => "unknown_law",
            Self::ParamOutOfRange { .. } => "param_out_of_range",
            Self::UnknownRule { .. } => "unknown_rule",
            Self::IllegalPair { .. } => "illegal_pair",
            Self::RuleShape { .. } => "rule_shape",
            Self::GreedyTemperature { .. } => "greedy_temperature",
            Self::IllegalLossy { .. } => "illegal_lossy",
            Self::RowNotFinite { .. } => "row_not_finite",
            Self::RowEmpty { .. } => "row_empty",
            Self::RowNotNormalised { .. } => "row_not_normalised",
            Self::RowChanged { .. } => "row_changed",
            Self::NotAPath { .. } => "not_a_path",
            Self::Overflow { .. } => "overflow",
            Self::UnknownSequence { .. } => "unknown_sequence",
            Self::DuplicateSequence { .. } => "duplicate_sequence",
            Self::OutOfBlocks { .. } => "out_of_blocks",
            Self::NoReservation { .. } => "no_reservation",
            Self::OpenReservation { .. } => "open_reservation",
            Self::ReservationMismatch { .. } => "reservation_mismatch",
            Self::BadState { .. } => "bad_state",
            Self::InSequence { source, .. } => source.slug(),
        }
    }

    /// The node that the error is about, if it is about one.
    pub fn node(&self) -> Option<usize> {
        match *self {
            Self::BadParent { node, .. }
            | Self::TokenOutOfVocabulary { node, .. }
            | Self::DuplicateSibling { node, .. }
            | Self::LawShape { node, .. }
            | Self::MissingRow { node, .. }
            | Self::RuleShape { node, .. }
            | Self::NotTheTop { node, .. }
            | Self::ZeroDraftProbability { node, .. } => Some(node),
            Self::InSequence { ref source, .. } => source.node(),
            _ => None,
        }
    }

    /// The same error about another row: for rows that were read one by one.
    #[must_use]
    pub fn at_row(mut self, number: usize) -> Self {
        if let Self::RowNotFinite { row, .. }
        | Self::RowEmpty { row, .. }
        | Self::RowChanged { row, .. } = &mut self
        {
            *row = number;
        }
        self
    }

    /// The row that the error is about, if it is about one.
    pub fn row(&self) -> Option<usize> {
        match *self {
            Self::RowNotFinite { row, .. }
            | Self::RowEmpty { row, .. }
            | Self::RowNotNormalised { row, .. }
            | Self::RowChanged { row, .. } => Some(row),
            Self::InSequence { ref source, .. } => source.row(),
            _ => None,
        }
    }

    /// The sequence that the error is about, if it is about one.
    pub fn sequence(&self) -> Option<i64> {
        match *self {
            Self::UnknownSequence { sequence }
            | Self::DuplicateSequence { sequence, .. }
            | Self::NoReservation { sequence }
            | Self::OpenReservation { sequence, .. }
            | Self::ReservationMismatch { sequence, .. }
            | Self::InSequence { sequence, .. } => Some(sequence),
            _ => None,
        }
    }

    /// This error, said of one sequence.
    pub(crate) fn in_sequence(self, sequence: i64) -> Self {
        Self::InSequence { sequence, source: Box::new(self) }
    }
}
