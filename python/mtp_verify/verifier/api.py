"""The functions: verify a draft, compute what a rule accepts, list the rules."""

from collections.abc import Sequence
from typing import Any

from mtp_verify import _core
from mtp_verify._core import Draft, Lossy, Verdict
from mtp_verify.errors import ParamsError
from mtp_verify.verifier import kernels
from mtp_verify.verifier.intake import as_list, as_word, check_history, check_type, shown
from mtp_verify.verifier.params import SamplingParams, as_params
from mtp_verify.verifier.processors import Processor, check_processors, row_process
from mtp_verify.verifier.words import BuildInfo, NodeLaw, Rule, RuleName, RuleRecord

__all__ = [
    "alpha_star",
    "best_rule",
    "build_info",
    "derive_seed",
    "expected_accepted",
    "rules",
    "step_edits",
    "verify",
]


def verify(
    draft: Draft,
    logits: Any,
    params: SamplingParams | None = None,
    *,
    rule: Rule = "auto",
    seed: int,
    position: int,
    history: Sequence[int] | None = None,
    prompt_len: int = 0,
    bitmask: Any = None,
    processors: Sequence[Processor] = (),
    top_logprobs: int = 0,
    lossy: Lossy | None = None,
) -> Verdict:
    """Decide which drafted tokens are kept, and draw the token that follows.

    The emitted tokens have exactly the distribution of sampling from the target token by token.
    Rows are read lazily: only those that the decision reaches, with one or two passes over each.

    Args:
        draft: The drafted tree with its law; what was drawn must be what the law says.
        logits: (N+1, V) float32, float16 or bfloat16; row i follows node i. NumPy or anything with
            DLPack; unit stride in V; borrowed, not modified. A CUDA tensor is verified where it is,
            or copied to the host where that is not covered (``Verdict.backend``).
        params: How rows are shaped; None means ``SamplingParams()``.
        rule: "auto" (the most expected tokens among the legal ones) or a name from ``rules()``.
            At temperature 0 every rule is greedy verification.
        seed: 0 <= seed < 2**64; the sequence's own.
        position: Index of the root token among the sequence's own tokens, padding excluded; the
            first token emitted has index ``position + 1``. Using one (seed, position) twice for
            different steps is a bias.
        history: (T,) the sequence's own tokens up to and including the root, ``position + 1`` of
            them; needed where shaping depends on them.
        prompt_len: How many tokens of ``history`` are prompt.
        bitmask: int32 (N+1, ceil(V/32)), bit ``t % 32`` of word ``t // 32`` set = token t is
            allowed after that node; the form of xgrammar and llguidance. Borrowed.
        processors: Functions as transformers' logits processors, called with each node's own
            history and logits after the penalties and the mask; see
            ``mtp_verify.verifier.processors``.
        top_logprobs: How many of the most likely tokens ``Verdict.top_logprobs`` lists behind each
            emitted one.
        lossy: An acceptance of ``mv.lossy`` that replaces the rule and changes the distribution of
            the output; needs ``rule="auto"`` and a temperature above 0.

    Returns:
        The verdict: ``tokens`` int64 (A+1,), ``path`` int64 (A,), ``logprobs`` float32 (A+1,) under
        the shaped target, ``rule``; ``top_logprobs`` where asked for.

    Raises:
        DraftError: Logits, drafter rows or bitmask do not fit the draft.
        RuleError: The rule is unknown or not lossless for the draft's law; ``lossy`` does not go
            with the rule, the temperature or the law.
        NumericsError: A row that was read holds NaN or +inf, or leaves nothing to draw from.
        ParamsError: A parameter is out of range; the history is missing, too short, or does not end
            with the root.

    Example:
        >>> import numpy as np
        >>> draft = Draft.chain([2, 0])
        >>> logits = np.array([[0, 0, 9], [9, 0, 0], [0, 9, 0]], np.float32)
        >>> verify(draft, logits, SamplingParams(temperature=0), seed=0, position=4).tokens
        array([2, 0, 1])

    References:
        arXiv 2211.17192 (token), 2403.10444 (block), 2408.07978 (coupled).
    """
    check_type("draft", draft, Draft)
    chosen = as_params(params)
    if not (lossy is None or isinstance(lossy, Lossy)):
        message = (
            f"lossy: found {shown(lossy)}, wanted typical, threshold, topk or ensemble of mv.lossy"
        )
        raise ParamsError(message, slug="param_out_of_range")
    seed, position = as_word("seed", seed), as_word("position", position)
    return kernels.select(logits).verify(
        draft,
        logits,
        chosen._core,
        rule,
        seed=seed,
        position=position,
        lossy=lossy,
        edits=step_edits(draft, logits, history, prompt_len, bitmask, processors, position),
        top_logprobs=top_logprobs,
    )


def expected_accepted(
    draft: Draft,
    logits: Any,
    params: SamplingParams | None = None,
    rule: Rule = "auto",
    *,
    history: Sequence[int] | None = None,
    prompt_len: int = 0,
    bitmask: Any = None,
    processors: Sequence[Processor] = (),
) -> float:
    """Return the exact mean number of accepted tokens of a draft, over the verifier's noise.

    The decision code of `verify` runs once for each way in which its answers can go, weighted by
    their probabilities; nothing is sampled. Runs grow with the places where the rule can stop.

    Args:
        draft: The drafted tree with its law; its tokens are held fixed.
        logits: (N+1, V) float32, float16 or bfloat16, as for ``verify``; borrowed, not modified.
        params: How rows are shaped; None means ``SamplingParams()``.
        rule: "auto" or a name from ``rules()``. "coupled" means over all seeds.
        history: As for ``verify``, as all that follow.
        prompt_len: How many tokens of ``history`` are prompt.
        bitmask: Allowed tokens.
        processors: Functions over rows.

    Returns:
        E[num_accepted | the draft's tokens], in [0, depth of the tree]. The step emits one more.

    Raises:
        DraftError: Logits or drafter rows do not fit the draft, or the draft shares the noise of
            rule "coupled".
        RuleError: The rule is unknown or not lossless for the draft.
        NumericsError: A row that was read is no distribution.
        ParamsError: The history is missing or does not end with the root.

    Example:
        >>> import numpy as np
        >>> draft = Draft.chain([2, 0])
        >>> expected_accepted(draft, np.zeros((3, 4), np.float32))  # 1/4 + 1/16
        0.3125
    """
    check_type("draft", draft, Draft)
    chosen = as_params(params)
    edits = step_edits(draft, logits, history, prompt_len, bitmask, processors, None)
    kernel = kernels.select(logits)
    return kernel.expected_accepted(draft, logits, chosen._core, rule, edits=edits)


def alpha_star(p: Any, q: Any, n: int, law: NodeLaw) -> float:
    """Return the largest acceptance probability of any lossless rule at one node.

    The bound is min over sets H of tokens of ``p(H) + 1 - Pr[all drafts lie in H]``. Subtract a
    rule's acceptance to see how much better the best possible rule could be.

    Args:
        p: (V,) float, the target's shaped row; borrowed, not modified.
        q: (V,) float, the drafter's shaped row; borrowed, not modified.
        n: Number of children, >= 1 (1 for "chain"). Where q has fewer tokens with q > 0 than a law
            without replacement wants, there are fewer children.
        law: "iid", "swor", "top_plus_one", "chain" or "deterministic" (the n most likely under q).

    Returns:
        A probability.

    Raises:
        DraftError: Rows of different length, or a law that q and n do not describe.
        NumericsError: A row is no distribution.
        ParamsError: ``n`` is out of range.

    Example:
        >>> import numpy as np
        >>> p = np.array([0.1, 0.2, 0.3, 0.4])
        >>> round(alpha_star(p, p[::-1].copy(), 2, "iid"), 12)
        0.79

    References:
        arXiv 2310.15141 (the transport problem), 2502.18779 (its dual and top-plus-one).
    """
    return _core.alpha_star(kernels.to_host(p, "p"), kernels.to_host(q, "q"), n, law)


def step_edits(
    draft: Draft,
    logits: Any,
    history: Sequence[int] | None,
    prompt_len: int,
    bitmask: Any,
    processors: Sequence[Processor],
    position: int | None,
) -> kernels.Edits | None:
    """Return what changes the rows of a step, checked; None if nothing was given.

    Raises:
        ParamsError: The history is missing, too short or too long for the position, or does not end
            with the root; a processor cannot be called.
    """
    is_plain = history is None and bitmask is None and isinstance(processors, tuple)
    if is_plain and not processors and type(prompt_len) is int and prompt_len == 0:
        return None
    if history is not None:
        root = int(draft.tokens[0])
        check_history(history, prompt_len, root=root, position=position)
    is_list = isinstance(processors, list | tuple)
    listed = processors if is_list else as_list("processors", processors)
    process = None
    if listed:
        check_processors(listed)
        if history is None:
            message = "history: found None with processors, wanted the tokens up to the root"
            raise ParamsError(message, slug="param_out_of_range")
        process = row_process(listed, draft, history, logits)
    mask = None if bitmask is None else kernels.to_host(bitmask, "bitmask")
    return kernels.Edits(history, prompt_len, mask, process)


def derive_seed(seed: int, row: int) -> int:
    """Return the seed of one sequence of a batch that was given one seed.

    Args:
        seed: 0 <= seed < 2**64.
        row: The index of the sequence in the batch, >= 0.

    Returns:
        ``seed`` itself for index 0, an independent one for every other index.

    Example:
        >>> derive_seed(7, 0)
        7
    """
    return _core.derive_seed(seed, row)


def rules() -> list[RuleRecord]:
    """List the rules: name, core, legal laws, shapes, lossless or not, source, proof status.

    All of them are lossless. Lossy acceptances are in ``mv.lossy`` and have no rule's name.

    Example:
        >>> [rule["name"] for rule in rules()][:3]
        ['greedy', 'target_only', 'coupled']
    """
    return _core.rules()


def best_rule(draft: Draft) -> RuleName:
    """Return the rule that ``rule="auto"`` runs for a draft.

    Example:
        >>> best_rule(Draft.chain([1, 2]))
        'target_only'
    """
    check_type("draft", draft, Draft)
    return _core.best_rule(draft.law)


def build_info() -> BuildInfo:
    """Return how the core was built: version, instruction set in use, profile, platform."""
    return _core.build_info()
