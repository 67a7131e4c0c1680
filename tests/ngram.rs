//! The history drafters against naive models that look at the whole text again for every question.

use std::collections::BTreeSet;

use mtp_verify::ngram::{
    Limits, NGram, Proposal, Suffix, SuffixAutomaton, SuffixConfig, SuffixStore,
};
use proptest::prelude::*;

/// How often `needle` occurs, overlaps included.
fn naive_count(text: &[u32], needle: &[u32]) -> usize {
    text.windows(needle.len()).filter(|window| *window == needle).count()
}

/// Longest suffix that also ends earlier, of at most `max` tokens.
fn naive_match_len(text: &[u32], max: usize) -> usize {
    (1..text.len().min(max + 1))
        .rev()
        .find(|&n| naive_count(text, &text[text.len() - n..]) >= 2)
        .unwrap_or(0)
}

/// Where the most recent earlier occurrence of the last `n` tokens ends.
fn naive_earlier(text: &[u32], n: usize) -> Option<usize> {
    let suffix = &text[text.len().checked_sub(n)?..];
    (n..text.len()).rev().map(|end| end - 1).find(|&end| text[end + 1 - n..=end] == *suffix)
}

/// Tokens that followed `context` with their counts and newest places, best first.
fn naive_continuations(text: &[u32], context: &[u32]) -> Vec<(u32, usize, usize)> {
    let followers: BTreeSet<u32> = text.iter().copied().collect();
    let mut found: Vec<_> = followers
        .into_iter()
        .filter_map(|token| {
            let string: Vec<u32> = context.iter().copied().chain([token]).collect();
            let newest = text.windows(string.len()).rposition(|window| window == string)?;
            Some((token, naive_count(text, &string), newest + context.len()))
        })
        .collect();
    found.sort_by_key(|&(token, count, newest)| (usize::MAX - count, usize::MAX - newest, token));
    found
}

/// The tokens an index of at most `cap` keeps: the older half goes when a token finds it full.
fn naive_held(text: &[u32], cap: usize) -> &[u32] {
    let mut held = 0;
    for _ in text {
        held = if held == cap { cap / 2 + 1 } else { held + 1 };
    }
    &text[text.len() - held..]
}

/// Paths as token strings, with the checks every proposal must pass.
fn paths(proposal: &Proposal) -> Vec<Vec<u32>> {
    let mut paths: Vec<Vec<u32>> = vec![vec![]];
    assert_eq!(proposal.parents.len(), proposal.tokens.len());
    assert_eq!(proposal.parents[0], -1);
    for (node, (&parent, &token)) in
        proposal.parents.iter().zip(&proposal.tokens).enumerate().skip(1)
    {
        assert!((0..node as i64).contains(&parent));
        let parent = parent as usize;
        let mut path = paths[parent].clone();
        path.push(token as u32);
        assert!(!paths.contains(&path), "siblings are distinct");
        paths.push(path);
    }
    paths
}

/// Few distinct tokens, so that matches abound; pieces are pasted again to make long ones.
fn text() -> impl Strategy<Value = Vec<u32>> {
    let token = prop_oneof![4 => 0u32..3, 1 => 0u32..50];
    let piece = prop::collection::vec(token, 1..12);
    (prop::collection::vec(piece, 1..6), prop::collection::vec(0usize..6, 0..10)).prop_map(
        |(pieces, order)| {
            let mut text: Vec<u32> = pieces.concat();
            for i in order {
                text.extend(&pieces[i % pieces.len()]);
            }
            text
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn automaton_matches_and_counts_like_the_naive_model(text in text(), max_context in 1usize..9) {
        let mut automaton = SuffixAutomaton::new(max_context).unwrap();
        for end in 1..=text.len() {
            automaton.extend(&text[end - 1..end]);
            let seen = &text[..end];
            let len = naive_match_len(seen, seen.len());
            prop_assert_eq!(automaton.match_len(), len);
            let context = automaton.longest_match();
            prop_assert_eq!(context.len, len.min(max_context));
            if context.len > 0 && context.len < max_context {
                let suffix = &seen[end - context.len..];
                let found: Vec<_> = automaton
                    .continuations(context)
                    .iter()
                    .map(|next| (next.token, next.count as usize, next.newest as usize))
                    .collect();
                prop_assert_eq!(found, naive_continuations(seen, suffix));
            }
        }
        for start in 0..text.len() {
            for end in start + 1..=text.len().min(start + max_context) {
                let string = &text[start..end];
                let count = automaton.count(string).map(|count| count as usize);
                prop_assert_eq!(count, Some(naive_count(&text, string)));
            }
        }
        prop_assert!(automaton.num_states() <= 2 * text.len() + 1);
        prop_assert!(automaton.num_transitions() <= 3 * text.len());
    }

    #[test]
    fn prompt_lookup_copies_the_most_recent_occurrence(
        text in text(), max_ngram in 1usize..5, fewer in 0usize..4, cap in 8usize..90, num in 0usize..9,
    ) {
        let min_ngram = max_ngram.saturating_sub(fewer).max(1);
        let mut index = NGram::new(max_ngram, min_ngram, cap).unwrap();
        for (i, &token) in text.iter().enumerate() {
            index.extend(&[token]);
            let held = naive_held(&text[..=i], cap);
            prop_assert_eq!(index.tokens(), held);
            let wanted = (min_ngram..=max_ngram)
                .rev()
                .find_map(|n| Some((n, naive_earlier(held, n)?)));
            prop_assert_eq!(index.longest_match(), wanted);
            let draft = index.propose(num, &[]);
            prop_assert_eq!(draft.tokens[0], i64::from(token));
            let mut copy = held.to_vec();
            if let Some((_, end)) = wanted {
                for k in 0..num {
                    copy.push(copy[end + 1 + k]);
                }
            }
            let chain = paths(&draft).pop().unwrap();
            prop_assert_eq!(&chain[..], &copy[held.len()..]);
        }
    }

    #[test]
    fn suffix_tree_is_the_best_first_tree_of_the_naive_model(
        text in text(), max_nodes in 0usize..10, max_children in 1usize..4,
        factor in prop::sample::select(vec![0.5, 1.0, 2.5]), min_match in 1usize..3,
        cap in 8usize..90,
    ) {
        // Contexts longer than any text here: nothing is cut, the model is exact.
        let config = SuffixConfig {
            min_match, depth_factor: factor, min_score: 0.05, max_children, max_history: cap,
            max_context: 128,
        };
        let mut index = Suffix::new(config).unwrap();
        index.extend(&text);
        let held = naive_held(&text, cap);
        prop_assert_eq!(index.tokens(), held);
        let limits = Limits { max_nodes, ..Limits::default() };
        for (children, draft) in
            [(max_children, index.propose(limits)), (1, index.propose_chain(limits))]
        {
            let wanted = naive_tree(held, config, max_nodes, children);
            prop_assert_eq!(&paths(&draft)[1..], &wanted[..]);
            if children == 1 {
                prop_assert!(draft.parents.iter().enumerate().all(|(i, &p)| p == i as i64 - 1));
            }
        }
    }

    #[test]
    fn cut_contexts_still_give_good_trees(
        text in text(), max_context in 1usize..5, max_nodes in 0usize..12,
    ) {
        let config = SuffixConfig { max_context, depth_factor: 4.0, ..SuffixConfig::default() };
        let mut whole = Suffix::new(config).unwrap();
        whole.extend(&text);
        let mut pieces = Suffix::new(config).unwrap();
        for chunk in text.chunks(3) {
            pieces.extend(chunk);
        }
        let limits = Limits { max_nodes, ..Limits::default() };
        let draft = whole.propose(limits);
        prop_assert!(draft.num_drafted() <= max_nodes);
        // Every drafted token has followed the (cut) context that it was drafted in.
        for path in paths(&draft).iter().filter(|path| !path.is_empty()) {
            let context: Vec<u32> = text.iter().chain(path).copied().collect();
            prop_assert!(naive_count(&text, &context[context.len() - 1..]) >= 1);
        }
        prop_assert_eq!(draft, pieces.propose(limits));
    }
}

/// The tree by re-reading the text: pop the best candidate, add its children, again and again.
fn naive_tree(
    text: &[u32],
    config: SuffixConfig,
    max_nodes: usize,
    max_children: usize,
) -> Vec<Vec<u32>> {
    let len = naive_match_len(text, text.len());
    let max_depth = ((config.depth_factor * len as f64) as usize).max(1);
    let mut nodes: Vec<Vec<u32>> = vec![];
    let mut candidates: Vec<(f64, usize, usize, Vec<u32>)> = vec![];
    // (score, parent, path, context)
    let mut open: Vec<(f64, usize, Vec<u32>, Vec<u32>)> =
        vec![(1.0, 0, vec![], text[text.len() - len..].to_vec())];
    let mut contexts: Vec<Vec<u32>> = vec![];
    loop {
        for (score, parent, path, mut context) in open.drain(..) {
            let mut found = vec![];
            while context.len() >= config.min_match && found.is_empty() {
                found = naive_continuations(text, &context);
                if found.is_empty() {
                    context.remove(0);
                }
            }
            let total: usize = found.iter().map(|next| next.1).sum();
            for (rank, &(token, count, _)) in found.iter().take(max_children).enumerate() {
                let child: f64 = score * (count as f64 / total as f64);
                if child >= config.min_score {
                    let longer: Vec<u32> = context.iter().copied().chain([token]).collect();
                    let path: Vec<u32> = path.iter().copied().chain([token]).collect();
                    candidates.push((child, parent, rank, path));
                    contexts.push(longer);
                }
            }
        }
        let best = (0..candidates.len()).max_by(|&a, &b| {
            let (a, b) = (&candidates[a], &candidates[b]);
            a.0.total_cmp(&b.0).then_with(|| (b.1, b.2).cmp(&(a.1, a.2)))
        });
        let Some(best) = best.filter(|_| nodes.len() < max_nodes) else {
            return nodes;
        };
        let (score, _, _, path) = candidates.swap_remove(best);
        let context = contexts.swap_remove(best);
        nodes.push(path.clone());
        if path.len() < max_depth {
            open.push((score, nodes.len(), path, context));
        }
    }
}

/// A store by its definition: texts in a list, every question answered by reading them all.
#[derive(Default)]
struct NaiveStore {
    /// Tenant, tokens and time of last use.
    texts: Vec<(usize, Vec<u32>, usize)>,
    clock: usize,
}

impl NaiveStore {
    fn add(&mut self, max_tokens: usize, tenant: usize, tokens: &[u32]) {
        let tokens = tokens[tokens.len().saturating_sub(max_tokens - 16)..].to_vec();
        if tokens.len() < 2 {
            return;
        }
        let held = |texts: &[(usize, Vec<u32>, usize)]| -> usize {
            texts.iter().map(|text| text.1.len() + 16).sum()
        };
        while held(&self.texts) + tokens.len() + 16 > max_tokens
            && let Some(oldest) = (0..self.texts.len()).min_by_key(|&i| self.texts[i].2)
        {
            self.texts.remove(oldest);
        }
        self.clock += 1;
        self.texts.push((tenant, tokens, self.clock));
    }

    /// Occurrences of a string in a tenant's texts: the text's place in the list, and where it ends.
    fn ends(&self, tenant: usize, string: &[u32]) -> Vec<(usize, usize)> {
        let texts = self.texts.iter().enumerate().filter(|(_, text)| text.0 == tenant);
        texts
            .flat_map(|(i, text)| {
                let windows = text.1.windows(string.len()).enumerate();
                windows.filter(|(_, w)| *w == string).map(move |(at, w)| (i, at + w.len()))
            })
            .collect()
    }

    /// What followed a string, as (token, count), the most frequent first, with the sum of counts.
    fn followers(&self, tenant: usize, string: &[u32]) -> (Vec<(u32, usize)>, usize) {
        let mut counts = std::collections::BTreeMap::new();
        for (i, end) in self.ends(tenant, string) {
            if let Some(&token) = self.texts[i].1.get(end) {
                *counts.entry(token).or_insert(0) += 1;
            }
        }
        let total = counts.values().sum();
        let mut found: Vec<_> = counts.into_iter().collect();
        found.sort_by_key(|&(token, count)| (usize::MAX - count, token));
        (found, total)
    }

    /// Paths of the draft below the longest match of at least `shortest` tokens.
    fn tree(
        &self,
        tenants: &[usize],
        text: &[u32],
        shortest: usize,
        config: SuffixConfig,
        max_context: usize,
        max_nodes: usize,
    ) -> Option<Vec<Vec<u32>>> {
        let (len, tenant) = (shortest..=text.len().min(max_context)).rev().find_map(|len| {
            let string = &text[text.len() - len..];
            let tenant = *tenants.iter().find(|&&t| !self.followers(t, string).0.is_empty())?;
            Some((len, tenant))
        })?;
        let max_depth =
            ((config.depth_factor * len as f64) as usize).max(1).min(2 * max_context - len);
        let mut nodes: Vec<Vec<u32>> = vec![];
        let mut open: Vec<(f64, usize, Vec<u32>)> = vec![(1.0, 0, vec![])];
        let mut candidates: Vec<(f64, usize, usize, Vec<u32>)> = vec![];
        loop {
            for (score, parent, path) in open.drain(..) {
                let string: Vec<u32> =
                    text[text.len() - len..].iter().chain(&path).copied().collect();
                let (found, total) = self.followers(tenant, &string);
                for (rank, &(token, count)) in found.iter().take(config.max_children).enumerate() {
                    let share = count as f64 / total as f64;
                    if score * share >= config.min_score && share >= 1.0 / 64.0 {
                        let path = path.iter().copied().chain([token]).collect();
                        candidates.push((score * share, parent, rank, path));
                    }
                }
            }
            let best = (0..candidates.len()).max_by(|&a, &b| {
                let (a, b) = (&candidates[a], &candidates[b]);
                a.0.total_cmp(&b.0).then_with(|| (b.1, b.2).cmp(&(a.1, a.2)))
            });
            let Some(best) = best.filter(|_| nodes.len() < max_nodes) else { break };
            let (score, _, _, path) = candidates.swap_remove(best);
            nodes.push(path.clone());
            if path.len() < max_depth {
                open.push((score, nodes.len(), path));
            }
        }
        (!nodes.is_empty()).then_some(nodes)
    }
}

const TENANTS: [&str; 3] = ["", "a", "b"];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn a_store_drafts_like_the_naive_one(
        texts in prop::collection::vec((text(), 0usize..3), 1..9),
        ask in text(),
        max_context in 1usize..9, max_nodes in 0usize..12, max_children in 1usize..4,
        factor in prop::sample::select(vec![0.5, 1.0, 2.5]), min_match in 1usize..3,
        min_score in prop::sample::select(vec![0.0, 0.1, 0.3]),
        tenants in prop::collection::vec(0usize..3, 1..3),
    ) {
        let mut store = SuffixStore::new(1 << 12, max_context).unwrap();
        let mut naive = NaiveStore::default();
        for (text, tenant) in &texts {
            store.add(TENANTS[*tenant], text, None).unwrap();
            naive.add(1 << 12, *tenant, text);
        }
        let config = SuffixConfig {
            min_match, depth_factor: factor, max_children, min_score, max_context: 16,
            ..SuffixConfig::default()
        };
        let mut own = Suffix::new(config).unwrap();
        own.extend(&ask);
        let names: Vec<&str> = tenants.iter().map(|&tenant| TENANTS[tenant]).collect();
        let limits = Limits { max_nodes, ..Limits::default() };
        let found = store.propose(&own, &names, None, limits);
        let shortest = min_match.max(own.match_len() + 1);
        let wanted = naive.tree(&tenants, &ask, shortest, config, max_context, max_nodes);
        prop_assert_eq!(found.map(|draft| paths(&draft)[1..].to_vec()), wanted);
    }

    #[test]
    fn a_store_keeps_what_was_used_last(
        texts in prop::collection::vec((text(), 0usize..3), 1..30), max_tokens in 256usize..400,
    ) {
        let mut store = SuffixStore::new(max_tokens, 4).unwrap();
        let mut naive = NaiveStore::default();
        for (text, tenant) in &texts {
            store.add(TENANTS[*tenant], text, None).unwrap();
            naive.add(max_tokens, *tenant, text);
            prop_assert!(store.num_tokens() + 16 * store.num_texts() <= max_tokens);
            let wanted: Vec<(&str, &[u32])> =
                naive.texts.iter().map(|text| (TENANTS[text.0], &text.1[..])).collect();
            prop_assert_eq!(store.texts(), wanted);
        }
        // Every place of what is left can still be found, and nothing else.
        for (tenant, name) in TENANTS.iter().enumerate() {
            let config = SuffixConfig { min_score: 0.0, ..SuffixConfig::default() };
            let mut own = Suffix::new(config).unwrap();
            own.extend(&texts[0].0[..1]);
            let found = store.propose(&own, &[*name], None, Limits::default()).is_some();
            prop_assert_eq!(found, !naive.followers(tenant, &texts[0].0[..1]).0.is_empty());
            store.forget(name);
        }
        prop_assert_eq!((store.num_tokens(), store.num_texts()), (0, 0));
    }
}
