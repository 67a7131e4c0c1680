//! Prompt lookup, suffix automata and stores over any text, with any settings.

use mtp_verify::ngram::{Limits, NGram, Proposal, Suffix, SuffixConfig, SuffixStore};
use mtp_verify::tree::TokenTree;

use crate::bits::Bits;
use crate::verdict::outcome;

pub(crate) fn check(bits: &mut Bits) -> &'static str {
    let alphabet = bits.between(1, 5);
    let text: Vec<u32> = (0..bits.size(200).min(600))
        .map(|_| if bits.one_in(99) { bits.extreme() as u32 } else { bits.below(alphabet) as u32 })
        .collect();
    let stop: Vec<u32> = (0..bits.below(3)).map(|_| bits.below(alphabet) as u32).collect();
    let (most, deepest) = (bits.size(9), bits.size(9));
    if bits.one_in(2) {
        let (longest, shortest) = (setting(bits, 2, 5), setting(bits, 1, 2));
        let index = NGram::new(longest, shortest, setting(bits, 10, 64));
        let Ok(mut index) = index else {
            return outcome(&index);
        };
        index.extend(&text);
        let draft = index.propose(most, &stop);
        check_draft(&draft, most, usize::MAX, &stop);
        assert_eq!(draft, index.propose(most, &stop));
        return "ok";
    }
    let config = SuffixConfig {
        min_match: setting(bits, 1, 2),
        max_context: setting(bits, 2, 32),
        depth_factor: if bits.one_in(8) { bits.real() } else { 1.0 },
        min_score: if bits.one_in(8) { bits.real() } else { 0.1 },
        max_children: setting(bits, 1, 4),
        max_history: setting(bits, 2, 64),
    };
    let index = Suffix::new(config);
    let Ok(mut index) = index else {
        return outcome(&index);
    };
    index.extend(&text);
    assert!(index.tokens().len() <= config.max_history);
    assert!(index.match_len() <= index.tokens().len());
    let limits = Limits { max_nodes: most, max_depth: deepest, stop: &stop };
    let draft = index.propose(limits);
    check_draft(&draft, most, deepest, &stop);
    assert_eq!(draft, index.propose(limits));
    check_draft(&index.propose_chain(limits), most, deepest, &stop);
    if bits.one_in(2) { check_store(bits, &index, limits, alphabet) } else { "ok" }
}

/// A store that texts of several tenants join and leave.
fn check_store(bits: &mut Bits, own: &Suffix, limits: Limits<'_>, alphabet: usize) -> &'static str {
    let max_tokens = setting(bits, 256, 400);
    let store = SuffixStore::new(max_tokens, setting(bits, 1, 9));
    let Ok(mut store) = store else {
        return outcome(&store);
    };
    let tenants = ["", "a", "b"];
    for _ in 0..bits.below(20) {
        let tenant = tenants[bits.below(3)];
        let ticket = if bits.one_in(3) { store.admit(bits.below(4) as u64) } else { None };
        let text: Vec<u32> =
            (0..bits.size(300).min(500)).map(|_| bits.below(alphabet) as u32).collect();
        store.add(tenant, &text, ticket).unwrap();
        assert!(store.num_tokens() + 16 * store.num_texts() <= max_tokens);
        match bits.below(20) {
            0 => store.clear(),
            1 => store.forget(tenants[bits.below(3)]),
            _ => {}
        }
        if let Some(draft) = store.propose(own, &tenants[..2], ticket, limits) {
            check_draft(&draft, limits.max_nodes, limits.max_depth, limits.stop);
            assert_eq!(Some(draft), store.propose(own, &tenants[..2], ticket, limits));
        }
    }
    "ok"
}

/// A legal setting as a rule.
fn setting(bits: &mut Bits, low: usize, high: usize) -> usize {
    if bits.one_in(16) { bits.extreme() as usize } else { bits.between(low, high) }
}

fn check_draft(draft: &Proposal, most: usize, deepest: usize, stop: &[u32]) {
    let tree = TokenTree::new(&draft.parents).unwrap();
    assert!(draft.num_drafted() <= most && draft.tokens.len() == tree.num_nodes());
    for node in 0..tree.num_nodes() {
        assert!(tree.depth(node) <= deepest);
        let mut below: Vec<i64> =
            tree.children(node).iter().map(|&child| draft.tokens[child as usize]).collect();
        let count = below.len();
        below.sort_unstable();
        below.dedup();
        assert_eq!(below.len(), count, "equal siblings");
        let ends = node > 0 && stop.iter().any(|&token| i64::from(token) == draft.tokens[node]);
        assert!(!ends || count == 0, "a node below a stop token");
    }
}
