//! The tree that a grower builds, and the two ways in which a node comes into it.

use crate::chance::{Choices, Purpose, Site};
use crate::error::Result;
use crate::growers::DraftRows;
use crate::number::Weight;
use crate::tree::TokenTree;
use crate::verify::law::{Draft, Law};

/// A tree under construction. Nodes are only ever appended; a drawn one gets its noise from the
/// number that it becomes.
#[derive(Debug, Clone)]
pub struct Growth {
    parents: Vec<i64>,
    tokens: Vec<i64>,
    sampled: Vec<bool>,
    depths: Vec<usize>,
    /// Tokens drawn below each node.
    drawn: Vec<Vec<u32>>,
    frontier: Vec<u32>,
    ends: Vec<u32>,
}

impl Growth {
    /// The root alone; `root` is its token (-1: unknown), `ends` the tokens that end a sequence.
    pub fn new(root: i64, ends: Vec<u32>) -> Self {
        Self {
            parents: vec![-1],
            tokens: vec![root],
            sampled: vec![false],
            depths: vec![0],
            drawn: vec![Vec::new()],
            frontier: Vec::new(),
            ends,
        }
    }

    /// The number of nodes, the root included.
    pub fn num_nodes(&self) -> usize {
        self.tokens.len()
    }

    /// Nodes below the root.
    pub fn num_drafted(&self) -> usize {
        self.tokens.len() - 1
    }

    /// Parents, the root's -1 first.
    pub fn parents(&self) -> &[i64] {
        &self.parents
    }

    /// Tokens, the root's first.
    pub fn tokens(&self) -> &[i64] {
        &self.tokens
    }

    /// Which nodes were drawn from a row.
    pub fn sampled(&self) -> &[bool] {
        &self.sampled
    }

    /// Edges between the root and a node.
    pub fn depth(&self, node: usize) -> usize {
        self.depths[node]
    }

    /// The tokens from below the root down to a node.
    pub fn path(&self, node: usize) -> Vec<u32> {
        let mut path = Vec::with_capacity(self.depths[node]);
        let mut at = node;
        while at > 0 {
            path.push(self.tokens[at] as u32);
            at = self.parents[at] as usize;
        }
        path.reverse();
        path
    }

    /// Whether a drafted node ends the sequence, so that nothing below it can be of use.
    pub fn is_end(&self, node: usize) -> bool {
        node > 0 && self.ends.contains(&(self.tokens[node] as u32))
    }

    /// The nodes whose rows are needed next.
    pub fn frontier(&self) -> &[u32] {
        &self.frontier
    }

    /// Sets the frontier; nodes that end the sequence are left out.
    pub(crate) fn want(&mut self, nodes: impl IntoIterator<Item = usize>) {
        let frontier = nodes.into_iter().filter(|&node| !self.is_end(node));
        self.frontier = frontier.map(|node| node as u32).collect();
        self.frontier.sort_unstable();
    }

    /// Appends a node and returns its number.
    pub(crate) fn push(&mut self, parent: usize, token: u32, sampled: bool) -> usize {
        self.parents.push(parent as i64);
        self.tokens.push(i64::from(token));
        self.sampled.push(sampled);
        self.depths.push(self.depths[parent] + 1);
        self.drawn.push(Vec::new());
        if sampled {
            self.drawn[parent].push(token);
        }
        self.num_drafted()
    }

    /// Draws one more child of `parent` outside `set` and, unless `replace`, outside the children
    /// already drawn; `None` if no such token has positive probability.
    ///
    /// # Errors
    /// If the row is not a distribution.
    pub(crate) fn draw<W: Weight, R: DraftRows<W>, C: Choices<W>>(
        &mut self,
        parent: usize,
        set: &[u32],
        replace: bool,
        rows: &mut R,
        choices: &mut C,
    ) -> Result<Option<usize>> {
        let mut without = set.to_vec();
        if !replace {
            without.extend(&self.drawn[parent]);
        }
        let site = Site::new(self.num_nodes(), Purpose::Draft);
        let token = rows.draw(parent, &without, site, choices)?;
        Ok(token.map(|token| self.push(parent, token, true)))
    }

    /// Gives `parent` up to `draws` drawn children outside `set` and then `set` itself; returns the
    /// first new node (they are consecutive).
    ///
    /// # Errors
    /// If the row is not a distribution.
    pub(crate) fn children<W: Weight, R: DraftRows<W>, C: Choices<W>>(
        &mut self,
        parent: usize,
        draws: usize,
        set: &[u32],
        replace: bool,
        rows: &mut R,
        choices: &mut C,
    ) -> Result<usize> {
        let first = self.num_nodes();
        for _ in 0..draws {
            if self.draw(parent, set, replace, rows, choices)?.is_none() {
                break;
            }
        }
        for &token in set {
            self.push(parent, token, false);
        }
        Ok(first)
    }

    /// The draft under a law.
    ///
    /// # Errors
    /// If the tree contradicts the law.
    pub fn draft(&self, law: Law) -> Result<Draft> {
        let mixed = matches!(law, Law::TopPlusOne | Law::Mixed);
        let flags = mixed.then(|| self.sampled.clone());
        Draft::new(TokenTree::new(&self.parents)?, self.tokens.clone(), law, flags)
    }
}
