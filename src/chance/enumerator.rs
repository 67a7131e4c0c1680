//! The enumerator: walks every branch of a run and adds up the exact law of its results.
//!
//! An address is one uniform number, so for each address the enumerator keeps the interval in which
//! its number must lie after the answers given so far. Asking twice at one address is therefore
//! enumerated as the same number (and shows as a bias), where a naive enumerator would see two.
//!
//! The [`Grid`] draws each number from a few values and runs production's own comparison, so that a
//! `<=` in place of `<`, or a draw past the last cell, is a visible bias and not one of 2^-53.

use std::collections::BTreeMap;

use crate::chance::rng;
use crate::chance::{Cells, Choices, Purpose, Site, accepts, certain, counter};
use crate::error::{Error, Result};
use crate::number::Weight;

/// The key and the counter of a number: all that production's number depends on.
pub(crate) type Address = ([u32; 2], [u32; 4]);

/// The branches of a run: which one is taken at each open question, and its probability.
#[derive(Debug)]
pub(crate) struct Script<W> {
    /// `(branch taken, number of branches)` of each open question, in order of asking.
    taken: Vec<(usize, usize)>,
    asked: usize,
    pub(crate) weight: W,
    /// Where a question had other branches than when it was asked before.
    strayed: Option<Site>,
}

impl<W: Weight> Script<W> {
    pub(crate) fn new() -> Self {
        Self { taken: Vec::new(), asked: 0, weight: W::one(), strayed: None }
    }

    /// Takes one branch of those with positive weight; the weights need not sum to anything.
    ///
    /// A run repeats the questions of the one before it up to its last branch. Rows that are written to
    /// meanwhile give other questions: the run is then of no use, and says so when it is over.
    pub(crate) fn branch(&mut self, site: Site, weights: &[W]) -> usize {
        let live: Vec<usize> = (0..weights.len()).filter(|&i| weights[i].is_positive()).collect();
        let (taken, count) = self.taken.get(self.asked).copied().unwrap_or((0, live.len()));
        if self.asked == self.taken.len() {
            self.taken.push((taken, count));
        }
        self.asked += 1;
        let (true, Some(&branch)) = (count == live.len(), live.get(taken)) else {
            self.strayed.get_or_insert(site);
            return 0;
        };
        self.weight = self.weight.mul(&weights[branch]);
        branch
    }

    /// Refuses a run that did not repeat the one before it, all of it.
    pub(crate) fn check(&self) -> Result<()> {
        if self.strayed.is_none() && self.asked == self.taken.len() {
            return Ok(());
        }
        let row = self.strayed.map_or(0, |site| site.node as usize);
        Err(Error::RowChanged { side: "target", row })
    }

    /// Moves to the next untaken branch; false when all have been taken.
    pub(crate) fn advance(&mut self) -> bool {
        self.asked = 0;
        self.weight = W::one();
        while let Some((taken, count)) = self.taken.pop() {
            if taken + 1 < count {
                self.taken.push((taken + 1, count));
                return true;
            }
        }
        false
    }
}

/// Where a step stands: whose noise it draws, and at which root position.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Stand {
    seed: u64,
    position: u32,
}

impl Stand {
    pub(crate) fn address(self, site: Site) -> Address {
        let counter = match site.purpose {
            // The race of a position belongs to the emitted token, whatever step asks for it.
            Purpose::Gumbel => [self.position + 1 + site.node, 0, site.purpose as u32, 0],
            _ => counter(self.position, site),
        };
        (rng::key(self.seed), counter)
    }
}

/// A source of choices that takes one scripted branch at each open question.
#[derive(Debug)]
pub struct Enumerator<W> {
    script: Script<W>,
    intervals: BTreeMap<Address, (W, W)>,
    stand: Stand,
}

impl<W: Weight> Enumerator<W> {
    fn new() -> Self {
        Self { script: Script::new(), intervals: BTreeMap::new(), stand: Stand::default() }
    }

    /// Where the run met other questions than the run before it: the rows have changed.
    pub(crate) fn strayed(&self) -> Option<Site> {
        self.script.strayed
    }

    /// Sets the root position of the step that follows.
    pub fn set_position(&mut self, position: u64) {
        self.stand.position = position as u32;
    }

    /// Sets the seed of the sequence whose step follows.
    pub fn set_seed(&mut self, seed: u64) {
        self.stand.seed = seed;
    }

    /// Cuts the interval of an address at `edges` (ascending, from 0 to 1) and takes one piece.
    pub(crate) fn cut(&mut self, site: Site, edges: &[W]) -> usize {
        let address = self.stand.address(site);
        let (low, high) =
            self.intervals.get(&address).cloned().unwrap_or_else(|| (W::zero(), W::one()));
        let width = high.sub(&low);
        let pieces: Vec<(W, W)> = edges
            .windows(2)
            .map(|e| {
                let from = if e[0] > low { e[0].clone() } else { low.clone() };
                (from, e[1].min(&high))
            })
            .collect();
        let weights: Vec<W> =
            pieces.iter().map(|(from, to)| to.sub(from).positive_part().div(&width)).collect();
        let taken = self.script.branch(site, &weights);
        self.intervals.insert(address, pieces[taken].clone());
        taken
    }

    fn advance(&mut self) -> bool {
        self.intervals.clear();
        self.stand = Stand::default();
        self.script.advance()
    }
}

impl<W: Weight> Choices<W> for Enumerator<W> {
    fn accept(&mut self, site: Site, num: &W, den: &W) -> bool {
        if let Some(answer) = certain(num, den) {
            return answer;
        }
        let threshold = num.div(den);
        self.cut(site, &[W::zero(), threshold, W::one()]) == 0
    }

    fn draw(&mut self, site: Site, cells: &mut dyn Cells<W>) -> Result<u32> {
        let list = cells.list()?;
        let total = list.iter().fold(W::zero(), |sum, (_, weight)| sum.add(weight));
        let mut edges = vec![W::zero()];
        let mut sum = W::zero();
        for (_, weight) in &list {
            sum = sum.add(weight);
            edges.push(sum.div(&total));
        }
        Ok(list[self.cut(site, &edges)].0)
    }

    fn race(&mut self, depth: usize, cells: &mut dyn Cells<W>) -> Result<u32> {
        // For a draft that did not look at the race's noise, its winner has the row's own law.
        self.draw(Site::new(depth, Purpose::Gumbel), cells)
    }
}

/// A source of choices whose numbers are multiples of `2^-bits`, compared as in production.
#[derive(Debug)]
pub struct Grid<W> {
    script: Script<W>,
    numbers: BTreeMap<Address, usize>,
    bits: u32,
}

impl<W: Weight> Grid<W> {
    fn number(&mut self, site: Site) -> W {
        let values = 1_usize << self.bits;
        let address = Stand::default().address(site);
        let script = &mut self.script;
        let each = W::ratio(1, values as i64);
        let number = *self
            .numbers
            .entry(address)
            .or_insert_with(|| script.branch(site, &vec![each; values]));
        W::ratio(number as i64, values as i64)
    }
}

impl<W: Weight> Choices<W> for Grid<W> {
    fn accept(&mut self, site: Site, num: &W, den: &W) -> bool {
        certain(num, den).unwrap_or_else(|| accepts(&self.number(site), num, den))
    }

    fn draw(&mut self, site: Site, cells: &mut dyn Cells<W>) -> Result<u32> {
        let point = self.number(site).mul(&cells.total());
        cells.locate(&point)
    }

    fn race(&mut self, depth: usize, cells: &mut dyn Cells<W>) -> Result<u32> {
        // A race's numbers are not uniform: its winner is drawn instead, as in the enumerator.
        self.draw(Site::new(depth, Purpose::Gumbel), cells)
    }
}

/// The exact law of a result: each value with its probability, in order.
#[derive(Debug, Clone, PartialEq)]
pub struct OutputLaw<W, K: Ord>(BTreeMap<K, W>);

impl<W: Weight, K: Ord + Clone> OutputLaw<W, K> {
    /// The law without any outcome.
    pub fn empty() -> Self {
        Self(BTreeMap::new())
    }

    /// Adds weight to an outcome.
    pub fn add(&mut self, key: K, weight: &W) {
        let slot = self.0.entry(key).or_insert_with(W::zero);
        *slot = slot.add(weight);
    }

    /// The outcomes in order.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &W)> {
        self.0.iter()
    }

    /// The probability of an outcome.
    pub fn get(&self, key: &K) -> W {
        self.0.get(key).cloned().unwrap_or_else(W::zero)
    }

    /// The sum of all weights; 1 for a complete law.
    pub fn total(&self) -> W {
        self.0.values().fold(W::zero(), |sum, weight| sum.add(weight))
    }

    /// The total-variation distance: half the sum of absolute differences.
    pub fn distance(&self, other: &Self) -> W {
        let mut sum = W::zero();
        for (key, weight) in &self.0 {
            sum = sum.add(&weight.sub(&other.get(key)).positive_part());
            sum = sum.add(&other.get(key).sub(weight).positive_part());
        }
        for (key, weight) in &other.0 {
            if !self.0.contains_key(key) {
                sum = sum.add(weight);
            }
        }
        sum.div(&W::ratio(2, 1))
    }

    /// The same law with its weights in another number type.
    pub fn map<X: Weight>(&self, convert: impl Fn(&W) -> X) -> OutputLaw<X, K> {
        OutputLaw(self.0.iter().map(|(key, weight)| (key.clone(), convert(weight))).collect())
    }

    /// The largest absolute difference of one outcome's probabilities.
    pub fn largest_difference(&self, other: &Self) -> f64 {
        let keys = self.0.keys().chain(other.0.keys());
        keys.map(|k| self.get(k).sub(&other.get(k)).to_f64().abs()).fold(0.0, f64::max)
    }
}

/// Runs `program` once for each combination of branches and returns every result with its weight.
///
/// # Errors
/// The first error that a run returns, and [`Error::RowChanged`] if a run does not repeat the one before.
pub fn enumerate<W: Weight, T>(
    mut program: impl FnMut(&mut Enumerator<W>) -> Result<T>,
) -> Result<Vec<(T, W)>> {
    let mut results = Vec::new();
    let mut choices = Enumerator::new();
    loop {
        let result = program(&mut choices)?;
        choices.script.check()?;
        results.push((result, choices.script.weight.clone()));
        if !choices.advance() {
            return Ok(results);
        }
    }
}

/// [`enumerate`] with numbers of `bits` bits.
///
/// # Errors
/// The first error that a run returns.
pub fn enumerate_on_grid<W: Weight, T>(
    bits: u32,
    mut program: impl FnMut(&mut Grid<W>) -> Result<T>,
) -> Result<Vec<(T, W)>> {
    let mut results = Vec::new();
    let mut choices = Grid { script: Script::new(), numbers: BTreeMap::new(), bits };
    loop {
        let result = program(&mut choices)?;
        choices.script.check()?;
        results.push((result, choices.script.weight.clone()));
        choices.numbers.clear();
        if !choices.script.advance() {
            return Ok(results);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use num_rational::BigRational;

    type R = BigRational;

    fn r(num: i64, den: i64) -> R {
        <R as Weight>::ratio(num, den)
    }

    #[test]
    fn all_branches_sum_to_one() {
        let runs = enumerate(|choices: &mut Enumerator<R>| {
            let first = choices.accept(Site::new(1, Purpose::Accept), &r(1, 3), &r(1, 1));
            let second = first && choices.accept(Site::new(2, Purpose::Accept), &r(1, 4), &r(1, 2));
            Ok((first, second))
        })
        .unwrap();
        let mut law = OutputLaw::empty();
        for (key, weight) in runs {
            law.add(key, &weight);
        }
        assert_eq!(law.total(), r(1, 1));
        assert_eq!(law.get(&(false, false)), r(2, 3));
        assert_eq!(law.get(&(true, true)), r(1, 6));
    }

    #[test]
    fn a_program_that_changes_between_its_runs_is_refused() {
        let site = Site::new(4, Purpose::Accept);
        for later in [r(0, 1), r(1, 1), r(2, 1)] {
            let mut runs = 0;
            let found = enumerate(|choices: &mut Enumerator<R>| {
                runs += 1;
                let num = if runs == 1 { r(1, 3) } else { later.clone() };
                // Certain answers are no questions, so the second one has the first one's place.
                let first = choices.accept(site, &num, &r(1, 1));
                let edges = [r(0, 1), r(1, 4), r(1, 2), r(1, 1)];
                Ok((first, choices.cut(Site::new(5, Purpose::Sample), &edges)))
            });
            assert_eq!(found, Err(Error::RowChanged { side: "target", row: 5 }), "{later}");
        }
        let mut runs = 0;
        let found = enumerate(|choices: &mut Enumerator<R>| {
            runs += 1;
            Ok(runs == 1 && choices.accept(site, &r(1, 3), &r(1, 1)))
        });
        assert!(matches!(found, Err(Error::RowChanged { .. })), "{found:?}");
    }

    #[test]
    fn one_address_is_one_number() {
        // Asked twice with the same threshold, the answers agree; with different ones they nest.
        let site = Site::new(1, Purpose::Accept);
        let runs = enumerate(|choices: &mut Enumerator<R>| {
            Ok((choices.accept(site, &r(1, 3), &r(1, 1)), choices.accept(site, &r(1, 2), &r(1, 1))))
        })
        .unwrap();
        let found: Vec<_> = runs.iter().map(|(key, w)| (*key, w.clone())).collect();
        assert_eq!(
            found,
            [((true, true), r(1, 3)), ((false, true), r(1, 6)), ((false, false), r(1, 2))]
        );
    }
}
