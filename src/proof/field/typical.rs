//! Medusa's typical acceptance (arXiv 2401.10774), as the package has it under `lossy=`.
//!
//! A drafted token is accepted if `p(x) > min(9/100, 3/10 exp(-H(p)))`, the settings that Medusa and
//! vLLM (vllm-project/vllm#5131) start with; then the likeliest token. The paper does not claim that the law
//! is kept, and no claim of it was found.

use super::chain::{self, Noise};
use super::{Rule, Run};
use crate::verify::lossy::{self, Lossy};

pub(super) static TYPICAL: Rule = Rule {
    is_claimed_lossless: false,
    is_lossless: false,
    ..Rule::chain("typical", "arXiv 2401.10774, vllm-project/vllm#5131", |rows, shape, choices| {
        let tokens = Noise::fresh(choices).chain(rows, &[], shape.len())?;
        let (draft, mut view) = chain::declared(rows, &[], &tokens)?;
        let typical = Lossy::new("typical", &[0.09, 0.3])?;
        let outcome = lossy::decide(typical, &draft, &mut view, choices)?;
        let fallbacks = outcome.fallbacks;
        Ok(Run { accepted: outcome.path.len(), emitted: vec![outcome.tokens], fallbacks })
    })
};
