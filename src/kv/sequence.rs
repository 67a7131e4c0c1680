//! One sequence of a block table: its blocks, its open reservation, what the prefix cache may know of it.

use super::keys::Keys;
use super::pool::Pool;
use super::prefix::{NO_BLOCK, NO_PARENT};

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Sequence {
    /// `NO_BLOCK` in front for those outside of the window.
    pub(super) blocks: Vec<i32>,
    pub(super) length: usize,
    /// Slots of the open reservation; 0 without one.
    pub(super) reserved: usize,
    /// Apart, so that what every step reads of many sequences lies close together. None without a prefix
    /// cache, and after a reset: what was computed before is shared with nobody that comes later.
    pub(super) known: Option<Box<Known>>,
}

/// What the prefix cache knows of a sequence.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Known {
    /// Tokens of the first entries, as far as they are known.
    pub(super) tokens: Vec<u32>,
    /// Serial numbers of the contents of the first blocks, as far as they are published.
    pub(super) chain: Vec<u64>,
    /// What else the entries depend on.
    pub(super) keys: Keys,
}

impl Sequence {
    pub(super) fn slot(&self, entry: usize, block_size: usize) -> i64 {
        slot(self.blocks[entry / block_size], entry % block_size, block_size)
    }

    /// Appends the slots of the open reservation, block by block.
    pub(super) fn list_open(&self, block_size: usize, slots: &mut Vec<i64>) {
        // Divisions are what costs here: one, and not one for each block.
        let (mut index, mut used) = (self.length / block_size, self.length % block_size);
        let mut left = self.reserved;
        while left > 0 {
            let inside = (block_size - used).min(left);
            let first = slot(self.blocks[index], used, block_size);
            slots.extend(first..first + inside as i64);
            (index, used, left) = (index + 1, 0, left - inside);
        }
    }

    /// Learns the tokens that a commit keeps, behind entries that were all known.
    pub(super) fn learn(&mut self, base: usize, tokens: impl Iterator<Item = i64>) {
        if let Some(known) = self.known.as_mut().filter(|known| known.tokens.len() == base) {
            known.tokens.extend(tokens.map_while(|token| u32::try_from(token).ok()));
        }
    }

    /// Publishes the full blocks that are known and not yet published.
    pub(super) fn publish(&mut self, pool: &mut Pool, block_size: usize) {
        let Some(known) = &mut self.known else {
            return;
        };
        let Known { tokens, chain, keys } = &mut **known;
        let full = tokens.chunks_exact(block_size).zip(&self.blocks).enumerate();
        for (index, (tokens, &block)) in full.skip(chain.len()) {
            if block == NO_BLOCK {
                // Another content had its key for as long as it was here.
                break;
            }
            let parent = chain.last().copied().unwrap_or(NO_PARENT);
            let Some(serial) = pool.publish(parent, &keys.content(tokens, index), block) else {
                break;
            };
            chain.push(serial);
        }
    }

    /// Keeps the first `length` entries, and gives the blocks behind them back.
    pub(super) fn cut(
        &mut self,
        length: usize,
        block_size: usize,
        pool: &mut Pool,
        freed: &mut Vec<i32>,
    ) {
        (self.length, self.reserved) = (length, 0);
        if let Some(known) = &mut self.known {
            known.tokens.truncate(length);
            known.chain.truncate(length / block_size);
            known.keys.cut(length);
        }
        pool.leave_from(&mut self.blocks, length.div_ceil(block_size), freed);
    }

    /// Carries out a checked reservation of `n` slots.
    pub(super) fn open(
        &mut self,
        n: usize,
        block_size: usize,
        pool: &mut Pool,
        copies: &mut Vec<(i64, i64)>,
    ) {
        let (index, used) = (self.length / block_size, self.length % block_size);
        if used > 0 {
            let tail = self.blocks[index];
            if pool.is_shared(tail) {
                let own = pool.take();
                copies.extend(
                    (0..used).map(|at| (slot(tail, at, block_size), slot(own, at, block_size))),
                );
                pool.leave(tail);
                self.blocks[index] = own;
            } else {
                // Published if a rollback ended inside it.
                pool.forget(tail);
            }
        }
        let fresh = (self.length + n).div_ceil(block_size) - self.blocks.len();
        self.blocks.extend((0..fresh).map(|_| pool.take()));
        self.reserved = n;
    }
}

/// The number of the first block that the token behind `length` entries sees something of. The token's own
/// block is the last that this can be.
pub(super) fn first_seen(length: usize, window: usize, block_size: usize) -> usize {
    match length.saturating_add(1).saturating_sub(window) {
        // Most often, and without a division.
        0 => 0,
        unseen => unseen / block_size,
    }
}

fn slot(block: i32, offset: usize, block_size: usize) -> i64 {
    i64::from(block) * block_size as i64 + offset as i64
}
