//! The prefix cache: full blocks by content, so that equal beginnings are computed once.
//!
//! A block is known by its tokens and by all those before it. Each published content gets a serial
//! number that is never used again, and the key of a block is its parent's number with a hash of its
//! own tokens. A lookup compares the tokens themselves, and the parent was matched in the same way,
//! so two contents with one hash cost a hit and nothing else.

use std::collections::BTreeMap;

/// The serial number of the empty beginning, the parent of every first block.
pub(super) const NO_PARENT: u64 = 0;

/// The parent's serial number and the hash of the block's own tokens.
type Key = (u64, u64);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) block: i32,
    pub(super) serial: u64,
    pub(super) tokens: Box<[u32]>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    key: Key,
    /// When the last sequence left the block; `None` while one holds it.
    idle_since: Option<u64>,
}

/// All that is known of one published block.
pub(super) struct Kept {
    pub(super) parent: u64,
    pub(super) serial: u64,
    pub(super) block: i32,
    pub(super) idle_since: Option<u64>,
    pub(super) tokens: Box<[u32]>,
}

#[derive(Debug, Clone)]
pub(super) struct PrefixCache {
    entries: BTreeMap<Key, Entry>,
    /// Where each published block stands in `entries`.
    places: BTreeMap<i32, Place>,
    /// Published blocks that no sequence holds, the one to evict first in front.
    idle: BTreeMap<u64, i32>,
    last_serial: u64,
    clock: u64,
    hash: fn(&[u32]) -> u64,
}

/// FNV-1a, a token at a time (Fowler, Noll, Vo; 64-bit offset and prime).
fn fnv(tokens: &[u32]) -> u64 {
    tokens.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &token| {
        (hash ^ u64::from(token)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

impl PrefixCache {
    pub(super) fn new() -> Self {
        Self {
            entries: BTreeMap::new(),
            places: BTreeMap::new(),
            idle: BTreeMap::new(),
            last_serial: NO_PARENT,
            clock: 0,
            hash: fnv,
        }
    }

    /// The last serial number, the clock, and each published block.
    pub(super) fn kept(&self) -> ([u64; 2], Vec<Kept>) {
        let kept = |(&(parent, _), Entry { block, serial, tokens }): (&Key, &Entry)| Kept {
            parent,
            serial: *serial,
            block: *block,
            idle_since: self.places.get(block).and_then(|place| place.idle_since),
            tokens: tokens.clone(),
        };
        ([self.last_serial, self.clock], self.entries.iter().map(kept).collect())
    }

    /// A cache as it was.
    ///
    /// # Errors
    /// What cannot stand beside each other; [`Self::audit`] finds the rest.
    pub(super) fn of([last_serial, clock]: [u64; 2], kept: Vec<Kept>) -> Result<Self, String> {
        let mut cache = Self { last_serial, clock, ..Self::new() };
        for Kept { parent, serial, block, idle_since, tokens } in kept {
            let key = (parent, (cache.hash)(&tokens));
            let is_late = idle_since.is_some_and(|since| since == 0 || since > clock);
            let is_known = cache.entries.insert(key, Entry { block, serial, tokens }).is_some()
                || cache.places.insert(block, Place { key, idle_since }).is_some()
                || idle_since.is_some_and(|since| cache.idle.insert(since, block).is_some());
            if is_known || is_late {
                return Err(format!("the cache's entry of block {block} is wrong"));
            }
        }
        Ok(cache)
    }

    /// The last serial number that was given.
    pub(super) fn last_serial(&self) -> u64 {
        self.last_serial
    }

    /// The block and serial number of `tokens` after the content numbered `parent`.
    pub(super) fn find(&self, parent: u64, tokens: &[u32]) -> Option<(i32, u64)> {
        let entry = self.entries.get(&(parent, (self.hash)(tokens)))?;
        (*entry.tokens == *tokens).then_some((entry.block, entry.serial))
    }

    /// Makes `block`, held by a sequence, findable; gives the number of its content.
    ///
    /// A content that is already there keeps its block. `None`: another content has the same key.
    pub(super) fn publish(&mut self, parent: u64, tokens: &[u32], block: i32) -> Option<u64> {
        let key = (parent, (self.hash)(tokens));
        if let Some(entry) = self.entries.get(&key) {
            return (*entry.tokens == *tokens).then_some(entry.serial);
        }
        // Its content may be known after a parent that itself is no longer known.
        self.forget(block);
        self.last_serial += 1;
        let serial = self.last_serial;
        self.entries.insert(key, Entry { block, serial, tokens: tokens.into() });
        self.places.insert(block, Place { key, idle_since: None });
        Some(serial)
    }

    /// Takes `block` out of the cache, if it is there: its content is about to change.
    pub(super) fn forget(&mut self, block: i32) {
        if let Some(place) = self.places.remove(&block) {
            self.entries.remove(&place.key);
            if let Some(since) = place.idle_since {
                self.idle.remove(&since);
            }
        }
    }

    /// Notes that the last sequence left `block`; false if the block is not published.
    pub(super) fn rest(&mut self, block: i32) -> bool {
        let Some(place) = self.places.get_mut(&block) else {
            return false;
        };
        self.clock += 1;
        place.idle_since = Some(self.clock);
        self.idle.insert(self.clock, block);
        true
    }

    /// Notes that a sequence holds `block` again.
    pub(super) fn wake(&mut self, block: i32) {
        if let Some(since) = self.places.get_mut(&block).and_then(|place| place.idle_since.take()) {
            self.idle.remove(&since);
        }
    }

    /// Gives up the block that has been idle for longest.
    pub(super) fn evict(&mut self) -> Option<i32> {
        let block = *self.idle.first_key_value()?.1;
        self.forget(block);
        Some(block)
    }

    pub(super) fn num_idle(&self) -> usize {
        self.idle.len()
    }

    pub(super) fn is_idle(&self, block: i32) -> bool {
        self.places.get(&block).is_some_and(|place| place.idle_since.is_some())
    }

    pub(super) fn is_published(&self, block: i32) -> bool {
        self.places.contains_key(&block)
    }

    /// Each entry with its parent's number, after comparing the three maps with each other.
    pub(super) fn audit(&self) -> Result<BTreeMap<u64, (u64, &Entry)>, String> {
        let mut found = BTreeMap::new();
        for (key, entry) in &self.entries {
            let known = self.places.get(&entry.block).is_some_and(|place| place.key == *key);
            let legal = (self.hash)(&entry.tokens) == key.1
                && key.0 < entry.serial
                && entry.serial <= self.last_serial;
            if !known || !legal || found.insert(entry.serial, (key.0, entry)).is_some() {
                return Err(format!("the cache's entry of block {} is wrong", entry.block));
            }
        }
        let resting = self.places.iter().filter_map(|(&block, p)| Some((p.idle_since?, block)));
        let resting: BTreeMap<u64, i32> = resting.collect();
        if self.places.len() != self.entries.len() || resting != self.idle {
            return Err("the cache's blocks and entries differ".into());
        }
        Ok(found)
    }
}

impl PartialEq for PrefixCache {
    /// Equal state; the hash is a constant of the program.
    fn eq(&self, other: &Self) -> bool {
        self.entries == other.entries
            && self.places == other.places
            && self.idle == other.idle
            && (self.last_serial, self.clock) == (other.last_serial, other.clock)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn colliding() -> PrefixCache {
        PrefixCache { hash: |_| 7, ..PrefixCache::new() }
    }

    #[test]
    fn contents_are_found_after_their_own_parent_only() {
        let mut cache = PrefixCache::new();
        let a = cache.publish(NO_PARENT, &[1, 2], 0).unwrap();
        let b = cache.publish(a, &[3, 4], 1).unwrap();
        assert_eq!(cache.find(NO_PARENT, &[1, 2]), Some((0, a)));
        assert_eq!(cache.find(a, &[3, 4]), Some((1, b)));
        assert_eq!(cache.find(NO_PARENT, &[3, 4]), None);
        assert_eq!(cache.publish(NO_PARENT, &[1, 2], 5), Some(a), "the first block stays");
        assert_eq!(cache.find(NO_PARENT, &[1, 2]), Some((0, a)));
        cache.audit().unwrap();
    }

    #[test]
    fn a_collision_costs_a_hit_and_nothing_else() {
        let mut cache = colliding();
        let a = cache.publish(NO_PARENT, &[1, 2], 0).unwrap();
        assert_eq!(cache.publish(NO_PARENT, &[8, 9], 1), None);
        assert_eq!(cache.find(NO_PARENT, &[8, 9]), None);
        assert_eq!(cache.find(NO_PARENT, &[1, 2]), Some((0, a)));
        cache.audit().unwrap();
    }

    #[test]
    fn a_reused_block_does_not_bring_back_its_former_children() {
        let mut cache = PrefixCache::new();
        let a = cache.publish(NO_PARENT, &[1], 0).unwrap();
        cache.publish(a, &[2], 1).unwrap();
        cache.rest(0);
        assert_eq!(cache.evict(), Some(0));
        let b = cache.publish(NO_PARENT, &[9], 0).unwrap();
        assert_eq!(cache.find(b, &[2]), None, "[9, 2] was never computed");
        let c = cache.publish(NO_PARENT, &[1], 2).unwrap();
        assert_ne!(a, c);
        let d = cache.publish(c, &[2], 1).unwrap();
        assert_eq!(cache.find(c, &[2]), Some((1, d)), "block 1 is found again after [1]");
        cache.audit().unwrap();
    }

    #[test]
    fn the_longest_idle_goes_first() {
        let mut cache = PrefixCache::new();
        for block in 0..3 {
            cache.publish(NO_PARENT, &[block], block as i32).unwrap();
        }
        for block in [2, 0, 1] {
            assert!(cache.rest(block));
        }
        assert!(!cache.rest(9));
        cache.wake(0);
        assert_eq!((cache.evict(), cache.evict(), cache.evict()), (Some(2), Some(1), None));
        assert!(cache.is_published(0) && !cache.is_idle(0));
        cache.audit().unwrap();
    }
}
