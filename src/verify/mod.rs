//! Rules: which drafted tokens are kept, and which token follows.
//!
//! A rule is a scalar program over two traits, [`view::View`] (rows) and [`crate::choice::Choices`]
//! (chance), generic over the number type. Production runs it over lazily read logits and Philox
//! noise; the proof runs the same function over exact rationals and every branch.

mod coupled;
pub mod declared;
pub mod dense;
mod drafted;
mod expect;
mod gbv;
pub(crate) mod kseq;
pub mod law;
pub mod lazy;
mod lifted;
pub mod lossy;
mod memory;
pub mod optimum;
mod target_only;
pub mod top;
mod topdown;
mod verdict;
pub mod view;

use crate::choice::{Choices, Philox, Purpose, Site};
use crate::dist::{Params, ShapedRows, Side};
use crate::error::{Error, Result};
use crate::exact::enumerate;
use crate::num::Weight;
use crate::rows::RawRows;
use crate::tree::TokenTree;

use law::{Draft, Law};
use lazy::{DrafterRows, LazyView};
use lossy::Lossy;
use view::{Mix, Outcome, View};

pub use expect::expected;
pub use verdict::Verdict;

/// A decision core.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Core {
    /// One-hot rows: sample-and-compare without chance.
    Greedy,
    /// Sample from the target and compare.
    TargetOnly,
    /// The exponential race of a seed and a position.
    Coupled,
    /// Children tested one after the other, walking down.
    TopDown,
    /// Delivery probabilities carried down, decided from the leaves up.
    Lifted,
    /// Independent siblings tested against one raised drafter's row.
    KSeq,
    /// The best of several independent paths, verified as a chain.
    Gbv,
}

/// A name under which a core is asked for, with the laws that it is lossless for.
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    /// The name.
    pub name: &'static str,
    /// The core that runs.
    pub core: Core,
    /// The laws that it verifies without loss.
    pub laws: &'static [Law],
    /// Which trees.
    pub shapes: &'static str,
    /// Where it comes from.
    pub source: &'static str,
}

impl Rule {
    /// How its losslessness is known.
    pub fn proof(&self) -> &'static str {
        match self.core {
            Core::Greedy => "the walk of target_only, over rows without chance",
            _ => "every draft and every choice enumerated over exact rationals: distance 0",
        }
    }
}

const SAMPLED: &[Law] =
    &[Law::Deterministic, Law::Chain, Law::Iid, Law::Swor, Law::TopPlusOne, Law::Mixed];

/// Every rule by name: the cores first, then the literature's names for a core on a law.
///
/// `topdown`, `lifted` and their names also take a deterministic draft, where they run
/// `target_only`: without rows there is nothing else to test, and no rule accepts more.
pub const RULES: [Rule; 14] = [
    Rule {
        name: "greedy",
        core: Core::Greedy,
        laws: &Law::ALL,
        shapes: "any tree, temperature 0",
        source: "argmax of each row, ties to the lowest id",
    },
    Rule {
        name: "target_only",
        core: Core::TargetOnly,
        laws: &Law::ALL,
        shapes: "any tree",
        source: "sample and compare, arXiv 2305.09781",
    },
    Rule {
        name: "coupled",
        core: Core::Coupled,
        laws: &Law::ALL,
        shapes: "any tree",
        source: "Gumbel coupling, arXiv 2408.07978",
    },
    Rule {
        name: "topdown",
        core: Core::TopDown,
        laws: SAMPLED,
        shapes: "any tree of the law",
        source: "arXiv 2211.17192, 2305.09781, 2402.14160, 2502.18779",
    },
    Rule {
        name: "lifted",
        core: Core::Lifted,
        laws: SAMPLED,
        shapes: "any tree of the law",
        source: "arXiv 2403.10444, 2505.12398, 2502.18779",
    },
    Rule {
        name: "kseq",
        core: Core::KSeq,
        laws: &[Law::Iid],
        shapes: "any tree",
        source: "K-SEQ of SpecTr, arXiv 2310.15141",
    },
    Rule {
        name: "gbv",
        core: Core::Gbv,
        laws: &[Law::Chain, Law::Iid],
        shapes: "paths of one length from the root",
        source: "greedy multi-path block verification, arXiv 2602.16961",
    },
    Rule {
        name: "token",
        core: Core::TopDown,
        laws: &[Law::Deterministic, Law::Chain],
        shapes: "chains",
        source: "token-level rejection, arXiv 2211.17192, 2302.01318",
    },
    Rule {
        name: "block",
        core: Core::Lifted,
        laws: &[Law::Deterministic, Law::Chain],
        shapes: "chains",
        source: "block verification, arXiv 2403.10444",
    },
    Rule {
        name: "specinfer",
        core: Core::TopDown,
        laws: &[Law::Deterministic, Law::Iid],
        shapes: "any tree",
        source: "SpecInfer, arXiv 2305.09781",
    },
    Rule {
        name: "rrsw",
        core: Core::TopDown,
        laws: &[Law::Deterministic, Law::Swor],
        shapes: "any tree",
        source: "recursive rejection without replacement, arXiv 2402.14160",
    },
    Rule {
        name: "traversal",
        core: Core::Lifted,
        laws: &[Law::Deterministic, Law::Swor, Law::Iid],
        shapes: "any tree",
        source: "traversal verification, arXiv 2505.12398",
    },
    Rule {
        name: "hu",
        core: Core::TopDown,
        laws: &[Law::Deterministic, Law::TopPlusOne, Law::Mixed],
        shapes: "any tree",
        source: "arXiv 2502.18779",
    },
    Rule {
        name: "lifted_hu",
        core: Core::Lifted,
        laws: &[Law::Deterministic, Law::TopPlusOne, Law::Mixed],
        shapes: "any tree",
        source: "arXiv 2502.18779 inside the recursion of 2505.12398",
    },
];

/// The rule that `auto` means for a law: the one with the most expected tokens.
///
/// `lifted` is never below `topdown`, and for deterministic drafts `target_only` is optimal.
pub fn best_rule(law: Law) -> &'static Rule {
    let name = match law {
        Law::Deterministic | Law::Unknown => "target_only",
        Law::Coupled => "coupled",
        Law::Chain => "block",
        Law::Iid | Law::Swor => "traversal",
        Law::TopPlusOne | Law::Mixed => "lifted_hu",
    };
    find(name).unwrap_or(&RULES[1])
}

fn find(name: &str) -> Option<&'static Rule> {
    RULES.iter().find(|rule| rule.name == name)
}

/// The core and the reported name for a rule asked by name.
///
/// # Errors
/// [`Error::UnknownRule`], or [`Error::IllegalPair`] with the rules that are legal for the law; and
/// [`Error::IllegalLossy`] for the name of a lossy acceptance, which is no rule.
pub fn resolve(name: &str, law: Law) -> Result<(Core, &'static str)> {
    let rule = if name == "auto" {
        best_rule(law)
    } else if let Some(error) = lossy::asked_as_a_rule(name) {
        return Err(error);
    } else {
        find(name).ok_or_else(|| Error::UnknownRule {
            found: name.to_owned(),
            known: RULES.map(|rule| rule.name).join(", "),
        })?
    };
    if !rule.laws.contains(&law) {
        let legal: Vec<&str> =
            RULES.iter().filter(|r| r.laws.contains(&law)).map(|r| r.name).collect();
        return Err(Error::IllegalPair {
            rule: rule.name.to_owned(),
            law: law.name(),
            legal: legal.join(", "),
        });
    }
    if law == Law::Deterministic && matches!(rule.core, Core::TopDown | Core::Lifted) {
        return Ok((Core::TargetOnly, "target_only"));
    }
    Ok((rule.core, literature_name(rule, law)))
}

/// The literature's name for a core on a law, where there is one.
fn literature_name(rule: &'static Rule, law: Law) -> &'static str {
    match (rule.core, law) {
        (Core::TopDown, Law::Chain) => "token",
        (Core::TopDown, Law::Iid) => "specinfer",
        (Core::TopDown, Law::Swor) => "rrsw",
        (Core::TopDown, Law::TopPlusOne | Law::Mixed) => "hu",
        (Core::Lifted, Law::Chain) => "block",
        (Core::Lifted, Law::Iid | Law::Swor) => "traversal",
        (Core::Lifted, Law::TopPlusOne | Law::Mixed) => "lifted_hu",
        _ => rule.name,
    }
}

/// Runs a core: the one place where a rule is called, in production and in the proof.
///
/// # Errors
/// If a row that the rule reads is not a distribution.
pub fn decide<W: Weight, V: View<W>, C: Choices<W>>(
    core: Core,
    draft: &Draft,
    view: &mut V,
    choices: &mut C,
) -> Result<Outcome> {
    match core {
        Core::Greedy | Core::TargetOnly => target_only::decide(draft, view, choices),
        Core::Coupled => coupled::decide(draft, view, choices),
        Core::TopDown => topdown::decide(draft, view, choices),
        Core::Lifted => lifted::decide(draft, view, choices),
        Core::KSeq => kseq::decide(draft, view, choices),
        Core::Gbv => gbv::decide(draft, view, choices),
    }
}

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
        lossy.check(rule, draft, target.params())?;
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

/// The core that runs on a draft under sampling parameters, once all rows are seen to fit.
fn resolve_under(
    rule: &str,
    draft: &Draft,
    drafter: &DrafterRows<'_>,
    target: &ShapedRows<'_>,
) -> Result<(Core, &'static str)> {
    let (mut core, mut name) = resolve(rule, draft.law())?;
    if target.params().is_greedy() {
        (core, name) = (Core::Greedy, "greedy");
    } else if core == Core::Greedy {
        return Err(Error::GreedyTemperature { temperature: target.params().temperature() });
    }
    check_rows(draft, target.num_rows())?;
    draft.check_vocabulary(target.num_cols())?;
    declared::check_fit(draft, drafter, target.num_cols())?;
    Ok((core, name))
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
