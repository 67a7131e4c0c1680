//! Everything that a block table maintains step by step, computed anew and compared.

use std::collections::BTreeMap;

use super::prefix::{NO_PARENT, PrefixCache};
use super::table::{BlockTable, Known, Sequence};

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
        if published.values().any(|(_, entry)| entry.tokens.len() != self.block_size) {
            return Err("a part of a block is published".into());
        }
        let last_serial = self.pool.prefix().map_or(NO_PARENT, PrefixCache::last_serial);
        // By serial number, the content and the one before it; not all of them are published still.
        let mut named: BTreeMap<u64, (u64, &[u32])> = published
            .iter()
            .map(|(&serial, &(parent, entry))| (serial, (parent, &*entry.tokens)))
            .collect();
        let contents: BTreeMap<i32, &[u32]> =
            published.values().map(|(_, entry)| (entry.block, &*entry.tokens)).collect();
        let mut held: Vec<u32> = Vec::new();
        let ordered: BTreeMap<i64, &Sequence> =
            self.sequences.iter().map(|(&seq, sequence)| (seq, sequence)).collect();
        for (seq, sequence) in ordered {
            let wrong = |what: &str| Err(format!("sequence {seq}: {what}"));
            let Sequence { blocks, length, reserved, known } = sequence;
            let Known { tokens, chain } = &**known;
            let size = self.block_size;
            if blocks.len() != (length + reserved).div_ceil(size) {
                return wrong("it holds more or fewer blocks than its entries need");
            }
            for &block in blocks {
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
            if tokens.len() > *length || chain.len() > tokens.len() / size {
                return wrong("it knows more tokens than it has entries");
            }
            for (block, part) in blocks.iter().zip(tokens.chunks_exact(size)) {
                if contents.get(block).is_some_and(|content| *content != part) {
                    return wrong("one of its blocks is published with other tokens");
                }
            }
            let mut above = NO_PARENT;
            for (&serial, part) in chain.iter().zip(tokens.chunks_exact(size)) {
                if serial <= above || serial > last_serial {
                    return wrong("its chain names a content that was never published");
                }
                if *named.entry(serial).or_insert((above, part)) != (above, part) {
                    return wrong("its chain names the content of other tokens");
                }
                above = serial;
            }
        }
        self.pool.audit(&held)
    }
}
