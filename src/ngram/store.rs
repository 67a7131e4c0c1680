//! Past texts that requests share, of bounded size, each tenant's apart.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::best_first::{Counts, Followers, Limits, grow};
use super::order::{Order, Place, Strings};
use super::{Proposal, Suffix, check};
use crate::error::Result;

/// What a text counts beyond its tokens: for its place in the store, which has a size too.
const TEXT: usize = 16;
/// Bytes of a tenant's name.
const MOST_NAME: usize = 128;
/// Seeds remembered; the store is emptied with them.
const MOST_SEEDS: usize = 1 << 20;
/// A token that followed less often than once in so many times is not drafted.
const MOST_FOLLOWERS: f64 = 64.0;

/// A request's leave to read and write a store. It ends when the store is emptied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket(u64);

impl Ticket {
    /// The ticket as a number, for callers that cannot keep it as it is.
    pub fn number(self) -> u64 {
        self.0
    }

    /// The ticket of a number.
    pub fn of(number: u64) -> Self {
        Self(number)
    }
}

/// Past texts, from which requests that come later draft.
///
/// A **suffix array** for each tenant has every place of its texts in the order of what follows there,
/// so that all places that continue a string stand side by side: how often each token followed is the
/// length of a block, found by bisection. A text is added or dropped place by place, in O(log n)
/// comparisons each, so that the one that was used longest ago can make way at any time. A look-up
/// changes nothing but the time of last use, which is atomic: any number of threads may look up at once.
///
/// **Tenants.** A look-up reads the texts of the tenants that it names, and of no other.
///
/// **Seeds.** Two requests with one seed draw with the same numbers, so that neither may draft from what
/// the other has drawn, nor from a store that depends on it. A seed is admitted once; see
/// [`SuffixStore::admit`].
#[derive(Debug)]
pub struct SuffixStore {
    max_tokens: usize,
    max_context: usize,
    texts: Texts,
    tenants: BTreeMap<Arc<str>, Order>,
    /// When each text was used as far as is known here, and its number. What was looked up since is later.
    queue: BTreeSet<(u64, u32)>,
    clock: AtomicU64,
    num_held: usize,
    seeds: BTreeSet<u64>,
    generation: u64,
    num_lookups: AtomicU64,
    num_hits: AtomicU64,
}

#[derive(Debug)]
struct Text {
    tenant: Arc<str>,
    tokens: Box<[u32]>,
    used: AtomicU64,
}

#[derive(Debug)]
struct Texts {
    numbered: Vec<Option<Text>>,
    free: Vec<u32>,
    /// Tokens by which strings are compared.
    reach: usize,
}

impl Texts {
    fn text(&self, number: u32) -> &Text {
        self.numbered[number as usize].as_ref().expect("a text is held while its places are")
    }

    fn add(&mut self, text: Text) -> u32 {
        if let Some(number) = self.free.pop() {
            self.numbered[number as usize] = Some(text);
            return number;
        }
        self.numbered.push(Some(text));
        (self.numbered.len() - 1) as u32
    }

    fn remove(&mut self, number: u32) {
        self.numbered[number as usize] = None;
        self.free.push(number);
    }
}

impl Strings for Texts {
    fn string(&self, place: Place) -> &[u32] {
        let rest = &self.text(place.text).tokens[place.at as usize..];
        &rest[..rest.len().min(self.reach)]
    }
}

impl SuffixStore {
    /// An empty store of at most `max_tokens` tokens, each text counted as 16 more than it has.
    ///
    /// Matches are cut to `max_context` tokens, and drafts to as many again.
    ///
    /// # Errors
    /// `ParamOutOfRange` unless `256 <= max_tokens <= 2**28` and `1 <= max_context <= 256`.
    pub fn new(max_tokens: usize, max_context: usize) -> Result<Self> {
        check((256..=1 << 28).contains(&max_tokens), "max_tokens", &max_tokens, "256 to 2**28")?;
        check((1..=256).contains(&max_context), "max_context", &max_context, "1 to 256")?;
        Ok(Self {
            max_tokens,
            max_context,
            texts: Texts { numbered: Vec::new(), free: Vec::new(), reach: 2 * max_context },
            tenants: BTreeMap::new(),
            queue: BTreeSet::new(),
            clock: AtomicU64::new(0),
            num_held: 0,
            seeds: BTreeSet::new(),
            generation: 0,
            num_lookups: AtomicU64::new(0),
            num_hits: AtomicU64::new(0),
        })
    }

    /// Admits a request that draws with a seed, unless an earlier one had the same: what it has drawn
    /// may be in the store, or may have decided what is.
    ///
    /// After 2**20 seeds the store is emptied and begins anew; tickets of before are then worth nothing.
    pub fn admit(&mut self, seed: u64) -> Option<Ticket> {
        if self.seeds.len() == MOST_SEEDS {
            self.clear();
        }
        self.seeds.insert(seed).then_some(Ticket(self.generation))
    }

    /// Whether a request may read and write: one that draws nothing (`None`) always.
    fn admits(&self, ticket: Option<Ticket>) -> bool {
        ticket.is_none_or(|ticket| ticket.0 == self.generation)
    }

    /// Adds a text of a tenant; those used longest ago make way. Of a text that is larger than the store
    /// its end is kept; one of fewer than two tokens continues nothing and is left out.
    ///
    /// # Errors
    /// `ParamOutOfRange` where the tenant's name is longer than 128 bytes.
    pub fn add(&mut self, tenant: &str, tokens: &[u32], ticket: Option<Ticket>) -> Result<()> {
        check_tenant(tenant)?;
        let tokens = &tokens[tokens.len().saturating_sub(self.max_tokens - TEXT)..];
        if tokens.len() < 2 || !self.admits(ticket) {
            return Ok(());
        }
        while self.num_held + tokens.len() + TEXT > self.max_tokens {
            self.evict();
        }
        let tenant = self
            .tenants
            .get_key_value(tenant)
            .map_or_else(|| tenant.into(), |(name, _)| name.clone());
        let used = self.clock.fetch_add(1, Relaxed);
        let text =
            Text { tenant: Arc::clone(&tenant), tokens: tokens.into(), used: AtomicU64::new(used) };
        let number = self.texts.add(text);
        self.queue.insert((used, number));
        self.num_held += tokens.len() + TEXT;
        self.tenants.entry(tenant).or_default().join(&self.texts, number, tokens.len());
        Ok(())
    }

    /// Drops the text that was used longest ago.
    fn evict(&mut self) {
        while let Some((queued, number)) = self.queue.pop_first() {
            let used = self.texts.text(number).used.load(Relaxed);
            if used == queued {
                self.drop_text(number);
                return;
            }
            self.queue.insert((used, number));
        }
    }

    /// Drops a text that is not queued any more.
    fn drop_text(&mut self, number: u32) {
        let Text { tenant, tokens, .. } = self.texts.text(number);
        let (tenant, len) = (Arc::clone(tenant), tokens.len());
        if let Some(order) = self.tenants.get_mut(&tenant) {
            order.leave(&self.texts, number, len);
            if order.len() == 0 {
                self.tenants.remove(&tenant);
            }
        }
        self.texts.remove(number);
        self.num_held -= len + TEXT;
    }

    /// Drops all texts of a tenant.
    pub fn forget(&mut self, tenant: &str) {
        let Some((name, _)) = self.tenants.remove_entry(tenant) else { return };
        let texts = &mut self.texts;
        let num_held = &mut self.num_held;
        self.queue.retain(|&(_, number)| {
            let text = texts.text(number);
            let stays = text.tenant != name;
            if !stays {
                *num_held -= text.tokens.len() + TEXT;
                texts.remove(number);
            }
            stays
        });
    }

    /// Drops all texts and seeds. Requests in flight neither read nor write any more, but for those that
    /// draw nothing.
    pub fn clear(&mut self) {
        self.texts.numbered.clear();
        self.texts.free.clear();
        self.tenants.clear();
        self.queue.clear();
        self.num_held = 0;
        self.seeds.clear();
        self.generation += 1;
    }

    /// A draft from the texts of some tenants, as `own` would make it, where they have a longer match
    /// than its own text. Of equally long ones the tenant's that is named first counts.
    ///
    /// Children are ordered by how often they followed, then by token. Those of a share below 1/64 are
    /// left out.
    pub fn propose(
        &self,
        own: &Suffix,
        tenants: &[&str],
        ticket: Option<Ticket>,
        limits: Limits<'_>,
    ) -> Option<Proposal> {
        if !self.admits(ticket) {
            return None;
        }
        self.num_lookups.fetch_add(1, Relaxed);
        let config = own.config();
        let (match_len, shelf, ranks) = self.longest_match(own, tenants)?;
        let max_depth = config.earned_depth(match_len).min(limits.max_depth);
        let limits = Limits { max_depth, ..limits };
        let start = Proposal::rooted(own.tokens());
        let block = Block { ranks, depth: match_len };
        let draft = grow(&shelf, block, limits, config.max_children, config.min_score, start);
        if draft.num_drafted() == 0 {
            return None;
        }
        self.num_hits.fetch_add(1, Relaxed);
        Some(draft)
    }

    /// The longest match that something followed: its length, whose texts it is in, and where.
    fn longest_match(
        &self,
        own: &Suffix,
        tenants: &[&str],
    ) -> Option<(usize, Shelf<'_>, Range<usize>)> {
        let text = own.tokens();
        let mut shortest = own.config().min_match.max(own.match_len() + 1);
        let mut best = None;
        for tenant in tenants {
            let Some(order) = self.tenants.get(*tenant) else { continue };
            let shelf = Shelf { order, texts: &self.texts, clock: &self.clock };
            // What continues a string continues its suffixes: bisection over the length.
            let mut most = text.len().min(self.max_context);
            while shortest <= most {
                let len = shortest + (most - shortest) / 2;
                match shelf.find(&text[text.len() - len..]) {
                    Some(ranks) => {
                        best = Some((len, shelf, ranks));
                        shortest = len + 1;
                    }
                    None => most = len - 1,
                }
            }
        }
        best
    }

    /// The texts, those used longest ago first: each with its tenant.
    pub fn texts(&self) -> Vec<(&str, &[u32])> {
        let mut held: Vec<&Text> = self.texts.numbered.iter().flatten().collect();
        held.sort_by_key(|text| text.used.load(Relaxed));
        held.iter().map(|text| (&*text.tenant, &*text.tokens)).collect()
    }

    /// The seeds of requests that were admitted.
    pub fn seeds(&self) -> impl ExactSizeIterator<Item = u64> + '_ {
        self.seeds.iter().copied()
    }

    /// Tokens of the texts held; with 16 more for each text at most `max_tokens`.
    pub fn num_tokens(&self) -> usize {
        self.num_held - TEXT * self.num_texts()
    }

    /// Texts held.
    pub fn num_texts(&self) -> usize {
        self.queue.len()
    }

    /// The most that its texts may count.
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// The longest match.
    pub fn max_context(&self) -> usize {
        self.max_context
    }

    /// How often it was asked for a draft, and how often it had one.
    pub fn lookups_and_hits(&self) -> (u64, u64) {
        (self.num_lookups.load(Relaxed), self.num_hits.load(Relaxed))
    }

    /// Bytes of its texts and their order; the nodes of its small maps are not counted.
    pub fn num_bytes(&self) -> usize {
        let tokens: usize =
            self.texts.numbered.iter().flatten().map(|text| size_of_val(&*text.tokens)).sum();
        let order: usize = self.tenants.values().map(Order::num_bytes).sum();
        let numbers = self.texts.numbered.capacity() * size_of::<Option<Text>>()
            + self.texts.free.capacity() * size_of::<u32>();
        tokens + order + numbers + self.queue.len() * size_of::<(u64, u32)>() + self.seeds.len() * 8
    }
}

/// All places where one string of `depth` tokens stands and something follows.
#[derive(Clone, Debug)]
struct Block {
    ranks: Range<usize>,
    depth: usize,
}

/// One tenant's texts, as a look-up reads them.
#[derive(Clone, Copy)]
struct Shelf<'a> {
    order: &'a Order,
    texts: &'a Texts,
    clock: &'a AtomicU64,
}

impl Shelf<'_> {
    /// Where a string stands and something follows it.
    fn find(&self, string: &[u32]) -> Option<Range<usize>> {
        let end = self.order.len();
        // What is more than the string is longer, or differs.
        let low = self.order.partition(0, end, |place| self.texts.string(place) <= string);
        let high =
            self.order.partition(low, end, |place| self.texts.string(place).starts_with(string));
        (low < high).then_some(low..high)
    }

    /// Marks a text as used now.
    fn touch(&self, rank: usize) {
        let now = self.clock.fetch_add(1, Relaxed);
        self.texts.text(self.order.place(rank).text).used.fetch_max(now, Relaxed);
    }
}

impl Counts for Shelf<'_> {
    type Context = Block;

    fn followers(&self, block: &Block, min_share: f64) -> Followers<Block> {
        let Block { ranks: Range { start, end }, depth } = *block;
        let total = (end - start) as f64;
        let least = min_share.max(1.0 / MOST_FOLLOWERS) * total;
        // A token of that share fills a block of so many ranks, so that no step can miss it.
        let step = (least as usize).max(1);
        let at = |place: Place| self.texts.string(place)[depth];
        let ended = |place: Place| self.texts.string(place).len() == depth + 1;
        let mut found = Vec::new();
        let mut low = start;
        while low + step <= end {
            let probe = low + step - 1;
            let token = at(self.order.place(probe));
            // Mostly one token fills the block: its ends are looked at before anything is bisected.
            let first = self.order.partition_near_low(low, probe, |place| at(place) < token);
            low = self.order.partition_near_high(probe, end, |place| at(place) <= token);
            if (low - first) as f64 >= least {
                let ranks = self.order.partition_near_low(first, low, ended)..low;
                found.push((token, (low - first) as u32, Block { ranks, depth: depth + 1 }));
            }
        }
        if !found.is_empty() {
            self.touch(start);
        }
        found.sort_by_key(|&(token, count, _)| (u32::MAX - count, token));
        Followers { total, found }
    }
}

fn check_tenant(name: &str) -> Result<()> {
    let value = format!("a name of {} bytes", name.len());
    check(name.len() <= MOST_NAME, "tenant", &value, "at most 128")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use crate::ngram::SuffixConfig;

    fn request(tokens: &[u32]) -> Suffix {
        let mut own = Suffix::new(SuffixConfig::default()).unwrap();
        own.extend(tokens);
        own
    }

    fn drafted(store: &SuffixStore, tenants: &[&str], tokens: &[u32]) -> Vec<i64> {
        store
            .propose(&request(tokens), tenants, None, Limits::default())
            .map_or(vec![], |draft| draft.tokens[1..].to_vec())
    }

    fn store(texts: &[(&str, &[u32])]) -> SuffixStore {
        let mut store = SuffixStore::new(1 << 10, 8).unwrap();
        for (tenant, tokens) in texts {
            store.add(tenant, tokens, None).unwrap();
        }
        store
    }

    #[test]
    fn a_text_that_was_looked_up_stays_longer() {
        let text = |n: u32| (100 * n..100 * n + 60).collect::<Vec<_>>();
        let mut store = SuffixStore::new(256, 8).unwrap();
        for n in 0..3 {
            store.add("", &text(n), None).unwrap();
        }
        assert_eq!(drafted(&store, &[""], &[0, 1]), [2, 3]);
        store.add("", &text(3), None).unwrap();
        let left: Vec<u32> = store.texts().iter().map(|(_, tokens)| tokens[0]).collect();
        assert_eq!(left, [200, 0, 300]);
        assert_eq!(drafted(&store, &[""], &[100, 101]), [0; 0]);
        assert_eq!(store.num_tokens(), 180);
    }

    #[test]
    fn tenants_read_what_they_name() {
        let store = store(&[("a", &[1, 2, 3]), ("b", &[0, 1, 2, 4])]);
        assert_eq!(drafted(&store, &["a"], &[0, 1, 2]), [3]);
        assert_eq!(drafted(&store, &["b"], &[0, 1, 2]), [4]);
        assert_eq!(drafted(&store, &["a", "b"], &[0, 1, 2]), [4]);
        assert_eq!(drafted(&store, &["b", "a"], &[7, 1, 2]), [4]);
        assert_eq!(drafted(&store, &["a", "b"], &[7, 1, 2]), [3]);
        assert_eq!(drafted(&store, &["c"], &[1, 2]), [0; 0]);
        assert_eq!(drafted(&store, &[], &[1, 2]), [0; 0]);
    }

    #[test]
    fn a_seed_is_admitted_once() {
        let mut store = store(&[("", &[1, 2, 3])]);
        let first = store.admit(5);
        assert!(first.is_some() && store.admit(5).is_none() && store.admit(6) == first);
        store.clear();
        let again = store.admit(5);
        assert!(again.is_some() && again != first);
        store.add("", &[1, 2, 3], first).unwrap();
        assert_eq!(store.num_texts(), 0);
        store.add("", &[1, 2, 3], again).unwrap();
        let own = request(&[1, 2]);
        let hit = |ticket| store.propose(&own, &[""], ticket, Limits::default()).is_some();
        assert_eq!([hit(first), hit(again), hit(None)], [false, true, true]);
    }

    #[test]
    fn a_store_that_has_seen_too_many_seeds_begins_anew() {
        let mut store = store(&[("", &[1, 2, 3])]);
        let first = store.admit(0);
        for seed in 1..MOST_SEEDS as u64 {
            assert_eq!(store.admit(seed), first);
        }
        assert_eq!((store.num_texts(), store.seeds().len()), (1, MOST_SEEDS));
        assert_ne!(store.admit(0), first);
        assert_eq!((store.num_texts(), store.seeds().len()), (0, 1));
    }

    #[test]
    fn rare_followers_are_left_out_and_frequent_ones_found_among_many() {
        let mut store = SuffixStore::new(1 << 20, 8).unwrap();
        for n in 0..1000 {
            store.add("", &[7, 100 + n], None).unwrap();
            if n % 4 == 0 {
                store.add("", &[7, 600], None).unwrap();
            }
        }
        assert_eq!(drafted(&store, &[""], &[7]), [600]);
    }

    #[test]
    fn long_repetitions_join_and_leave() {
        let mut store = SuffixStore::new(4096, 16).unwrap();
        for n in 0..4 {
            store.add("", &[n % 2; 4000], None).unwrap();
            assert_eq!((store.num_texts(), store.num_tokens()), (1, 4000));
            assert_eq!(drafted(&store, &[""], &[9, n % 2]), [i64::from(n % 2)]);
        }
        assert!(store.num_bytes() < 40 * 4096);
    }

    #[test]
    fn what_is_out_of_range_is_named() {
        let name = |error: Error| match error {
            Error::ParamOutOfRange { name, .. } => name,
            other => panic!("{other}"),
        };
        assert_eq!(name(SuffixStore::new(255, 8).unwrap_err()), "max_tokens");
        assert_eq!(name(SuffixStore::new(1 << 29, 8).unwrap_err()), "max_tokens");
        assert_eq!(name(SuffixStore::new(256, 0).unwrap_err()), "max_context");
        let long = "x".repeat(MOST_NAME + 1);
        assert_eq!(name(store(&[]).add(&long, &[1, 2], None).unwrap_err()), "tenant");
    }
}
