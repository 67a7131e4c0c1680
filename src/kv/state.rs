//! A block table as plain numbers, and back. What is read is checked like any other input: numbers that
//! no sequence of calls leads to are refused.

use std::collections::BTreeMap;

use super::keys::{Item, Keys};
use super::pool::{Pool, first_held};
use super::prefix::{Kept, NO_BLOCK, PrefixCache};
use super::sequence::{Known, Sequence};
use super::table::BlockTable;
use crate::error::{Error, Result};

/// The first number: another order of the others gets another one.
const FORMAT: i64 = 2;

impl BlockTable {
    /// Whether full blocks of known tokens are found again.
    pub fn has_prefix_cache(&self) -> bool {
        self.pool.prefix().is_some()
    }

    /// All that calls change: free blocks, sequences with their open reservations, the prefix cache.
    pub fn state(&self) -> Vec<i64> {
        let mut all = vec![FORMAT, self.pool.num_used() as i64];
        list(&mut all, self.pool.blank().iter().copied());
        let mut sequences: Vec<_> = self.sequences.iter().collect();
        sequences.sort_unstable_by_key(|&(&seq, _)| seq);
        all.push(sequences.len() as i64);
        for (&seq, Sequence { blocks, length, reserved, known }) in sequences {
            all.extend([seq, *length as i64, *reserved as i64]);
            list(&mut all, blocks.iter().copied());
            all.push(i64::from(known.is_some()));
            let Some(known) = known else {
                continue;
            };
            let Known { tokens, chain, keys } = &**known;
            list(&mut all, tokens.iter().copied());
            list(&mut all, chain.iter().map(|&serial| serial as i64));
            all.push(keys.whole().len() as i64);
            for (name, key) in keys.whole() {
                list(&mut all, name.bytes());
                list(&mut all, key.bytes());
            }
            all.push(keys.items().len() as i64);
            for Item { start, stop, key } in keys.items() {
                all.extend([*start as i64, *stop as i64]);
                list(&mut all, key.bytes());
            }
        }
        let (counters, kept) = self.pool.prefix().map_or_else(Default::default, PrefixCache::kept);
        all.extend(counters.map(|counter| counter as i64));
        all.push(kept.len() as i64);
        for Kept { parent, serial, block, idle_since, content } in kept {
            let since = idle_since.map_or(-1, |since| since as i64);
            all.extend([parent as i64, serial as i64, i64::from(block), since]);
            list(&mut all, content.iter().copied());
        }
        all
    }

    /// A table of the same sizes in the state that [`Self::state`] gave.
    ///
    /// # Errors
    /// [`Error::BadState`] says what does not hold.
    pub fn restored(&self, state: &[i64]) -> Result<Self> {
        let mut reader = Reader { left: state };
        if reader.next()? != FORMAT {
            return Err(bad("another format"));
        }
        let num_used = reader.size()?;
        // Each used block is in a list here: no more memory is taken than the state itself has.
        if num_used > self.num_blocks().min(state.len()) {
            return Err(bad("more blocks in use than the pool or the state has"));
        }
        let blank = reader.list::<i32>()?;
        let mut held = vec![0_u32; num_used];
        let check = |&block: &i32| usize::try_from(block).is_ok_and(|block| block < num_used);
        let is_gone = |block: i32| block == NO_BLOCK && self.window().is_some();
        let mut table = Self::new(self.num_blocks(), self.block_size(), false, self.window())?;
        for _ in 0..reader.size()? {
            let seq = reader.next()?;
            let (length, reserved) = (reader.size()?, reader.size()?);
            let blocks = reader.list::<i32>()?;
            let known = match reader.next()? {
                0 => None,
                1 => Some(Box::new(reader.known()?)),
                _ => return Err(bad("a flag that is neither 0 nor 1")),
            };
            let left = &blocks[first_held(&blocks)..];
            if !left.iter().all(check) || left.len() < blocks.len() && !is_gone(blocks[0]) {
                return Err(bad("a sequence with a block that was never used"));
            }
            for &block in left {
                held[block as usize] += 1;
            }
            let sequence = Sequence { blocks, length, reserved, known };
            if table.sequences.insert(seq, sequence).is_some() {
                return Err(bad("a sequence twice"));
            }
        }
        let counters = [reader.word()?, reader.word()?];
        let count = reader.size()?;
        let kept = (0..count).map(|_| reader.kept()).collect::<Result<Vec<_>>>()?;
        if !reader.left.is_empty() {
            return Err(bad("numbers behind its end"));
        }
        let is_used = |kept: &Kept| check(&kept.block) || is_gone(kept.block);
        if !(blank.iter().all(check) && kept.iter().all(is_used)) {
            return Err(bad("a free block that was never used"));
        }
        let prefix = match self.pool.prefix() {
            Some(_) => {
                let cache = PrefixCache::of(self.window().is_some(), counters, kept);
                Some(cache.map_err(|wrong| bad(&wrong))?)
            }
            None if counters == [0; 2] && kept.is_empty() => None,
            None => return Err(bad("a prefix cache, and the table has none")),
        };
        table.pool = Pool::of(self.num_blocks(), held, blank, prefix);
        table.check_integrity().map_err(|wrong| bad(&wrong))?;
        Ok(table)
    }
}

fn list(all: &mut Vec<i64>, items: impl ExactSizeIterator<Item = impl Into<i64>>) {
    all.push(items.len() as i64);
    all.extend(items.map(Into::into));
}

fn bad(found: &str) -> Error {
    Error::BadState { found: found.into() }
}

/// Takes numbers from the front.
struct Reader<'a> {
    left: &'a [i64],
}

impl Reader<'_> {
    fn next(&mut self) -> Result<i64> {
        let (&first, left) = self.left.split_first().ok_or_else(|| bad("an early end"))?;
        self.left = left;
        Ok(first)
    }

    fn word(&mut self) -> Result<u64> {
        u64::try_from(self.next()?).map_err(|_| bad("a count below 0"))
    }

    fn size(&mut self) -> Result<usize> {
        Ok(self.word()? as usize)
    }

    fn list<T: TryFrom<i64>>(&mut self) -> Result<Vec<T>> {
        let count = self.size()?;
        let (items, left) = self.left.split_at_checked(count).ok_or_else(|| bad("an early end"))?;
        self.left = left;
        let item = |&item: &i64| T::try_from(item).map_err(|_| bad("a number out of its range"));
        items.iter().map(item).collect()
    }

    fn kept(&mut self) -> Result<Kept> {
        let (parent, serial) = (self.word()?, self.word()?);
        let block = i32::try_from(self.next()?).map_err(|_| bad("a number out of its range"))?;
        let idle_since = match self.next()? {
            -1 => None,
            since => Some(u64::try_from(since).map_err(|_| bad("a count below 0"))?),
        };
        let content = self.list::<u32>()?.into_boxed_slice();
        Ok(Kept { parent, serial, block, idle_since, content })
    }

    fn known(&mut self) -> Result<Known> {
        let (tokens, chain) = (self.list::<u32>()?, self.list::<u64>()?);
        let (mut whole, mut items) = (BTreeMap::new(), Vec::new());
        for _ in 0..self.size()? {
            whole.insert(self.text()?, self.text()?);
        }
        for _ in 0..self.size()? {
            items.push(Item { start: self.size()?, stop: self.size()?, key: self.text()? });
        }
        let keys = Keys::new(whole, items).map_err(|error| bad(&error.to_string()))?;
        Ok(Known { tokens, chain, keys })
    }

    fn text(&mut self) -> Result<String> {
        String::from_utf8(self.list::<u8>()?).map_err(|_| bad("a key that is no text"))
    }
}
