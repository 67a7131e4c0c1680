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
//! Rooms import downwards only: `python` > `head` > `attention`, `proof` > `batch`, `growers` > `verify` > `shaping` > `rows` >
//! `chance` > `number`; `tree`, `kv` and `ngram` know no probabilities. tests/architecture.rs holds them to it.

pub mod attention;
pub mod batch;
pub mod chance;
pub mod error;
pub mod growers;
pub mod head;
pub mod kv;
mod mutants;
pub mod ngram;
pub mod number;
#[cfg(any(test, feature = "proof"))]
pub mod proof;
pub mod rows;
pub mod shaping;
pub mod tree;
pub mod verify;

#[cfg(feature = "python")]
mod python;
