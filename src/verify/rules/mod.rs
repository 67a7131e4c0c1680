//! The rules: one file for each decision core, and the table from which everything else derives.
//!
//! A name that is in [`RULES`] is known to Python (`mv.rules()`), the proof, the command line and the
//! documentation; CONTRIBUTING.md says how to add one.

mod coupled;
mod gbv;
mod global_resolution;
pub(crate) mod kseq;
mod lifted;
mod target_only;
pub(crate) mod topdown;

use crate::chance::Choices;
use crate::error::{Error, Result};
use crate::number::Weight;
use crate::verify::law::{Draft, Law};
use crate::verify::lossy;
use crate::verify::view::{Outcome, View};

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
    /// A path of tokens that are selected at each level as well as can be, verified as a chain.
    GlobalResolution,
}

impl Core {
    /// The name of the core, which is a rule's too.
    pub fn name(self) -> &'static str {
        match self {
            Self::Greedy => "greedy",
            Self::TargetOnly => "target_only",
            Self::Coupled => "coupled",
            Self::TopDown => "topdown",
            Self::Lifted => "lifted",
            Self::KSeq => "kseq",
            Self::Gbv => "gbv",
            Self::GlobalResolution => "global_resolution",
        }
    }

    /// Whether it takes trees that branch below the root.
    pub fn takes_branches(self) -> bool {
        self != Self::Gbv
    }

    /// Whether a draw of a child's token moves its walk to the child, whose tokens are then told
    /// apart where its branches are listed.
    pub(super) fn follows_draws(self, is_sampled: bool) -> bool {
        match self {
            Self::Greedy | Self::TargetOnly => true,
            Self::TopDown => !is_sampled,
            _ => false,
        }
    }

    /// Whether it solves equations by bisection, which exact fractions make costly.
    pub fn bisects(self) -> bool {
        self == Self::KSeq
    }
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
pub const RULES: &[Rule] = &[
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
        name: "global_resolution",
        core: Core::GlobalResolution,
        laws: &[Law::Iid],
        shapes: "any tree; equal paths have equal rows",
        source: "Global Resolution in closed form, arXiv 2511.15898, inside block verification",
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

/// A law that a rule takes; none for "auto", which takes all, and for what is no rule.
pub(super) fn first_law(name: &str) -> Option<Law> {
    find(name).and_then(|rule| rule.laws.first().copied())
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
            known: RULES.iter().map(|rule| rule.name).collect::<Vec<_>>().join(", "),
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

/// Whether nothing can follow a node, as its row is no distribution (a grammar's dead end, NaN).
///
/// Some rules read a node's row before they accept the node, and plain decoding might never come there.
/// So this is no error yet: the node counts as a leaf, which depends on its path alone, and the error is
/// raised by the draw, if the walk stops there.
fn is_dead_end<W: Weight, V: View<W>>(view: &mut V, node: usize) -> Result<bool> {
    match view.check_target(node) {
        Err(Error::RowEmpty { .. } | Error::RowNotFinite { .. }) => Ok(true),
        other => other.map(|()| false),
    }
}

/// The literature's name for a core on a law, where there is one: it stands below the core's own.
fn literature_name(rule: &'static Rule, law: Law) -> &'static str {
    let names = RULES.iter().rev().filter(|other| other.core == rule.core);
    names
        .filter(|other| other.laws.contains(&law))
        .map(|other| other.name)
        .next()
        .unwrap_or(rule.name)
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
        Core::GlobalResolution => global_resolution::decide(draft, view, choices),
    }
}
