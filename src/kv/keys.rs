//! What entries depend on beside their tokens: an adapter, a salt, the image behind placeholders.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::check_listed;
use crate::error::{Error, Result};

/// Something else than tokens that a model reads at some of a sequence's places.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// Its first entry.
    pub start: usize,
    /// The entry behind its last one.
    pub stop: usize,
    /// What it is: a digest of its content.
    pub key: String,
}

/// What the entries of a sequence depend on beside its tokens.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Keys {
    whole: BTreeMap<String, String>,
    items: Vec<Item>,
}

impl Keys {
    /// Keys of a whole sequence, by name, and items at some of its places.
    ///
    /// # Errors
    /// [`Error::ParamOutOfRange`] for items that are empty, overlap or come in another order than
    /// that of their places; [`Error::Overflow`] for more text than a block is compared with.
    pub fn new(whole: BTreeMap<String, String>, items: Vec<Item>) -> Result<Self> {
        let mut end = 0;
        for (index, &Item { start, stop, .. }) in items.iter().enumerate() {
            if start < end || stop <= start {
                return Err(Error::ParamOutOfRange {
                    name: "items",
                    value: format!("({start}, {stop}) at index {index}"),
                    wanted: "start < stop, in order and without overlap",
                });
            }
            end = stop;
        }
        let named = whole.iter().map(|(name, key)| name.len().saturating_add(key.len()));
        let all = named.chain(items.iter().map(|item| item.key.len()));
        check_listed("bytes of keys and items", all.fold(0, usize::saturating_add))?;
        Ok(Self { whole, items })
    }

    pub(super) fn whole(&self) -> &BTreeMap<String, String> {
        &self.whole
    }

    pub(super) fn items(&self) -> &[Item] {
        &self.items
    }

    /// Refuses items that end behind the entries.
    pub(super) fn check(&self, length: usize) -> Result<()> {
        match self.items.last() {
            Some(&Item { start, stop, .. }) if stop > length => Err(Error::ParamOutOfRange {
                name: "items",
                value: format!("({start}, {stop}) of {length} entries"),
                wanted: "items inside the sequence",
            }),
            _ => Ok(()),
        }
    }

    /// Keeps what concerns the first `length` entries.
    pub(super) fn cut(&mut self, length: usize) {
        self.items.retain(|item| item.start < length);
        if let Some(last) = self.items.last_mut() {
            last.stop = last.stop.min(length);
        }
    }

    /// What the block of number `index` is known by, given all blocks before it: its tokens, and
    /// behind them what else its entries depend on, in a form that can be read in one way only.
    ///
    /// The first block speaks for all that come after it, and the block where an item starts for
    /// those into which it goes on: they only say how far.
    pub(super) fn content<'a>(&self, tokens: &'a [u32], index: usize) -> Cow<'a, [u32]> {
        let (begin, end) = (index * tokens.len(), (index + 1) * tokens.len());
        let from = self.items.partition_point(|item| item.stop <= begin);
        let items = &self.items[from..];
        let items = &items[..items.partition_point(|item| item.start < end)];
        let is_named = index == 0 && !self.whole.is_empty();
        if !is_named && items.is_empty() {
            return tokens.into();
        }
        let mut content = tokens.to_vec();
        number(&mut content, if is_named { self.whole.len() } else { 0 });
        for (name, key) in self.whole.iter().filter(|_| is_named) {
            text(&mut content, name);
            text(&mut content, key);
        }
        for item in items {
            // Below 0, and then huge, if it goes on.
            number(&mut content, item.start.wrapping_sub(begin));
            number(&mut content, item.stop.min(end) - begin);
            if item.start >= begin {
                text(&mut content, &item.key);
            }
        }
        content.into()
    }
}

fn number(words: &mut Vec<u32>, value: usize) {
    words.extend([value as u32, (value as u64 >> 32) as u32]);
}

fn text(words: &mut Vec<u32>, text: &str) {
    number(words, text.len());
    words.extend(text.bytes().map(u32::from));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(whole: &[(&str, &str)], items: &[(usize, usize, &str)]) -> Keys {
        let whole = whole.iter().map(|&(name, key)| (name.into(), key.into())).collect();
        let item =
            |&(start, stop, key): &(usize, usize, &str)| Item { start, stop, key: key.into() };
        Keys::new(whole, items.iter().map(item).collect()).unwrap()
    }

    /// The contents of three blocks of two equal tokens.
    fn contents(keys: &Keys) -> [Vec<u32>; 3] {
        [0, 1, 2].map(|index| keys.content(&[7, 7], index).into_owned())
    }

    #[test]
    fn without_keys_a_block_is_its_tokens() {
        let (none, later) = (Keys::default(), keys(&[], &[(2, 3, "a")]));
        for keys in [none, later] {
            assert!(matches!(keys.content(&[7, 7], 0), Cow::Borrowed([7, 7])));
        }
    }

    #[test]
    fn keys_that_differ_give_contents_that_differ() {
        let all = [
            keys(&[], &[]),
            keys(&[("salt", "a")], &[]),
            keys(&[("salt", "b")], &[]),
            keys(&[("adapter", "a")], &[]),
            keys(&[("adapter", "a"), ("salt", "a")], &[]),
            keys(&[("a", "bc")], &[]),
            keys(&[("ab", "c")], &[]),
            keys(&[("", "")], &[]),
            keys(&[], &[(0, 1, "a")]),
            keys(&[], &[(0, 1, "")]),
            keys(&[], &[(1, 2, "a")]),
            keys(&[], &[(0, 2, "a")]),
            keys(&[], &[(0, 1, "a"), (1, 2, "a")]),
            keys(&[], &[(0, 3, "a")]),
            keys(&[], &[(0, 2, "a"), (2, 3, "")]),
            keys(&[], &[(0, 2, "a"), (2, 3, "a")]),
            keys(&[], &[(0, 4, "a")]),
            keys(&[], &[(0, 5, "a")]),
            keys(&[], &[(0, 6, "a")]),
            keys(&[], &[(2, 4, "a")]),
            keys(&[], &[(5, 6, "a")]),
            keys(&[("salt", "a")], &[(5, 6, "a")]),
        ];
        for (index, one) in all.iter().enumerate() {
            assert!(all[..index].iter().all(|other| contents(other) != contents(one)), "{one:?}");
        }
    }

    #[test]
    fn a_block_says_only_what_begins_in_it() {
        let [first, second, third] = contents(&keys(&[("salt", "long")], &[(1, 5, "digest")]));
        assert!(first.len() > 2 + "saltlongdigest".len());
        // No name, and how far the item goes.
        assert_eq!((second.len(), third.len()), (8, 8));
        assert_ne!(second, third);
    }

    #[test]
    fn a_cut_leaves_what_the_entries_had() {
        let mut keys = keys(&[("salt", "a")], &[(0, 2, "a"), (3, 6, "b"), (8, 9, "c")]);
        keys.cut(5);
        assert_eq!(keys.items().last().map(|item| (item.start, item.stop)), Some((3, 5)));
        keys.cut(3);
        assert_eq!(keys.items().len(), 1);
        keys.cut(0);
        assert_eq!((keys.items().len(), keys.whole().len()), (0, 1));
    }

    #[test]
    fn items_out_of_order_are_refused() {
        for wrong in [[(2, 2), (3, 4)], [(0, 2), (1, 3)], [(4, 5), (0, 1)], [(3, 1), (5, 6)]] {
            let item = |(start, stop)| Item { start, stop, key: String::new() };
            assert!(Keys::new(BTreeMap::new(), wrong.map(item).to_vec()).is_err());
        }
        assert!(keys(&[], &[(0, 3, "a")]).check(2).is_err());
        let long = Item { start: 0, stop: 1, key: "a".repeat(1 << 25) };
        let refused = Keys::new(BTreeMap::new(), vec![long]);
        assert!(matches!(refused, Err(Error::Overflow { .. })));
    }
}
