//! All strings of a set of texts, in the order of a dictionary: a suffix array that texts join and leave.

use std::cmp::Ordering;

/// Places of one run; a full one is split, a nearly empty one joins its neighbour.
const RUN: usize = 512;

/// Where a string begins: a text, and a place in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) text: u32,
    pub(super) at: u32,
}

/// The strings that places stand for.
pub(super) trait Strings {
    /// What a text says from a place on: a bounded number of tokens, fewer where the text ends.
    fn string(&self, place: Place) -> &[u32];

    /// Dictionary order; equal strings by place, so that no two places are equal.
    fn compare(&self, a: Place, b: Place) -> Ordering {
        self.string(a).cmp(self.string(b)).then_with(|| a.cmp(&b))
    }
}

/// Places in the order of their strings, in runs so that joining and leaving move few of them.
#[derive(Clone, Debug, Default)]
pub(super) struct Order {
    runs: Vec<Vec<Place>>,
    /// The rank of each run's first place.
    starts: Vec<usize>,
}

impl Order {
    /// Adds every place of a text, which `strings` knows already.
    pub(super) fn join(&mut self, strings: &impl Strings, text: u32, len: usize) {
        for at in 0..len as u32 {
            self.insert(strings, Place { text, at });
        }
        self.count();
    }

    /// Removes every place of a text, which `strings` still knows.
    pub(super) fn leave(&mut self, strings: &impl Strings, text: u32, len: usize) {
        for at in 0..len as u32 {
            self.remove(strings, Place { text, at });
        }
        self.count();
    }

    fn insert(&mut self, strings: &impl Strings, place: Place) {
        let Some(last) = self.runs.len().checked_sub(1) else {
            self.runs.push(vec![place]);
            return;
        };
        let index = self.run_of(strings, place).min(last);
        let run = &mut self.runs[index];
        let before = |&other: &Place| strings.compare(other, place).is_lt();
        run.insert(run.partition_point(before), place);
        if run.len() == RUN {
            let upper = run.split_off(RUN / 2);
            self.runs.insert(index + 1, upper);
        }
    }

    fn remove(&mut self, strings: &impl Strings, place: Place) {
        let index = self.run_of(strings, place);
        let found = self.runs.get_mut(index).and_then(|run| {
            let at = run.binary_search_by(|&other| strings.compare(other, place)).ok()?;
            run.remove(at);
            Some(run.len())
        });
        let left = found.expect("a place leaves the order that it joined");
        let neighbour = self.runs.get(index + 1).map_or(RUN, Vec::len);
        if left == 0 {
            self.runs.remove(index);
        } else if left + neighbour < RUN / 2 {
            let upper = self.runs.remove(index + 1);
            self.runs[index].extend(upper);
        }
    }

    /// The first run that does not end before a place.
    fn run_of(&self, strings: &impl Strings, place: Place) -> usize {
        self.runs.partition_point(|run| {
            run.last().is_some_and(|&last| strings.compare(last, place).is_lt())
        })
    }

    fn count(&mut self) {
        self.starts.clear();
        self.starts.extend(self.runs.iter().scan(0, |next, run| {
            let start = *next;
            *next += run.len();
            Some(start)
        }));
    }

    /// Places held.
    pub(super) fn len(&self) -> usize {
        self.starts.last().zip(self.runs.last()).map_or(0, |(start, run)| start + run.len())
    }

    /// The place of a rank.
    pub(super) fn place(&self, rank: usize) -> Place {
        let run = self.starts.partition_point(|&start| start <= rank) - 1;
        self.runs[run][rank - self.starts[run]]
    }

    /// The first rank of `low..high` whose place is not `before`; `high` if all are.
    pub(super) fn partition(
        &self,
        mut low: usize,
        mut high: usize,
        before: impl Fn(Place) -> bool,
    ) -> usize {
        while low < high {
            let middle = low + (high - low) / 2;
            if before(self.place(middle)) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }

    /// As [`Order::partition`], where it is likely `low`.
    pub(super) fn partition_near_low(
        &self,
        low: usize,
        high: usize,
        before: impl Fn(Place) -> bool,
    ) -> usize {
        if low == high || !before(self.place(low)) {
            return low;
        }
        self.partition(low + 1, high, before)
    }

    /// As [`Order::partition`], where it is likely `high`.
    pub(super) fn partition_near_high(
        &self,
        low: usize,
        high: usize,
        before: impl Fn(Place) -> bool,
    ) -> usize {
        if low == high || before(self.place(high - 1)) {
            return high;
        }
        self.partition(low, high - 1, before)
    }

    /// Bytes that it holds.
    pub(super) fn num_bytes(&self) -> usize {
        let places: usize = self.runs.iter().map(Vec::capacity).sum();
        places * size_of::<Place>()
            + self.runs.capacity() * size_of::<Vec<Place>>()
            + self.starts.capacity() * size_of::<usize>()
    }
}
