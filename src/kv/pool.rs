//! The fixed pool of blocks: how many sequences hold each, and which free one is used next.

use super::prefix::{NO_BLOCK, PrefixCache};

/// How many blocks at the front of a list are gone.
pub(super) fn first_held(blocks: &[i32]) -> usize {
    blocks.partition_point(|&block| block == NO_BLOCK)
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Pool {
    num_blocks: usize,
    /// Holders of each block ever used. Those beyond are free, and take no memory yet.
    refs: Vec<u32>,
    /// Holders beyond the first, of all blocks.
    sharers: usize,
    /// Free blocks that the prefix cache does not know; the last one is used first.
    blank: Vec<i32>,
    prefix: Option<PrefixCache>,
}

impl Pool {
    pub(super) fn new(num_blocks: usize, prefix: Option<PrefixCache>) -> Self {
        Self { num_blocks, refs: Vec::new(), sharers: 0, blank: Vec::new(), prefix }
    }

    /// A pool as it was: the holders of each block ever used, and the free ones in their order.
    pub(super) fn of(
        num_blocks: usize,
        refs: Vec<u32>,
        blank: Vec<i32>,
        prefix: Option<PrefixCache>,
    ) -> Self {
        let sharers = refs.iter().map(|&refs| refs.saturating_sub(1) as usize).sum();
        Self { num_blocks, refs, sharers, blank, prefix }
    }

    pub(super) fn num_blocks(&self) -> usize {
        self.num_blocks
    }

    /// How many blocks were ever used; they are those of the lowest numbers.
    pub(super) fn num_used(&self) -> usize {
        self.refs.len()
    }

    pub(super) fn blank(&self) -> &[i32] {
        &self.blank
    }

    pub(super) fn num_free(&self) -> usize {
        let unused = self.num_blocks - self.refs.len();
        unused + self.blank.len() + self.prefix.as_ref().map_or(0, PrefixCache::num_idle)
    }

    pub(super) fn prefix(&self) -> Option<&PrefixCache> {
        self.prefix.as_ref()
    }

    /// How many sequences hold a block.
    pub(super) fn refs(&self, block: i32) -> u32 {
        self.refs[block as usize]
    }

    /// Whether a block has several holders. Where none has, nothing is looked up.
    pub(super) fn is_shared(&self, block: i32) -> bool {
        self.sharers > 0 && self.refs(block) > 1
    }

    /// A free block for one holder; the caller has counted that there is one. Blocks with a content
    /// that the cache knows come last, the longest idle first.
    pub(super) fn take(&mut self) -> i32 {
        let block = self.blank.pop().unwrap_or_else(|| {
            if self.refs.len() < self.num_blocks {
                self.refs.push(0);
                return self.refs.len() as i32 - 1;
            }
            let evicted = self.prefix.as_mut().and_then(PrefixCache::evict);
            evicted.expect("a caller took more blocks than it had counted")
        });
        self.refs[block as usize] = 1;
        block
    }

    /// One more holder of a block that is held or idle.
    pub(super) fn share(&mut self, block: i32) {
        if self.refs(block) > 0 {
            self.sharers += 1;
        } else if let Some(prefix) = &mut self.prefix {
            prefix.wake(block);
        }
        self.refs[block as usize] += 1;
    }

    /// One holder less; true if it was the last.
    pub(super) fn leave(&mut self, block: i32) -> bool {
        self.refs[block as usize] -= 1;
        if self.refs(block) > 0 {
            self.sharers -= 1;
            return false;
        }
        if !self.prefix.as_mut().is_some_and(|prefix| prefix.rest(block)) {
            self.blank.push(block);
        }
        true
    }

    /// A holder leaves all blocks of its list from `keep` on; those without a holder are appended to
    /// `freed`.
    pub(super) fn leave_from(&mut self, blocks: &mut Vec<i32>, keep: usize, freed: &mut Vec<i32>) {
        let before = freed.len();
        // The last one first: the cache then evicts ends before the beginnings they need.
        let left = blocks.drain(keep.min(blocks.len())..).rev();
        freed.extend(left.filter(|&block| block != NO_BLOCK && self.leave(block)));
        freed[before..].reverse();
    }

    /// A holder leaves its first `count` blocks, and `NO_BLOCK` takes their places; those without a
    /// holder are appended to `freed`.
    pub(super) fn leave_first(&mut self, blocks: &mut [i32], count: usize, freed: &mut Vec<i32>) {
        if count == 0 {
            return;
        }
        let gone = first_held(blocks).min(count);
        for block in &mut blocks[gone..count] {
            let left = std::mem::replace(block, NO_BLOCK);
            if self.leave(left) {
                freed.push(left);
            }
        }
    }

    /// Forgets all contents; gives how many blocks were known.
    pub(super) fn reset(&mut self) -> usize {
        let (known, idle) = self.prefix.as_mut().map_or_else(Default::default, PrefixCache::clear);
        // The longest idle is used first, as before.
        self.blank.extend(idle.into_iter().rev());
        known
    }

    /// The only holder is about to write into a block.
    pub(super) fn forget(&mut self, block: i32) {
        if let Some(prefix) = &mut self.prefix {
            prefix.forget(block);
        }
    }

    /// See [`PrefixCache::publish`].
    pub(super) fn publish(&mut self, parent: u64, content: &[u32], block: i32) -> Option<u64> {
        self.prefix.as_mut()?.publish(parent, content, block)
    }

    /// Compares the counts with `held`, the holders of each block counted anew.
    pub(super) fn audit(&self, held: &[u32]) -> Result<(), String> {
        if held.iter().zip(&self.refs).any(|(a, b)| a != b)
            || held.iter().skip(self.refs.len()).any(|&count| count > 0)
            || self.refs.len() > self.num_blocks
        {
            return Err("blocks are held by other numbers of sequences than were counted".into());
        }
        if self.refs.iter().map(|&refs| refs.saturating_sub(1) as usize).sum::<usize>()
            != self.sharers
        {
            return Err("more or fewer holders share a block than were counted".into());
        }
        let mut free: Vec<i32> = self.blank.clone();
        free.sort_unstable();
        if free.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err("a block is free twice".into());
        }
        for (block, &refs) in (0..).zip(&self.refs) {
            let blank = free.binary_search(&block).is_ok();
            let idle = self.prefix.as_ref().is_some_and(|prefix| prefix.is_idle(block));
            let published = self.prefix.as_ref().is_some_and(|prefix| prefix.is_published(block));
            if (refs == 0) != (blank != idle) || (blank && published) {
                return Err(format!("block {block} is lost, or both free and held"));
            }
        }
        Ok(())
    }
}
