//! The block table: any sequence of calls with any numbers.

use std::collections::BTreeMap;

use mtp_verify::error::Result;
use mtp_verify::kv::{BlockTable, Commit, Item, Keys, Prompt, commit_plan};

use crate::bits::Bits;
use crate::request::tree;
use crate::verdict::outcome;

pub(crate) fn check(bits: &mut Bits) -> &'static str {
    let any = |bits: &mut Bits, most| {
        if bits.one_in(16) { bits.size(most) } else { bits.between(1, most) }
    };
    let (blocks, size) = (any(bits, 12), any(bits, 4));
    let window = bits.one_in(2).then(|| any(bits, 9));
    let table = BlockTable::new(blocks, size, bits.one_in(2), window);
    let Ok(mut table) = table else {
        return outcome(&table);
    };
    let mut last = "ok";
    for _ in 0..bits.between(1, 24) {
        let before = table.clone();
        let result = step(bits, &mut table);
        table.check_integrity().unwrap();
        if result.is_err() {
            assert!(table == before, "a refused call changed the table");
        }
        last = outcome(&result);
    }
    last
}

fn sequence(bits: &mut Bits) -> i64 {
    if bits.one_in(12) { bits.extreme() as i64 } else { bits.below(4) as i64 }
}

fn keys(bits: &mut Bits) -> Result<Keys> {
    let key = |bits: &mut Bits| "ab"[bits.below(3)..].to_owned();
    let whole: BTreeMap<String, String> =
        (0..bits.below(3)).map(|_| (key(bits), key(bits))).collect();
    let item = |bits: &mut Bits| Item { start: bits.size(4), stop: bits.size(9), key: key(bits) };
    let count = if bits.one_in(3) { bits.below(3) } else { 0 };
    Keys::new(whole, (0..count).map(|_| item(bits)).collect())
}

fn step(bits: &mut Bits, table: &mut BlockTable) -> Result<()> {
    let seq = sequence(bits);
    match bits.below(11) {
        0 | 1 => {
            let length = bits.size(9);
            let count = if bits.one_in(5) { bits.below(9) } else { length.min(64) };
            let tokens: Vec<u32> = (0..count).map(|_| bits.below(2) as u32).collect();
            let keys = keys(bits)?;
            let max_cached = bits.one_in(4).then(|| bits.size(9));
            let prompt = Prompt { tokens: bits.one_in(2).then_some(&tokens[..]), keys, max_cached };
            let promised = table.num_cached(&prompt);
            let cached = table.add_sequence(seq, length, prompt)?;
            assert!(cached <= length && promised == Ok(cached));
        }
        2 => table.fork(seq, sequence(bits))?,
        3 | 4 => {
            let wanted: Vec<(i64, usize)> =
                (0..bits.between(0, 3)).map(|_| (sequence(bits), bits.size(5))).collect();
            let batch = table.reserve_batch(&wanted)?;
            let total: usize = wanted.iter().map(|pair| pair.1).sum();
            assert_eq!(batch.slots.len(), total);
            assert!(batch.get(wanted.len()).is_none());
        }
        5 | 6 => {
            // As many nodes as are reserved, where one knows.
            let nodes = table.slot_mapping(&[seq]).map_or(0, |(slots, _)| slots.len());
            let tree = match nodes {
                1..40 if !bits.one_in(6) => {
                    let parents: Vec<i64> = (0..nodes as i64)
                        .map(|node| if node == 0 { -1 } else { bits.below(node as usize) as i64 })
                        .collect();
                    mtp_verify::tree::TokenTree::new(&parents)?
                }
                _ => tree(bits, 5),
            };
            let end = bits.below(tree.num_nodes());
            let mut path: Vec<i64> = tree.path(end).into_iter().map(i64::from).collect();
            if bits.one_in(6) {
                path.push(bits.extreme() as i64);
            }
            let count = if bits.one_in(6) { bits.below(9) } else { tree.num_nodes() };
            let tokens: Vec<i64> = (0..count).map(|_| bits.below(3) as i64 - 1).collect();
            let tokens = bits.one_in(2).then_some(&tokens[..]);
            let plan =
                table.commit(Commit { seq, parents: tree.parents(), path: &path, tokens })?;
            assert_eq!(plan.state_select, path.last().copied().unwrap_or(0));
        }
        7 => drop(table.rollback(seq, bits.size(9))?),
        8 => drop(table.release(seq)?),
        9 => drop(table.reset_prefix_cache()),
        _ => {
            let seqs: Vec<i64> = (0..bits.between(0, 4)).map(|_| sequence(bits)).collect();
            table.lengths(&seqs)?;
            table.block_lists(&seqs)?;
            table.slot_mapping(&seqs)?;
        }
    }
    let (form, start) = (tree(bits, 5), bits.extreme() as i64);
    let path: Vec<i64> = form.path(form.num_nodes() - 1).into_iter().map(i64::from).collect();
    if let Ok(plan) = commit_plan(&form, &path, start) {
        assert!(plan.length >= start);
    }
    Ok(())
}
