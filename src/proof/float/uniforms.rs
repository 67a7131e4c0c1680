//! Production's comparisons under all of its `2^53` numbers at once.
//!
//! Production turns a number `u = k 2^-53` into a decision by `u den < num`, and into a token by
//! [`Cells::locate`]. Both are monotone in `k`, so the `k` that lead to one answer are an interval, and
//! bisection finds its ends exactly: the law of an answer is a count of numbers, with the rounding of
//! every operation in it. Nothing is computed here that production does not compute.

use std::collections::BTreeMap;

use crate::chance::enumerator::{Address, Script, Stand};
use crate::chance::{Cells, Choices, Site, accepts, certain};
use crate::error::Result;

/// The number of uniforms.
const COUNT: u64 = 1 << 53;

/// How far from where it was computed an edge is first looked for.
const NEAR: u64 = 16;

/// The uniform of an index.
fn uniform(index: u64) -> f64 {
    // Both exact: an index has 53 bits.
    index as f64 * (1.0 / COUNT as f64)
}

/// A source of choices that takes one interval of uniforms at each open question.
#[derive(Debug)]
pub(super) struct Uniforms {
    script: Script<f64>,
    intervals: BTreeMap<Address, (u64, u64)>,
    stand: Stand,
}

impl Uniforms {
    fn interval(&self, site: Site) -> (u64, u64) {
        self.intervals.get(&self.stand.address(site)).copied().unwrap_or((0, COUNT))
    }

    /// Takes one of the pieces between edges, which begin and end with the interval of the address.
    fn take(&mut self, site: Site, edges: &[u64]) -> usize {
        let (low, high) = (edges[0], edges[edges.len() - 1]);
        let width = (high - low) as f64;
        let weights: Vec<f64> =
            edges.windows(2).map(|edge| (edge[1] - edge[0]) as f64 / width).collect();
        let taken = self.script.branch(site, &weights);
        self.intervals.insert(self.stand.address(site), (edges[taken], edges[taken + 1]));
        taken
    }
}

impl Choices<f64> for Uniforms {
    fn accept(&mut self, site: Site, num: &f64, den: &f64) -> bool {
        if let Some(answer) = certain(num, den) {
            return answer;
        }
        let (low, high) = self.interval(site);
        let edge = first_other(low, high, |index| accepts(&uniform(index), num, den));
        self.take(site, &[low, edge, high]) == 0
    }

    fn draw(&mut self, site: Site, cells: &mut dyn Cells<f64>) -> Result<u32> {
        let (low, high) = self.interval(site);
        let pieces = pieces(cells, low, high)?;
        let mut edges = vec![low];
        edges.extend(pieces.iter().map(|piece| piece.0));
        Ok(pieces[self.take(site, &edges)].1)
    }

    fn race(&mut self, depth: usize, cells: &mut dyn Cells<f64>) -> Result<u32> {
        // A race has no uniforms; for drafts that did not look at its noise its winner has the row's law.
        self.draw(Site::new(depth, crate::chance::Purpose::Gumbel), cells)
    }
}

/// The first index in `low..high` of which `holds` does not, given that it holds up to somewhere.
fn first_other(mut low: u64, mut high: u64, holds: impl Fn(u64) -> bool) -> u64 {
    while low < high {
        let middle = low + (high - low) / 2;
        if holds(middle) { low = middle + 1 } else { high = middle }
    }
    low
}

/// The tokens of the uniforms `low..high`, each with the index at which its uniforms end.
fn pieces(cells: &mut dyn Cells<f64>, low: u64, high: u64) -> Result<Vec<(u64, u32)>> {
    let total = cells.total();
    // Where the edges are, to a few indices: most bisections then end at once.
    let mut guesses = Vec::new();
    let mut sum = 0.0;
    cells.visit(&mut |_, weight| {
        sum += weight;
        let guess = (sum / total * COUNT as f64) as u64;
        guesses.push(guess.saturating_sub(NEAR));
        guesses.push(guess.saturating_add(NEAR));
    })?;
    guesses.sort_unstable();
    let mut at = |index: u64| Ok((index, cells.locate(&(uniform(index) * total))?));
    let mut found: Vec<(u64, u32)> = Vec::new();
    // Intervals whose ends, both included, are known; the lowest on top.
    let mut open = vec![(at(low)?, at(high - 1)?)];
    while let Some((low, high)) = open.pop() {
        if low.1 == high.1 {
            match found.last_mut() {
                Some(last) if last.1 == low.1 => last.0 = high.0 + 1,
                _ => found.push((high.0 + 1, low.1)),
            }
        } else if high.0 - low.0 == 1 {
            open.extend([(high, high), (low, low)]);
        } else {
            let next = guesses.get(guesses.partition_point(|&guess| guess <= low.0));
            let inside = next.copied().filter(|&guess| guess < high.0);
            let middle = at(inside.unwrap_or(low.0 + (high.0 - low.0) / 2))?;
            open.extend([(middle, high), (low, middle)]);
        }
    }
    Ok(found)
}

/// Runs `program` once for each combination of answers and returns every result with its weight.
///
/// # Errors
/// The first error that a run returns.
pub(super) fn enumerate<T>(
    mut program: impl FnMut(&mut Uniforms) -> Result<T>,
) -> Result<Vec<(T, f64)>> {
    let mut results = Vec::new();
    let mut choices =
        Uniforms { script: Script::new(), intervals: BTreeMap::new(), stand: Stand::default() };
    loop {
        let result = program(&mut choices)?;
        choices.script.check()?;
        results.push((result, choices.script.weight));
        choices.intervals.clear();
        if !choices.script.advance() {
            return Ok(results);
        }
    }
}

/// How many of all uniforms draw each token.
///
/// # Errors
/// Whatever reading the row raises.
pub(super) fn counts(cells: &mut dyn Cells<f64>) -> Result<Vec<(u32, u64)>> {
    let mut before = 0;
    let ends = pieces(cells, 0, COUNT)?;
    Ok(ends
        .into_iter()
        .map(|(end, token)| (token, end - std::mem::replace(&mut before, end)))
        .collect())
}

/// How many of all uniforms accept.
pub(super) fn accepted(num: f64, den: f64) -> u64 {
    match certain(&num, &den) {
        Some(answer) => {
            if answer {
                COUNT
            } else {
                0
            }
        }
        None => first_other(0, COUNT, |index| accepts(&uniform(index), &num, &den)),
    }
}
