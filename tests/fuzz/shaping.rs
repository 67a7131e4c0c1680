//! One row at a time: shaping, the likeliest tokens, draws.

use mtp_verify::error::Error;
use mtp_verify::rows::RawRows;
use mtp_verify::shaping::{Params, Scratch, ShapedRows, Side};
use mtp_verify::verify::{self, Noise};

use crate::bits::Bits;
use crate::rows::{self, Kind, Matrix, vocabulary};
use crate::verdict::outcome;

pub(crate) fn check(bits: &mut Bits) -> &'static str {
    let vocab = vocabulary(bits);
    let (is_sound, params) = if bits.one_in(2) {
        (true, rows::params(bits, vocab))
    } else {
        (false, rows::any_params(bits, vocab))
    };
    let (is_bad, other) = (bits.one_in(3), rows::logits(bits, vocab));
    let row = if is_bad { rows::bad_logits(bits, vocab) } else { rows::logits(bits, vocab) };
    let kind = bits.pick(&[Kind::F32, Kind::F32, Kind::F16, Kind::Bf16]);
    let matrix = Matrix::new(bits, &[other, row], vocab, kind);
    let shaped_rows = ShapedRows::new(matrix.raw(), params, Side::Target);
    let fresh = shaped_rows.shape(1, &mut Scratch::default());
    let mut scratch = Scratch::default();
    let _ = shaped_rows.shape(0, &mut scratch);
    let used = shaped_rows.shape(1, &mut scratch);
    assert_eq!(format!("{fresh:?}"), format!("{used:?}"), "another shape after another row");
    let shaped = match &used {
        Err(error) => {
            assert!(is_bad || !is_sound, "a sound row was refused: {error}");
            return error.slug();
        }
        Ok(shaped) => shaped,
    };
    let p: Vec<f64> =
        (0..vocab as u32).map(|token| shaped_rows.probability(1, shaped, token)).collect();
    let sum: f64 = p.iter().sum();
    assert!((sum - 1.0).abs() < 1e-5, "probabilities sum to {sum}");
    assert!(p.iter().all(|p| (0.0..=1.0 + 1e-6).contains(p)));
    check_support(&matrix.raw(), params, &p);
    let n = bits.size(5);
    let best = shaped_rows.best(1, shaped, n, |token| token, &mut scratch);
    assert!(best.len() <= n && best.iter().all(|pair| pair.1 > 0.0));
    assert!(best.is_sorted_by(|a, b| a.1 >= b.1));
    assert_eq!(best.len(), n.min(p.iter().filter(|p| **p > 0.0).count()));
    let one = matrix.raw().row(1).unwrap();
    let noise = Noise { seed: bits.next(), position: bits.extreme() };
    let token = verify::draw(one, params, noise, bits.extreme() as u32);
    match &token {
        Ok(token) => assert!(p[*token as usize] > 0.0, "token {token} was drawn"),
        Err(error) => assert!(matches!(error, Error::Overflow { .. }), "{error}"),
    }
    outcome(&token)
}

/// A largest logit stays, what is masked never comes, and none is likelier than the largest.
fn check_support(raw: &RawRows<'_>, params: Params, p: &[f64]) {
    let logits: Vec<f64> = (0..p.len()).map(|token| raw.value(1, token)).collect();
    let most = logits.iter().fold(f64::NEG_INFINITY, |most, &x| most.max(x));
    // What is equal once it is divided, in f32 as the libraries do it, is equal.
    let divisor = if params.is_greedy() { 1.0 } else { params.temperature() as f32 };
    let is_top = |&x: &f64| x as f32 / divisor >= most as f32 / divisor;
    let top = logits.iter().zip(p).filter(|(x, _)| is_top(x)).map(|pair| *pair.1);
    let top = top.fold(0.0, f64::max);
    assert!(top > 0.0, "the largest logit, {most}, has no probability");
    for (token, &x) in logits.iter().enumerate() {
        assert!(x > f64::NEG_INFINITY || p[token] <= 0.0, "token {token} is masked");
        assert!(p[token] <= top * (1.0 + 1e-6), "token {token} is likelier than the likeliest");
    }
}
