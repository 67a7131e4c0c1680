//! Runs cases on all cores, catches what panics, counts, and says how to see a failure again.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::bits::Bits;
use crate::guard::CASE;

/// A kind of cases. `check` panics where an invariant does not hold, and says how the call went.
pub(crate) struct Class {
    pub(crate) name: &'static str,
    pub(crate) weight: usize,
    pub(crate) check: fn(&mut Bits) -> &'static str,
}

/// Some cases of a run.
pub(crate) struct Run {
    pub(crate) seed: u64,
    pub(crate) from: u64,
    pub(crate) cases: u64,
    pub(crate) classes: &'static [Class],
}

/// Cases that a thread takes at a time.
const CHUNK: u64 = 200;
/// Failures after which a run stops.
const ENOUGH: usize = 20;
/// No case takes a hundredth of it.
const MOST_TIME: Duration = Duration::from_secs(30);
/// How often a long run says where it is.
const REPORT: Duration = Duration::from_secs(30);

thread_local! {
    /// What the last panic of this thread said, and where.
    static SAID: RefCell<String> = const { RefCell::new(String::new()) };
}

/// What the threads of a run share.
struct Shared {
    next: AtomicU64,
    /// For each thread the case that it works on, and since when (milliseconds).
    at: Vec<(AtomicU64, AtomicU64)>,
    working: AtomicUsize,
    counts: Mutex<BTreeMap<(&'static str, &'static str), u64>>,
    failures: Mutex<Vec<String>>,
}

impl Run {
    /// The failures, each with the case's number.
    pub(crate) fn go(&self) -> Vec<String> {
        panic::set_hook(Box::new(|info| SAID.set(info.to_string().replace('\n', " "))));
        let threads = thread::available_parallelism().map_or(1, usize::from);
        let shared = Shared {
            next: AtomicU64::new(self.from),
            at: (0..threads).map(|_| (AtomicU64::new(0), AtomicU64::new(0))).collect(),
            working: AtomicUsize::new(threads),
            counts: Mutex::default(),
            failures: Mutex::default(),
        };
        let start = Instant::now();
        thread::scope(|scope| {
            for number in 0..threads {
                let shared = &shared;
                scope.spawn(move || self.work(number, start, shared));
            }
            self.watch(start, &shared);
        });
        let _ = panic::take_hook();
        self.report(start, &shared);
        shared.failures.into_inner().unwrap()
    }

    fn work(&self, number: usize, start: Instant, shared: &Shared) {
        let mut counts: BTreeMap<_, u64> = BTreeMap::new();
        loop {
            let first = shared.next.fetch_add(CHUNK, Ordering::Relaxed);
            let end = self.from.saturating_add(self.cases);
            let enough = shared.failures.lock().unwrap().len() >= ENOUGH;
            if first >= end || enough {
                break;
            }
            for case in first..end.min(first + CHUNK) {
                let (at, since) = &shared.at[number];
                at.store(case, Ordering::Relaxed);
                since.store(start.elapsed().as_millis() as u64, Ordering::Relaxed);
                CASE.set(case);
                let (class, outcome) = self.case(case);
                match outcome {
                    Ok(outcome) => *counts.entry((class.name, outcome)).or_default() += 1,
                    Err(said) => shared.failures.lock().unwrap().push(self.describe(case, &said)),
                }
            }
        }
        shared.at[number].1.store(u64::MAX, Ordering::Relaxed);
        let mut all = shared.counts.lock().unwrap();
        for (key, count) in counts {
            *all.entry(key).or_default() += count;
        }
        shared.working.fetch_sub(1, Ordering::Relaxed);
    }

    fn case(&self, case: u64) -> (&'static Class, Result<&'static str, String>) {
        let mut bits = Bits::new(self.seed, case);
        let total: usize = self.classes.iter().map(|class| class.weight).sum();
        let mut place = bits.below(total);
        let class = self.classes.iter().find(|class| {
            let found = place < class.weight;
            place = place.wrapping_sub(class.weight);
            found
        });
        let class = class.unwrap();
        let outcome = panic::catch_unwind(AssertUnwindSafe(|| (class.check)(&mut bits)));
        (class, outcome.map_err(|_| SAID.take()))
    }

    /// A failure; one that needs the cases before it is one of memory that outlives a call.
    fn describe(&self, case: u64, said: &str) -> String {
        let alone = thread::scope(|scope| scope.spawn(|| self.case(case)).join().unwrap());
        let note = match alone {
            (_, Ok(_)) => " (passes alone: it depends on the cases before it)",
            (_, Err(_)) => "",
        };
        let again =
            format!("FUZZ_SEED={} FUZZ_FROM={case} FUZZ_CASES=1 cargo test --test fuzz", self.seed);
        format!("{} case {case}{note}: {said}\n    {again}", alone.0.name)
    }

    /// Ends the process when a case hangs, and reports now and then.
    fn watch(&self, start: Instant, shared: &Shared) {
        let mut told = start;
        while shared.working.load(Ordering::Relaxed) > 0 {
            thread::sleep(Duration::from_millis(20));
            let now = start.elapsed().as_millis() as u64;
            for (at, since) in &shared.at {
                let since = since.load(Ordering::Relaxed);
                if since != u64::MAX && now.saturating_sub(since) > MOST_TIME.as_millis() as u64 {
                    let case = at.load(Ordering::Relaxed);
                    eprintln!(
                        "fuzz: seed {} case {case} takes longer than {MOST_TIME:?}",
                        self.seed
                    );
                    std::process::abort();
                }
            }
            if told.elapsed() > REPORT {
                told = Instant::now();
                let next = shared.next.load(Ordering::Relaxed);
                let done = (next - self.from).saturating_sub(CHUNK * shared.at.len() as u64);
                eprintln!(
                    "fuzz: {done} of {} cases, {:.0} a second; to go on from here: FUZZ_FROM={}",
                    self.cases,
                    done as f64 / start.elapsed().as_secs_f64(),
                    self.from + done
                );
            }
        }
    }

    fn report(&self, start: Instant, shared: &Shared) {
        let seconds = start.elapsed().as_secs_f64();
        let counts = shared.counts.lock().unwrap();
        let done: u64 = counts.values().sum();
        eprintln!(
            "fuzz: seed {}, cases {} to {}: {done} passed in {seconds:.1} s ({:.0} a second)",
            self.seed,
            self.from,
            self.from + self.cases,
            done as f64 / seconds
        );
        for class in self.classes {
            let mine = counts.iter().filter(|((name, _), _)| *name == class.name);
            let mine: Vec<String> =
                mine.map(|((_, outcome), count)| format!("{outcome} {count}")).collect();
            eprintln!("    {}: {}", class.name, mine.join(", "));
        }
    }
}

/// The answer of `call`, which must be the same in a fresh thread. `text` says it to the bit.
pub(crate) fn same_in_a_fresh_thread(text: &str, call: impl Fn() -> String + Sync) {
    let case = CASE.get();
    let fresh = thread::scope(|scope| {
        let job = scope.spawn(|| {
            CASE.set(case);
            call()
        });
        job.join().unwrap_or_else(|_| "a panic".to_owned())
    });
    assert_eq!(text, fresh, "another answer in a fresh thread");
}
