//! The block table against a naive model: random operations, valid and invalid ones mixed.
//!
//! The model keeps each sequence's contents as a plain list, and a pool as an array of contents that
//! copies, writes and moves are carried out on. What stands in a sequence's slots must be its
//! list, as far as the window shows it. Contents depend on all tokens and keys before them and on the
//! weights of the time, as keys and values do; without a prefix cache each write differs from all others,
//! so that no slip can go unseen.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // A failure here is a failed test.

use std::collections::{BTreeMap, BTreeSet};

use mtp_verify::error::Error;
use mtp_verify::kv::{BlockTable, Commit, CommitPlan, Item, Keys, Prompt};
use mtp_verify::tree::TokenTree;
use proptest::prelude::*;

/// Sequence numbers that operations name; half of them are in the table at most times.
const SEQS: i64 = 8;
/// Few tokens, so that sequences begin alike.
const VOCAB: u64 = 2;

/// `SplitMix64` (Steele, Lea, Flood 2014).
#[derive(Debug, Clone)]
struct Bits(u64);

impl Bits {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0, 0)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

fn mix(a: u64, b: u64) -> u64 {
    let mut z = a ^ b.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[derive(Debug, Clone, Default)]
struct Model {
    /// What the keys of the whole sequence give.
    start: u64,
    /// What each entry holds, and its token.
    entries: Vec<(u64, u32)>,
    /// Entries that a forward has written; a prompt is written together with the next step.
    written: usize,
    /// The open reservation.
    slots: Vec<i64>,
    /// A rollback to here and to anywhere behind it is always possible.
    base: usize,
}

/// A table's sizes: blocks, slots of a block, whether there is a prefix cache, and the window.
type Sizes = (usize, usize, bool, Option<usize>);

#[derive(Debug, Default)]
struct Figures {
    accepted: u64,
    refused: BTreeMap<&'static str, u64>,
    cached: u64,
    copies: u64,
    moves: u64,
    reset: u64,
    gone: u64,
}

struct Driver {
    table: BlockTable,
    block_size: usize,
    prefix_cache: bool,
    window: usize,
    sequences: BTreeMap<i64, Model>,
    pool: Vec<u64>,
    stamp: u64,
    /// How often the weights have changed.
    weights: u64,
    figures: Figures,
}

impl Driver {
    fn new((num_blocks, block_size, prefix_cache, window): Sizes) -> Self {
        Self {
            table: BlockTable::new(num_blocks, block_size, prefix_cache, window).unwrap(),
            block_size,
            prefix_cache,
            window: window.unwrap_or(usize::MAX),
            sequences: BTreeMap::new(),
            pool: vec![0; num_blocks * block_size],
            stamp: 0,
            weights: 0,
            figures: Figures::default(),
        }
    }

    /// What a forward writes for `token` after `above`.
    fn content(&mut self, above: u64, token: u32) -> u64 {
        self.stamp += 1;
        let salt = if self.prefix_cache { self.weights } else { self.stamp };
        mix(above, u64::from(token) + (salt << 32) + 1)
    }

    fn blocks(&self, seq: i64) -> Vec<i32> {
        self.table.block_lists(&[seq]).unwrap()[0].to_vec()
    }

    fn slots(&self, seq: i64, entries: std::ops::Range<usize>) -> Vec<usize> {
        let blocks = self.blocks(seq);
        let size = self.block_size;
        let slot = |block: i32, entry| usize::try_from(block).unwrap() * size + entry % size;
        entries.map(|entry| slot(blocks[entry / size], entry)).collect()
    }

    /// How many blocks of a sequence a window has left behind; all others are there.
    fn num_gone(&self, seq: i64) -> usize {
        let blocks = self.blocks(seq);
        let gone = blocks.iter().take_while(|&&block| block == -1).count();
        assert!(blocks[gone..].iter().all(|&block| block >= 0));
        gone
    }

    fn first_seen(&self, length: usize) -> usize {
        (length + 1).saturating_sub(self.window)
    }

    fn num_held(&self) -> usize {
        let held = self.sequences.keys().flat_map(|&seq| self.blocks(seq));
        held.filter(|&block| block >= 0).collect::<BTreeSet<i32>>().len()
    }

    /// Whether some other sequence holds the block that `seq` writes next.
    fn holders_of_tail(&self, seq: i64) -> (Option<i32>, usize) {
        let length = self.sequences[&seq].entries.len();
        if length.is_multiple_of(self.block_size) {
            return (None, 0);
        }
        let tail = self.blocks(seq)[length / self.block_size];
        let holders = self.sequences.keys().filter(|&&other| self.blocks(other).contains(&tail));
        (Some(tail), holders.count())
    }

    /// Each entry that was written, and can be seen after any rollback that is promised, stands in its
    /// slot.
    fn check_contents(&self) {
        for (&seq, model) in &self.sequences {
            let from = self.first_seen(model.base).min(model.written);
            let slots = self.slots(seq, from..model.written);
            for ((content, _), slot) in model.entries[from..].iter().zip(slots) {
                assert_eq!(self.pool[slot], *content, "sequence {seq}");
            }
        }
    }

    fn check_counts(&self) {
        assert_eq!(self.table.num_free(), self.table.num_blocks() - self.num_held());
        let seqs: Vec<i64> = self.sequences.keys().copied().collect();
        let lengths: Vec<i64> =
            self.sequences.values().map(|model| model.entries.len() as i64).collect();
        assert_eq!(self.table.lengths(&seqs).unwrap(), lengths);
    }

    /// One random operation, wrong in many ways every now and then; `watch` compares all state before
    /// and after a refused one.
    fn step(&mut self, bits: &mut Bits, watch: bool) {
        let before = watch.then(|| self.table.clone());
        let outcome = match bits.below(257) {
            256 => {
                self.reset();
                Ok(())
            }
            op => match op / 16 {
                0..=2 => self.add(bits),
                3 => self.fork(bits),
                4..=6 => self.reserve(bits),
                7..=8 => self.reserve_batch(bits),
                9..=11 => self.commit(bits),
                12..=13 => self.commit_batch(bits),
                14 => self.rollback(bits),
                _ => self.release(bits),
            },
        };
        match outcome {
            Ok(()) => self.figures.accepted += 1,
            Err(error) => {
                *self.figures.refused.entry(error.slug()).or_default() += 1;
                self.table.check_integrity().unwrap();
                assert!(before.is_none_or(|before| before == self.table), "{error}");
            }
        }
    }

    fn seq(bits: &mut Bits) -> i64 {
        bits.below(SEQS as u64) as i64 - 2
    }

    /// Keys and items of a sequence, now and then wrong ones; none most often.
    fn keys(bits: &mut Bits, length: usize) -> (BTreeMap<String, String>, Vec<Item>) {
        let mut whole = BTreeMap::new();
        if bits.one_in(4) {
            let name = if bits.one_in(2) { "adapter" } else { "salt" };
            whole.insert(name.to_owned(), bits.below(2).to_string());
        }
        let (mut items, mut end) = (Vec::new(), 0);
        while bits.one_in(3) {
            let start = end + bits.below(4) as usize;
            end = start + bits.below(6) as usize;
            if bits.one_in(30) || start < end && end <= length {
                items.push(Item { start, stop: end, key: bits.below(2).to_string() });
            }
        }
        (whole, items)
    }

    fn add(&mut self, bits: &mut Bits) -> Result<(), Error> {
        let seq = Self::seq(bits);
        let known = !bits.one_in(4);
        let length = if bits.one_in(50) { usize::MAX } else { bits.below(14) as usize };
        if length == usize::MAX {
            let refused = self.table.add_sequence(seq, length, Prompt::default());
            return Err(refused.unwrap_err());
        }
        // Half of them are all the same, so that long beginnings are found again.
        let vocab = if bits.one_in(2) { 1 } else { VOCAB };
        let tokens: Vec<u32> = (0..length).map(|_| bits.below(vocab) as u32).collect();
        let given = if bits.one_in(30) { &tokens[length / 2..] } else { &tokens };
        let (whole, items) = Self::keys(bits, length);
        let keys = Keys::new(whole.clone(), items.clone())?;
        let is_inside = items.iter().all(|item| item.stop <= length);
        let max_cached = bits.one_in(4).then(|| bits.below(14) as usize);
        let prompt = Prompt { tokens: known.then_some(given), keys, max_cached };
        let needed = length.div_ceil(self.block_size);
        let free = self.table.num_free();
        let promised = self.table.num_cached(&prompt);
        let outcome = self.table.add_sequence(seq, length, prompt);
        if self.sequences.contains_key(&seq) {
            assert!(matches!(outcome, Err(Error::DuplicateSequence { .. })));
        }
        let cached = outcome.inspect_err(|error| match error {
            Error::OutOfBlocks { missing, .. } => {
                assert!(*missing >= 1 && needed > free);
                assert!(self.prefix_cache || *missing == needed - free);
            }
            Error::DuplicateSequence { .. } => assert!(self.sequences.contains_key(&seq)),
            _ => assert!(!is_inside || known && given.len() != length, "{error}"),
        })?;
        assert_eq!(promised, Ok(cached));
        assert!(cached <= length && cached.is_multiple_of(self.block_size));
        assert!(cached == 0 || self.prefix_cache && known);
        assert!(max_cached.is_none_or(|most| cached <= most));
        let text = |text: &str| text.bytes().fold(1, |all, byte| mix(all, u64::from(byte)));
        let start = whole.iter().fold(0, |all, (name, key)| all ^ mix(text(name), text(key)));
        let mut model = Model { start, written: cached, base: cached, ..Model::default() };
        let mut above = start;
        for (entry, &token) in tokens.iter().enumerate() {
            if let Some(item) = items.iter().find(|i| i.start <= entry && entry < i.stop) {
                above = mix(above, text(&item.key) + (entry - item.start) as u64);
            }
            above = self.content(above, token);
            model.entries.push((above, token));
        }
        self.sequences.insert(seq, model);
        self.figures.cached += cached as u64;
        // What counts as computed has been written, with the same tokens and keys before it.
        self.check_contents();
        Ok(())
    }

    fn reset(&mut self) {
        let free = self.table.num_free();
        let known = self.table.reset_prefix_cache();
        assert!(known == 0 || self.prefix_cache);
        assert_eq!((self.table.num_free(), self.table.reset_prefix_cache()), (free, 0));
        self.weights += 1;
        self.figures.reset += known as u64;
    }

    fn fork(&mut self, bits: &mut Bits) -> Result<(), Error> {
        let (parent, child) = (Self::seq(bits), Self::seq(bits));
        let legal = self.sequences.get(&parent).is_some_and(|model| model.slots.is_empty())
            && !self.sequences.contains_key(&child);
        let outcome = self.table.fork(parent, child);
        assert_eq!(outcome.is_ok(), legal);
        outcome?;
        self.sequences.insert(child, self.sequences[&parent].clone());
        Ok(())
    }

    fn reserve(&mut self, bits: &mut Bits) -> Result<(), Error> {
        let seq = Self::seq(bits);
        let n = if bits.one_in(40) { usize::MAX } else { bits.below(9) as usize };
        self.predict_reserve(&[(seq, n)], |table| {
            let reservation = table.reserve(seq, n)?;
            Ok((vec![reservation.slots], reservation.copies))
        })
    }

    fn reserve_batch(&mut self, bits: &mut Bits) -> Result<(), Error> {
        let mut wanted: Vec<(i64, usize)> = self
            .sequences
            .iter()
            .filter(|(_, model)| model.slots.is_empty())
            .map(|(&seq, _)| (seq, 1 + bits.below(5) as usize))
            .collect();
        match bits.below(8) {
            0 => wanted.push((Self::seq(bits), bits.below(4) as usize)),
            1 => wanted.extend(wanted.first().copied()),
            2..=3 => wanted.truncate(2),
            _ => {}
        }
        self.predict_reserve(&wanted, |table| {
            let batch = table.reserve_batch(&wanted)?;
            let parts: Vec<_> = (0..wanted.len()).map(|b| batch.get(b).unwrap()).collect();
            assert!(batch.get(wanted.len()).is_none());
            assert_eq!(
                parts.iter().flat_map(|p| p.copies.clone()).collect::<Vec<_>>(),
                batch.copies
            );
            Ok((parts.into_iter().map(|part| part.slots).collect(), batch.copies))
        })
    }

    fn predict_reserve(
        &mut self,
        wanted: &[(i64, usize)],
        call: impl FnOnce(&mut BlockTable) -> Result<(Vec<Vec<i64>>, Vec<(i64, i64)>), Error>,
    ) -> Result<(), Error> {
        let seqs: BTreeSet<i64> = wanted.iter().map(|&(seq, _)| seq).collect();
        let legal = seqs.len() == wanted.len()
            && wanted.iter().all(|(seq, n)| {
                let model = self.sequences.get(seq);
                *n > 0
                    && model.is_some_and(|m| {
                        m.slots.is_empty() && *n <= i64::MAX as usize - m.entries.len()
                    })
            });
        let mut needed = 0_usize;
        let mut writers: BTreeMap<i32, usize> = BTreeMap::new();
        if legal {
            for &(seq, n) in wanted {
                let length = self.sequences[&seq].entries.len();
                needed += (length + n).div_ceil(self.block_size) - self.blocks(seq).len();
                if let (Some(tail), holders) = self.holders_of_tail(seq) {
                    let earlier = writers.entry(tail).or_default();
                    needed += usize::from(holders - *earlier > 1);
                    *earlier += 1;
                }
            }
        }
        let free = self.table.num_free();
        let outcome = call(&mut self.table);
        let (slots, copies) = outcome.inspect_err(|error| match error {
            Error::OutOfBlocks { missing, holders, .. } => {
                assert!(legal && *missing == needed - free);
                let held = holders.iter().map(|&seq| self.blocks(seq).len() - self.num_gone(seq));
                let held: Vec<usize> = held.collect();
                assert!(held.is_sorted_by(|a, b| a >= b) && held.iter().all(|&count| count > 0));
            }
            _ => assert!(!legal, "{error}"),
        })?;
        assert!(legal && needed <= free);
        assert_eq!(self.table.num_free(), free - needed);
        self.figures.copies += copies.len() as u64;
        for (from, to) in copies {
            self.pool[to as usize] = self.pool[from as usize];
        }
        for (&(seq, n), slots) in wanted.iter().zip(slots) {
            let length = self.sequences[&seq].entries.len();
            let ours: Vec<i64> =
                self.slots(seq, length..length + n).iter().map(|&slot| slot as i64).collect();
            assert_eq!(slots, ours);
            // Whatever is written here must show in no other sequence.
            for &slot in &slots {
                self.stamp += 1;
                self.pool[slot as usize] = mix(self.stamp, 1 << 60);
            }
            self.sequences.get_mut(&seq).unwrap().slots = slots;
        }
        let (all, offsets) =
            self.table.slot_mapping(&wanted.iter().map(|w| w.0).collect::<Vec<_>>())?;
        let model = |seq: &i64| self.sequences[seq].slots.clone();
        assert_eq!(all, wanted.iter().flat_map(|(seq, _)| model(seq)).collect::<Vec<_>>());
        assert_eq!(offsets.last().copied(), Some(all.len() as i64));
        Ok(())
    }

    /// A tree for the open reservation with a path, now and then wrong ones.
    fn draw(&self, seq: i64, bits: &mut Bits) -> (TokenTree, Vec<i64>, Vec<i64>) {
        let reserved = self.sequences.get(&seq).map_or(0, |model| model.slots.len());
        let nodes = if bits.one_in(20) { reserved + 1 } else { reserved.max(1) };
        let parents: Vec<i64> = (0..nodes as u64)
            .map(|node| if node == 0 { -1 } else { (node - 1 - bits.below(node.min(3))) as i64 })
            .collect();
        let tree = TokenTree::new(&parents).unwrap();
        let end = tree.path(bits.below(nodes as u64) as usize);
        let mut path: Vec<i64> = end.iter().map(|&node| i64::from(node)).collect();
        if bits.one_in(20) {
            path.push(bits.below(9) as i64 - 1);
        }
        let tokens = (0..nodes).map(|_| bits.below(VOCAB) as i64).collect();
        (tree, path, tokens)
    }

    fn is_legal(&self, seq: i64, tree: &TokenTree, path: &[i64], tokens: Option<&[i64]>) -> bool {
        let reserved = self.sequences.get(&seq).map_or(0, |model| model.slots.len());
        reserved == tree.num_nodes()
            && tree.check_path(path).is_ok()
            && tokens.is_none_or(|tokens| tokens.len() == reserved)
    }

    fn commit(&mut self, bits: &mut Bits) -> Result<(), Error> {
        let seq = Self::seq(bits);
        let (tree, path, mut tokens) = self.draw(seq, bits);
        if bits.one_in(20) {
            tokens.pop();
        }
        if bits.one_in(20) {
            tokens.iter_mut().take(1).for_each(|token| *token = -1);
        }
        let tokens = (!bits.one_in(10)).then_some(&tokens[..]);
        let legal = self.is_legal(seq, &tree, &path, tokens);
        if legal {
            self.forward(seq, &tree, tokens);
        }
        let outcome =
            self.table.commit(Commit { seq, parents: tree.parents(), path: &path, tokens });
        assert_eq!(outcome.is_ok(), legal);
        self.applied(seq, &path, outcome?);
        Ok(())
    }

    fn commit_batch(&mut self, bits: &mut Bits) -> Result<(), Error> {
        let open = self.sequences.iter().filter(|(_, model)| !model.slots.is_empty());
        let mut seqs: Vec<i64> = open.map(|(&seq, _)| seq).collect();
        match bits.below(12) {
            0 => seqs.push(Self::seq(bits)),
            1 => seqs.extend(seqs.first().copied()),
            _ => {}
        }
        let drawn: Vec<_> = seqs.iter().map(|&seq| (seq, self.draw(seq, bits))).collect();
        let distinct: BTreeSet<i64> = seqs.iter().copied().collect();
        let legal = distinct.len() == seqs.len()
            && drawn
                .iter()
                .all(|(seq, (tree, path, tokens))| self.is_legal(*seq, tree, path, Some(tokens)));
        if legal {
            for (seq, (tree, _, tokens)) in &drawn {
                self.forward(*seq, tree, Some(tokens));
            }
        }
        let commits: Vec<Commit<'_>> = drawn
            .iter()
            .map(|(seq, (tree, path, tokens))| Commit {
                seq: *seq,
                parents: tree.parents(),
                path,
                tokens: Some(tokens),
            })
            .collect();
        let outcome = self.table.commit_batch(&commits);
        assert_eq!(outcome.is_ok(), legal);
        let plans = outcome?;
        assert_eq!((plans.len(), plans.get(plans.len())), (drawn.len(), None));
        for (index, (seq, (_, path, _))) in drawn.iter().enumerate() {
            self.applied(*seq, path, plans.get(index).unwrap());
        }
        Ok(())
    }

    /// Writes a prompt that is not written yet, and the nodes of the tree.
    fn forward(&mut self, seq: i64, tree: &TokenTree, tokens: Option<&[i64]>) {
        let mut model = self.sequences.remove(&seq).unwrap();
        let blocks_of = self.table.block_lists(&[seq]).unwrap()[0].to_vec();
        for (entry, &(content, _)) in model.entries.iter().enumerate().skip(model.written) {
            let block = blocks_of[entry / self.block_size] as usize;
            self.pool[block * self.block_size + entry % self.block_size] = content;
        }
        let base = model.entries.last().map_or(model.start, |&(content, _)| content);
        let mut nodes: Vec<(u64, u32)> = Vec::new();
        for node in 0..tree.num_nodes() {
            let above = tree.parent(node).map_or(base, |parent| nodes[parent].0);
            // An unknown token is one that occurs nowhere else.
            self.stamp += 1;
            let token = tokens.and_then(|tokens| u32::try_from(tokens[node]).ok());
            let token = token.unwrap_or(self.stamp as u32 | 1 << 20);
            nodes.push((self.content(above, token), token));
            self.pool[model.slots[node] as usize] = nodes[node].0;
        }
        // Kept until the commit says which of them stay.
        model.written = model.entries.len();
        model.entries.extend(nodes);
        self.sequences.insert(seq, model);
    }

    fn applied(&mut self, seq: i64, path: &[i64], plan: CommitPlan) {
        let model = self.sequences.get_mut(&seq).unwrap();
        let nodes = model.entries.split_off(model.written);
        model.base = model.entries.len();
        model.entries.push(nodes[0]);
        model.entries.extend(path.iter().map(|&node| nodes[node as usize]));
        model.written = model.entries.len();
        model.slots.clear();
        assert_eq!(plan.length, model.entries.len() as i64);
        assert_eq!(plan.state_select, path.last().copied().unwrap_or(0));
        self.figures.moves += plan.moves.len() as u64;
        for (from, to) in plan.moves {
            self.pool[to as usize] = self.pool[from as usize];
        }
        self.check_freed(&plan.freed);
        let base = self.sequences[&seq].base;
        assert_eq!(self.num_gone(seq), self.first_seen(base) / self.block_size);
        self.figures.gone += self.num_gone(seq) as u64;
    }

    fn check_freed(&self, freed: &[i32]) {
        let distinct: BTreeSet<i32> = freed.iter().copied().collect();
        assert_eq!(distinct.len(), freed.len());
        for &seq in self.sequences.keys() {
            assert!(self.blocks(seq).iter().all(|block| !distinct.contains(block)));
        }
    }

    fn rollback(&mut self, bits: &mut Bits) -> Result<(), Error> {
        let seq = Self::seq(bits);
        let length = self.sequences.get(&seq).map_or(3, |model| model.entries.len());
        let to = if bits.one_in(2) { length } else { bits.below(length as u64 + 2) as usize };
        let legal = self.sequences.get(&seq).is_some_and(|model| {
            let is_seen = self.num_gone(seq) <= self.first_seen(to) / self.block_size;
            assert!(is_seen || to < model.base);
            to == 0 || to <= length && is_seen
        });
        let free = self.table.num_free();
        let outcome = self.table.rollback(seq, to);
        assert_eq!(outcome.is_ok(), legal);
        let freed = outcome?;
        let model = self.sequences.get_mut(&seq).unwrap();
        model.entries.truncate(to);
        model.written = model.written.min(to);
        model.base = model.base.min(to);
        model.slots.clear();
        self.check_freed(&freed);
        assert_eq!(self.table.num_free(), free + freed.len());
        Ok(())
    }

    fn release(&mut self, bits: &mut Bits) -> Result<(), Error> {
        let seq = Self::seq(bits);
        let free = self.table.num_free();
        let outcome = self.table.release(seq);
        assert_eq!(outcome.is_ok(), self.sequences.contains_key(&seq));
        let freed = outcome?;
        self.sequences.remove(&seq);
        self.check_freed(&freed);
        assert_eq!(self.table.num_free(), free + freed.len());
        Ok(())
    }

    /// Everything goes, and no block is missing.
    fn finish(&mut self) {
        for seq in std::mem::take(&mut self.sequences).into_keys() {
            self.table.release(seq).unwrap();
        }
        assert_eq!(self.table.num_free(), self.table.num_blocks(), "blocks leaked");
        self.table.check_integrity().unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn random_operations_agree_with_the_naive_model(
        num_blocks in 1_usize..24, block_size in 1_usize..6, prefix_cache: bool,
        window in prop::option::of(1_usize..12), seed: u64, num_steps in 0_usize..400,
    ) {
        let mut driver = Driver::new((num_blocks, block_size, prefix_cache, window));
        let mut bits = Bits(seed);
        for _ in 0..num_steps {
            driver.step(&mut bits, true);
            driver.table.check_integrity().unwrap();
            driver.check_contents();
            driver.check_counts();
        }
        driver.finish();
    }
}

#[test]
fn numbers_that_no_list_can_hold_are_refused_before_memory_is_taken() {
    let mut table = BlockTable::new(i32::MAX as usize, 16, true, None).unwrap();
    table.add_sequence(1, 5, Prompt::default()).unwrap();
    let before = table.clone();
    let pool = 16 * i32::MAX as usize;
    for n in [1 << 27, pool - 64, 1 << 62, usize::MAX] {
        assert!(table.reserve(1, n).is_err());
        assert!(table.reserve_batch(&[(1, n)]).is_err());
        assert!(table.add_sequence(2, n.max(1 << 31), Prompt::default()).is_err());
        assert_eq!(table, before);
    }
    // One block of 2^60 entries, shared: its copy would be listed entry by entry.
    let mut table = BlockTable::new(2, 1 << 61, false, None).unwrap();
    table.add_sequence(1, 1 << 60, Prompt::default()).unwrap();
    table.fork(1, 2).unwrap();
    let before = table.clone();
    assert!(matches!(table.reserve(2, 1), Err(Error::Overflow { .. })));
    assert_eq!(table, before);
    table.check_integrity().unwrap();
    // The same sequence many times: its blocks would be written as often.
    let mut table = BlockTable::new(1 << 14, 1, false, None).unwrap();
    table.add_sequence(1, 1 << 14, Prompt::default()).unwrap();
    assert!(matches!(table.block_lists(&vec![1; 1 << 11]), Err(Error::Overflow { .. })));
    assert_eq!(table.block_lists(&vec![1; 1 << 10]).unwrap().len(), 1 << 10);
}

/// Ten million operations. Prints how many of each kind were refused; `--nocapture` shows it.
#[test]
#[ignore = "slow: minutes; `make test-all` runs it"]
fn ten_million_operations_leak_nothing() {
    const OPERATIONS: u64 = 10_000_000;
    let settings = [
        (24, 4, false, None),
        (24, 4, true, None),
        (40, 3, true, None),
        (12, 5, true, None),
        (9, 1, false, None),
        (16, 2, true, Some(5)),
        (24, 4, true, Some(3)),
        (12, 1, true, Some(4)),
    ];
    let mut total = 0;
    for (index, sizes) in settings.into_iter().enumerate() {
        let (num_blocks, block_size, prefix_cache, window) = sizes;
        let mut driver = Driver::new(sizes);
        let mut bits = Bits(index as u64);
        for operation in 0..OPERATIONS / settings.len() as u64 {
            driver.step(&mut bits, operation % 64 == 0);
            if operation % 1000 == 0 {
                driver.table.check_integrity().unwrap();
            }
            if operation % 50 == 0 {
                driver.check_contents();
                driver.check_counts();
            }
            total += 1;
        }
        driver.finish();
        assert_eq!(driver.figures.cached > 0, prefix_cache);
        println!(
            "{num_blocks} blocks of {block_size}, prefix cache {prefix_cache}, window {window:?}: {:?}, \
             leaked 0",
            driver.figures
        );
    }
    assert_eq!(total, OPERATIONS);
    println!("{total} operations");
}
