//! A draft's shape: parents, children, depths, paths. It knows no probabilities.

use crate::error::{Error, Result};

/// The largest number of nodes of a tree, the root included. A node number is a 32-bit word of the
/// noise address; drafts have tens of nodes, and an ancestor mask of this many takes 256 MiB.
pub const MAX_NODES: usize = 1 << 14;

/// A rooted tree whose nodes are numbered so that parents come first; node 0 is the root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenTree {
    parents: Vec<u32>,
    depths: Vec<u32>,
    /// Children of node `i`: `children[starts[i]..starts[i + 1]]`, ascending.
    starts: Vec<u32>,
    children: Vec<u32>,
}

impl TokenTree {
    /// Builds the tree of `parents` (`parents[0] = -1`, then `0 <= parents[i] < i`).
    ///
    /// # Errors
    /// [`Error::BadParent`] names the first node that breaks the order, [`Error::ShapeMismatch`] an
    /// empty array, [`Error::Overflow`] more than [`MAX_NODES`] nodes.
    pub fn new(parents: &[i64]) -> Result<Self> {
        if parents.is_empty() {
            return Err(Error::ShapeMismatch {
                what: "parents",
                found: "(0,)".into(),
                wanted: "(N+1,) with at least the root".into(),
            });
        }
        check_num_nodes(parents.len())?;
        for (node, &parent) in parents.iter().enumerate() {
            let legal = if node == 0 {
                parent == -1
            } else {
                usize::try_from(parent).is_ok_and(|p| p < node)
            };
            if !legal {
                return Err(Error::BadParent { node, parent });
            }
        }
        let count = parents.len();
        let parents: Vec<u32> = parents.iter().map(|&p| p.max(0) as u32).collect();
        let mut depths = vec![0_u32; count];
        let mut starts = vec![0_u32; count + 1];
        for node in 1..count {
            let parent = parents[node] as usize;
            depths[node] = depths[parent] + 1;
            starts[parent + 1] += 1;
        }
        for node in 0..count {
            starts[node + 1] += starts[node];
        }
        let mut children = vec![0_u32; count - 1];
        let mut next = starts.clone();
        for node in 1..count {
            let slot = &mut next[parents[node] as usize];
            children[*slot as usize] = node as u32;
            *slot += 1;
        }
        Ok(Self { parents, depths, starts, children })
    }

    /// A single path of `depth` nodes below the root.
    ///
    /// # Errors
    /// [`Error::Overflow`] beyond [`MAX_NODES`].
    pub fn chain(depth: usize) -> Result<Self> {
        check_num_nodes(depth.saturating_add(1))?;
        let parents: Vec<i64> = (0..=depth as i64).map(|node| node - 1).collect();
        Self::new(&parents)
    }

    /// The number of nodes, the root included.
    pub fn num_nodes(&self) -> usize {
        self.parents.len()
    }

    /// The parent of each node; the root's place holds 0.
    pub fn parents(&self) -> &[u32] {
        &self.parents
    }

    /// The parent of a node, `None` for the root.
    pub fn parent(&self, node: usize) -> Option<usize> {
        (node > 0).then(|| self.parents[node] as usize)
    }

    /// Edges between the root and a node.
    pub fn depth(&self, node: usize) -> usize {
        self.depths[node] as usize
    }

    /// The children of a node, in ascending order (the order in which rules test them).
    pub fn children(&self, node: usize) -> &[u32] {
        &self.children[self.starts[node] as usize..self.starts[node + 1] as usize]
    }

    /// The children of all nodes at a node's depth, in a tree that is numbered level by level.
    #[cfg(feature = "mutants")]
    pub(crate) fn level_below(&self, node: usize) -> &[u32] {
        let depth = self.depths[node];
        let first = self.depths.partition_point(|&d| d < depth);
        let behind = self.depths.partition_point(|&d| d <= depth);
        &self.children[self.starts[first] as usize..self.starts[behind] as usize]
    }

    /// Whether each node has at most one child.
    pub fn is_chain(&self) -> bool {
        self.parents.iter().enumerate().skip(1).all(|(node, &parent)| parent as usize + 1 == node)
    }

    /// The nodes from below the root down to `node`, which is the last one.
    pub fn path(&self, node: usize) -> Vec<u32> {
        let mut path = Vec::with_capacity(self.depth(node));
        let mut current = node;
        while let Some(parent) = self.parent(current) {
            path.push(current as u32);
            current = parent;
        }
        path.reverse();
        path
    }

    /// Row-major `(N+1, N+1)`: whether column `j` is row `i` itself or one of its ancestors.
    pub fn mask(&self) -> Vec<bool> {
        let count = self.num_nodes();
        let mut mask = vec![false; count * count];
        for node in 0..count {
            if let Some(parent) = self.parent(node) {
                let (above, row) = mask.split_at_mut(node * count);
                row[..node].copy_from_slice(&above[parent * count..parent * count + node]);
            }
            mask[node * count + node] = true;
        }
        mask
    }

    /// The first child of each node, -1 where there is none.
    pub fn next_token(&self) -> Vec<i64> {
        (0..self.num_nodes())
            .map(|i| self.children(i).first().map_or(-1, |&c| i64::from(c)))
            .collect()
    }

    /// The next sibling of each node, -1 where there is none.
    pub fn next_sibling(&self) -> Vec<i64> {
        let mut next = vec![-1; self.num_nodes()];
        for node in 0..self.num_nodes() {
            for pair in self.children(node).windows(2) {
                next[pair[0] as usize] = i64::from(pair[1]);
            }
        }
        next
    }

    /// See [`check_path`].
    ///
    /// # Errors
    /// Those of [`check_path`].
    pub fn check_path(&self, path: &[i64]) -> Result<()> {
        check_path(&self.parents, path)
    }
}

fn check_num_nodes(count: usize) -> Result<()> {
    if count <= MAX_NODES {
        return Ok(());
    }
    let (found, limit) = (count as u64, MAX_NODES as u64);
    Err(Error::Overflow { what: "nodes of a tree", found, limit })
}

/// Checks that `path` leads from below the root downwards, node by node, in the tree of `parents` (see
/// [`TokenTree::parents`]).
///
/// # Errors
/// [`Error::NotAPath`] names the first place that does not.
pub fn check_path(parents: &[u32], path: &[i64]) -> Result<()> {
    let mut above = 0_usize;
    for (index, &node) in path.iter().enumerate() {
        let fail = |reason| Err(Error::NotAPath { index, node, reason });
        let Some(current) = usize::try_from(node).ok().filter(|&n| n < parents.len()) else {
            return fail("no such node in the tree");
        };
        if current == 0 || parents[current] as usize != above {
            return fail("its parent is not the node before it (the root before the first)");
        }
        above = current;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    //  0
    //  +- 1
    //  |  +- 3
    //  +- 2
    //     +- 4
    //     +- 5
    fn tree() -> TokenTree {
        TokenTree::new(&[-1, 0, 0, 1, 2, 2]).unwrap()
    }

    #[test]
    fn structure_of_a_small_tree() {
        let t = tree();
        assert_eq!(t.children(0), [1, 2]);
        assert_eq!(t.children(2), [4, 5]);
        assert!(t.children(5).is_empty());
        assert_eq!((0..6).map(|i| t.depth(i)).collect::<Vec<_>>(), [0, 1, 1, 2, 2, 2]);
        assert_eq!(t.path(5), [2, 5]);
        assert!(t.path(0).is_empty());
        assert_eq!(t.next_token(), [1, 3, 4, -1, -1, -1]);
        assert_eq!(t.next_sibling(), [-1, 2, -1, -1, 5, -1]);
        assert!(!t.is_chain());
        assert!(TokenTree::chain(3).unwrap().is_chain());
    }

    #[test]
    fn mask_holds_ancestors_and_self() {
        let t = tree();
        let mask = t.mask();
        for i in 0..6 {
            let mut wanted: Vec<u32> = t.path(i);
            wanted.insert(0, 0);
            let found: Vec<u32> = (0..6).filter(|j| mask[i * 6 + *j as usize]).collect();
            assert_eq!(found, wanted);
        }
    }

    #[test]
    fn bad_parents_are_named() {
        for (parents, node, parent) in [
            (vec![0], 0, 0),
            (vec![-1, -1], 1, -1),
            (vec![-1, 0, 2], 2, 2),
            (vec![-1, 2, 1], 1, 2),
            (vec![-1, 0, -7], 2, -7),
        ] {
            assert_eq!(TokenTree::new(&parents), Err(Error::BadParent { node, parent }));
        }
        assert!(TokenTree::new(&[]).is_err());
        for depth in [MAX_NODES, 1 << 40, usize::MAX] {
            assert!(matches!(TokenTree::chain(depth), Err(Error::Overflow { .. })));
        }
        assert_eq!(TokenTree::chain(MAX_NODES - 1).unwrap().num_nodes(), MAX_NODES);
    }

    #[test]
    fn paths_are_checked() {
        let t = tree();
        assert!(t.check_path(&[]).is_ok());
        assert!(t.check_path(&[2, 5]).is_ok());
        for (path, index) in
            [(vec![3], 0), (vec![1, 4], 1), (vec![9], 0), (vec![-1], 0), (vec![0], 0)]
        {
            assert!(
                matches!(t.check_path(&path), Err(Error::NotAPath { index: i, .. }) if i == index)
            );
        }
    }
}
