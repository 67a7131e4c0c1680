//! Rules: which drafted tokens are kept, and which token follows.
//!
//! A rule is a scalar program over two traits, [`view::View`] (rows) and [`crate::chance::Choices`]
//! (chance), generic over the number type. Production runs it over lazily read logits and Philox
//! noise; the proof runs the same function over exact rationals and every branch.

pub mod declared;
pub mod dense;
mod drafted;
mod expect;
pub mod law;
pub mod lazy;
pub mod lossy;
mod memory;
pub mod optimum;
mod places;
pub mod residual;
pub mod rules;
pub mod top;
mod verdict;
pub mod view;

use crate::chance::enumerator::enumerate;
use crate::chance::{Choices, Philox, Purpose, Site};
use crate::error::{Error, Result};
use crate::rows::RawRows;
use crate::shaping::{Params, ShapedRows, Side};
use crate::tree::TokenTree;

use law::{Draft, Law};
use lazy::{DrafterRows, LazyView};
use lossy::Lossy;
use view::{Mix, Outcome, View};

pub use expect::expected;
pub use rules::{Core, RULES, Rule, best_rule, decide, resolve};
pub use verdict::Verdict;

/// The noise address of a step.
#[derive(Debug, Clone, Copy)]
pub struct Noise {
    /// The sequence's seed.
    pub seed: u64,
    /// The absolute index of the root token.
    pub position: u64,
}

impl Noise {
    /// The source of choices of the step, whose draft is `depth` levels deep.
    ///
    /// # Errors
    /// [`Error::Overflow`] if a position does not fit the 32-bit word of the address.
    pub fn philox(self, depth: usize) -> Result<Philox> {
        let limit = u64::from(u32::MAX) - 1 - depth as u64;
        if self.position > limit {
            return Err(Error::Overflow { what: "position", found: self.position, limit });
        }
        Ok(Philox::new(self.seed, self.position as u32))
    }
}

/// Verifies a draft against the target's logits, one row for each node.
///
/// The logits are borrowed and read lazily: only rows that the decision reaches are touched. With
/// `lossy` no rule runs, and the verdict says so.
///
/// # Errors
/// Shapes and tokens that do not fit, rules that are illegal for the draft's law, and rows that are
/// not distributions, each named; nothing is changed by a refused call.
pub fn verify(
    draft: &Draft,
    drafter: DrafterRows<'_>,
    logits: RawRows<'_>,
    params: Params,
    rule: &str,
    lossy: Option<Lossy>,
    noise: Noise,
) -> Result<Verdict> {
    let target = ShapedRows::new(logits, params, Side::Target);
    verify_shaped(draft, drafter, target, rule, lossy, noise)
}

/// The same for rows that may have been edited: see [`ShapedRows::edited`].
///
/// # Errors
/// As [`verify`].
pub fn verify_shaped(
    draft: &Draft,
    drafter: DrafterRows<'_>,
    target: ShapedRows<'_>,
    rule: &str,
    lossy: Option<Lossy>,
    noise: Noise,
) -> Result<Verdict> {
    let (core, mut name) = resolve_under(rule, draft, &drafter, &target)?;
    if let Some(lossy) = lossy {
        lossy.check(rule, target.params())?;
        lossy.check_draft(draft)?;
        name = lossy.name();
    }
    let tree = draft.tree();
    let deepest = (0..tree.num_nodes()).map(|node| tree.depth(node)).max().unwrap_or(0);
    let mut choices = noise.philox(deepest)?;
    let mut view = LazyView::new(draft, target, drafter);
    let outcome = match lossy {
        Some(lossy) => lossy::decide(lossy, draft, &mut view, &mut choices)?,
        None => decide(core, draft, &mut view, &mut choices)?,
    };
    // Only an ensemble emits what the target cannot.
    let is_possible = !matches!(lossy, Some(Lossy::Ensemble { .. }));
    verdict(&mut view, outcome, name, is_possible)
}

/// What a rule decided, with the target's log-probabilities.
///
/// # Errors
/// [`Error::RowChanged`] for a token that must be possible, and whose row says otherwise by now.
fn verdict(
    view: &mut LazyView<'_>,
    outcome: Outcome,
    rule: &'static str,
    is_possible: bool,
) -> Result<Verdict> {
    let mut logprobs = Vec::with_capacity(outcome.tokens.len());
    let mut node = 0;
    for (index, &token) in outcome.tokens.iter().enumerate() {
        let logprob = view.log_probability(node, token)? as f32;
        if is_possible && logprob == f32::NEG_INFINITY {
            return Err(Error::RowChanged { side: "target", row: node });
        }
        logprobs.push(logprob);
        if let Some(&next) = outcome.path.get(index) {
            node = next as usize;
        }
    }
    Ok(Verdict { tokens: outcome.tokens, path: outcome.path, logprobs, rule })
}

/// Checks that there is one row for each node of a draft.
///
/// # Errors
/// [`Error::ShapeMismatch`].
pub fn check_rows(draft: &Draft, rows: usize) -> Result<()> {
    if rows == draft.num_nodes() {
        return Ok(());
    }
    Err(Error::ShapeMismatch {
        what: "logits",
        found: format!("{rows} rows"),
        wanted: format!("{} rows, one for each node of the draft", draft.num_nodes()),
    })
}

/// Checks that a rule can verify drafts of some laws under sampling parameters.
///
/// # Errors
/// As [`resolve`]; [`Error::GreedyTemperature`] for greedy verification at a temperature above 0;
/// [`Error::IllegalLossy`] for what `lossy` cannot be combined with.
pub fn check_rule(rule: &str, laws: &[Law], params: Params, lossy: Option<Lossy>) -> Result<()> {
    resolve_at(rule, rules::first_law(rule).unwrap_or(Law::Deterministic), params)?;
    laws.iter().try_for_each(|&law| resolve_at(rule, law, params).map(|_| ()))?;
    lossy.map_or(Ok(()), |lossy| lossy.check(rule, params))
}

/// The core that runs for a law at a temperature.
fn resolve_at(rule: &str, law: Law, params: Params) -> Result<(Core, &'static str)> {
    match resolve(rule, law)? {
        _ if params.is_greedy() => Ok((Core::Greedy, "greedy")),
        (Core::Greedy, _) => Err(Error::GreedyTemperature { temperature: params.temperature() }),
        found => Ok(found),
    }
}

/// The core that runs on a draft under sampling parameters, and the reported name.
///
/// # Errors
/// As [`resolve`]; [`Error::GreedyTemperature`] for greedy verification at a temperature above 0.
pub fn resolve_draft(rule: &str, draft: &Draft, params: Params) -> Result<(Core, &'static str)> {
    match resolve_at(rule, draft.law(), params) {
        // Nothing was drafted, by whatever law: the target's token is drawn.
        Err(Error::IllegalPair { .. }) if draft.num_nodes() == 1 => {
            resolve_at("target_only", draft.law(), params)
        }
        found => found,
    }
}

/// The core that runs on a draft under sampling parameters, once all rows are seen to fit.
fn resolve_under(
    rule: &str,
    draft: &Draft,
    drafter: &DrafterRows<'_>,
    target: &ShapedRows<'_>,
) -> Result<(Core, &'static str)> {
    let found = resolve_draft(rule, draft, target.params())?;
    check_rows(draft, target.num_rows())?;
    draft.check_vocabulary(target.num_cols())?;
    declared::check_fit(draft, drafter, target.num_cols())?;
    Ok(found)
}

/// The exact mean of the number of accepted tokens over the verifier's noise, for a draft as it is.
///
/// # Errors
/// As [`verify`]; and [`Error::LawData`] for the coupled rule on a coupled draft, whose tokens tell
/// about the noise.
pub fn expected_accepted(
    draft: &Draft,
    drafter: DrafterRows<'_>,
    target: ShapedRows<'_>,
    rule: &str,
) -> Result<f64> {
    let (core, _) = resolve_under(rule, draft, &drafter, &target)?;
    let mut view = LazyView::new(draft, target, drafter);
    expected(core, draft, &mut view)
}

/// Every verdict that a rule can give on a draft as it is, or the error that it ends with, each with
/// its probability over the verifier's noise: what the proof of a loop needs.
///
/// # Errors
/// As [`expected_accepted`], but for those of rows that a branch comes to.
pub fn verdicts(
    draft: &Draft,
    drafter: DrafterRows<'_>,
    target: ShapedRows<'_>,
    rule: &str,
) -> Result<Vec<(Result<Verdict>, f64)>> {
    let (core, name) = resolve_under(rule, draft, &drafter, &target)?;
    let core = expect::enumerable(core, draft)?;
    enumerate(|choices| {
        let mut view = LazyView::new(draft, target, drafter);
        let outcome = decide(core, draft, &mut view, choices);
        Ok(outcome.and_then(|outcome| verdict(&mut view, outcome, name, true)))
    })
}

/// Draws the token of `node` from a drafter's row of logits, with the drafter's own noise.
///
/// # Errors
/// If there is not one row, it is not a distribution, or the position does not fit.
pub fn draw(logits: RawRows<'_>, params: Params, noise: Noise, node: u32) -> Result<u32> {
    logits.check_single("logits")?;
    let mut choices = noise.philox(0)?;
    let root = Draft::new(TokenTree::chain(0)?, vec![-1], Law::Deterministic, None)?;
    let rows = ShapedRows::new(logits, params, Side::Drafter);
    let mut view = LazyView::new(&root, rows, DrafterRows::NONE);
    let mix = Mix::target();
    let mut cells = view.mixture(0, &mix)?;
    choices.draw(Site::new(node as usize, Purpose::Draft), &mut cells)
}
