"""Checks that a target keeps the contract of `mtp_verify.Target`, by trying."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch

from mtp_verify._core import TokenTree
from mtp_verify.errors import MtpVerifyError, ParamsError
from mtp_verify.models.interface import check_cache, check_commit, check_forward
from mtp_verify.models.target import as_target
from mtp_verify.verifier.intake import as_count, as_list
from mtp_verify.verifier.kv import commit_plan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mtp_verify.models.interface import Target

__all__ = ["assert_target", "fresh_row"]

_NUM_DRAFTED = 5
#     0
#    /|\
#   1 2 3
#     | |\
#     4 5 6
# The moves of the path 2, 4 are right in one order alone.
_TREE = (-1, 0, 0, 0, 2, 3, 3)


@torch.inference_mode()
def assert_target(
    model: Any,
    prompt: Sequence[int] = (1, 0, 1, 1, 0),
    *,
    num_tokens: int | None = None,
    tolerance: float = 1e-3,
    seed: int = 0,
) -> None:
    """Fail unless each row of a target depends on its own text alone.

    Every row is compared with that of a fresh cache over the same text, for: a text in one forward
    and token by token; fewer rows than tokens; `crop`, and other tokens behind it; chains of which
    every number of tokens is accepted; a tree, each of its paths accepted (unless the target has a
    `tree_obstacle`); two caches in turn; and rows that must not change while the next forward runs.

    Args:
        model: A `mv.Target`, or a transformers model.
        prompt: Token ids to begin with, at least two.
        num_tokens: Ids below this are tried; None: `vocab_size`, which must then be known.
        tolerance: Most that two logits of one text may differ, relative to the largest of the row
            (at least 1): forwards of different widths round differently. In half precision take
            0.1.
        seed: Of the tokens that are tried.

    Raises:
        AssertionError: Says what was done, which row differs and by how much, or which method
            breaks its contract.
        UnsupportedModelError: It is no target.
        ParamsError: A prompt with tokens of another vocabulary, too short or too long.
    """
    target = as_target(model)
    size = target.vocab_size if num_tokens is None else as_count("num_tokens", num_tokens)
    if size is None:
        message = f"num_tokens: wanted, since vocab_size of {type(target).__name__} is None"
        raise ParamsError(message, slug="param_out_of_range")
    text = [as_count("prompt", token, 0, size - 1) for token in as_list("prompt", prompt)]
    # What is drafted, and as many tokens behind it.
    room = _NUM_DRAFTED
    if target.max_length is not None:
        room = min(room, (target.max_length - len(text)) // 2)
    if len(text) < 2 or room < 2:
        found = f"found {len(text)} tokens and a context of {target.max_length}"
        message = f"prompt: {found}, wanted two or more, and room for four behind them"
        raise ParamsError(message, slug="param_out_of_range")
    try:
        drafted = np.random.default_rng(seed).integers(size, size=room).tolist()
        _Trial(target, text, size, tolerance, drafted).run()
    except MtpVerifyError as error:
        raise AssertionError(str(error)) from error


def fresh_row(target: Target, text: Sequence[int]) -> torch.Tensor:
    """Return the row (V,) after a text, from one forward over an empty cache."""
    ids = torch.tensor([list(text)], device=target.device)
    logits, _ = target.forward(ids, None, None, target.new_cache(), num_logits=1)
    return logits[0].detach().clone()


class _Trial:
    """Texts, the rows that they must have, and the ways of getting there."""

    def __init__(
        self, target: Target, prompt: list[int], size: int, tolerance: float, drafted: list[int]
    ) -> None:
        self._target, self._prompt, self._tolerance = target, prompt, tolerance
        self._drafted = drafted
        self._others = [(token + 1) % size for token in self._drafted]
        # Siblings differ, as far as there are tokens.
        self._nodes = [prompt[-1], *((self._drafted[0] + i) % size for i in range(len(_TREE) - 1))]
        self._known: dict[tuple[int, ...], torch.Tensor] = {}

    def run(self) -> None:
        text, drafted = self._prompt + self._drafted, self._drafted
        cache = self._new_cache()
        rows = self._forward(cache, text, len(text))
        kept = rows.clone()
        other = self._new_cache()
        self._compare(rows, [text[: i + 1] for i in range(len(text))], "of one forward over a text")
        some = self._forward(other, text, 2)
        self._compare(some, [text[:-1], text], "of a forward with num_logits=2")
        if not torch.equal(rows, kept):
            self._fail(".forward: rows changed while the next forward ran; return new ones")
        for place, token in enumerate(self._others):
            several = self._forward(other, [token], 1)
            self._compare(several, [text + self._others[: place + 1]], "token by token")
        self._forward_again(cache, text, len(self._prompt), "after crop")
        for count in range(len(drafted) + 1):
            self._commit_chain(count)
        if self._target.tree_obstacle is None:
            tree = TokenTree(_TREE)
            for node in range(len(_TREE)):
                self._commit_tree(tree, node)

    def _fail(self, what: str) -> NoReturn:
        message = f"{type(self._target).__name__}{what}"
        raise AssertionError(message)

    def _new_cache(self) -> Any:
        cache = self._target.new_cache()
        check_cache(self._target, cache)
        if cache.length:
            self._fail(f".new_cache: found {cache.length} entries, wanted an empty cache")
        return cache

    def _forward(
        self,
        cache: Any,
        tokens: list[int],
        num_logits: int,
        positions: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        before = cache.length
        ids = torch.tensor([tokens], device=self._target.device)
        found = self._target.forward(ids, positions, mask, cache, num_logits=num_logits)
        check_forward(self._target, found, num_logits, len(tokens), cache.length - before, 0)
        if ids[0].tolist() != tokens:
            self._fail(".forward: the tokens that it was given have changed")
        return found[0]

    def _compare(self, rows: torch.Tensor, texts: list[list[int]], what: str) -> None:
        for row, text in zip(rows, texts, strict=True):
            key = tuple(text)
            if key not in self._known:
                self._known[key] = fresh_row(self._target, text)
            wanted = self._known[key]
            if not bool(wanted.isfinite().any()) or bool(wanted.isnan().any()):
                self._fail(f": the row after the text {text} holds NaN, or nothing finite")
            most = self._tolerance * max(1.0, float(wanted[wanted.isfinite()].abs().max()))
            # Infinities may be the same, too.
            apart = (row - wanted).abs()[row != wanted].nan_to_num(float("inf")).tolist()
            if max(apart, default=0.0) > most:
                found = f"differs from that of a fresh cache by {max(apart):.3g}"
                wish = f"wanted at most {most:.3g}"
                self._fail(f": {what}, the row after the text {text} {found}; {wish}")

    def _forward_again(self, cache: Any, text: list[int], length: int, what: str) -> None:
        """Cut the cache, and run other tokens behind what is left."""
        cache.crop(length)
        if cache.length != length and not (cache.is_recurrent and cache.length < length):
            name = type(cache).__name__
            message = f"{name}.crop: found {cache.length} entries, wanted {length}"
            raise AssertionError(message)
        self._go_on(cache, text[:length], what)

    def _go_on(self, cache: Any, text: list[int], what: str) -> None:
        pending = text[cache.length :] + self._others
        texts = [text + self._others[: i + 1] for i in range(len(self._others))]
        self._compare(self._forward(cache, pending, len(self._others)), texts, what)

    def _start(self) -> Any:
        """Return a cache that holds all of the prompt but its last token, the root."""
        cache = self._new_cache()
        self._forward(cache, self._prompt[:-1], 1)
        return cache

    def _commit_chain(self, count: int) -> None:
        cache, start = self._start(), len(self._prompt) - 1
        self._forward(cache, [self._prompt[-1], *self._drafted], 1 + len(self._drafted))
        tree = TokenTree(range(-1, len(self._drafted)))
        plan = commit_plan(tree, list(range(1, count + 1)), start)
        cache.commit(plan)
        check_commit(cache, plan)
        what = f"after commit of {count} of {len(self._drafted)} tokens of a chain"
        self._go_on(cache, self._prompt + self._drafted[:count], what)

    def _commit_tree(self, tree: TokenTree, node: int) -> None:
        cache, start = self._start(), len(self._prompt) - 1
        device, depths = self._target.device, torch.from_numpy(np.array(tree.depths))
        mask = torch.from_numpy(np.array(tree.mask())).to(device)
        positions = (start + depths)[None].to(device)
        rows = self._forward(cache, self._nodes, len(_TREE), positions, mask)
        paths = [_path(end) for end in range(len(_TREE))]
        texts = [self._prompt + [self._nodes[i] for i in path] for path in paths]
        self._compare(rows, texts, "in a tree")
        plan = commit_plan(tree, paths[node], start)
        cache.commit(plan)
        check_commit(cache, plan)
        self._go_on(cache, texts[node], f"after commit of the path {paths[node]} of a tree")


def _path(node: int) -> list[int]:
    """Return the nodes from below the root to a node of the tree."""
    return [*_path(_TREE[node]), node] if node > 0 else []
