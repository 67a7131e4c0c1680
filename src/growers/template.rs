//! Shapes that are known by name: levels, a stem before a bush, independent paths.

use crate::error::Result;
use crate::growers::check_nodes;
use crate::tree::TokenTree;

/// A tree in construction, level by level.
struct Levels {
    parents: Vec<i64>,
    level: Vec<usize>,
}

impl Levels {
    fn new() -> Self {
        Self { parents: vec![-1], level: vec![0] }
    }

    /// Gives each node of the last level `count` children.
    fn add(&mut self, count: usize) -> Result<()> {
        let grown = self.level.len().saturating_mul(count);
        check_nodes("nodes of a shape", (self.parents.len() - 1).saturating_add(grown))?;
        let first = self.parents.len();
        for &node in &self.level {
            self.parents.extend(std::iter::repeat_n(node as i64, count));
        }
        self.level = (first..self.parents.len()).collect();
        Ok(())
    }
}

/// Every node at depth `d` has `counts[d]` children.
///
/// # Errors
/// [`crate::error::Error::Overflow`] for more nodes than a tree can have.
pub fn by_depth(counts: &[usize]) -> Result<TokenTree> {
    stem(0, counts)
}

/// A chain of `length` nodes, and the levels of `counts` below its end.
///
/// # Errors
/// [`crate::error::Error::Overflow`] for more nodes than a tree can have.
pub fn stem(length: usize, counts: &[usize]) -> Result<TokenTree> {
    let mut levels = Levels::new();
    check_nodes("length of a stem", length)?;
    for _ in 0..length {
        levels.add(1)?;
    }
    for &count in counts {
        levels.add(count)?;
    }
    TokenTree::new(&levels.parents)
}

/// `count` paths of `length` nodes that share the root alone.
///
/// # Errors
/// [`crate::error::Error::Overflow`] for more nodes than a tree can have.
pub fn paths(count: usize, length: usize) -> Result<TokenTree> {
    let mut levels = Levels::new();
    check_nodes("length of a path", length)?;
    for depth in 0..length {
        levels.add(if depth == 0 { count } else { 1 })?;
    }
    TokenTree::new(&levels.parents)
}
