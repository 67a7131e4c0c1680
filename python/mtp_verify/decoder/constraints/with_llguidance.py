"""Grammars matched by llguidance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mtp_verify.decoder.constraints.base import Constraint, Grammars, Matcher
from mtp_verify.errors import ParamsError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy as np
    from numpy.typing import NDArray

__all__ = ["LLGuidance"]


class LLGuidance(Grammars):
    """Makes constraints for one tokenizer with llguidance; make it once.

    Args:
        tokenizer: a fast transformers tokenizer, or an `llguidance.LLTokenizer`.
        vocab_size: width of the model's rows, where it is not the tokenizer's number of tokens:
            `model.config.vocab_size`.
        stop_ids: tokens that end the output; None takes the tokenizer's EOS token. For an
            `LLTokenizer` they are its own.

    Raises:
        ImportError: llguidance is not installed.

    Example:
        >>> grammars = LLGuidance(tokenizer)  # doctest: +SKIP
        >>> constraint = grammars.regex("[0-9]+")  # doctest: +SKIP
        >>> decoder.generate(ids, max_new_tokens=9, constraint=constraint)  # doctest: +SKIP

    References:
        https://github.com/guidance-ai/llguidance
    """

    name = "llguidance"

    def __init__(
        self,
        tokenizer: Any,
        *,
        vocab_size: int | None = None,
        stop_ids: Iterable[int] | None = None,
    ) -> None:
        llguidance = self._library = self._import()
        if isinstance(tokenizer, llguidance.LLTokenizer):
            self.tokenizer = tokenizer
        else:
            from llguidance.hf import from_tokenizer

            stops = None if stop_ids is None else list(stop_ids)
            self.tokenizer = from_tokenizer(tokenizer, n_vocab=vocab_size, eos_token=stops)
        known = self.tokenizer.vocab_size
        self.vocab_size: int = known if vocab_size is None else vocab_size
        if self.vocab_size < known:
            message = (
                f"vocab_size: found {vocab_size}, wanted at least the tokenizer's {known} tokens"
            )
            raise ParamsError(message, slug="vocab_mismatch")

    def lark(self, grammar: str) -> Constraint:
        """Return a constraint to a grammar in llguidance's dialect of Lark, with the rule `start`.

        Raises:
            ParamsError: llguidance refuses the grammar; says why.
        """
        return self._checked("lark", grammar)

    def _make(self, kind: str, source: Any, options: dict[str, Any]) -> Constraint:
        matcher = self._library.LLMatcher
        given = {"overrides": options or None} if kind == "json_schema" else {}
        grammar = getattr(matcher, f"grammar_from_{kind}")(source, **given)
        # Compiled once; every request gets a copy.
        first = matcher(self.tokenizer, grammar, log_level=0)
        if first.is_error():
            raise ValueError(first.get_error())
        return _Grammar(first, self.vocab_size, self.tokenizer)


class _Grammar(Constraint):
    def __init__(self, first: Any, vocab_size: int, tokenizer: Any) -> None:
        self.first = first
        self.num_words = -(-tokenizer.vocab_size // 32)
        self.vocab_size = vocab_size
        self.stop_ids = frozenset(tokenizer.eos_tokens)

    def start(self, prompt: Sequence[int]) -> Matcher:
        """See `Constraint.start`; the grammar begins behind the prompt."""
        del prompt
        return _Matcher(self)


class _Matcher(Matcher):
    def __init__(self, grammar: _Grammar) -> None:
        super().__init__(grammar.vocab_size)
        self._grammar = grammar
        self._matcher = grammar.first.deep_copy()
        self._path: list[int] = []

    # The library takes a stop token into account only where the grammar could go on, and then
    # counts it for `rollback`: it is kept in the path alone.

    def fill(self, mask: NDArray[np.int32]) -> None:
        if self._has_ended:
            mask[:] = -1
            return
        own = mask[: self._grammar.num_words]
        self._matcher.unsafe_compute_mask_ptr(own.ctypes.data, own.nbytes)
        if self._matcher.is_error():
            self._recover()
            mask[:] = 0

    def accept(self, token: int) -> bool:
        if self._has_ended:
            return False
        if token in self._grammar.stop_ids:
            accepted = bool(self._matcher.is_accepting())
        else:
            accepted = self._matcher.try_consume_tokens([token]) == 1
        if accepted:
            self._path.append(token)
        return accepted

    def rollback(self, count: int) -> None:
        if count:
            in_library = count - self._has_ended
            del self._path[-count:]
            if in_library:
                self._matcher.rollback(in_library)

    @property
    def _has_ended(self) -> bool:
        return bool(self._path) and self._path[-1] in self._grammar.stop_ids

    def _recover(self) -> None:
        """Come back from a dead end, which only empties the mask; refuse to go on otherwise."""
        found = self._matcher.get_error()
        if not found.startswith("NoExtensionBias"):
            message = f"llguidance gives the grammar up: {found}"
            raise ParamsError(message, slug="grammar_gave_up")
        self._matcher = self._grammar.first.deep_copy()
        self._matcher.consume_tokens(self._path)
