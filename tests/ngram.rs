//! The history drafters against naive models that look at the whole text again for every question.

use std::collections::BTreeSet;

use mtp_verify::ngram::{Limits, NGram, Proposal, Suffix, SuffixAutomaton, SuffixConfig};
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
