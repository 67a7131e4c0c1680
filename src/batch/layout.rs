//! The trees of many sequences as flat tables of nodes: what verifiers on other devices read.
//!
//! Rows are numbered through all trees, so a program for each row finds its neighbours without knowing
//! the tree; and everything that depends on a tree's shape alone is computed here, once.

use super::{Each, at};
use crate::error::{Error, Result};
use crate::shaping::Params;
use crate::verify::law::{Draft, Law};
use crate::verify::{Core, resolve_draft};

/// No such row.
const NONE: i32 = -1;

/// The nodes of all trees, one after the other, roots included.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Layout {
    /// For each row: its sequence, its number in its own tree, the rows of its parent, its first child
    /// and its next sibling (-1: none), its depth, its place in post-order, its token, and whether it was
    /// sampled.
    pub nodes: [Vec<i32>; 9],
    /// For each sequence: the row of its root, the nodes of its tree, its core's place among [`CORES`],
    /// whether siblings were drawn without replacement, whether a deterministic set follows them.
    pub sequences: [Vec<i32>; 5],
    /// The names of the rules.
    pub rules: Vec<&'static str>,
    /// The deepest level.
    pub depth: usize,
    /// The most children of a node.
    pub children: usize,
    /// The most masses that one has to wait for another: see [`rounds`].
    pub rounds: usize,
}

/// The cores in the order of their numbers.
const CORES: [Core; 8] = [
    Core::Greedy,
    Core::TargetOnly,
    Core::Coupled,
    Core::TopDown,
    Core::Lifted,
    Core::KSeq,
    Core::Gbv,
    Core::GlobalResolution,
];

impl Layout {
    /// The tables of some drafts.
    ///
    /// # Errors
    /// As the rules' for laws that they do not take, and [`Error::Overflow`] for more nodes, or larger
    /// tokens, than 32 bits with a sign hold; each with its sequence.
    pub fn of(drafts: &[&Draft], rules: Each<'_, &str>, params: Each<'_, Params>) -> Result<Self> {
        rules.check("rule", drafts.len())?;
        params.check("params", drafts.len())?;
        let mut layout = Self::default();
        for (sequence, draft) in drafts.iter().enumerate() {
            layout
                .push(sequence, draft, rules.get(sequence), params.get(sequence))
                .map_err(at(sequence as i64))?;
        }
        Ok(layout)
    }

    fn push(&mut self, sequence: usize, draft: &Draft, rule: &str, params: Params) -> Result<()> {
        let (core, name) = resolve_draft(rule, draft, params)?;
        let tree = draft.tree();
        let root = self.nodes[0].len();
        let number = |found: usize| {
            let limit = i32::MAX as u64;
            i32::try_from(found).map_err(|_| Error::Overflow {
                what: "nodes",
                found: found as u64,
                limit,
            })
        };
        number(root + tree.num_nodes())?;
        let row = |node: u32| (root + node as usize) as i32;
        let post = post_order(draft);
        let mut next = vec![NONE; tree.num_nodes()];
        for node in 0..tree.num_nodes() {
            let children = tree.children(node);
            for pair in children.windows(2) {
                next[pair[0] as usize] = row(pair[1]);
            }
            let token = draft.tokens()[node];
            let token = i32::try_from(token).map_err(|_| Error::TokenOutOfVocabulary {
                node,
                token,
                vocab: i32::MAX as usize,
            })?;
            let depth = tree.depth(node);
            let entries = [
                sequence as i32,
                node as i32,
                tree.parent(node).map_or(NONE, |parent| row(parent as u32)),
                children.first().map_or(NONE, |&child| row(child)),
                next[node],
                depth as i32,
                post[node],
                token,
                i32::from(draft.is_sampled(node)),
            ];
            for (column, entry) in self.nodes.iter_mut().zip(entries) {
                column.push(entry);
            }
            self.depth = self.depth.max(depth);
            self.children = self.children.max(children.len());
        }
        let place = CORES.iter().position(|&other| other == core).unwrap_or_default();
        let law = draft.law();
        let entries = [
            root as i32,
            tree.num_nodes() as i32,
            place as i32,
            i32::from(matches!(law, Law::Swor | Law::Mixed)),
            i32::from(matches!(law, Law::TopPlusOne | Law::Mixed)),
        ];
        for (column, entry) in self.sequences.iter_mut().zip(entries) {
            column.push(entry);
        }
        self.rules.push(name);
        self.rounds = self.rounds.max(rounds(core, draft));
        Ok(())
    }
}

/// The place of each node in post-order: children in order, each behind its own children.
fn post_order(draft: &Draft) -> Vec<i32> {
    let tree = draft.tree();
    let mut places = vec![0; tree.num_nodes()];
    let mut place = 0;
    // A node, and how many of its children have been gone into.
    let mut stack = vec![(0, 0)];
    while let Some((node, tested)) = stack.pop() {
        if let Some(&child) = tree.children(node).get(tested) {
            stack.push((node, tested + 1));
            stack.push((child as usize, 0));
        } else {
            places[node] = place;
            place += 1;
        }
    }
    places
}

/// How many sums over rows a rule may have to wait for, one after the other.
///
/// Each rejection of a child is followed by the mass that is left, which the test of the next child
/// needs. Top-down, nodes do not wait for one another; lifted, a child needs what its parent has when its
/// turn comes.
fn rounds(core: Core, draft: &Draft) -> usize {
    let tree = draft.tree();
    let nodes = 0..tree.num_nodes();
    match core {
        Core::TopDown => {
            let sampled = |node: usize| {
                tree.children(node)
                    .iter()
                    .filter(|&&child| draft.is_sampled(child as usize))
                    .count()
            };
            nodes.map(sampled).max().unwrap_or(0)
        }
        Core::Lifted => {
            // Parents stand before their children.
            let mut waits = vec![0; tree.num_nodes()];
            let mut most = 0;
            for node in nodes {
                let children = tree.children(node);
                for (place, &child) in children.iter().enumerate() {
                    waits[child as usize] = waits[node] + place;
                }
                most = most.max(waits[node] + children.len());
            }
            most
        }
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::TokenTree;

    fn draft(parents: &[i64], law: Law) -> Draft {
        let tokens = (0..parents.len() as i64).collect();
        Draft::new(TokenTree::new(parents).unwrap(), tokens, law, None).unwrap()
    }

    #[test]
    fn rows_name_their_neighbours() {
        let (one, two) = (draft(&[-1, 0], Law::Chain), draft(&[-1, 0, 0, 1, 1], Law::Swor));
        let params = Each::Same(Params::default());
        let layout = Layout::of(&[&one, &two], Each::Same("auto"), params).unwrap();
        let [request, number, parent, first, next, depth, post, token, sampled] = layout.nodes;
        assert_eq!(request, [0, 0, 1, 1, 1, 1, 1]);
        assert_eq!(number, [0, 1, 0, 1, 2, 3, 4]);
        assert_eq!(parent, [-1, 0, -1, 2, 2, 3, 3]);
        assert_eq!(first, [1, -1, 3, 5, -1, -1, -1]);
        assert_eq!(next, [-1, -1, -1, 4, -1, 6, -1]);
        assert_eq!(depth, [0, 1, 0, 1, 1, 2, 2]);
        assert_eq!(post, [1, 0, 4, 2, 3, 0, 1]);
        assert_eq!(token, number);
        assert_eq!(sampled, [0, 1, 0, 1, 1, 1, 1]);
        assert_eq!(layout.sequences, [vec![0, 2], vec![2, 5], vec![4, 4], vec![0, 1], vec![0, 0]]);
        assert_eq!(layout.rules, ["block", "traversal"]);
        assert_eq!((layout.depth, layout.children), (2, 2));
    }

    #[test]
    fn masses_wait_for_one_another_as_the_rules_say() {
        let count = |parents: &[i64], core| rounds(core, &draft(parents, Law::Swor));
        assert_eq!(count(&[-1, 0, 1, 2], Core::TopDown), 1);
        assert_eq!(count(&[-1, 0, 1, 2], Core::Lifted), 1);
        assert_eq!(count(&[-1, 0, 0, 0], Core::TopDown), 3);
        assert_eq!(count(&[-1, 0, 0, 2, 2], Core::TopDown), 2);
        assert_eq!(count(&[-1, 0, 0, 2, 2], Core::Lifted), 3);
        assert_eq!(count(&[-1, 0, 0], Core::TargetOnly), 0);
    }

    #[test]
    fn what_does_not_fit_is_refused_with_its_sequence() {
        let tree = TokenTree::new(&[-1, 0]).unwrap();
        let large = Draft::new(tree, vec![-1, 1 << 31], Law::Deterministic, None).unwrap();
        let small = draft(&[-1], Law::Deterministic);
        let params = Each::Same(Params::default());
        let error = Layout::of(&[&small, &large], Each::Same("auto"), params).unwrap_err();
        assert!(error.to_string().contains("sequence 1"), "{error}");
        let error =
            Layout::of(&[&small, &small], Each::Own(&["auto", "greedy"]), params).unwrap_err();
        assert!(error.to_string().contains("sequence 1"), "{error}");
        assert!(Layout::of(&[&small], Each::Own(&[]), params).is_err());
    }
}
