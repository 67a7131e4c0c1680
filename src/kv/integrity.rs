//! Everything that a block table maintains step by step, computed anew and compared.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::pool::first_held;
use super::prefix::{NO_BLOCK, NO_PARENT, PrefixCache};
use super::sequence::{Known, Sequence};
use super::table::BlockTable;

impl BlockTable {
    /// Recomputes everything from scratch; takes time in proportion to the pool.
    ///
    /// # Errors
    /// What does not hold. That is a defect of this module: no call, refused or not, leads there.
    pub fn check_integrity(&self) -> Result<(), String> {
        let published = match self.pool.prefix() {
            Some(prefix) => prefix.audit()?,
            None => BTreeMap::new(),
        };
        if published.values().any(|(_, entry)| entry.content.len() < self.block_size) {
            return Err("a part of a block is published".into());
        }
        let last_serial = self.pool.prefix().map_or(NO_PARENT, PrefixCache::last_serial);
        // By serial number, the content and the one before it; not all of them are published still.
        let mut named: BTreeMap<u64, (u64, Cow<'_, [u32]>)> = published
            .iter()
            .map(|(&serial, &(parent, entry))| (serial, (parent, (&*entry.content).into())))
            .collect();
        let contents: BTreeMap<i32, &[u32]> = published
            .values()
            .filter(|(_, entry)| entry.block != NO_BLOCK)
            .map(|(_, entry)| (entry.block, &*entry.content))
            .collect();
        let mut held: Vec<u32> = Vec::new();
        let ordered: BTreeMap<i64, &Sequence> =
            self.sequences.iter().map(|(&seq, sequence)| (seq, sequence)).collect();
        for (seq, sequence) in ordered {
            let wrong = |what: &str| Err(format!("sequence {seq}: {what}"));
            let Sequence { blocks, length, reserved, known } = sequence;
            let size = self.block_size;
            let gone = first_held(blocks);
            if blocks.len() != (length + reserved).div_ceil(size) {
                return wrong("it holds more or fewer blocks than its entries need");
            }
            if gone > self.first_seen(*length) || self.window().is_none() && gone > 0 {
                return wrong("a block that is still seen is gone");
            }
            for &block in &blocks[gone..] {
                let Some(index) = usize::try_from(block).ok().filter(|&i| i < self.num_blocks())
                else {
                    return wrong("it holds a block that the pool does not have");
                };
                held.resize(held.len().max(index + 1), 0);
                held[index] += 1;
            }
            if *reserved > 0
                && blocks[length / size..]
                    .iter()
                    .any(|block| self.pool.refs(*block) != 1 || contents.contains_key(block))
            {
                return wrong("a block that it may write is shared, or published");
            }
            let Some(known) = known else {
                continue;
            };
            let Known { tokens, chain, keys } = &**known;
            if tokens.len() > *length || chain.len() > tokens.len() / size {
                return wrong("it knows more tokens than it has entries");
            }
            if self.pool.prefix().is_none() || keys.check(*length).is_err() {
                return wrong("it knows what it cannot know");
            }
            let mut above = NO_PARENT;
            for (index, part) in tokens.chunks_exact(size).enumerate() {
                let part = keys.content(part, index);
                if contents.get(&blocks[index]).is_some_and(|content| **content != *part) {
                    return wrong("one of its blocks is published with other tokens");
                }
                let Some(&serial) = chain.get(index) else {
                    continue;
                };
                if serial <= above || serial > last_serial {
                    return wrong("its chain names a content that was never published");
                }
                let other = named.entry(serial).or_insert_with(|| (above, part.clone()));
                if *other != (above, part) {
                    return wrong("its chain names the content of other tokens");
                }
                above = serial;
            }
        }
        self.pool.audit(&held)
    }
}
