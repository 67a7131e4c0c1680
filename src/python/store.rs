//! `SuffixStore`: past texts that requests share; threads read it at once, and write it one at a time.

use std::sync::RwLock;

use numpy::PyArray1;
use pyo3::prelude::*;

use crate::ngram::{Limits, SuffixStore as Store, Ticket};

use super::gate::{enter, hold, locked, reading, writing};
use super::ngram::{SuffixIndex, Tree, tree};
use super::numbers::{count, integers, list, token_ids, word};
use super::state::refuse_copy;

/// A tenant's name and the tokens of one of its texts.
type Text<'py> = (String, Bound<'py, PyArray1<u32>>);

/// Past texts of all requests; see `mtp_verify.drafters.SuffixStore`.
#[pyclass(frozen, module = "mtp_verify._core")]
pub(super) struct SuffixStore(RwLock<Store>);

fn ticket(number: Option<&Bound<'_, PyAny>>) -> PyResult<Option<Ticket>> {
    number.map(|number| word(number, "ticket").map(Ticket::of)).transpose()
}

#[pymethods]
impl SuffixStore {
    #[new]
    fn new(max_tokens: &Bound<'_, PyAny>, max_context: &Bound<'_, PyAny>) -> PyResult<Self> {
        hold(|| {
            let (most, longest) =
                (count(max_tokens, "max_tokens")?, count(max_context, "max_context")?);
            let store = enter(max_tokens.py(), || Store::new(most, longest));
            store.map(|store| Self(RwLock::new(store)))
        })
    }

    /// The ticket of a request that draws with a seed; None where an earlier one had the same.
    fn admit(&self, seed: &Bound<'_, PyAny>) -> PyResult<Option<u64>> {
        hold(|| {
            let value = word(seed, "seed")?;
            enter(seed.py(), || Ok(writing(&self.0).admit(value).map(Ticket::number)))
        })
    }

    /// Adds a text, unless the store has been emptied since the ticket was given.
    fn add(
        &self,
        tenant: &str,
        tokens: &Bound<'_, PyAny>,
        ticket: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        hold(|| {
            let (given, ticket) = (integers(tokens, "tokens")?, self::ticket(ticket)?);
            enter(tokens.py(), || {
                let ids = token_ids(&given, "tokens")?;
                writing(&self.0).add(tenant, &ids, ticket)
            })
        })
    }

    /// A tree from the texts of some tenants, as the index would make it, where they have a longer match
    /// than its own text; else None.
    #[allow(clippy::too_many_arguments)] // Those of `SuffixIndex.propose`, and whose texts.
    fn propose(
        &self,
        py: Python<'_>,
        index: &Bound<'_, SuffixIndex>,
        tenants: &Bound<'_, PyAny>,
        ticket: Option<&Bound<'_, PyAny>>,
        max_nodes: &Bound<'_, PyAny>,
        max_depth: &Bound<'_, PyAny>,
        stop: &Bound<'_, PyAny>,
    ) -> PyResult<Option<Tree>> {
        hold(|| {
            let own = index.get();
            let names = list(tenants, "tenants", |name, _| name.extract::<String>())?;
            let ticket = self::ticket(ticket)?;
            let (max_nodes, max_depth) =
                (count(max_nodes, "max_nodes")?, count(max_depth, "max_depth")?);
            let stop = integers(stop, "stop")?;
            enter(py, || {
                let stop = &token_ids(&stop, "stop")?;
                let names: Vec<&str> = names.iter().map(String::as_str).collect();
                let limits = Limits { max_nodes, max_depth, stop };
                let own = locked(&own.0);
                Ok(reading(&self.0).propose(&own, &names, ticket, limits).map(tree))
            })
        })
    }

    /// Drops all texts of a tenant.
    fn forget(&self, py: Python<'_>, tenant: &str) -> PyResult<()> {
        enter(py, || {
            writing(&self.0).forget(tenant);
            Ok(())
        })
    }

    /// Drops all texts and seeds.
    fn clear(&self, py: Python<'_>) -> PyResult<()> {
        enter(py, || {
            writing(&self.0).clear();
            Ok(())
        })
    }

    /// The texts and the seeds at one moment; the texts that were used longest ago come first.
    fn contents<'py>(
        &self,
        py: Python<'py>,
    ) -> PyResult<(Vec<Text<'py>>, Bound<'py, PyArray1<u64>>)> {
        hold(|| {
            let (texts, seeds) = enter(py, || {
                let store = reading(&self.0);
                let texts = store.texts().into_iter();
                let texts = texts.map(|(tenant, tokens)| (tenant.to_owned(), tokens.to_vec()));
                Ok((texts.collect::<Vec<_>>(), store.seeds().collect::<Vec<_>>()))
            })?;
            let array = |(tenant, tokens)| (tenant, PyArray1::from_vec(py, tokens));
            Ok((texts.into_iter().map(array).collect(), PyArray1::from_vec(py, seeds)))
        })
    }

    /// The settings: `max_tokens` and `max_context`.
    #[getter]
    fn limits(&self, py: Python<'_>) -> PyResult<(usize, usize)> {
        enter(py, || {
            let store = reading(&self.0);
            Ok((store.max_tokens(), store.max_context()))
        })
    }

    /// Texts, their tokens, and the bytes that they take.
    #[getter]
    fn size(&self, py: Python<'_>) -> PyResult<(usize, usize, usize)> {
        enter(py, || {
            let store = reading(&self.0);
            Ok((store.num_texts(), store.num_tokens(), store.num_bytes()))
        })
    }

    /// How often it was asked for a draft, and how often it had one.
    #[getter]
    fn lookups_and_hits(&self, py: Python<'_>) -> PyResult<(u64, u64)> {
        enter(py, || Ok(reading(&self.0).lookups_and_hits()))
    }

    fn __reduce__(slf: &Bound<'_, Self>) -> PyResult<()> {
        hold(|| refuse_copy(slf.as_any(), "threads share it; save it to a file"))
    }
}

/// Adds the class to the module.
pub(super) fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<SuffixStore>()
}
