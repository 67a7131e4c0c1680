//! The only source of chance: a rule asks to accept or to draw, at an address.
//!
//! In production the answer is a Philox number of that address; in the proof the same calls are
//! branches that [`enumerator`] walks. Noise addresses are `(seed, root position, node, purpose)`; only
//! the coupled mode is keyed by the position of the token to be emitted. Keying the other purposes
//! by a token's own position would bias the lifted rules, which consult drafted tokens that are not
//! emitted and are drafted again in the next step.

pub mod enumerator;
pub mod rng;

use crate::error::{Error, Result};
use crate::mutants::mutate;
use crate::number::Weight;

/// What a number is used for; two purposes never share one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Purpose {
    /// The drafter's own draws.
    Draft = 0,
    /// Whether a node is accepted.
    Accept = 1,
    /// The token drawn at the node where the walk stops, or by `target_only`.
    Sample = 2,
    /// The exponential race of the coupled mode.
    Gumbel = 3,
    /// Which of a node's children is looked at.
    Select = 4,
}

/// An address within one step: a node and a purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Site {
    /// The node that the choice is about (for the race: the depth of the emitted token).
    pub node: u32,
    /// What the number is used for.
    pub purpose: Purpose,
}

impl Site {
    /// The address of a purpose at a node.
    pub fn new(node: usize, purpose: Purpose) -> Self {
        Self { node: node as u32, purpose }
    }
}

/// An unnormalised distribution over tokens, read lazily.
pub trait Cells<W: Weight> {
    /// The sum of all weights.
    fn total(&self) -> W;
    /// The weight of one token.
    ///
    /// # Errors
    /// If a row that has to be read is not a distribution.
    fn weight(&mut self, token: u32) -> Result<W>;
    /// The token whose cumulative cell holds `point`; never one of weight 0. A point beyond the
    /// last cell (rounding) gives the last token of positive weight.
    ///
    /// # Errors
    /// If a row that has to be read whole is not a distribution.
    fn locate(&mut self, point: &W) -> Result<u32>;
    /// Calls `each` with every token of positive weight and its weight, ascending.
    ///
    /// # Errors
    /// As [`Cells::locate`].
    fn visit(&mut self, each: &mut dyn FnMut(u32, &W)) -> Result<()>;
    /// Every token of positive weight with its weight, ascending; there is at least one.
    ///
    /// # Errors
    /// As [`Cells::locate`].
    fn list(&mut self) -> Result<Vec<(u32, W)>> {
        let mut list = Vec::new();
        self.visit(&mut |token, weight| list.push((token, weight.clone())))?;
        if list.is_empty() { Err(nothing_left()) } else { Ok(list) }
    }
    /// The winner of the exponential race at a position: `argmin E(token) / weight(token)`.
    ///
    /// # Errors
    /// As [`Cells::locate`].
    fn race(&mut self, noise: &RaceNoise) -> Result<u32>;
}

/// The error of a draw from cells without any positive weight.
pub(crate) fn nothing_left() -> Error {
    Error::RowEmpty { side: "target", row: 0, reason: "every weight is 0" }
}

/// Answers a rule's questions about chance.
pub trait Choices<W: Weight> {
    /// True with probability `min(1, num / den)`; certain cases consume no randomness.
    fn accept(&mut self, site: Site, num: &W, den: &W) -> bool;
    /// A token with probability proportional to its weight.
    ///
    /// # Errors
    /// Whatever reading the row raises.
    fn draw(&mut self, site: Site, cells: &mut dyn Cells<W>) -> Result<u32>;
    /// A token by the race that belongs to the position `depth` tokens after the first one emitted.
    ///
    /// # Errors
    /// Whatever reading the row raises.
    fn race(&mut self, depth: usize, cells: &mut dyn Cells<W>) -> Result<u32>;
}

/// `min(1, num / den)` where it is 0 or 1: the answer needs no number.
pub(crate) fn certain<W: Weight>(num: &W, den: &W) -> Option<bool> {
    if mutate!("td/le_at_zero", !num.is_positive(), false) {
        Some(false)
    } else if num >= den {
        Some(true)
    } else {
        None
    }
}

/// Whether the number `u` in `[0, 1)` accepts with probability `min(1, num / den)`.
///
/// Strictly below: a token of probability 0 is never accepted, not even at `u = 0`.
pub(crate) fn accepts<W: Weight>(u: &W, num: &W, den: &W) -> bool {
    let point = u.mul(den);
    mutate!("td/le_at_zero", point < *num, point <= *num)
}

/// The counter of an address: a step's root position, a node, a purpose.
pub(crate) fn counter(position: u32, site: Site) -> [u32; 4] {
    let site = mutate!("noise/draft_shares_residual", site, site.of_residual());
    let node = site.node;
    let purpose =
        mutate!("rng/draft_and_accept_share_u", site.purpose as u32, site.purpose.after_draft());
    mutate!(
        "rng/accept_keyed_by_token_position" | "rng/draft_keyed_by_token_position",
        [position, node, purpose, 0],
        site.by_token(position)
    )
}

#[cfg(feature = "mutants")]
impl Purpose {
    /// Draft's noise is Accept's.
    fn after_draft(self) -> u32 {
        (self as u32).max(Self::Accept as u32)
    }
}

#[cfg(feature = "mutants")]
impl Site {
    /// For a chain's draw, the address of the token that replaces it if it is rejected.
    fn of_residual(self) -> Self {
        match self.purpose {
            Purpose::Draft => Self { node: self.node.saturating_sub(1), purpose: Purpose::Sample },
            _ => self,
        }
    }

    /// The counter in which one purpose is keyed by the position of a chain's token.
    fn by_token(self, position: u32) -> [u32; 4] {
        let drafts = crate::mutants::is_on("rng/draft_keyed_by_token_position");
        let keyed = if drafts { Purpose::Draft } else { Purpose::Accept };
        let (position, node) =
            if self.purpose == keyed { (position + self.node, 0) } else { (position, self.node) };
        [position, node, self.purpose as u32, 0]
    }
}

/// The noise of one position's race: an exponential variate for each token.
#[derive(Debug, Clone, Copy)]
pub struct RaceNoise {
    key: [u32; 2],
    position: u32,
}

impl RaceNoise {
    /// The noise of `position` under `seed`.
    pub fn new(seed: u64, position: u32) -> Self {
        Self { key: rng::key(seed), position }
    }

    /// The four words of each of `N` pairs of tokens from `pair` on, word by word; the first two
    /// words serve token `2 * pair`, the others token `2 * pair + 1`.
    #[inline(always)]
    pub fn words_of<const N: usize>(&self, pair: u32) -> [[u32; N]; 4] {
        let pairs = std::array::from_fn(|lane| pair.wrapping_add(lane as u32));
        let purpose = [Purpose::Gumbel as u32; N];
        rng::philox_lanes(self.key, [[self.position; N], pairs, purpose, [0; N]])
    }

    /// `v` in `[0, 1)`; the token's exponential variate is `-ln(1 - v)`.
    #[inline(always)]
    pub fn uniform(&self, token: u32) -> f64 {
        let words = self.words_of::<1>(token >> 1);
        let half = 2 * (token & 1) as usize;
        rng::uniform(words[half][0], words[half + 1][0])
    }
}

/// Production: Philox under a seed, at the root position of one step.
#[derive(Debug, Clone, Copy)]
pub struct Philox {
    seed: u64,
    position: u32,
}

impl Philox {
    /// The noise of the step whose root has absolute index `position`.
    pub fn new(seed: u64, position: u32) -> Self {
        Self { seed, position }
    }

    /// The number at an address.
    pub fn uniform(&self, site: Site) -> f64 {
        let words = rng::philox(rng::key(self.seed), counter(self.position, site));
        rng::uniform(words[0], words[1])
    }
}

impl Choices<f64> for Philox {
    fn accept(&mut self, site: Site, num: &f64, den: &f64) -> bool {
        certain(num, den).unwrap_or_else(|| accepts(&self.uniform(site), num, den))
    }

    fn draw(&mut self, site: Site, cells: &mut dyn Cells<f64>) -> Result<u32> {
        cells.locate(&(self.uniform(site) * cells.total()))
    }

    fn race(&mut self, depth: usize, cells: &mut dyn Cells<f64>) -> Result<u32> {
        // The first token emitted has index root position + 1.
        cells.race(&RaceNoise::new(self.seed, self.position + 1 + depth as u32))
    }
}

/// Refuses every draw: shows in tests that a path is free of chance.
#[derive(Debug, Clone, Copy)]
pub struct NoChoices;

impl<W: Weight> Choices<W> for NoChoices {
    fn accept(&mut self, site: Site, num: &W, den: &W) -> bool {
        let Some(answer) = certain(num, den) else {
            unreachable!("a number was asked for at {site:?}");
        };
        answer
    }

    fn draw(&mut self, _site: Site, cells: &mut dyn Cells<W>) -> Result<u32> {
        let list = cells.list()?;
        let [(token, _)] = list[..] else {
            unreachable!("a draw was asked for among {} tokens", list.len());
        };
        Ok(token)
    }

    fn race(&mut self, depth: usize, cells: &mut dyn Cells<W>) -> Result<u32> {
        self.draw(Site::new(depth, Purpose::Gumbel), cells)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certain_answers_need_no_number() {
        assert_eq!(certain(&0.0, &0.5), Some(false));
        assert_eq!(certain(&0.5, &0.5), Some(true));
        assert_eq!(certain(&0.5, &0.0), Some(true));
        assert_eq!(certain(&0.2, &0.5), None);
        assert!(NoChoices.accept(Site::new(1, Purpose::Accept), &1.0, &1.0));
    }

    #[test]
    fn purposes_nodes_and_positions_have_their_own_numbers() {
        let mut seen = Vec::new();
        for position in 0..4 {
            for node in 0..4 {
                for purpose in [
                    Purpose::Draft,
                    Purpose::Accept,
                    Purpose::Sample,
                    Purpose::Gumbel,
                    Purpose::Select,
                ] {
                    seen.push(Philox::new(1, position).uniform(Site::new(node, purpose)).to_bits());
                }
            }
        }
        seen.sort_unstable();
        let all = seen.len();
        seen.dedup();
        assert_eq!(seen.len(), all);
    }
}
