//! The exact verifier for speculative decoding.
//!
//! A drafter guesses several tokens as a tree, one forward pass of the target model gives a row of
//! logits for each node, and [`verify::verify`] decides which path is kept and which token follows,
//! so that the emitted text has exactly the target's law.
//!
//! 1. Describe the draft: a [`tree::TokenTree`], its tokens and the [`verify::law::Law`] they were
//!    made by.
//! 2. Borrow the logits as [`rows::RawRows`].
//! 3. Call [`verify::verify`] with the sampling parameters, a seed and the root's position;
//!    [`batch::Batch`] does so for many sequences at once.
//! 4. Commit: [`kv::commit_plan`] says which cache entries stay and where they go;
//!    [`kv::BlockTable`] does so for paged caches and whole batches.
//!
//! Modules import downwards only: `bindings` > `certify` > `batch`, `shape` > `verify`, `ngram` >
//! `dist` > `history`, `rows` > `simd`; `exact` > `choice` > `rng`, `fraction` > `num` > `error`; `pool` > `fpmode`; `tree`
//! and `kv` know no probabilities.

pub mod batch;
pub mod certify;
pub mod choice;
pub mod dist;
pub mod error;
pub mod exact;
pub mod fpmode;
pub mod fraction;
pub mod history;
pub mod kv;
mod mutants;
pub mod ngram;
pub mod num;
pub mod pool;
pub mod rng;
pub mod rows;
pub mod shape;
pub mod simd;
pub mod tree;
pub mod verify;

#[cfg(feature = "python")]
mod bindings;
