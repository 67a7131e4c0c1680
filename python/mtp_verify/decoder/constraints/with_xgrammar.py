"""Grammars compiled by xgrammar."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mtp_verify.decoder.constraints.base import Constraint, Grammars, Matcher

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy as np
    from numpy.typing import NDArray

__all__ = ["XGrammar"]


class XGrammar(Grammars):
    """Compiles constraints for one tokenizer with xgrammar; make it once, it caches.

    Args:
        tokenizer: a transformers tokenizer, or an `xgrammar.TokenizerInfo`.
        vocab_size: width of the model's rows, where it is not the tokenizer's number of tokens:
            `model.config.vocab_size`.
        stop_ids: tokens that end the output; None takes the tokenizer's EOS token. For a
            `TokenizerInfo` both are its own.

    Raises:
        ImportError: xgrammar is not installed.

    Example:
        >>> grammars = XGrammar(tokenizer)  # doctest: +SKIP
        >>> constraint = grammars.json_schema({"type": "object"})  # doctest: +SKIP
        >>> decoder.generate(ids, max_new_tokens=99, constraint=constraint)  # doctest: +SKIP

    References:
        arXiv 2411.15100.
    """

    name, errors = "xgrammar", (RuntimeError, ValueError)

    def __init__(
        self,
        tokenizer: Any,
        *,
        vocab_size: int | None = None,
        stop_ids: Iterable[int] | None = None,
    ) -> None:
        xgrammar = self._library = self._import()
        if isinstance(tokenizer, xgrammar.TokenizerInfo):
            self.info = tokenizer
        else:
            stops = None if stop_ids is None else list(stop_ids)
            self.info = xgrammar.TokenizerInfo.from_huggingface(
                tokenizer, vocab_size=vocab_size, stop_token_ids=stops
            )
        # One thread: compiling is rare, and the model's own threads are on the other cores.
        self._compiler = xgrammar.GrammarCompiler(self.info, max_threads=1)

    def ebnf(self, grammar: str) -> Constraint:
        """Return a constraint to a grammar in xgrammar's EBNF, with the rule `root`.

        Raises:
            ParamsError: xgrammar refuses the grammar; says why.
        """
        return self._checked("grammar", grammar)

    def _make(self, kind: str, source: Any, options: dict[str, Any]) -> Constraint:
        compiled = getattr(self._compiler, f"compile_{kind}")(source, **options)
        return _Grammar(self._library, compiled)


class _Grammar(Constraint):
    def __init__(self, library: Any, compiled: Any) -> None:
        self._library = library
        self._compiled = compiled
        self.vocab_size: int = compiled.tokenizer_info.vocab_size
        self.stop_ids = frozenset(compiled.tokenizer_info.stop_token_ids)

    def start(self, prompt: Sequence[int]) -> Matcher:
        """See `Constraint.start`; the grammar begins behind the prompt."""
        del prompt
        return _Matcher(self._library.GrammarMatcher(self._compiled), self.vocab_size)


class _Matcher(Matcher):
    def __init__(self, matcher: Any, vocab_size: int) -> None:
        super().__init__(vocab_size)
        self._matcher = matcher

    def fill(self, mask: NDArray[np.int32]) -> None:
        ended = self._matcher.is_terminated()
        if ended or not self._matcher.fill_next_token_bitmask(mask[None]):
            mask[:] = -1

    def accept(self, token: int) -> bool:
        return not self._matcher.is_terminated() and bool(self._matcher.accept_token(token))

    def rollback(self, count: int) -> None:
        if count:
            self._matcher.rollback(count)
