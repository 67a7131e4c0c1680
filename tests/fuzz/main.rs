//! Random calls of the whole core, well-formed, mis-declared and malformed, against what must hold of all.
//!
//! A case is a number: its class and everything in it are drawn from the run's seed and that number, so a
//! failure is replayed by them alone. A case fails if anything panics, asks for more memory than
//! any of these small inputs needs, takes too long, or breaks one of the class's own invariants:
//!
//! - the same call gives the same bits again: at once, after another call, and in a fresh thread;
//! - emitted tokens have positive target probability and follow a path of the tree, log-probabilities are
//!   finite and not above 0, a mean of accepted tokens lies between 0 and the depth;
//! - the first token has the target's law within 1e-6, over every draft of a level and every choice;
//! - sound input is not refused, and what is refused has changed nothing.
//!
//! | variable | meaning |
//! |---|---|
//! | `FUZZ_CASES` | how many cases; default: seconds of them |
//! | `FUZZ_FROM` | the first one; default 0 |
//! | `FUZZ_SEED` | default 1 |

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)] // A failure here is a failed test.
#![allow(clippy::disallowed_methods)] // Settings come from the environment, and the watchdog reads a clock.

mod bits;
mod grow;
mod guard;
mod harness;
mod history;
mod law;
mod numbers;
mod request;
mod rows;
mod shaping;
mod table;
mod verdict;

use std::env;

use harness::{Class, Run};

/// The classes, with how often each is drawn.
const CLASSES: &[Class] = &[
    Class { name: "verify", weight: 40, check: verdict::check_one },
    Class { name: "law", weight: 6, check: law::check },
    Class { name: "batch", weight: 8, check: verdict::check_batch },
    Class { name: "shaping", weight: 14, check: shaping::check },
    Class { name: "grow", weight: 12, check: grow::check },
    Class { name: "table", weight: 8, check: table::check },
    Class { name: "history", weight: 6, check: history::check },
    Class { name: "numbers", weight: 12, check: numbers::check },
];

fn setting(name: &str, default: u64) -> u64 {
    env::var(name).map_or(default, |text| text.parse().unwrap())
}

#[test]
fn nothing_panics_and_every_invariant_holds() {
    let run = Run {
        seed: setting("FUZZ_SEED", 1),
        from: setting("FUZZ_FROM", 0),
        cases: setting("FUZZ_CASES", 20_000),
        classes: CLASSES,
    };
    let failures = run.go();
    assert!(failures.is_empty(), "{} cases failed:\n{}", failures.len(), failures.join("\n"));
}
