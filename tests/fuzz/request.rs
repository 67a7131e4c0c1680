//! One step to be verified: a draft of any law, its rows, and all that may come with them.

use mtp_verify::error::{Error, Result};
use mtp_verify::rows::history::{Penalties, Table};
use mtp_verify::shaping::{Edits, Mask, Params, Processor, Scratch, ShapedRows, Side};
use mtp_verify::tree::TokenTree;
use mtp_verify::verify::law::{Draft, Law};
use mtp_verify::verify::lazy::{DrafterRows, LEAST, Source};
use mtp_verify::verify::lossy::Lossy;
use mtp_verify::verify::top::TopLogprobs;
use mtp_verify::verify::{self, Noise, RULES, Verdict};

use crate::bits::Bits;
use crate::rows::{self, Kind, Matrix};

/// The drafter's side.
#[derive(Debug, Clone)]
pub(crate) enum Given {
    None,
    Probabilities(Matrix),
    Logits(Matrix, Params),
}

/// What is done to the target's rows before they are shaped.
#[derive(Debug, Clone, Default)]
pub(crate) struct Changes {
    penalties: Option<Penalties>,
    history: Vec<u32>,
    prompt_len: usize,
    /// Words, rows, words of a row and words from row to row.
    mask: Option<(Vec<i32>, [usize; 3])>,
    processor: Option<Shift>,
}

/// A function over rows; some of them fail.
#[derive(Debug, Clone, Copy)]
struct Shift {
    by: f32,
    fails: bool,
}

impl Processor for Shift {
    fn process(&self, _nodes: &[usize], rows: &mut [f32]) -> Result<()> {
        if self.fails {
            return Err(Error::RowEmpty { side: "target", row: 0, reason: "a processor raised" });
        }
        for (index, x) in rows.iter_mut().enumerate() {
            *x += self.by * (index % 3) as f32;
        }
        Ok(())
    }
}

/// A call of the verifier.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) vocab: usize,
    pub(crate) draft: Draft,
    pub(crate) target: Matrix,
    given: Given,
    index: Vec<i64>,
    pairs: Option<Vec<(u32, u32)>>,
    pub(crate) params: Params,
    changes: Option<Changes>,
    pub(crate) rule: &'static str,
    pub(crate) lossy: Option<Lossy>,
    pub(crate) noise: Noise,
    pub(crate) top_logprobs: usize,
    /// Nothing is wrong with it: it may not be refused.
    pub(crate) is_sound: bool,
    /// The drafter's rows are the target's, so every drafted path is accepted to its end.
    pub(crate) is_own_target: bool,
}

/// What came out, to the bit.
pub(crate) type Answer = Result<(Verdict, Option<TopLogprobs>)>;

impl Request {
    pub(crate) fn drafter(&self) -> DrafterRows<'_> {
        let source = match &self.given {
            Given::None => Source::None,
            Given::Probabilities(matrix) => Source::Probabilities(matrix.raw()),
            Given::Logits(matrix, params) => {
                Source::Logits(ShapedRows::new(matrix.raw(), *params, Side::Drafter))
            }
        };
        DrafterRows { source, index: &self.index, vocab: self.pairs.as_deref() }
    }

    pub(crate) fn edits(&self) -> Result<Option<Edits<'_>>> {
        let Some(changes) = &self.changes else {
            return Ok(None);
        };
        let table = changes.penalties.as_ref().map(|penalties| {
            Table::new(penalties, &changes.history, changes.prompt_len, self.vocab)
        });
        let mask = changes
            .mask
            .as_ref()
            .map(|(words, form)| Mask::new(words, *form, (self.draft.num_nodes(), self.vocab)));
        let tokens = (0..self.draft.num_nodes()).map(|node| self.draft.token(node)).collect();
        let processor = changes.processor.as_ref().map(|shift| shift as &dyn Processor);
        let (table, mask) = (table.transpose()?, mask.transpose()?);
        Ok(Some(Edits::new(self.draft.tree(), tokens, table, mask, processor)))
    }

    pub(crate) fn verify(&self) -> Answer {
        let edits = self.edits()?;
        let target = ShapedRows::new(self.target.raw(), self.params, Side::Target);
        let target = edits.as_ref().map_or(target, |edits| target.edited(edits));
        let (rule, lossy) = (self.rule, self.lossy);
        let verdict =
            verify::verify_shaped(&self.draft, self.drafter(), target, rule, lossy, self.noise)?;
        let n = self.top_logprobs;
        let top = (n > 0).then(|| TopLogprobs::new(&target, &verdict, n)).transpose()?;
        Ok((verdict, top))
    }

    pub(crate) fn expected(&self) -> Result<f64> {
        let edits = self.edits()?;
        let target = ShapedRows::new(self.target.raw(), self.params, Side::Target);
        let target = edits.as_ref().map_or(target, |edits| target.edited(edits));
        verify::expected_accepted(&self.draft, self.drafter(), target, self.rule)
    }

    /// The probability of a token in the shaped row after a node, read apart from any verdict.
    pub(crate) fn probability(&self, node: usize, token: u32) -> f64 {
        let edits = self.edits().unwrap();
        let target = ShapedRows::new(self.target.raw(), self.params, Side::Target);
        let target = edits.as_ref().map_or(target, |edits| target.edited(edits));
        let shaped = target.shape(node, &mut Scratch::default()).unwrap();
        target.probability(node, &shaped, token)
    }
}

/// An answer as text, to the bit.
pub(crate) fn text(answer: &Answer) -> String {
    let words = |list: &[f32]| list.iter().map(|x| x.to_bits()).collect::<Vec<u32>>();
    match answer {
        Err(error) => format!("{error:?}"),
        Ok((verdict, top)) => {
            let Verdict { tokens, path, logprobs, rule } = verdict;
            let top = top.as_ref().map(|top| {
                let TopLogprobs { n, tokens, raw, shaped, emitted } = top;
                (n, tokens, words(raw), words(shaped), words(emitted))
            });
            format!("{tokens:?} {path:?} {:?} {rule} {top:?}", words(logprobs))
        }
    }
}

/// A tree of at most so many drafted nodes, any way of branching.
pub(crate) fn tree(bits: &mut Bits, most: usize) -> TokenTree {
    let count = bits.between(0, most);
    let style = bits.below(4);
    let parents = (0..=count).map(|node| match (node, style) {
        (0, _) => -1,
        (_, 0) => node as i64 - 1,
        (_, 1) => 0,
        (_, 2) => (node as i64 - 1) / 2,
        _ => bits.below(node) as i64,
    });
    TokenTree::new(&parents.collect::<Vec<i64>>()).unwrap()
}

/// The drafter's rows and what its columns stand for, while a draft is drawn from them.
struct Drafter {
    given: Given,
    /// `q` of each node's row, token by token.
    q: Vec<Vec<f64>>,
    pairs: Option<Vec<(u32, u32)>>,
}

/// Rows for each node from which something can be drawn, as probabilities or as logits.
fn drafter(bits: &mut Bits, nodes: usize, vocab: usize, params: Params) -> Drafter {
    let columns = if vocab > 1 && bits.one_in(5) { bits.between(1, vocab - 1) } else { vocab };
    let pairs = (columns < vocab).then(|| {
        // A random subset of the tokens, its columns in any order.
        let mut tokens: Vec<u32> = (0..vocab as u32).collect();
        (0..columns).for_each(|at| tokens.swap(at, bits.between(at, vocab - 1)));
        let mut pairs: Vec<(u32, u32)> = tokens[..columns].iter().copied().zip(0..).collect();
        pairs.sort_unstable();
        pairs
    });
    let spread = |row: Vec<f64>| match &pairs {
        None => row,
        Some(pairs) => {
            let mut all = vec![0.0; vocab];
            for &(token, column) in pairs {
                all[token as usize] = row[column as usize];
            }
            all
        }
    };
    let (given, q) = if bits.one_in(2) {
        let rows: Vec<Vec<f64>> = (0..nodes).map(|_| rows::logits(bits, columns)).collect();
        let kind = bits.pick(&[Kind::F32, Kind::F32, Kind::F16, Kind::Bf16]);
        let matrix = Matrix::new(bits, &rows, columns, kind);
        let shaped_rows = ShapedRows::new(matrix.raw(), params, Side::Drafter);
        let mut scratch = Scratch::default();
        let q = (0..nodes).map(|row| {
            let shaped = shaped_rows.shape(row, &mut scratch).unwrap();
            let tokens = 0..columns as u32;
            spread(tokens.map(|t| shaped_rows.probability(row, &shaped, t)).collect())
        });
        let q = q.collect();
        (Given::Logits(matrix, params), q)
    } else {
        let rows: Vec<Vec<f64>> = (0..nodes).map(|_| rows::probabilities(bits, columns)).collect();
        let matrix = rows::distribution(bits, &rows, columns, 1e-4);
        let raw = matrix.raw();
        let row = |row| spread((0..columns).map(|column| raw.value(row, column)).collect());
        let q = (0..nodes).map(row).collect();
        (Given::Probabilities(matrix), q)
    };
    Drafter { given, q, pairs }
}

/// Children as a law makes them from a row, and whether each is drawn.
fn children(bits: &mut Bits, law: Law, count: usize, q: &[f64]) -> Vec<(u32, bool)> {
    let mut order: Vec<u32> = (0..q.len() as u32).collect();
    for at in 0..order.len() {
        order.swap(at, bits.between(at, q.len() - 1));
    }
    let has_mass = |token: &u32| q[*token as usize] >= LEAST;
    let positive: Vec<u32> = order.iter().copied().filter(has_mass).collect();
    match law {
        Law::Iid => (0..count).map(|_| (bits.pick(&positive), true)).collect(),
        Law::Chain | Law::Swor => positive.into_iter().take(count).map(|t| (t, true)).collect(),
        Law::TopPlusOne | Law::Mixed => {
            if law == Law::TopPlusOne {
                order.sort_by(|&a, &b| q[b as usize].total_cmp(&q[a as usize]));
            }
            let most = if law == Law::TopPlusOne { 1 } else { bits.between(0, count) };
            let set: Vec<u32> = order.iter().copied().take(count - most.min(count)).collect();
            let drawn = positive.iter().filter(|&token| !set.contains(token)).take(most);
            let mut made: Vec<(u32, bool)> = drawn.map(|&token| (token, true)).collect();
            made.extend(set.into_iter().map(|token| (token, false)));
            made
        }
        _ => order.into_iter().take(count).map(|token| (token, false)).collect(),
    }
}

/// A draft of a law as its rows make it; where they have too few tokens, branches are left out.
fn grown(bits: &mut Bits, law: Law, form: &TokenTree, q: &[Vec<f64>]) -> (Draft, Vec<i64>) {
    let (mut parents, mut tokens, mut flags) = (vec![-1_i64], vec![-1_i64], vec![false]);
    // Which node of the form each node is; rows go by the form's numbers.
    let mut place = vec![0_usize];
    let mut at = 0;
    while at < place.len() {
        let slots = form.children(place[at]).to_vec();
        let wanted = if law == Law::Chain { slots.len().min(1) } else { slots.len() };
        let made = children(bits, law, wanted, &q[place[at]]);
        for ((token, drawn), slot) in made.into_iter().zip(slots) {
            parents.push(at as i64);
            tokens.push(i64::from(token));
            flags.push(drawn);
            place.push(slot as usize);
        }
        at += 1;
    }
    let flags = matches!(law, Law::TopPlusOne | Law::Mixed).then_some(flags);
    let draft = Draft::new(TokenTree::new(&parents).unwrap(), tokens, law, flags).unwrap();
    (draft, place.into_iter().map(|row| row as i64).collect())
}

/// Seeds and positions, up to the last that has room for a draft.
fn noise(bits: &mut Bits) -> Noise {
    let position = match bits.below(8) {
        0 => u64::from(u32::MAX) - 64,
        1 => bits.next() >> 33,
        _ => bits.below(1000) as u64,
    };
    Noise { seed: if bits.one_in(8) { bits.extreme() } else { bits.next() }, position }
}

/// Rows that are given to the target, so many of them.
fn target_rows(bits: &mut Bits, count: usize, vocab: usize) -> Matrix {
    let rows: Vec<Vec<f64>> = (0..count).map(|_| rows::logits(bits, vocab)).collect();
    let kind = bits.pick(&[Kind::F32, Kind::F32, Kind::F16, Kind::Bf16]);
    Matrix::new(bits, &rows, vocab, kind)
}

/// Whether two children of a node carry one token.
fn has_equal_siblings(draft: &Draft) -> bool {
    (0..draft.num_nodes()).any(|node| {
        let children = draft.tree().children(node);
        let mut tokens: Vec<u32> = children.iter().map(|&c| draft.token(c as usize)).collect();
        tokens.sort_unstable();
        tokens.windows(2).any(|pair| pair[0] == pair[1])
    })
}

/// The rules that verify a draft's law, by the table of all.
fn legal_rule(bits: &mut Bits, draft: &Draft, params: Params) -> &'static str {
    let is_chain = draft.tree().is_chain();
    let fits = |name: &str| match name {
        "greedy" => params.is_greedy(),
        // Needs paths of one length.
        "gbv" => is_chain,
        // Reads the rows of equal paths as equal, and here they are not.
        "global_resolution" => !has_equal_siblings(draft),
        _ => true,
    };
    let rules: Vec<&'static str> = RULES
        .iter()
        .filter(|rule| rule.laws.contains(&draft.law()) && fits(rule.name))
        .map(|rule| rule.name)
        .collect();
    if bits.one_in(3) { "auto" } else { bits.pick(&rules) }
}

/// A step with which nothing is wrong.
pub(crate) fn sound(bits: &mut Bits, vocab: usize) -> Request {
    let law = bits.pick(&Law::ALL);
    let most = bits.pick(&[2, 4, 8, 8, 14]);
    let form = if law == Law::Chain { chain(bits, most) } else { tree(bits, most) };
    let params = rows::params(bits, vocab);
    let own = if bits.one_in(3) { params } else { rows::params(bits, vocab) };
    let Drafter { given, q, pairs } = drafter(bits, form.num_nodes(), vocab, own);
    let (draft, index) = grown(bits, law, &form, &q);
    let mut target = target_rows(bits, draft.num_nodes(), vocab);
    let mut is_own_target = false;
    if let (Given::Logits(matrix, _), None, true) = (&given, &pairs, bits.one_in(4)) {
        // The target's row i follows node i, the drafter's row goes by the form's number.
        let raw = matrix.raw();
        let row = |&from: &i64| (0..vocab).map(|token| raw.value(from as usize, token)).collect();
        let rows: Vec<Vec<f64>> = index.iter().map(row).collect();
        target = Matrix::new(bits, &rows, vocab, Kind::F32);
        is_own_target = law == Law::Chain;
    }
    let params = if is_own_target { own } else { params };
    let rule = legal_rule(bits, &draft, params);
    let sampled = law.is_sampled();
    Request {
        vocab,
        target,
        given: if sampled { given } else { Given::None },
        index: if sampled { index } else { Vec::new() },
        pairs: pairs.filter(|_| sampled),
        params,
        changes: None,
        rule,
        lossy: None,
        noise: noise(bits),
        top_logprobs: if bits.one_in(4) { bits.between(1, vocab) } else { 0 },
        is_sound: true,
        is_own_target: is_own_target
            && matches!(rule, "auto" | "token" | "block" | "topdown" | "lifted"),
        draft,
    }
}

fn chain(bits: &mut Bits, most: usize) -> TokenTree {
    TokenTree::chain(bits.between(0, most)).unwrap()
}

/// A step with which anything may be wrong.
pub(crate) fn broken(bits: &mut Bits, vocab: usize) -> Request {
    let mut request = sound(bits, vocab);
    request.is_sound = false;
    request.is_own_target = false;
    for _ in 0..bits.between(1, 3) {
        spoil(bits, &mut request);
    }
    request
}

fn spoil(bits: &mut Bits, request: &mut Request) {
    let (vocab, nodes) = (request.vocab, request.draft.num_nodes());
    match bits.below(14) {
        0 | 1 => request.changes = Some(changes(bits, request)),
        2 => {
            let rows: Vec<Vec<f64>> = (0..nodes)
                .map(|_| {
                    if bits.one_in(3) {
                        rows::bad_logits(bits, vocab)
                    } else {
                        rows::logits(bits, vocab)
                    }
                })
                .collect();
            request.target = Matrix::new(bits, &rows, vocab, Kind::F32);
        }
        3 => {
            let count = bits.between(0, nodes + 1);
            request.target = target_rows(bits, count, vocab);
        }
        4 => {
            let columns = bits.between(1, vocab + 2);
            let count = bits.between(0, nodes + 1);
            let rows: Vec<Vec<f64>> = (0..count)
                .map(|_| {
                    if bits.one_in(2) {
                        rows::bad_probabilities(bits, columns)
                    } else {
                        rows::probabilities(bits, columns)
                    }
                })
                .collect();
            let kind = bits.pick(&[Kind::F32, Kind::F16, Kind::Bf16, Kind::F64]);
            request.given = Given::Probabilities(Matrix::new(bits, &rows, columns, kind));
        }
        5 => {
            let columns = if bits.one_in(2) { vocab } else { bits.between(1, vocab + 2) };
            let rows: Vec<Vec<f64>> = (0..nodes).map(|_| rows::bad_logits(bits, columns)).collect();
            let matrix = Matrix::new(bits, &rows, columns, Kind::F32);
            request.given = Given::Logits(matrix, rows::any_params(bits, columns));
        }
        6 => {
            request.index =
                (0..bits.size(nodes).min(99)).map(|_| bits.below(9) as i64 - 1).collect();
        }
        7 => request.index.iter_mut().for_each(|row| *row = bits.extreme() as i64),
        8 => request.params = rows::any_params(bits, vocab),
        9 => request.rule = bits.pick(RULES).name,
        10 => request.rule = bits.pick(&["", "topk", "auto", "Block"]),
        11 => request.noise.position = bits.extreme(),
        12 => request.top_logprobs = bits.extreme() as usize,
        // Tokens that nobody drew, and laws that they do not have.
        _ => {
            let tree = request.draft.tree().clone();
            let token = |node| match node {
                0 => -1,
                _ if bits.one_in(8) => bits.extreme() as i64,
                _ => bits.below(vocab + 1) as i64,
            };
            let tokens = (0..nodes).map(token).collect();
            let law = bits.pick(&Law::ALL);
            let flags = (0..nodes).map(|_| bits.one_in(2)).collect();
            let flags = matches!(law, Law::TopPlusOne | Law::Mixed).then_some(flags);
            if let Ok(draft) = Draft::new(tree, tokens, law, flags) {
                request.draft = draft;
            }
        }
    }
    if bits.one_in(8) {
        request.lossy = lossy(bits);
    }
}

pub(crate) fn lossy(bits: &mut Bits) -> Option<Lossy> {
    let name = bits.pick(&["typical", "threshold", "topk", "ensemble", "other"]);
    let values: Vec<f64> = (0..bits.between(0, 3)).map(|_| bits.real()).collect();
    let mild = match name {
        "typical" => vec![0.3, 0.1],
        "topk" => vec![2.0],
        _ => vec![0.4],
    };
    Lossy::new(name, if bits.one_in(3) { &values } else { &mild }).ok()
}

fn changes(bits: &mut Bits, request: &Request) -> Changes {
    let (vocab, nodes) = (request.vocab, request.draft.num_nodes());
    let token = |bits: &mut Bits| {
        if bits.one_in(60) { bits.extreme() as u32 } else { bits.below(vocab) as u32 }
    };
    let tokens = |bits: &mut Bits, most| -> Vec<u32> {
        (0..bits.between(0, most)).map(|_| token(bits)).collect()
    };
    let mut changes = Changes::default();
    if bits.one_in(2) {
        changes.history = tokens(bits, 12);
        changes.prompt_len = bits.size(changes.history.len());
        let mut bias: Vec<(u32, f32)> =
            tokens(bits, 3).into_iter().map(|token| (token, bits.normal() as f32)).collect();
        bias.dedup_by_key(|pair| pair.0);
        let mild = [1.0, 1.2, 0.5];
        let penalties = Penalties {
            repetition: if bits.one_in(6) { bits.real() } else { bits.pick(&mild) },
            presence: if bits.one_in(6) { bits.real() } else { bits.pick(&[0.0, 0.5, -1.0]) },
            frequency: if bits.one_in(6) { bits.real() } else { bits.pick(&[0.0, 0.5, -1.0]) },
            no_repeat_ngram: if bits.one_in(3) { bits.size(3) } else { 0 },
            bias,
            banned: tokens(bits, 2),
            min_new_tokens: bits.size(3),
            stop_ids: tokens(bits, 2),
            by_reciprocal: bits.one_in(2),
        };
        changes.penalties = penalties.check().ok();
    }
    if bits.one_in(3) {
        let width = vocab.div_ceil(32);
        let form = if bits.one_in(6) {
            [bits.between(0, nodes + 1), bits.between(0, width + 1), width + 1]
        } else {
            [nodes, width, width + bits.below(2)]
        };
        let length = form[0] * form[2].max(form[1]);
        let words = (0..length).map(|_| {
            let any = bits.next() as i32;
            bits.pick(&[-1, -1, 0, 1, any])
        });
        changes.mask = Some((words.collect(), form));
    }
    if bits.one_in(3) {
        let by = if bits.one_in(4) { bits.real() } else { 0.5 };
        changes.processor = Some(Shift { by: by as f32, fails: bits.one_in(6) });
    }
    changes
}
