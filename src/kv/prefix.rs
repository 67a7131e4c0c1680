//! The prefix cache: full blocks by content, so that equal beginnings are computed once.
//!
//! A block is known by its content (its tokens, and what else its entries depend on) and by those of all
//! blocks before it. Each published content gets a serial number that is never used again, and the key of
//! a block is its parent's number with a hash of its own content. A lookup compares the contents
//! themselves, and the parent was matched in the same way, so two contents with one hash cost a hit and
//! nothing else.
//!
//! Where a token sees a window only, a content whose block is gone still leads to those after it. It is
//! hollow, and goes with the last of them.

use std::collections::BTreeMap;

/// The serial number of the empty beginning, the parent of every first block.
pub(super) const NO_PARENT: u64 = 0;

/// What stands for a block that is gone.
pub(super) const NO_BLOCK: i32 = -1;

/// The parent's serial number and the hash of the block's own content.
type Key = (u64, u64);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// `NO_BLOCK` if it is hollow.
    pub(super) block: i32,
    /// Contents after it, counted where there are hollow ones.
    children: u32,
    pub(super) serial: u64,
    pub(super) content: Box<[u32]>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    key: Key,
    /// When the last sequence left the block; `None` while one holds it.
    idle_since: Option<u64>,
}

/// All that is known of one published content.
pub(super) struct Kept {
    pub(super) parent: u64,
    pub(super) serial: u64,
    pub(super) block: i32,
    pub(super) idle_since: Option<u64>,
    pub(super) content: Box<[u32]>,
}

#[derive(Debug, Clone)]
pub(super) struct PrefixCache {
    entries: BTreeMap<Key, Entry>,
    /// Where each published block stands in `entries`.
    places: BTreeMap<i32, Place>,
    /// Published blocks that no sequence holds, the one to evict first in front.
    idle: BTreeMap<u64, i32>,
    /// Where each content stands in `entries`; kept where there are hollow ones.
    names: Option<BTreeMap<u64, Key>>,
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
    /// An empty cache, with hollow contents or without.
    pub(super) fn new(is_hollow: bool) -> Self {
        Self {
            entries: BTreeMap::new(),
            places: BTreeMap::new(),
            idle: BTreeMap::new(),
            names: is_hollow.then(BTreeMap::new),
            last_serial: NO_PARENT,
            clock: 0,
            hash: fnv,
        }
    }

    /// The last serial number, the clock, and each published content.
    pub(super) fn kept(&self) -> ([u64; 2], Vec<Kept>) {
        let kept = |(&(parent, _), Entry { block, serial, content, .. }): (&Key, &Entry)| Kept {
            parent,
            serial: *serial,
            block: *block,
            idle_since: self.places.get(block).and_then(|place| place.idle_since),
            content: content.clone(),
        };
        ([self.last_serial, self.clock], self.entries.iter().map(kept).collect())
    }

    /// A cache as it was.
    ///
    /// # Errors
    /// What cannot stand beside each other; [`Self::audit`] finds the rest.
    pub(super) fn of(
        is_hollow: bool,
        [last_serial, clock]: [u64; 2],
        kept: Vec<Kept>,
    ) -> Result<Self, String> {
        let mut cache = Self { last_serial, clock, ..Self::new(is_hollow) };
        let mut parents = Vec::new();
        for Kept { parent, serial, block, idle_since, content } in kept {
            let key = (parent, (cache.hash)(&content));
            let entry = Entry { block, children: 0, serial, content };
            let is_late = idle_since.is_some_and(|since| since == 0 || since > clock);
            let is_known = cache.entries.insert(key, entry).is_some()
                || block != NO_BLOCK
                    && cache.places.insert(block, Place { key, idle_since }).is_some()
                || idle_since.is_some_and(|since| cache.idle.insert(since, block).is_some())
                || cache.names.as_mut().is_some_and(|names| names.insert(serial, key).is_some());
            if is_known || is_late {
                return Err(format!("the cache's entry of block {block} is wrong"));
            }
            parents.push(parent);
        }
        // An unknown parent is found by the audit.
        for parent in parents {
            cache.count_child(parent);
        }
        Ok(cache)
    }

    /// The last serial number that was given.
    pub(super) fn last_serial(&self) -> u64 {
        self.last_serial
    }

    /// The block and serial number of a content after the one numbered `parent`.
    pub(super) fn find(&self, parent: u64, content: &[u32]) -> Option<(i32, u64)> {
        let entry = self.entries.get(&(parent, (self.hash)(content)))?;
        (*entry.content == *content).then_some((entry.block, entry.serial))
    }

    /// Makes `block`, held by a sequence, findable; gives the number of its content.
    ///
    /// A content that is already there keeps its block. `None`: another content has the same key, or
    /// nothing leads there any more.
    pub(super) fn publish(&mut self, parent: u64, content: &[u32], block: i32) -> Option<u64> {
        let key = (parent, (self.hash)(content));
        if let Some(entry) = self.entries.get_mut(&key) {
            if *entry.content != *content {
                return None;
            }
            if entry.block == NO_BLOCK && !self.places.contains_key(&block) {
                entry.block = block;
                self.places.insert(block, Place { key, idle_since: None });
            }
            return Some(entry.serial);
        }
        let serial = self.last_serial + 1;
        if let Some(names) = &mut self.names {
            if parent != NO_PARENT && !names.contains_key(&parent) {
                return None;
            }
            names.insert(serial, key);
            self.count_child(parent);
        }
        // Its content may be known after a parent that itself is no longer known.
        self.forget(block);
        self.last_serial = serial;
        self.entries.insert(key, Entry { block, children: 0, serial, content: content.into() });
        self.places.insert(block, Place { key, idle_since: None });
        Some(serial)
    }

    /// Takes `block` out of the cache, if it is there: its content is about to change.
    pub(super) fn forget(&mut self, block: i32) {
        if let Some(place) = self.places.remove(&block) {
            if let Some(since) = place.idle_since {
                self.idle.remove(&since);
            }
            self.leave(place.key);
        }
    }

    /// Takes the block out of a content, and with it all that now leads nowhere.
    fn leave(&mut self, mut key: Key) {
        let Some(names) = &mut self.names else {
            self.entries.remove(&key);
            return;
        };
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.block = NO_BLOCK;
        }
        while let Some(entry) = self.entries.get(&key)
            && (entry.block, entry.children) == (NO_BLOCK, 0)
        {
            names.remove(&entry.serial);
            self.entries.remove(&key);
            let Some(&parent) = names.get(&key.0) else {
                break;
            };
            if let Some(above) = self.entries.get_mut(&parent) {
                above.children -= 1;
            }
            key = parent;
        }
    }

    /// Counts one more content after the one numbered `parent`.
    fn count_child(&mut self, parent: u64) {
        let key = self.names.as_ref().and_then(|names| names.get(&parent));
        if let Some(entry) = key.and_then(|key| self.entries.get_mut(key)) {
            entry.children += 1;
        }
    }

    /// Forgets everything; gives how many blocks were known, and those that no sequence holds.
    pub(super) fn clear(&mut self) -> (usize, Vec<i32>) {
        let known = self.places.len();
        self.entries.clear();
        self.places.clear();
        self.names.iter_mut().for_each(BTreeMap::clear);
        (known, std::mem::take(&mut self.idle).into_values().collect())
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

    /// Each entry with its parent's number, after comparing the maps with each other.
    pub(super) fn audit(&self) -> Result<BTreeMap<u64, (u64, &Entry)>, String> {
        let mut found = BTreeMap::new();
        let mut children: BTreeMap<u64, u32> = BTreeMap::new();
        for (key, entry) in &self.entries {
            let known = match entry.block {
                NO_BLOCK => entry.children > 0,
                block => self.places.get(&block).is_some_and(|place| place.key == *key),
            };
            let named = match &self.names {
                Some(names) => names.get(&entry.serial) == Some(key),
                None => entry.children == 0,
            };
            let legal = (self.hash)(&entry.content) == key.1
                && key.0 < entry.serial
                && entry.serial <= self.last_serial;
            if !(known && named && legal) || found.insert(entry.serial, (key.0, entry)).is_some() {
                return Err(format!("the cache's entry of block {} is wrong", entry.block));
            }
            if key.0 != NO_PARENT && self.names.is_some() {
                *children.entry(key.0).or_default() += 1;
            }
        }
        let counted = found.iter().filter(|(_, (_, entry))| entry.children > 0);
        if !counted.map(|(&serial, (_, entry))| (serial, entry.children)).eq(children) {
            return Err("more or fewer contents come after one than were counted".into());
        }
        let resting = self.places.iter().filter_map(|(&block, p)| Some((p.idle_since?, block)));
        let resting: BTreeMap<u64, i32> = resting.collect();
        let solid = self.entries.values().filter(|entry| entry.block != NO_BLOCK).count();
        let num_names = self.names.as_ref().map_or(self.entries.len(), BTreeMap::len);
        if (self.places.len(), self.entries.len()) != (solid, num_names) || resting != self.idle {
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
            && self.names == other.names
            && (self.last_serial, self.clock) == (other.last_serial, other.clock)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn colliding() -> PrefixCache {
        PrefixCache { hash: |_| 7, ..PrefixCache::new(false) }
    }

    #[test]
    fn contents_are_found_after_their_own_parent_only() {
        let mut cache = PrefixCache::new(false);
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
        let mut cache = PrefixCache::new(false);
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
        let mut cache = PrefixCache::new(false);
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

    #[test]
    fn a_hollow_content_leads_on_until_nothing_comes_after_it() {
        let mut cache = PrefixCache::new(true);
        let a = cache.publish(NO_PARENT, &[1], 0).unwrap();
        let b = cache.publish(a, &[2], 1).unwrap();
        let c = cache.publish(b, &[3], 2).unwrap();
        let d = cache.publish(b, &[4], 3).unwrap();
        cache.forget(0);
        cache.forget(1);
        assert_eq!(cache.find(NO_PARENT, &[1]), Some((NO_BLOCK, a)));
        assert_eq!(cache.find(a, &[2]), Some((NO_BLOCK, b)));
        assert_eq!(cache.find(b, &[3]), Some((2, c)));
        cache.audit().unwrap();
        assert_eq!(cache.publish(a, &[2], 2), Some(b), "block 2 has another content already");
        assert_eq!(cache.publish(a, &[2], 7), Some(b));
        assert_eq!(cache.find(a, &[2]), Some((7, b)));
        cache.forget(7);
        cache.forget(2);
        assert_eq!(cache.find(b, &[4]), Some((3, d)));
        cache.audit().unwrap();
        cache.forget(3);
        assert_eq!(cache.find(NO_PARENT, &[1]), None);
        assert!(cache.entries.is_empty());
        assert_eq!(cache.publish(b, &[3], 5), None, "nothing leads there any more");
        cache.audit().unwrap();
    }

    #[test]
    fn without_a_window_nothing_is_hollow() {
        let mut cache = PrefixCache::new(false);
        let a = cache.publish(NO_PARENT, &[1], 0).unwrap();
        cache.publish(a, &[2], 1).unwrap();
        cache.forget(0);
        assert_eq!(cache.find(NO_PARENT, &[1]), None);
        cache.audit().unwrap();
    }

    #[test]
    fn what_was_cleared_never_comes_back() {
        for is_hollow in [false, true] {
            let mut cache = PrefixCache::new(is_hollow);
            let a = cache.publish(NO_PARENT, &[1], 0).unwrap();
            cache.publish(a, &[2], 1).unwrap();
            cache.rest(1);
            assert_eq!(cache.clear(), (2, vec![1]));
            assert_eq!((cache.find(NO_PARENT, &[1]), cache.num_idle()), (None, 0));
            assert_ne!(cache.publish(NO_PARENT, &[1], 0), Some(a));
            cache.audit().unwrap();
        }
    }
}
