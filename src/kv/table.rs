//! `BlockTable`: sequences as lists of blocks from one fixed pool, for paged caches.
//!
//! Entry `i` of a sequence lies in slot `blocks[i / block_size] * block_size + i % block_size`. Blocks
//! are shared by forks and by the prefix cache; a sequence copies the one block that it shares and is
//! about to write into. Without an open reservation a sequence holds the blocks that its entries need, but
//! for those that a window has left behind. Every call checks first and changes afterwards: a refused one
//! changes nothing.

use std::collections::BTreeMap;

use super::batch::{
    Commit, CommitPlanBatch, Prompt, Reservation, ReservationBatch, check_distinct,
};
use super::numbers::ByNumber;
use super::pool::{Pool, first_held};
use super::prefix::{NO_BLOCK, NO_PARENT, PrefixCache};
use super::sequence::{Known, Sequence, first_seen};
use super::{CommitPlan, check_listed, moves, state_select};
use crate::error::{Error, Result};
use crate::tree::check_path;

/// Sequences over a fixed pool of blocks.
#[derive(Debug, Clone, PartialEq)]
pub struct BlockTable {
    pub(super) block_size: usize,
    /// Entries that a token sees, itself included; `usize::MAX` where it sees all.
    pub(super) window: usize,
    pub(super) pool: Pool,
    pub(super) sequences: ByNumber<Sequence>,
}

impl BlockTable {
    /// A table over `num_blocks` free blocks of `block_size` slots each.
    ///
    /// # Errors
    /// [`Error::ParamOutOfRange`] if a size is 0, [`Error::Overflow`] if block numbers do not fit an
    /// `i32` or slots an `i64`.
    pub fn new(
        num_blocks: usize,
        block_size: usize,
        prefix_cache: bool,
        window: Option<usize>,
    ) -> Result<Self> {
        let sizes = [("num_blocks", num_blocks), ("block_size", block_size)];
        for (name, value) in sizes.into_iter().chain(window.map(|window| ("window", window))) {
            if value == 0 {
                return Err(Error::ParamOutOfRange { name, value: "0".into(), wanted: ">= 1" });
            }
        }
        let overflow = |what, found: usize, limit: u64| {
            Err(Error::Overflow { what, found: found as u64, limit })
        };
        if i32::try_from(num_blocks).is_err() {
            return overflow("num_blocks", num_blocks, i32::MAX as u64);
        }
        let limit = i64::MAX as u64 / num_blocks as u64;
        if block_size as u64 > limit {
            return overflow("block_size", block_size, limit);
        }
        let window = window.unwrap_or(usize::MAX);
        let prefix = prefix_cache.then(|| PrefixCache::new(window < usize::MAX));
        let pool = Pool::new(num_blocks, prefix);
        Ok(Self { block_size, window, pool, sequences: ByNumber::default() })
    }

    /// The slots of a block.
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    /// Entries that a token sees, itself included; `None` where it sees all.
    pub fn window(&self) -> Option<usize> {
        (self.window < usize::MAX).then_some(self.window)
    }

    /// All blocks of the pool.
    pub fn num_blocks(&self) -> usize {
        self.pool.num_blocks()
    }

    /// Blocks that no sequence holds; those whose content the prefix cache still knows are among them.
    pub fn num_free(&self) -> usize {
        self.pool.num_free()
    }

    /// Adds a sequence of `length` entries; gives how many of them are already computed.
    ///
    /// With a prefix cache and tokens (one for each entry), the full blocks at the beginning whose
    /// content is known are shared: of those that a window still shows, none is missing. The caller
    /// writes the other entries before the sequence's next commit, which is when they become known to
    /// others.
    ///
    /// # Errors
    /// [`Error::DuplicateSequence`], [`Error::OutOfBlocks`], [`Error::ShapeMismatch`] if there are
    /// more or fewer tokens than entries, [`Error::ParamOutOfRange`] if an item ends behind them;
    /// [`Error::Overflow`] for more blocks than a list can hold.
    pub fn add_sequence(&mut self, seq: i64, length: usize, prompt: Prompt<'_>) -> Result<usize> {
        self.check_new(seq)?;
        if let Some(tokens) = prompt.tokens.filter(|tokens| tokens.len() != length) {
            return Err(Error::ShapeMismatch {
                what: "tokens",
                found: format!("({},)", tokens.len()),
                wanted: format!("({length},), one for each entry"),
            }
            .in_sequence(seq));
        }
        prompt.keys.check(length).map_err(|error| error.in_sequence(seq))?;
        let (blocks, chain) = self.find(&prompt);
        let shared = blocks.len();
        let fresh = length.div_ceil(self.block_size) - shared;
        let held = &blocks[first_held(&blocks)..];
        let idle = held.iter().filter(|&&block| self.pool.refs(block) == 0).count();
        self.check_free(fresh + idle)?;
        check_listed("blocks of a sequence", shared + fresh)
            .map_err(|error| error.in_sequence(seq))?;
        for &block in held {
            self.pool.share(block);
        }
        let known = self.pool.prefix().map(|_| {
            let tokens = prompt.tokens.unwrap_or_default().to_vec();
            Box::new(Known { tokens, chain, keys: prompt.keys })
        });
        let mut added = Sequence { blocks, length, reserved: 0, known };
        added.blocks.extend((0..fresh).map(|_| self.pool.take()));
        self.sequences.insert(seq, added);
        Ok(shared * self.block_size)
    }

    /// How many entries of such a sequence are computed already: what [`Self::add_sequence`] would give.
    ///
    /// # Errors
    /// [`Error::ParamOutOfRange`] if an item ends behind the tokens.
    pub fn num_cached(&self, prompt: &Prompt<'_>) -> Result<usize> {
        prompt.keys.check(prompt.tokens.map_or(usize::MAX, <[u32]>::len))?;
        Ok(self.find(prompt).0.len() * self.block_size)
    }

    /// The longest beginning that is computed as far as a window shows it: its blocks, and the contents'
    /// serial numbers.
    fn find(&self, prompt: &Prompt<'_>) -> (Vec<i32>, Vec<u64>) {
        let size = self.block_size;
        let (mut blocks, mut chain) = (Vec::new(), Vec::new());
        let (mut found, mut run) = (0, 0);
        let most = prompt.max_cached.map_or(usize::MAX, |most| most / size);
        let parts = prompt.tokens.unwrap_or_default().chunks_exact(size).take(most);
        for (index, part) in parts.enumerate() {
            let parent = chain.last().copied().unwrap_or(NO_PARENT);
            let content = prompt.keys.content(part, index);
            let prefix = self.pool.prefix();
            let Some((block, serial)) = prefix.and_then(|prefix| prefix.find(parent, &content))
            else {
                break;
            };
            blocks.push(block);
            chain.push(serial);
            run = if block == NO_BLOCK { 0 } else { run + 1 };
            if blocks.len() - self.first_seen(blocks.len() * size) <= run {
                found = blocks.len();
            }
        }
        blocks.truncate(found);
        chain.truncate(found);
        let unseen = self.first_seen(found * size);
        blocks[..unseen].fill(NO_BLOCK);
        (blocks, chain)
    }

    /// See [`first_seen`].
    pub(super) fn first_seen(&self, length: usize) -> usize {
        first_seen(length, self.window, self.block_size)
    }

    /// Forgets all published contents, as after a change of the model's weights; gives the number of
    /// blocks that were known. Sequences keep their blocks, and what they hold or will hold is shared with
    /// none that is added later.
    pub fn reset_prefix_cache(&mut self) -> usize {
        self.sequences.values_mut().for_each(|sequence| sequence.known = None);
        self.pool.reset()
    }

    /// Adds `child` with all entries of `parent`, sharing its blocks.
    ///
    /// # Errors
    /// [`Error::UnknownSequence`], [`Error::DuplicateSequence`], [`Error::OpenReservation`].
    pub fn fork(&mut self, parent: i64, child: i64) -> Result<()> {
        let forked = self.idle_sequence(parent)?.clone();
        self.check_new(child)?;
        for &block in &forked.blocks[first_held(&forked.blocks)..] {
            self.pool.share(block);
        }
        self.sequences.insert(child, forked);
        Ok(())
    }

    /// Slots for the next `n` nodes of one sequence; see [`Self::reserve_batch`].
    ///
    /// # Errors
    /// Those of [`Self::reserve_batch`].
    pub fn reserve(&mut self, seq: i64, n: usize) -> Result<Reservation> {
        let ReservationBatch { slots, copies, .. } = self.reserve_batch(&[(seq, n)])?;
        Ok(Reservation { slots, copies })
    }

    /// Slots for the next nodes of several sequences, each given with its number of nodes (root
    /// included): for all of them or for none.
    ///
    /// # Errors
    /// [`Error::UnknownSequence`], [`Error::DuplicateSequence`], [`Error::OpenReservation`],
    /// [`Error::OutOfBlocks`]; [`Error::ParamOutOfRange`] for 0 nodes, [`Error::Overflow`].
    pub fn reserve_batch(&mut self, wanted: &[(i64, usize)]) -> Result<ReservationBatch> {
        check_distinct(wanted.iter().map(|&(seq, _)| seq))?;
        let (mut needed, mut nodes, mut copies) = (0_usize, 0_usize, 0_usize);
        let mut longest = 0;
        let mut writers: BTreeMap<i32, u32> = BTreeMap::new();
        for &(seq, n) in wanted {
            let sequence = self.idle_sequence(seq)?;
            if n == 0 {
                let wanted = "at least 1 slot, for the root";
                let error = Error::ParamOutOfRange { name: "n", value: "0".into(), wanted };
                return Err(error.in_sequence(seq));
            }
            let limit = i64::MAX as usize - sequence.length;
            if n > limit {
                let (found, limit) = (n as u64, limit as u64);
                return Err(Error::Overflow { what: "n", found, limit }.in_sequence(seq));
            }
            let blocks = (sequence.length + n).div_ceil(self.block_size);
            longest = longest.max(blocks);
            nodes = nodes.saturating_add(n);
            needed = needed.saturating_add(blocks).saturating_sub(sequence.blocks.len());
            if let Some(tail) = self.shared_tail(sequence) {
                // All but the last of its holders copy the block; the last one writes in place.
                let earlier = writers.entry(tail).or_insert(0);
                *earlier += 1;
                if *earlier < self.pool.refs(tail) {
                    needed = needed.saturating_add(1);
                    copies = copies.saturating_add(sequence.length % self.block_size);
                }
            }
        }
        self.check_free(needed)?;
        check_listed("n of all sequences together", nodes)?;
        check_listed("copies of a reservation", copies)?;
        check_listed("blocks of a sequence", longest)?;
        let mut batch = ReservationBatch {
            slots: Vec::with_capacity(nodes),
            offsets: Vec::with_capacity(wanted.len() + 1),
            copy_offsets: Vec::with_capacity(wanted.len() + 1),
            ..ReservationBatch::default()
        };
        batch.offsets.push(0);
        batch.copy_offsets.push(0);
        for &(seq, n) in wanted {
            if let Some(sequence) = self.sequences.get_mut(&seq) {
                sequence.open(n, self.block_size, &mut self.pool, &mut batch.copies);
                sequence.list_open(self.block_size, &mut batch.slots);
            }
            batch.offsets.push(batch.slots.len() as i64);
            batch.copy_offsets.push(batch.copies.len() as i64);
        }
        Ok(batch)
    }

    /// Keeps one sequence's path; see [`Self::commit_batch`].
    ///
    /// # Errors
    /// Those of [`Self::commit_batch`].
    pub fn commit(&mut self, commit: Commit<'_>) -> Result<CommitPlan> {
        let CommitPlanBatch { moves, freed, lengths, state_select, .. } =
            self.commit_batch(&[commit])?;
        Ok(CommitPlan { moves, freed, length: lengths[0], state_select: state_select[0] })
    }

    /// Keeps the root and the path of each tree whose nodes were written: of all or of none.
    ///
    /// Carry out the moves of all plans, each in order, before anything else is written: an entry may
    /// have to come out of a block that is already free.
    ///
    /// # Errors
    /// [`Error::UnknownSequence`], [`Error::DuplicateSequence`], [`Error::NoReservation`],
    /// [`Error::ReservationMismatch`], [`Error::NotAPath`], [`Error::ShapeMismatch`] (tokens).
    pub fn commit_batch(&mut self, commits: &[Commit<'_>]) -> Result<CommitPlanBatch> {
        check_distinct(commits.iter().map(|commit| commit.seq))?;
        for commit in commits {
            self.check_commit(commit)?;
        }
        let mut batch = CommitPlanBatch::with_capacity(commits.len());
        for commit in commits {
            self.apply_commit(commit, &mut batch);
        }
        Ok(batch)
    }

    /// Drops an open reservation and all entries from `length` on; gives the blocks that are free now.
    ///
    /// A window has kept all that is needed for a return to where the last commit began, and to 0.
    ///
    /// # Errors
    /// [`Error::UnknownSequence`]; [`Error::ParamOutOfRange`] if the sequence is shorter, or if blocks
    /// that the next token would see are given back already.
    pub fn rollback(&mut self, seq: i64, length: usize) -> Result<Vec<i32>> {
        let held = self.sequence(seq)?;
        let refused = |wanted| {
            let value = format!("{length} of {} entries", held.length);
            Err(Error::ParamOutOfRange { name: "length", value, wanted }.in_sequence(seq))
        };
        if length > held.length {
            return refused("a length that the sequence has reached");
        }
        let gone = self.window().map_or(0, |_| first_held(&held.blocks));
        if length > 0 && gone > self.first_seen(length) {
            return refused("0, or a length whose window is still held");
        }
        let mut freed = Vec::new();
        if let Some(sequence) = self.sequences.get_mut(&seq) {
            sequence.cut(length, self.block_size, &mut self.pool, &mut freed);
        }
        Ok(freed)
    }

    /// Removes a sequence, with or without an open reservation; gives the blocks that are free now.
    ///
    /// # Errors
    /// [`Error::UnknownSequence`].
    pub fn release(&mut self, seq: i64) -> Result<Vec<i32>> {
        let removed = self.sequences.remove(&seq);
        let mut blocks = removed.ok_or(Error::UnknownSequence { sequence: seq })?.blocks;
        let mut freed = Vec::new();
        self.pool.leave_from(&mut blocks, 0, &mut freed);
        Ok(freed)
    }

    /// The blocks of each sequence; block `i` holds its entries from `i * block_size` on, and is -1 if a
    /// window has left it behind.
    ///
    /// # Errors
    /// [`Error::UnknownSequence`]; [`Error::Overflow`] if a table of them would be too large.
    pub fn block_lists(&self, seqs: &[i64]) -> Result<Vec<&[i32]>> {
        let lists: Vec<&[i32]> =
            seqs.iter().map(|&seq| Ok(&*self.sequence(seq)?.blocks)).collect::<Result<_>>()?;
        let widest = lists.iter().map(|blocks| blocks.len()).max().unwrap_or(0);
        check_listed("cells of a block table", lists.len().saturating_mul(widest))?;
        Ok(lists)
    }

    /// Slots of the open reservations in node order, and where each sequence's begin.
    ///
    /// # Errors
    /// [`Error::UnknownSequence`], [`Error::NoReservation`]; [`Error::Overflow`] if they are too many.
    pub fn slot_mapping(&self, seqs: &[i64]) -> Result<(Vec<i64>, Vec<i64>)> {
        let sequences =
            seqs.iter().map(|&seq| self.open_sequence(seq)).collect::<Result<Vec<_>>>()?;
        let reserved = sequences.iter().map(|sequence| sequence.reserved);
        let total = reserved.fold(0_usize, usize::saturating_add);
        check_listed("slots of a mapping", total)?;
        let mut slots = Vec::with_capacity(total);
        let mut offsets = Vec::with_capacity(seqs.len() + 1);
        offsets.push(0);
        for sequence in sequences {
            sequence.list_open(self.block_size, &mut slots);
            offsets.push(slots.len() as i64);
        }
        Ok((slots, offsets))
    }

    /// The committed entries of each sequence.
    ///
    /// # Errors
    /// [`Error::UnknownSequence`].
    pub fn lengths(&self, seqs: &[i64]) -> Result<Vec<i64>> {
        seqs.iter().map(|&seq| Ok(self.sequence(seq)?.length as i64)).collect()
    }

    fn sequence(&self, seq: i64) -> Result<&Sequence> {
        self.sequences.get(&seq).ok_or(Error::UnknownSequence { sequence: seq })
    }

    fn open_sequence(&self, seq: i64) -> Result<&Sequence> {
        let sequence = self.sequence(seq)?;
        if sequence.reserved == 0 {
            return Err(Error::NoReservation { sequence: seq });
        }
        Ok(sequence)
    }

    fn idle_sequence(&self, seq: i64) -> Result<&Sequence> {
        let sequence = self.sequence(seq)?;
        match sequence.reserved {
            0 => Ok(sequence),
            reserved => Err(Error::OpenReservation { sequence: seq, reserved }),
        }
    }

    fn check_new(&self, seq: i64) -> Result<()> {
        if self.sequences.contains_key(&seq) {
            let reason = "is in the table already; use another number, or release it first";
            return Err(Error::DuplicateSequence { sequence: seq, reason });
        }
        Ok(())
    }

    fn check_free(&self, needed: usize) -> Result<()> {
        let free = self.num_free();
        if needed <= free {
            return Ok(());
        }
        let count = |held: &Sequence| held.blocks.len() - first_held(&held.blocks);
        let mut holders: Vec<(usize, i64)> =
            self.sequences.iter().map(|(&seq, held)| (count(held), seq)).collect();
        holders.retain(|&(blocks, _)| blocks > 0);
        holders.sort_unstable_by_key(|&(blocks, seq)| (usize::MAX - blocks, seq));
        Err(Error::OutOfBlocks {
            missing: needed - free,
            total: self.num_blocks(),
            holders: holders.into_iter().map(|(_, seq)| seq).collect(),
        })
    }

    /// The block that the next entry goes into, if others hold it as well.
    fn shared_tail(&self, sequence: &Sequence) -> Option<i32> {
        if sequence.length.is_multiple_of(self.block_size) {
            return None;
        }
        let tail = sequence.blocks[sequence.length / self.block_size];
        self.pool.is_shared(tail).then_some(tail)
    }

    fn check_commit(&self, commit: &Commit<'_>) -> Result<()> {
        let Commit { seq, parents, path, tokens } = *commit;
        let reserved = self.open_sequence(seq)?.reserved;
        let nodes = parents.len();
        if nodes != reserved {
            return Err(Error::ReservationMismatch { sequence: seq, nodes, reserved });
        }
        check_path(parents, path).map_err(|error| error.in_sequence(seq))?;
        match tokens {
            Some(tokens) if tokens.len() != nodes => Err(Error::ShapeMismatch {
                what: "tokens",
                found: format!("({},)", tokens.len()),
                wanted: format!("({nodes},), one for each node"),
            }
            .in_sequence(seq)),
            _ => Ok(()),
        }
    }

    /// Carries out a checked commit, and appends its plan.
    fn apply_commit(&mut self, commit: &Commit<'_>, plans: &mut CommitPlanBatch) {
        let Commit { seq, path, tokens, .. } = *commit;
        let size = self.block_size;
        let sequence = self.sequences.entry(seq).or_default();
        let base = sequence.length;
        // The root's own window stays, so that the step can be taken back.
        let outside = first_seen(base, self.window, size);
        plans.moves.extend(moves(path, |node| sequence.slot(base + node, size)));
        sequence.length = base + 1 + path.len();
        sequence.reserved = 0;
        let kept = sequence.length.div_ceil(size);
        self.pool.leave_from(&mut sequence.blocks, kept, &mut plans.freed);
        if let Some(tokens) = tokens {
            let kept = std::iter::once(0).chain(path.iter().map(|&node| node as usize));
            sequence.learn(base, kept.map(|node| tokens[node]));
        }
        sequence.publish(&mut self.pool, size);
        self.pool.leave_first(&mut sequence.blocks, outside, &mut plans.freed);
        plans.move_offsets.push(plans.moves.len() as i64);
        plans.freed_offsets.push(plans.freed.len() as i64);
        plans.lengths.push(sequence.length as i64);
        plans.state_select.push(state_select(path));
    }
}
