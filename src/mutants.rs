//! Mutants: plausible mistakes, each one line, that the proof must notice.
//!
//! A line that a mutant changes reads `mutate!("name", right, wrong)`; one that several change, under
//! one name for each core, lists them: `mutate!("td/name" | "lift/name", right, wrong)`. Without the cargo feature
//! `mutants` that is `right`, and nothing else is compiled. With it, one build holds every mutant, and
//! [`with`] switches one of them on for the current thread. `proof::mutants` lists the mutants with
//! the cases that kill them.

#[cfg(feature = "mutants")]
use std::cell::Cell;

/// `right`, unless a mutant of these names is switched on.
#[cfg(not(feature = "mutants"))]
macro_rules! mutate {
    ($($name:literal)|+, $right:expr, $wrong:expr) => {{ $right }};
}

#[cfg(feature = "mutants")]
macro_rules! mutate {
    ($($name:literal)|+, $right:expr, $wrong:expr) => {
        if $($crate::mutants::is_on($name))||+ { $wrong } else { $right }
    };
}

pub(crate) use mutate;

#[cfg(feature = "mutants")]
thread_local! {
    static ON: Cell<&'static str> = const { Cell::new("") };
}

/// Whether a mutant is switched on for this thread; `"any"` stands for each of them.
#[cfg(feature = "mutants")]
pub(crate) fn is_on(name: &str) -> bool {
    let on = ON.get();
    on == name || (name == "any" && !on.is_empty())
}

/// Runs `work` with a mutant switched on for this thread, and off again after it.
#[cfg(feature = "mutants")]
pub(crate) fn with<T>(name: &'static str, work: impl FnOnce() -> T) -> T {
    /// Switches the mutant off when `work` is left, by a panic too.
    struct Off;
    impl Drop for Off {
        fn drop(&mut self) {
            ON.set("");
        }
    }
    let off = Off;
    ON.set(name);
    let result = work();
    drop(off);
    result
}
