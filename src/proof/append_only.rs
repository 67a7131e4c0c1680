//! The append-only theorem, enumerated: growth by any policy that never takes a
//! token back is verified without loss; the policies that do take one back show the stated bias.

use super::tests::{R, model, r};
use super::*;
use crate::chance::{Choices, Purpose, Site};
use crate::error::Error;
use crate::growers::{
    self, Chain, DenseRows, DraftRows, Fixed, Grower, Growth, Limits, Stochastic,
};
use crate::growers::{Stop, Union};
use crate::tree::TokenTree;
use crate::verify::law::{Draft, Law};

const CORES: [Core; 2] = [Core::TopDown, Core::Lifted];

/// The total variation between what a grown draft emits, continued, and the target's law.
fn bias(
    rows: &Rows<R>,
    length: usize,
    core: Core,
    grow: impl Fn(&mut crate::chance::enumerator::Enumerator<R>) -> Result<Draft>,
) -> R {
    let outcomes = enumerate(|choices| {
        let draft = grow(choices)?;
        verify::decide(core, &draft, &mut growth::view(rows, &draft), choices)
    })
    .unwrap();
    let found = summarise(rows, length, &outcomes);
    assert_eq!(found.law.total(), r(1, 1));
    found.distance
}

fn root() -> Growth {
    Growth::new(-1, Vec::new())
}

/// What a grower makes of a model's rows.
fn grown<G: Grower<R>, C: Choices<R>>(rows: &Rows<R>, grower: G, choices: &mut C) -> Result<Draft> {
    growth::finish(rows, grower, choices)
}

/// `SplitMix64`'s mixing of everything that a policy may know.
fn hash(seed: u64, growth: &Growth, step: usize) -> u64 {
    let mut state = seed;
    let mut mix = |word: u64| {
        state = state.wrapping_add(word).wrapping_add(0x9E37_79B9_7F4A_7C15);
        state = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        state = (state ^ (state >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        state ^= state >> 31;
    };
    mix(step as u64);
    for (&parent, &token) in growth.parents().iter().zip(growth.tokens()).skip(1) {
        mix(parent as u64);
        mix(token as u64);
    }
    state
}

/// Growth at random: where to draw next, and when to stop, is a hash of all that has been drawn.
#[derive(Clone)]
struct Random {
    growth: Growth,
    seed: u64,
    draws: usize,
    /// The set of each node, once it has been drawn below; `None` after it has been appended.
    sets: Vec<Option<Vec<u32>>>,
    vocab: usize,
    mixed: bool,
}

const MOST_DEPTH: usize = 3;

impl Random {
    fn new(seed: u64, draws: usize, vocab: usize, mixed: bool) -> Self {
        let mut growth = root();
        growth.want([0]);
        Self { growth, seed, draws, sets: vec![None], vocab, mixed }
    }

    /// A set that looks at the node's path alone.
    fn set(&self, node: usize) -> Vec<u32> {
        if !self.mixed {
            return Vec::new();
        }
        let first = self.growth.path(node).iter().map(|&t| t as usize + 1).sum::<usize>();
        let size = (self.seed as usize + node) % 2 + 1;
        (0..size.min(self.vocab - 1)).map(|i| ((first + i) % self.vocab) as u32).collect()
    }
}

impl Grower<R> for Random {
    fn growth(&self) -> &Growth {
        &self.growth
    }

    fn law(&self) -> Law {
        if self.mixed { Law::Mixed } else { Law::Swor }
    }

    fn extend<D: DraftRows<R>, C: Choices<R>>(
        &mut self,
        rows: &mut D,
        choices: &mut C,
    ) -> Result<()> {
        let all: Vec<usize> = (0..self.growth.num_nodes()).collect();
        let step = self.draws;
        let number = hash(self.seed, &self.growth, step);
        let open: Vec<usize> =
            all.into_iter().filter(|&node| self.growth.depth(node) < MOST_DEPTH).collect();
        self.growth.want(None);
        if self.draws == 0 || number.is_multiple_of(7) {
            // The sets of the nodes that were drawn below come last among their children.
            for (node, set) in std::mem::take(&mut self.sets).into_iter().enumerate() {
                for token in set.unwrap_or_default() {
                    self.growth.push(node, token, false);
                }
            }
            return Ok(());
        }
        self.draws -= 1;
        let parent = open[(number >> 8) as usize % open.len()];
        let set = self.set(parent);
        if self.growth.draw(parent, &set, false, rows, choices)?.is_some() {
            self.sets.push(None);
            self.sets[parent] = Some(set);
        }
        self.growth.want(0..self.growth.num_nodes());
        Ok(())
    }
}

#[test]
fn random_policies_are_lossless() {
    let mut policies = 0;
    for (name, draws, seeds) in [("A", 5, 12), ("B", 4, 8), ("C", 4, 8), ("E", 3, 8)] {
        let rows = model(name);
        let vocab = rows.target(&[]).len();
        for seed in 0..seeds {
            for mixed in [false, true] {
                for core in CORES {
                    let found = bias(&rows, MOST_DEPTH + 2, core, |choices| {
                        grown(&rows, Random::new(seed, draws, vocab, mixed), choices)
                    });
                    assert_eq!(found, r(0, 1), "{name} seed {seed} mixed {mixed} {core:?}");
                }
                policies += 1;
            }
        }
    }
    assert_eq!(policies, 72);
}

#[test]
fn stochastic_growth_of_two_to_six_nodes_is_lossless() {
    for (name, most) in [("A", 6), ("B", 4), ("C", 5), ("D", 3), ("E", 3)] {
        let rows = model(name);
        for max_nodes in 2..=most {
            for core in CORES {
                let found = bias(&rows, max_nodes + 1, core, |choices| {
                    let min_value = r(0, 1);
                    let limits = Limits { max_nodes, max_depth: 9, min_value, lookahead: 1 };
                    grown(&rows, Stochastic::new(root(), limits)?, choices)
                });
                assert_eq!(found, r(0, 1), "{name} {max_nodes} {core:?}");
            }
        }
    }
}

#[test]
fn chains_that_stop_before_a_draw_are_lossless() {
    for name in ["A", "B", "C", "D", "E"] {
        let rows = model(name);
        for stop in [
            Stop { min_top: r(9, 20), min_path: r(0, 1) },
            Stop { min_top: r(0, 1), min_path: r(1, 4) },
        ] {
            for core in CORES {
                let found = bias(&rows, 4, core, |choices| {
                    grown(&rows, Chain::new(root(), 3, true, stop.clone())?, choices)
                });
                assert_eq!(found, r(0, 1), "{name} {stop:?} {core:?}");
            }
        }
    }
}

#[test]
fn unions_with_hits_are_lossless() {
    //  hits: 1 - 0 and 0;  budget: all, or two draws
    let hits = Draft::new(
        TokenTree::new(&[-1, 0, 1, 0]).unwrap(),
        vec![-1, 1, 0, 0],
        Law::Deterministic,
        None,
    )
    .unwrap();
    for name in ["B", "C", "E"] {
        let rows = model(name);
        for (counts, max_nodes) in [(vec![1, 1], 100), (vec![2, 1], 5), (vec![0, 1], 100)] {
            for core in CORES {
                let found = bias(&rows, 4, core, |choices| {
                    let union = Union::new(root(), hits.clone(), counts.clone(), max_nodes)?;
                    grown(&rows, union, choices)
                });
                assert_eq!(found, r(0, 1), "{name} {counts:?} {max_nodes} {core:?}");
            }
        }
    }
}

/// A drafted tree without some of its nodes (and what is below them), under the law it had.
fn without(draft: &Draft, drop: impl Fn(usize) -> bool) -> Result<Draft> {
    let mut number = vec![Some(0)];
    let (mut parents, mut tokens) = (vec![-1], vec![-1]);
    for node in 1..draft.num_nodes() {
        let parent = draft.tree().parent(node).and_then(|parent| number[parent]);
        number.push(parent.filter(|_| !drop(node)).map(|parent| {
            parents.push(parent as i64);
            tokens.push(i64::from(draft.token(node)));
            tokens.len() - 1
        }));
    }
    Draft::new(TokenTree::new(&parents)?, tokens, draft.law(), None)
}

/// `q` of each drafted token after its parent; 1 at the root.
fn chances(rows: &Rows<R>, draft: &Draft) -> Vec<R> {
    let view = growth::view(rows, draft);
    let chance = |node| match draft.tree().parent(node) {
        Some(parent) => view.drafter[parent][draft.token(node) as usize].clone(),
        None => r(1, 1),
    };
    (0..draft.num_nodes()).map(chance).collect()
}

/// Draws a shape and keeps the nodes with the largest products of `q` along their paths.
fn pruned(rows: &Rows<R>, shape: &[usize], keep: usize, core: Core) -> R {
    bias(rows, shape.len() + 1, core, |choices| {
        let template = growers::by_depth(shape)?;
        let draft = grown(rows, Fixed::new(root(), template, Law::Swor, 0)?, choices)?;
        let mut scores = chances(rows, &draft);
        for node in 1..draft.num_nodes() {
            let parent = draft.tree().parent(node).unwrap_or(0);
            scores[node] = scores[node].mul(&scores[parent]);
        }
        let mut order: Vec<usize> = (1..draft.num_nodes()).collect();
        order.sort_by(|&a, &b| scores[b].cmp(&scores[a]));
        without(&draft, |node| !order[..keep].contains(&node))
    })
}

#[test]
fn keeping_the_best_of_a_sampled_tree_is_biased() {
    assert_eq!(pruned(&model("A"), &[2, 1], 2, Core::TopDown), r(1, 9));
    assert_eq!(pruned(&model("A"), &[2, 1], 2, Core::Lifted), r(4, 27));
    assert_eq!(pruned(&model("D"), &[2, 1], 2, Core::TopDown), r(31, 224));
    assert_eq!(pruned(&model("D"), &[2, 1], 2, Core::Lifted), r(23, 160));
}

/// A chain of two draws, cut before the first token of which `drop(q of the token, q of the path)`.
fn cut(name: &str, core: Core, drop: impl Fn(&R, &R) -> bool) -> R {
    let rows = model(name);
    bias(&rows, 3, core, |choices| {
        let draft = grown(&rows, Chain::new(root(), 2, true, Stop::never())?, choices)?;
        let q = chances(&rows, &draft);
        let mut path = vec![r(1, 1)];
        for node in 1..draft.num_nodes() {
            path.push(path[node - 1].mul(&q[node]));
        }
        without(&draft, |node| drop(&q[node], &path[node]))
    })
}

#[test]
fn dropping_what_was_drawn_is_biased() {
    let token = |tau: R| move |q: &R, _: &R| *q < tau;
    assert_eq!(cut("A", Core::TopDown, token(r(2, 5))), r(1, 9));
    assert_eq!(cut("A", Core::Lifted, token(r(2, 5))), r(2, 27));
    assert_eq!(cut("E", Core::TopDown, token(r(2, 5))), r(1, 8));
    // In hindsight: cut where the path's probability has fallen below a fifth.
    for core in CORES {
        assert_eq!(cut("D", core, |_, path| *path < r(1, 5)), r(3, 16));
    }
}

#[test]
fn the_enumerated_growers_draw_at_the_node_that_the_token_becomes() {
    // One draw at each node's own address: the enumerator would see a reused one as one number.
    let rows = model("B");
    let limits = Limits { max_nodes: 3, max_depth: 3, min_value: r(0, 1), lookahead: 2 };
    let outcomes = enumerate(|choices| {
        let mut grower = Stochastic::new(root(), limits.clone())?;
        DenseRows::grow(&mut grower, choices, |path| rows.drafter(path).to_vec())?;
        let again = choices.accept(Site::new(1, Purpose::Draft), &r(1, 3), &r(1, 1));
        let first = Grower::<R>::growth(&grower).tokens()[1];
        Ok::<_, Error>((first, again))
    })
    .unwrap();
    // The first row is uniform over three tokens: u < 1/3 is the draw of token 0.
    assert!(outcomes.iter().all(|((first, again), _)| (*first == 0) == *again));
}
