"""Checks that a drafter keeps the contract of `mtp_verify.drafters.Drafter`, by trying."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mtp_verify import _core
from mtp_verify.drafters.base import Request, check_drafter, drafts_of
from mtp_verify.errors import MtpVerifyError, ParamsError
from mtp_verify.testing.asserts import assert_sampler_has_law
from mtp_verify.testing.laws import exact_law
from mtp_verify.verifier import api
from mtp_verify.verifier.intake import as_count, as_list
from mtp_verify.verifier.params import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mtp_verify._core import Draft
    from mtp_verify.drafters.base import Drafter
    from mtp_verify.verifier.words import Rule

__all__ = ["assert_drafter"]

_SEEDS = 16  # of drafts whose form is looked at
_COMPARED = 2  # tokens
_NOISE = 0x6D76_7465  # a seed that no drafter takes from its request


def assert_drafter(
    drafter: Drafter,
    prompt: Sequence[int],
    vocab_size: int,
    *,
    budget: int = 4,
    rule: Rule = "auto",
    eos_ids: Sequence[int] = (),
    min_tv: float = 0.1,
    alpha: float = 1e-9,
) -> None:
    """Fail unless a drafter's drafts have the law that they say, and keep to what was asked for.

    Drafts behind one text are checked with many seeds, for each budget up to `budget`: they are no
    larger, have no node below a token that ends the text and no token outside the vocabulary, have
    a law that `laws` names, and siblings only if `makes_trees` is set; drafts with the law
    "deterministic" are the same for every seed. Sampled drafts are verified for two targets of
    known rows, one near the drafter's own and a uniform one: the next two tokens must follow the
    target's distribution. This fails for rows other than those that the tokens were drawn from, and
    for tokens that were dropped after they were drawn.

    Args:
        drafter: The drafter, as a `Decoder` takes it. One that needs a target's hidden states
            (`hidden_layers`) can only be tried in a loop (`assert_lossless`).
        prompt: A text that it drafts behind, at least one token.
        vocab_size: V of the target. Samples that are needed grow with its square: about 21,000 for
            11 tokens, 370,000 for 50.
        budget: Most draft nodes.
        rule: Of verification.
        eos_ids: Tokens that end the text.
        min_tv: The bias that must not be missed, in total variation.
        alpha: Both error rates: of failing a right drafter, and of passing a wrong one.

    Raises:
        AssertionError: Says what was found and what was wanted.
        TypeError: It is no drafter.
        ParamsError: A prompt that is empty, or has tokens of another vocabulary.
    """
    check_drafter("drafter", drafter)
    size = as_count("vocab_size", vocab_size)
    text = tuple(as_count("prompt", token, 0, size - 1) for token in as_list("prompt", prompt))
    if not text:
        message = "prompt: found no tokens, wanted at least one"
        raise ParamsError(message, slug="param_out_of_range")
    budget = as_count("budget", budget)
    trial = _Trial(drafter, text, size, as_list("eos_ids", eos_ids))
    try:
        laws = trial.look_at_form(budget)
        if laws - {"deterministic"}:
            for rows in trial.targets(budget):
                trial.verify_many(rows, budget, rule, min_tv, alpha)
    except MtpVerifyError as error:
        message = f"{type(drafter).__name__}: {error}"
        raise AssertionError(message) from error


class _Trial:
    """One text, drafted behind again and again."""

    def __init__(
        self, drafter: Drafter, prompt: tuple[int, ...], vocab_size: int, eos_ids: Sequence[int]
    ) -> None:
        self._drafter, self._name = drafter, type(drafter).__name__
        self._prompt, self._vocab, self._eos = prompt, vocab_size, frozenset(eos_ids)

    def look_at_form(self, budget: int) -> set[str]:
        """Check drafts one by one; return their laws."""
        declared = self._drafter.laws
        seen: set[str] = set()
        for most in range(budget + 1):
            drafts = [self.draft(seed, most) for seed in range(_SEEDS)]
            for draft in drafts:
                self._check(draft, most)
                if draft.num_nodes == 1:
                    continue
                seen.add(draft.law)
                if declared and draft.law not in declared:
                    self._fail(f'a draft of the law "{draft.law}"', f"one of its laws {declared}")
            others = [draft for draft in drafts if draft != drafts[0]]
            if others and {draft.law for draft in drafts} == {"deterministic"}:
                one, two = (draft.tokens.tolist() for draft in (drafts[0], others[0]))
                wanted = "the same draft for each seed, or the law that the tokens were drawn by"
                self._fail(f'{one} and {two} behind one text by the law "deterministic"', wanted)
        return seen

    def draft(self, seed: int, budget: int) -> Draft:
        """Return the draft behind the text, for a request of its own."""
        request = Request(
            id=(1 << 40) + seed, tokens=list(self._prompt), prompt_len=len(self._prompt),
            seed=seed, eos_ids=self._eos,
        )  # fmt: skip
        self._drafter.start(request)
        try:
            return drafts_of(self._drafter, [request], [budget])[0]
        finally:
            self._drafter.release(request)

    def _check(self, draft: Draft, budget: int) -> None:
        if draft.num_nodes - 1 > budget:
            self._fail(f"{draft.num_nodes - 1} nodes", f"at most its budget of {budget}")
        if not (self._drafter.makes_trees or draft.tree.is_chain):
            self._fail("a draft with siblings", "a chain, or makes_trees = True")
        tokens, parents = draft.tokens.tolist(), draft.tree.parents.tolist()
        for node in range(1, draft.num_nodes):
            if not 0 <= tokens[node] < self._vocab:
                self._fail(f"token {tokens[node]}", f"0 to {self._vocab - 1}")
            if parents[node] > 0 and tokens[parents[node]] in self._eos:
                self._fail(f"node {node} below token {tokens[parents[node]]}", "none: it ends")
        draft.validate()

    def _fail(self, found: str, wanted: str) -> None:
        message = f"{self._name}.propose: found {found}, wanted {wanted}"
        raise AssertionError(message)

    def targets(self, budget: int) -> list[NDArray[np.float32]]:
        """Return logits (budget + 2, V) of targets whose row depends on the depth alone."""
        flat = np.zeros((budget + 2, self._vocab), np.float32)
        near = flat.copy()
        for seed in range(_SEEDS):
            draft, nodes = self.draft(seed, budget), [0]
            for depth in range(budget + 1):
                row = _drafters_row(draft, nodes[0], self._vocab)
                if row is None:
                    break
                # Never 0, so that every verdict is possible.
                near[depth] = np.log(0.98 * row + 0.02 / self._vocab)
                if not (nodes := draft.tree.children(nodes[0])):
                    break
        return [near, flat]

    def verify_many(
        self, rows: NDArray[np.float32], budget: int, rule: Rule, min_tv: float, alpha: float
    ) -> None:
        """Compare the law of what comes out with the target's."""
        prompt = self._prompt
        law = exact_law(lambda path: rows[len(path) - len(prompt)], prompt, _COMPARED)
        plain = [law.marginal(depth) for depth in range(_COMPARED)]
        rng = np.random.default_rng(_NOISE)

        def sample(start: int, count: int) -> NDArray[np.int64]:
            return np.array([one(seed) for seed in range(start, start + count)], np.int64)

        def one(seed: int) -> list[int]:
            draft, position = self.draft(seed, budget), len(prompt) - 1
            shown = rows[draft.tree.depths]
            verdict = api.verify(draft, shown, rule=rule, seed=seed, position=position)
            tokens: list[int] = verdict.tokens.tolist()[:_COMPARED]
            while len(tokens) < _COMPARED:  # As the steps behind it would go on.
                tokens.append(int(rng.choice(self._vocab, p=plain[len(tokens)])))
            return tokens

        try:
            assert_sampler_has_law(sample, law, min_tv=min_tv, alpha=alpha)
        except AssertionError as error:
            message = (
                f"{self._name}: the output with its drafts does not follow the target's "
                f"distribution: {error}. Are the rows of a draft those that its tokens were drawn "
                "from, and is every drawn token in it?"
            )
            raise AssertionError(message) from None


def _drafters_row(draft: Draft, node: int, vocab_size: int) -> Any:
    """Return the drafter's row (V,) after a node as probabilities, or None where it has none."""
    # What a pickle holds: the draft's arguments.
    _, _, law, probs, rows, logits, params, vocab, _ = draft.__reduce__()[1]
    if law in ("deterministic", "unknown") or rows is None or rows[node] < 0:
        return None
    if probs is not None:
        row = np.asarray(probs[rows[node]], np.float64)
    else:
        row = _core.shaped_row(logits[rows[node]][None], params or SamplingParams())
    full = np.zeros(vocab_size)
    full[slice(None) if vocab is None else vocab] = row
    return full / full.sum()
