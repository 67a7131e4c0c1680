"""What all draft heads have in common: the parts of their target, and the calls that draft.

A head drafts for one sequence in a state of its own:

1. `state = head.new_state()`;
2. `read(state, hidden, tokens)`: pairs that are known to be true, a target's hidden state and the
   token that follows it; gives the logits after the last of them, the root (node 0);
3. `step(state, parents, tokens)`: drafted tokens below nodes that were run before; nodes are
   numbered in the order in which they are run; gives the logits after each;
4. `read` again with what was accepted: drafted entries are dropped, so that what was computed from
   a head's own guesses never stays.

A pair's entry carries the hidden state at position i and the token at position i + 1: it predicts
position i + 2. The token at i + 1 is known to the target already; a head guesses what comes after.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from mtp_verify.errors import DraftError, ParamsError, UnsupportedModelError
from mtp_verify.heads.fused import FusedOutputs, is_few
from mtp_verify.models.cpu.fused import fused_part, unfuse
from mtp_verify.models.cpu.packing import Product

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mtp_verify import _core
    from mtp_verify.heads.spec import HeadSpec

__all__ = ["ContextTokens", "Head", "Shared", "check_parents", "checked_pairs",
           "check_target", "make_output"]  # fmt: skip


@dataclass(frozen=True)
class Shared:
    """What a head may take from its target.

    Attributes:
        embed: token ids to embeddings.
        output: hidden states to logits over the target's vocabulary.
        output_weight: (V, d), its matrix.
        norm: the final norm, or None if it could not be found.
    """

    embed: Callable[[torch.Tensor], torch.Tensor]
    output: Callable[[torch.Tensor], torch.Tensor]
    output_weight: torch.Tensor
    norm: Callable[[torch.Tensor], torch.Tensor] | None

    @classmethod
    def of(cls, model: Any) -> Shared:
        """Return the parts of a transformers causal language model; no copies.

        Raises:
            UnsupportedModelError: it has no embedding or no output head of its own.
        """
        embed = model.get_input_embeddings()
        output = model.get_output_embeddings()
        if embed is None or output is None:
            message = f"{type(model).__name__} shows no embedding or output head to share"
            raise UnsupportedModelError(message, slug="no_lm_head")
        return cls(embed, output, output.weight, getattr(model.get_decoder(), "norm", None))


@dataclass
class ContextTokens:
    """Tokens outside the draft vocabulary that a sequence has shown, which its head may draft."""

    ids: dict[int, None] = field(default_factory=dict)  # keys in order of appearance
    rows: torch.Tensor | None = None  # (E, d) of the target's output head, None where E = 0
    rounded: _core.Product | None = None  # the first of these rows, as fused heads multiply by them


class Head(nn.Module):
    """A draft head; make a `CausalHead` or a `ParallelHead`.

    Attributes:
        spec: what it is made of.
        vocab: (D,) int64, the token of each logit, or None if the logits are over all tokens.
        record: how it was trained, as `save` was told.
    """

    vocab: torch.Tensor | None
    record: dict[str, Any]

    def __init__(self, spec: HeadSpec) -> None:
        super().__init__()
        self.spec = spec
        self.record = {}
        vocab = None if spec.draft_vocab_size is None else torch.arange(spec.draft_vocab_size)
        self.register_buffer("vocab", vocab, persistent=False)
        # In a tuple, so that the target's parameters do not become this module's.
        self._shared: tuple[Shared, ...] = ()
        self._shared_rows: Product | None = None
        self._inside: np.ndarray | None = None  # (V,) whether a token is in the draft vocabulary

    @property
    def shared(self) -> Shared:
        """The target's parts; ParamsError if the head was not attached to one."""
        if not self._shared:
            message = (
                f"the {self.spec.family} head is not attached to a target; call "
                "head.attach(model), or give the target to mv.heads.load(path, target=model)"
            )
            raise ParamsError(message, slug="head_not_attached")
        return self._shared[0]

    def attach(self, target: Any) -> Head:
        """Give the head the embedding, output head and final norm of a target; return the head.

        Args:
            target: a transformers model, or a `Shared`.

        Raises:
            UnsupportedModelError: a target of other sizes; names them.
        """
        shared = target if isinstance(target, Shared) else Shared.of(target)
        check_target(self.spec, shared)
        self._shared = (shared,)
        self._shared_rows = None
        unfuse(self)
        return self

    def set_vocab(self, vocab: torch.Tensor) -> None:
        """Say which tokens the head drafts.

        Args:
            vocab: (D,) distinct token ids, ascending.

        Raises:
            ParamsError: another number of tokens than the head has logits, or not such ids.
        """
        size, limit = self.spec.draft_vocab_size, self.spec.known_sizes.vocab_size
        vocab = vocab.to(torch.int64)
        is_sound = vocab.shape == (size,) and vocab.numel() > 0
        if not is_sound or not ((vocab.diff() > 0).all() and vocab[0] >= 0 and vocab[-1] < limit):
            wanted = f"{size} distinct token ids below {limit}, ascending"
            message = f"draft vocabulary: found shape {tuple(vocab.shape)}, wanted {wanted}"
            raise ParamsError(message, slug="bad_draft_vocab")
        self.vocab = vocab.to(next(self.parameters()).device)
        self._shared_rows = self._inside = None
        unfuse(self)

    @property
    def hidden_layers(self) -> tuple[int, ...]:
        """The target's hidden states that `read` takes, as `models.hidden` numbers them."""
        return self.spec.hidden_layers

    @property
    def max_depth(self) -> int | None:
        """The deepest level that the head can draft, or None."""
        return None if self.spec.kind == "causal" else self.spec.num_modules

    def choose(self, **choices: Any) -> None:
        """Change fields of the spec that no parameter depends on, as `feed` or `recycle`.

        Raises:
            ParamsError: a value that no head has.
        """
        self.spec = self.spec.replace(**choices)
        levels: Any = self.levels
        for level in levels:
            level.spec = self.spec
            unfuse(level)

    def shared_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the target's logits (..., D) of (..., d), over the draft vocabulary if any."""
        if self.vocab is None:
            return self.shared.output(hidden)
        if self._shared_rows is None:
            # One compact copy: gathered rows would be read from all over the matrix at each step.
            self._shared_rows = Product(self.output_rows(self.vocab))
        return self._shared_rows(hidden)

    def output_rows(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return rows (E, d) of the target's output head for tokens (E,)."""
        return self.shared.output_weight.detach()[tokens]

    def observe_tokens(self, context: ContextTokens, tokens: torch.Tensor | Sequence[int]) -> None:
        """Add to `context` those of a sequence's tokens (n,) that the draft vocabulary lacks."""
        if not self.spec.context_tokens:
            return
        inside = self._inside
        if inside is None:
            inside = self._inside = np.zeros(self.spec.known_sizes.vocab_size, bool)
            inside[[] if self.vocab is None else self.vocab.cpu().numpy()] = True
        shown = dict.fromkeys(tokens.tolist() if isinstance(tokens, torch.Tensor) else tokens)
        fresh = [token for token in shown if not inside[token] and token not in context.ids]
        if fresh:
            device = self.shared.output_weight.device
            rows = self.output_rows(torch.tensor(fresh, device=device))
            old = context.rows
            context.rows = rows if old is None else torch.cat((old, rows))
            context.ids.update(dict.fromkeys(fresh))

    def token_at(self, context: ContextTokens, column: int) -> int:
        """Return the token of a logit: of the draft vocabulary, after it of the context."""
        if self.vocab is None:
            return column
        size = len(self.vocab)
        return int(self.vocab[column]) if column < size else list(context.ids)[column - size]

    def output_input(self, features: torch.Tensor) -> torch.Tensor:
        """Return what an output head reads of features (..., d)."""
        norm = self.shared.norm if self.spec.target_norm else None
        return features if norm is None else norm(features)

    def logits(
        self, features: torch.Tensor, level: int = 0, extra: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return logits (..., D + E) of a level's features (..., d).

        The last E are those of further tokens, whose rows of the output head are `extra` (E, d).
        """
        rows = self.output_input(features)
        return _with_extra(self._logits(rows, level), rows, extra)

    def logits_batch(
        self, features: Sequence[torch.Tensor], level: int, contexts: Sequence[ContextTokens]
    ) -> list[torch.Tensor]:
        """Return `logits` of the features (n, d) of several sequences, by one product."""
        rows, counts = self.output_input(torch.cat([*features])), [len(own) for own in features]
        fused: FusedOutputs | None = fused_part(self)
        if fused is not None and is_few(rows):
            return fused(rows, counts, level, contexts)
        extras = [context.rows for context in contexts]
        parts = torch.split(self._logits(rows, level), counts), torch.split(rows, counts), extras
        return [_with_extra(*part) for part in zip(*parts, strict=True)]

    def make_fused(self) -> FusedOutputs | None:
        """Return what `models.cpu.fused.fuse` runs the output heads of few rows with."""
        levels: Any = self.levels
        layers: list[nn.Linear | None] = [level.output for level in levels]
        own = [layer for layer in layers if layer is not None]
        if len(own) == len(layers):
            return FusedOutputs(own)
        if self.vocab is None or not self._shared:
            return None  # the target's whole output head, which is not copied
        shared = self.output_rows(self.vocab)
        return FusedOutputs([shared if layer is None else layer for layer in layers])

    def _logits(self, rows: torch.Tensor, level: int) -> torch.Tensor:
        levels: Any = self.levels
        own: nn.Linear | None = levels[min(level, len(levels) - 1)].output
        return self.shared_logits(rows) if own is None else own(rows)

    def new_state(self) -> Any:
        """Return the state of a new sequence."""
        raise NotImplementedError

    def read(
        self, state: Any, hidden: Sequence[torch.Tensor], tokens: torch.Tensor | Sequence[int]
    ) -> torch.Tensor:
        """Take pairs that are true, and drop all that was drafted.

        Args:
            state: of the sequence; changed.
            hidden: for each of `hidden_layers` (n, d), at n >= 1 consecutive positions.
            tokens: (n,) int64, the token after each; a list is one that the host has and a device
                need not be asked for.

        Returns:
            Logits (1, D + E) after the root, the last token; E tokens of the context follow the
            draft vocabulary where the head drafts those.

        Raises:
            DraftError: shapes that do not fit together.
        """
        return self.read_batch([state], [hidden], [tokens])[0]

    def step(
        self, state: Any, parents: Sequence[int] | torch.Tensor, tokens: torch.Tensor
    ) -> torch.Tensor:
        """Run drafted tokens.

        Args:
            state: of the sequence; changed.
            parents: for each of n tokens the node that it follows, 0 for the root. A tensor (n,)
                int64, which is not read on the host, counts from the first node of the last call:
                these must then be of one level.
            tokens: (n,) int64.

        Returns:
            Logits (n, D + E) after each; the nodes take the next n numbers.

        Raises:
            DraftError: a parent that was not run, or a level that the head does not have.
        """
        return self.step_batch([state], [parents], [tokens])[0]

    def read_batch(
        self,
        states: Sequence[Any],
        hidden: Sequence[Sequence[torch.Tensor]],
        tokens: Sequence[torch.Tensor | Sequence[int]],
    ) -> list[torch.Tensor]:
        """Do what `read` does for one or more sequences, with one forward for all of them."""
        raise NotImplementedError

    def step_batch(
        self,
        states: Sequence[Any],
        parents: Sequence[Sequence[int] | torch.Tensor],
        tokens: Sequence[torch.Tensor],
    ) -> list[torch.Tensor]:
        """Do what `step` does for one or more sequences, with one forward for all of them."""
        raise NotImplementedError


def _with_extra(
    logits: torch.Tensor, rows: torch.Tensor, extra: torch.Tensor | None
) -> torch.Tensor:
    if extra is None:
        return logits
    return torch.cat((logits, nn.functional.linear(rows, extra)), dim=-1)


def check_target(spec: HeadSpec, shared: Shared) -> None:
    """Refuse a target of other sizes than the head was made for; UnsupportedModelError."""
    sizes, found = spec.known_sizes, tuple(shared.output_weight.shape)
    if found[1] != sizes.hidden_size or found[0] < sizes.vocab_size:
        message = (
            f"the {spec.family} head is for hidden states of width {sizes.hidden_size} "
            f"and {sizes.vocab_size} tokens; this target has {found[1]} and {found[0]}: load "
            "the head that was trained for it"
        )
        raise UnsupportedModelError(message, slug="head_of_another_target")


def checked_pairs(
    spec: HeadSpec,
    hidden: Sequence[Sequence[torch.Tensor]],
    tokens: Sequence[torch.Tensor | Sequence[int]],
) -> tuple[list[torch.Tensor], list[int]]:
    """Return what `read_batch` got: each sequence's tokens, where its states are, and their number.

    DraftError if layers or shapes do not fit.
    """
    ids = [_as_tokens(own, rows) for own, rows in zip(tokens, hidden, strict=True)]
    return ids, [_count_pairs(spec, *pairs) for pairs in zip(hidden, ids, strict=True)]


def _count_pairs(spec: HeadSpec, hidden: Sequence[torch.Tensor], tokens: torch.Tensor) -> int:
    width, layers = spec.known_sizes.hidden_size, len(spec.aux_layers) or 1
    count = tokens.shape[0] if tokens.dim() == 1 else 0
    if len(hidden) != layers or any(tuple(h.shape) != (count, width) for h in hidden) or not count:
        message = (
            f"the {spec.family} head reads {layers} hidden state(s) of shape (n, {width}) and n "
            f"tokens, n >= 1; found {[tuple(h.shape) for h in hidden]} and {tuple(tokens.shape)}"
        )
        raise DraftError(message, slug="shape_mismatch")
    return count


def _as_tokens(
    tokens: torch.Tensor | Sequence[int], hidden: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Return tokens where the hidden states are."""
    if isinstance(tokens, torch.Tensor):
        return tokens
    return torch.tensor(tokens, dtype=torch.int64, device=hidden[0].device if hidden else None)


def check_parents(parents: Sequence[int] | torch.Tensor, num_nodes: int) -> None:
    """Refuse parents that were not run: DraftError names the first."""
    for parent in [] if isinstance(parents, torch.Tensor) else parents:
        if not 0 <= parent < num_nodes:
            message = f"node {parent} was not run; {num_nodes} nodes are known"
            raise DraftError(message, slug="bad_parent", node=parent)


def make_output(spec: HeadSpec) -> nn.Linear | None:
    """Return a module's own output head, or None where the head shares the target's."""
    if spec.output_head == "shared":
        return None
    sizes = spec.known_sizes
    size = spec.draft_vocab_size or sizes.vocab_size
    return nn.Linear(sizes.hidden_size, size, bias=spec.output_bias)
