//! The draft and the law it was made by. Law is part of the type: a rule is a theorem about it.

use crate::error::{Error, Result};
use crate::mutants::mutate;
use crate::tree::TokenTree;

/// How the tokens of a draft were chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Law {
    /// Tokens are a function of the past: n-grams, a greedy head, a top-k tree.
    Deterministic,
    /// One path, each token sampled from the drafter's row after its parent.
    Chain,
    /// Siblings sampled independently with replacement.
    Iid,
    /// Siblings sampled one after the other without replacement, order kept.
    Swor,
    /// One child sampled outside the set of the most likely tokens, then that set.
    TopPlusOne,
    /// Some children sampled without replacement outside a deterministic set, then that set.
    Mixed,
    /// Drawn with the verifier's own seed-exact noise.
    Coupled,
    /// Anything else: pruned, reranked, a peer's tree.
    Unknown,
}

impl Law {
    /// Every law, in the order of the documentation.
    pub const ALL: [Self; 8] = [
        Self::Deterministic,
        Self::Chain,
        Self::Iid,
        Self::Swor,
        Self::TopPlusOne,
        Self::Mixed,
        Self::Coupled,
        Self::Unknown,
    ];

    /// The name used in the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Deterministic => "deterministic",
            Self::Chain => "chain",
            Self::Iid => "iid",
            Self::Swor => "swor",
            Self::TopPlusOne => "top_plus_one",
            Self::Mixed => "mixed",
            Self::Coupled => "coupled",
            Self::Unknown => "unknown",
        }
    }

    /// The law of a name.
    ///
    /// # Errors
    /// [`Error::UnknownLaw`] lists the known ones.
    pub fn parse(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|law| law.name() == name).ok_or_else(|| Error::UnknownLaw {
            found: name.to_owned(),
            known: Self::ALL.map(Self::name).join(", "),
        })
    }

    /// Whether some tokens were drawn from the drafter's rows, which rules then need.
    pub fn is_sampled(self) -> bool {
        matches!(self, Self::Chain | Self::Iid | Self::Swor | Self::TopPlusOne | Self::Mixed)
    }

    /// Whether a draft may say which of its nodes were drawn; other laws say it by themselves.
    pub fn takes_sampled(self) -> bool {
        matches!(self, Self::Mixed | Self::TopPlusOne)
    }
}

/// A tree of drafted tokens and its law; the drafter's rows live with the view that reads them.
#[derive(Debug, Clone, PartialEq)]
pub struct Draft {
    tree: TokenTree,
    tokens: Vec<i64>,
    law: Law,
    sampled: Vec<bool>,
}

impl Draft {
    /// Checks structure and tokens against the law.
    ///
    /// `tokens[0]` is the root's token and may be -1 (unknown): no rule looks at it. `sampled` says
    /// which nodes were drawn (mixed laws); `None` means what the law implies.
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`] for lengths, [`Error::TokenOutOfVocabulary`] for negative tokens,
    /// [`Error::LawShape`] and [`Error::DuplicateSibling`] where the tree contradicts the law.
    pub fn new(
        tree: TokenTree,
        tokens: Vec<i64>,
        law: Law,
        sampled: Option<Vec<bool>>,
    ) -> Result<Self> {
        let count = tree.num_nodes();
        let check = |what, found: usize| {
            if found == count {
                return Ok(());
            }
            Err(Error::ShapeMismatch {
                what,
                found: format!("({found},)"),
                wanted: format!("({count},), one for each node"),
            })
        };
        check("tokens", tokens.len())?;
        for (node, &token) in tokens.iter().enumerate() {
            let lowest = if node == 0 { -1 } else { 0 };
            if token < lowest || token > i64::from(u32::MAX) {
                return Err(Error::TokenOutOfVocabulary { node, token, vocab: u32::MAX as usize });
            }
        }
        let sampled = match sampled {
            Some(flags) => {
                check("sampled", flags.len())?;
                if !law.takes_sampled() {
                    return Err(Error::LawData {
                        law: law.name(),
                        reason: "says by itself which nodes were sampled; leave `sampled` out",
                    });
                }
                flags
            }
            None => Self::implied_sampled(&tree, law)?,
        };
        let draft = Self { tree, tokens, law, sampled };
        draft.check_law()?;
        Ok(draft)
    }

    fn implied_sampled(tree: &TokenTree, law: Law) -> Result<Vec<bool>> {
        let count = tree.num_nodes();
        Ok(match law {
            Law::Chain | Law::Iid | Law::Swor => (0..count).map(|node| node > 0).collect(),
            Law::TopPlusOne => (0..count)
                .map(|node| {
                    tree.parent(node).is_some_and(|parent| tree.children(parent)[0] == node as u32)
                })
                .collect(),
            Law::Mixed => {
                return Err(Error::LawData {
                    law: law.name(),
                    reason: "needs `sampled`: which nodes were drawn from the drafter's rows",
                });
            }
            Law::Deterministic | Law::Coupled | Law::Unknown => vec![false; count],
        })
    }

    fn check_law(&self) -> Result<()> {
        let law = self.law.name();
        let forks = (1..self.num_nodes()).find(|&n| self.tree.parent(n) != Some(n - 1));
        if let (Law::Chain, Some(node)) = (self.law, forks) {
            let reason = "is one path: the parent of node i is node i - 1";
            return Err(Error::LawShape { node, law, reason });
        }
        if self.sampled[0] {
            return Err(Error::LawShape {
                node: 0,
                law,
                reason: "has an emitted root, never sampled",
            });
        }
        let mut seen: Vec<(u32, u32)> = Vec::new();
        for parent in 0..self.num_nodes() {
            let children = self.tree.children(parent);
            let mut forced = false;
            for &child in children {
                if self.sampled[child as usize] && forced {
                    return Err(Error::LawShape {
                        node: child as usize,
                        law,
                        reason: "tests sampled children before the deterministic ones",
                    });
                }
                forced |= !self.sampled[child as usize];
            }
            if self.law == Law::TopPlusOne
                && children.iter().filter(|&&child| self.sampled[child as usize]).count() > 1
            {
                return Err(Error::LawShape {
                    node: children[1] as usize,
                    law,
                    reason: "samples at most one child of a node (use \"mixed\" for more)",
                });
            }
            let may_repeat = matches!(self.law, Law::Iid | Law::Unknown);
            if mutate!("law/iid_claimed_swor", may_repeat, true) {
                continue;
            }
            seen.clear();
            seen.extend(children.iter().map(|&child| (self.token(child as usize), child)));
            seen.sort_unstable();
            if let Some(pair) = seen.windows(2).find(|pair| pair[0].0 == pair[1].0) {
                return Err(Error::DuplicateSibling {
                    node: pair[1].1 as usize,
                    sibling: pair[0].1 as usize,
                    token: pair[0].0,
                    law,
                });
            }
        }
        Ok(())
    }

    /// Refuses a draft whose tokens are not a function of the past.
    ///
    /// # Errors
    /// [`Error::LawData`] names the law found.
    pub fn check_deterministic(&self) -> Result<()> {
        if self.law == Law::Deterministic {
            return Ok(());
        }
        let reason = "cannot be merged with other sources: only deterministic trees can";
        Err(Error::LawData { law: self.law.name(), reason })
    }

    /// The draft's tree.
    pub fn tree(&self) -> &TokenTree {
        &self.tree
    }

    /// The draft's law.
    pub fn law(&self) -> Law {
        self.law
    }

    /// All tokens, the root's (or -1) first.
    pub fn tokens(&self) -> &[i64] {
        &self.tokens
    }

    /// The number of nodes, the root included.
    pub fn num_nodes(&self) -> usize {
        self.tokens.len()
    }

    /// The token of a node below the root.
    pub fn token(&self, node: usize) -> u32 {
        self.tokens[node] as u32
    }

    /// Which nodes were drawn from the drafter's row.
    pub fn sampled(&self) -> &[bool] {
        &self.sampled
    }

    /// Whether a node was drawn from its parent's drafter row.
    pub fn is_sampled(&self, node: usize) -> bool {
        self.sampled[node]
    }

    /// The first child of `node` that carries `token`.
    pub fn child_with(&self, node: usize, token: u32) -> Option<usize> {
        let children =
            mutate!("td/match_any_parent", self.tree.children(node), self.tree.level_below(node));
        let mut children = children.iter().map(|&child| child as usize);
        children.find(|&child| self.token(child) == token)
    }

    /// The tokens of a node's deterministic children.
    pub fn forced(&self, node: usize) -> impl Iterator<Item = u32> + '_ {
        let children = self.tree.children(node).iter().map(|&child| child as usize);
        children.filter(|&child| !self.sampled[child]).map(|child| self.token(child))
    }

    /// A leaf's parent; any other node itself.
    #[cfg(feature = "mutants")]
    pub(crate) fn parent_of_leaf(&self, node: usize) -> usize {
        let is_leaf = self.tree.children(node).is_empty();
        self.tree.parent(node).filter(|_| is_leaf).unwrap_or(node)
    }

    /// 1 at a leaf, `above` elsewhere.
    #[cfg(feature = "mutants")]
    pub(crate) fn one_at_leaf<W: crate::number::Weight>(&self, node: usize, above: W) -> W {
        if self.tree.children(node).is_empty() { W::one() } else { above }
    }

    /// Checks every token against the vocabulary of the target's rows.
    ///
    /// # Errors
    /// [`Error::TokenOutOfVocabulary`] names the first node outside.
    pub fn check_vocabulary(&self, vocab: usize) -> Result<()> {
        match (1..self.num_nodes()).find(|&node| self.tokens[node] >= vocab as i64) {
            Some(node) => {
                Err(Error::TokenOutOfVocabulary { node, token: self.tokens[node], vocab })
            }
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draft(parents: &[i64], tokens: &[i64], law: Law) -> Result<Draft> {
        Draft::new(TokenTree::new(parents)?, tokens.to_vec(), law, None)
    }

    #[test]
    fn names_round_trip() {
        for law in Law::ALL {
            assert_eq!(Law::parse(law.name()), Ok(law));
        }
        assert!(matches!(Law::parse("greedy"), Err(Error::UnknownLaw { .. })));
    }

    #[test]
    fn contradictions_between_tree_and_law_are_named() {
        let two = [-1, 0, 0];
        assert!(matches!(
            draft(&two, &[-1, 5, 6], Law::Chain),
            Err(Error::LawShape { node: 2, .. })
        ));
        for law in [Law::Swor, Law::Deterministic, Law::TopPlusOne, Law::Coupled] {
            assert!(matches!(
                draft(&two, &[-1, 5, 5], law),
                Err(Error::DuplicateSibling { node: 2, sibling: 1, token: 5, .. })
            ));
        }
        assert!(draft(&two, &[-1, 5, 5], Law::Iid).is_ok());
        assert!(matches!(draft(&two, &[-1, 5, 6], Law::Mixed), Err(Error::LawData { .. })));
        assert!(matches!(
            draft(&two, &[-1, 5, -1], Law::Deterministic),
            Err(Error::TokenOutOfVocabulary { node: 2, token: -1, .. })
        ));
        assert!(matches!(draft(&two, &[-1, 5], Law::Iid), Err(Error::ShapeMismatch { .. })));
        let late = Draft::new(
            TokenTree::new(&two).unwrap(),
            vec![-1, 5, 6],
            Law::Mixed,
            Some(vec![false, false, true]),
        );
        assert!(matches!(late, Err(Error::LawShape { node: 2, .. })));
    }

    #[test]
    fn vocabulary_is_checked_below_the_root_only() {
        let d = draft(&[-1, 0], &[99, 3], Law::Deterministic).unwrap();
        assert!(d.check_vocabulary(4).is_ok());
        assert!(matches!(
            d.check_vocabulary(3),
            Err(Error::TokenOutOfVocabulary { node: 1, token: 3, vocab: 3 })
        ));
    }
}
