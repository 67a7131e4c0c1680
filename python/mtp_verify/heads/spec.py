"""`HeadSpec`: everything that distinguishes one draft head from another, as data.

DeepSeek's MTP modules, EAGLE and EAGLE-3 run the same computation; the fields say which parts of it
a head has. `Family` adds how published checkpoints hold such heads; the records are in `families`.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

from mtp_verify.errors import ParamsError
from mtp_verify.models.hidden import BEFORE_NORM

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch

    from mtp_verify.checkpoints.folder import Checkpoint
    from mtp_verify.heads.base import Head
    from mtp_verify.heads.blocks.base import HeadBlock
    from mtp_verify.heads.io.recognise import Source

    Described = tuple[dict[str, Any], dict[str, torch.Tensor]]

__all__ = ["Family", "HeadSpec", "Layout", "Repository", "Sizes", "refuse_export"]

_CHOICES: dict[str, tuple[str, ...]] = {
    "kind": ("causal", "parallel", "recurrent", "block"),
    "state": ("none", "sum", "lstm"),
    "feed": ("post", "pre", "aux", "streams"),
    "recycle": ("post", "pre"),
    "fusion": ("eh", "he", "sum", "attention", "residual", "none"),
    "norm_kind": ("rms", "rms1p"),
    "output_head": ("shared", "own"),
    "pair_position": ("hidden", "token"),
    "layer_like": ("last", "first"),
    "layer_attention": ("", "sliding_attention"),
    "layer_mlp": ("", "dense", "sparse"),
    "offset": ("next", "place"),
    "in_block": ("full", "causal", "sliding"),
    "correction": ("none", "markov", "gated", "rnn", "gru", "features"),
}
_LEAST = {
    "hidden_size": 1, "vocab_size": 1, "num_heads": 1, "num_kv_heads": 1, "max_positions": 1,
    "intermediate_size": 0, "head_dim": 0, "window": 0,
    "num_modules": 1, "num_layers": 1, "draft_vocab_size": 1,
    "block_size": 1, "mask_token": 0, "rank": 0, "gru_size": 0, "num_plain": 0,
}  # fmt: skip
_MAX_SIZE = (1 << 31) - 1  # far above every real size
_MAX_THETA = 1e15
_ACTIVATIONS = ("gelu", "relu", "silu")


def _refuse(name: str, value: object, wanted: str) -> NoReturn:
    message = f"{name}: found {repr(value)[:100]}, wanted {wanted}"
    raise ParamsError(message, slug="bad_head_spec")


def _check_fields(record: Any) -> None:
    """Refuse values that no head has: they may come from a file."""
    for known in dataclasses.fields(record):
        name, value = known.name, getattr(record, known.name)
        if known.type == "bool" and type(value) is not bool:
            _refuse(name, value, "true or false")
        if name in _CHOICES and value not in _CHOICES[name]:
            _refuse(name, value, f"one of: {', '.join(_CHOICES[name])}")
        least = None if value is known.default is None else _LEAST.get(name)
        if least is not None and (type(value) is not int or not least <= value <= _MAX_SIZE):
            _refuse(name, value, f"an int >= {least}")


@dataclass(frozen=True)
class Sizes:
    """The sizes of a head and of its blocks.

    Attributes:
        hidden_size: width of the target's hidden states.
        vocab_size: tokens that the target knows.
        intermediate_size: of the blocks' MLP.
        num_heads, num_kv_heads, head_dim: of the attention.
        norm_eps: of every RMS norm.
        qkv_bias, output_bias, mlp_bias: which projections have a bias.
        qk_norm: queries and keys are normalised head by head.
        activation: of the MLP, by its name in `torch.nn.functional`.
        rope: parameters of the rotary embedding, in transformers' names (`rope_theta`, ...).
        max_positions: the longest context; some kinds of rotary embedding depend on it.
        window: width of sliding attention, or None for full attention.
    """

    hidden_size: int
    vocab_size: int
    intermediate_size: int = 0
    num_heads: int = 1
    num_kv_heads: int = 1
    head_dim: int = 0
    norm_eps: float = 1e-6
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    activation: str = "silu"
    rope: Mapping[str, Any] = field(default_factory=lambda: {"rope_theta": 10_000.0})
    max_positions: int = 2048
    window: int | None = None

    def __post_init__(self) -> None:
        """Refuse sizes that no block has."""
        _check_fields(self)
        if self.num_heads % self.num_kv_heads:
            _refuse("num_kv_heads", self.num_kv_heads, f"a divisor of num_heads, {self.num_heads}")
        eps: Any = self.norm_eps
        if not isinstance(eps, int | float) or not 0 <= eps < 1:
            _refuse("norm_eps", eps, "a number >= 0 and < 1")
        if self.activation not in _ACTIVATIONS:
            _refuse("activation", self.activation, f"one of: {', '.join(_ACTIVATIONS)}")
        theta, factor = (self.rope.get(key, 1.0) for key in ("rope_theta", "partial_rotary_factor"))
        are_numbers = isinstance(theta, int | float) and isinstance(factor, int | float)
        if not are_numbers or not (0 < theta < _MAX_THETA and 0 < factor <= 1):
            wanted = "numbers with rope_theta > 0 and 0 < partial_rotary_factor <= 1"
            _refuse("rope", dict(self.rope), wanted)
        if not isinstance(self.rope.get("rope_type", ""), str):
            _refuse("rope", dict(self.rope), "a name for rope_type")

    @classmethod
    def of(cls, config: Any) -> Sizes:
        """Return the sizes of a target's own blocks, from its transformers configuration."""
        text = config.get_text_config(decoder=True)
        known = ("hidden_size", "vocab_size", "intermediate_size", "num_attention_heads",
                 "num_key_value_heads", "head_dim", "rms_norm_eps", "rope_parameters",
                 "max_position_embeddings")  # fmt: skip
        # Where layers differ, attributes may not be asked for; some have another name in the table.
        table = text.to_dict()
        return cls.from_table(
            {key: table[key] if key in table else getattr(text, key, None) for key in known}
        )

    @classmethod
    def from_table(cls, config: Mapping[str, Any], **found: Any) -> Sizes:
        """Return the sizes that a `config.json` gives.

        Args:
            config: of the language model, in transformers' names, old or new.
            found: fields whose values are known from elsewhere.

        Raises:
            ParamsError: a size that no block has.
        """
        hidden: Any = config.get("hidden_size")
        num_heads: Any = config.get("num_attention_heads") or 1
        for name, value in (("hidden_size", hidden), ("num_attention_heads", num_heads)):
            if type(value) is not int or value < 1:
                _refuse(name, value, "an int >= 1")
        fields: dict[str, Any] = {
            "hidden_size": hidden,
            "vocab_size": config.get("vocab_size"),
            "intermediate_size": config.get("intermediate_size") or 4 * hidden,
            "num_heads": num_heads,
            "num_kv_heads": config.get("num_key_value_heads") or num_heads,
            "head_dim": config.get("head_dim") or hidden // num_heads,
            "norm_eps": config.get("rms_norm_eps") or 1e-6,
            "rope": _rope(config),
            "max_positions": config.get("max_position_embeddings") or 2048,
        }
        return cls(**{**fields, **found})


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the rotary parameters; before transformers 5 they stood in two places."""
    scaling = config.get("rope_parameters") or config.get("rope_scaling")
    rope = dict(scaling) if isinstance(scaling, dict) else {}
    if any(isinstance(value, dict) for value in rope.values()):
        rope = {}  # One table a kind of layer; a block of the target's own kind reads them itself.
    if "type" in rope:
        rope["rope_type"] = rope.pop("type")
    if rope.get("rope_type") == "default":
        del rope["rope_type"]
    rope["rope_theta"] = rope.get("rope_theta") or config.get("rope_theta") or 10_000.0
    if config.get("partial_rotary_factor"):
        rope.setdefault("partial_rotary_factor", config["partial_rotary_factor"])
    return rope


@dataclass(frozen=True)
class Layout:
    """The names of a family's tensors in a checkpoint.

    Attributes:
        prefix: of a module's tensors; `{i}` is the module's number and `{layer}` the number that
            follows the target's own layers.
        names: our name of a part -> its name after the prefix; `{l}` is the block's number, which
            is 1 with `{k}` for the first one and 3 with `{m}`, where every second number counts;
            `{n}` is the number of blocks. A name that starts with `/` has no prefix.
        renames: our name of a part of the block -> its name there, where they differ.
        count_keys: keys of the configuration that give the number of modules, in this order.
        model_types: configurations that use it; they decide between families of equal names.
        marks: tensors that no other layout has, with `#` for each number in their names; where all
            of them are there, it is this layout.
        unread: what names of tensors start with that a head does not need in order to draft.
    """

    prefix: str = ""
    names: Mapping[str, str] = field(default_factory=dict)
    renames: Mapping[str, str] = field(default_factory=dict)
    count_keys: tuple[str, ...] = ()
    model_types: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()


@dataclass(frozen=True)
class HeadSpec:
    """One kind of draft head.

    Attributes:
        family: its name.
        kind: "causal" (a level sees the tokens drafted before it), "parallel" (all levels are
            predicted from one hidden state), "recurrent" (a level reads the state of the one
            before, and a token) or "block" (one forward over the slots of a block gives all rows).
        num_modules: distinct modules of a causal head (the last is used again for deeper levels);
            levels of the others; 1 for a block head.
        num_layers: blocks of a module.
        feed: the target's hidden state that goes in: "post" or "pre" the final norm, "aux" several
            layers' at once, "streams" (hyper-connections).
        aux_layers: with "aux" the layers, by what enters them; empty in a family's record, because
            they depend on the target's depth.
        recycle: a level's hidden state for the next: its output "post" or "pre" the output norm.
        fusion: how embedding and hidden state meet: one projection of both, embedding first ("eh")
            or hidden state first ("he"); two projections, added ("sum"); side by side at the
            attention's input ("attention"); side by side in a residual block whose stream is
            projected to the width too ("residual"), which counts as the first block; "none".
        embed_norm, hidden_norm: the embedding, the hidden state is normalised first.
        norm_kind: "rms", or "rms1p" where w is stored for a factor of 1 + w.
        block: `kind` of a class in `heads.blocks`: "llama", "target" (the target's own kind of
            layer), "half" (of one), "sublayers" (several), "residual" (Medusa's); or "foreign"
            (known, and not supported).
        layer_like: which of the target's layers a block of its own kind is like: the "last" (of
            full attention, where there are several kinds) or the "first". `mtp_layer_types` of a
            configuration goes before it.
        layer_attention, layer_mlp: where the block differs from that layer, the kind that it has,
            in transformers' names; otherwise "".
        input_norm: the first block has its input norm.
        output_norm: the module's output is normalised before the output head.
        target_norm: the target's final norm is what comes before the output head.
        fusion_bias: the fusion's projection has a bias.
        feature_norm: with "aux" a norm before the layers are projected: "none", "all" (over all of
            them) or "each".
        norm_before_residual: with fusion "attention" the residual stream starts from the normalised
            hidden state.
        output_head: the target's ("shared") or "own".
        output_bias: the own output head has a bias.
        prefix: of a parallel head, one transformer block with an output norm over the hidden states
            of the text, before all levels.
        own_embedding: the head has an embedding of its own.
        draft_vocab_size: tokens that it can draft, or None for all.
        state: of a recurrent head, how a state comes about: a "sum" through a norm, or an "lstm".
        is_tied: all levels of a recurrent head share their weights, but for the first projection.
        block_size: slots of a block head; the first holds the root's token, the others a mask.
        mask_token: the token whose embedding the others hold; None where each slot has a row of its
            own, to which a fusion of the last hidden state and the root's embedding is added.
        offset: a slot predicts the token after its position ("next"), or the one in its place
            ("place"): then the first slot predicts nothing.
        in_block: whether slots see those behind them ("full"), or not ("causal"), or not in layers
            of sliding attention alone ("sliding").
        windows: of a block head, by layer, the width of its sliding attention, 0 for full; empty
            where all are full.
        correction: what a row is corrected by for the tokens drafted above it: "none", the last of
            them ("markov"), gated by the slot's features ("gated"), or all of them through a state
            ("rnn", "gru"); "features" is gated too and changes the slot's features, by the target's
            embedding of the last token, and nothing of it depends on the vocabulary.
        rank: width of what the correction is projected from.
        gru_size: width of the state of "gru".
        num_plain: rows of "gru" before the first that is corrected.
        context_tokens: the head also drafts tokens outside the draft vocabulary that the sequence
            has shown. It needs a shared output head.
        zero_first: the embedding of the pair at position 0 counts as zero.
        pair_position: a pair is at the position of its "hidden" state or of its "token". The rotary
            embedding depends on differences alone, so this changes rounding, nothing else.
        disputed: fields on which serving engines disagree; a probe decides.
        obstacle: why the family cannot be run, or "".
        layout: names of its tensors in the released checkpoints.
        sizes: None in a family's record.
    """

    family: str
    kind: str = "causal"
    num_modules: int = 1
    num_layers: int = 1
    feed: str = "post"
    aux_layers: tuple[int, ...] = ()
    recycle: str = "post"
    fusion: str = "eh"
    embed_norm: bool = True
    hidden_norm: bool = True
    norm_kind: str = "rms"
    block: str = "llama"
    layer_like: str = "last"
    layer_attention: str = ""
    layer_mlp: str = ""
    input_norm: bool = True
    output_norm: bool = True
    target_norm: bool = False
    fusion_bias: bool = False
    feature_norm: str = "none"
    norm_before_residual: bool = False
    output_head: str = "shared"
    output_bias: bool = False
    prefix: bool = False
    own_embedding: bool = False
    draft_vocab_size: int | None = None
    state: str = "none"
    is_tied: bool = False
    block_size: int = 1
    mask_token: int | None = None
    offset: str = "next"
    in_block: str = "full"
    windows: tuple[int, ...] = ()
    correction: str = "none"
    rank: int = 0
    gru_size: int = 0
    num_plain: int = 0
    context_tokens: bool = False
    zero_first: bool = False
    pair_position: str = "hidden"
    disputed: tuple[str, ...] = ()
    obstacle: str = ""
    layout: Layout = field(default_factory=Layout)
    sizes: Sizes | None = None

    def __post_init__(self) -> None:
        """Refuse values that no head has."""
        for name in ("family", "block"):
            if not isinstance(getattr(self, name), str):
                _refuse(name, getattr(self, name), "a name")
        _check_fields(self)
        for name in ("aux_layers", "windows"):
            if not all(type(number) is int for number in getattr(self, name)):
                _refuse(name, getattr(self, name), "ints")
        if self.context_tokens and (self.draft_vocab_size is None or self.output_head == "own"):
            _refuse("context_tokens", "set", "a draft vocabulary and a shared output head with it")

    def replace(self, **changes: Any) -> HeadSpec:
        """Return a copy with other fields."""
        return dataclasses.replace(self, **changes)

    @property
    def known_sizes(self) -> Sizes:
        """The sizes; ParamsError if they are not set."""
        if self.sizes is None:
            message = f"the sizes of {self.family} are not set; use spec.replace(sizes=Sizes(...))"
            raise ParamsError(message, slug="bad_head_spec")
        return self.sizes

    @property
    def is_inside_target(self) -> bool:
        """Whether a published head of this kind is a part of its target's checkpoint."""
        return self.kind == "causal" and bool(self.layout.prefix)

    @property
    def hidden_layers(self) -> tuple[int, ...]:
        """The target's hidden states that go in, as `mtp_verify.models.hidden` numbers them."""
        return {"post": (-1,), "pre": (BEFORE_NORM,)}.get(self.feed, self.aux_layers)

    def to_json(self) -> str:
        """Return all fields as one JSON document."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> HeadSpec:
        """Read what `to_json` wrote.

        Raises:
            ParamsError: not such a document; says why.
        """
        try:
            fields = json.loads(text)
            layout, sizes = fields["layout"], fields["sizes"]
            layout.pop("infix", None)  # in heads that were saved before 2026-12
            for table, name in (
                (layout, "count_keys"),
                (layout, "model_types"),
                (layout, "marks"),
                (layout, "unread"),
                (fields, "aux_layers"),
                (fields, "windows"),
                (fields, "disputed"),
            ):
                table[name] = tuple(table.get(name, ()))
            fields["layout"] = Layout(**layout)
            fields["sizes"] = None if sizes is None else Sizes(**sizes)
            return cls(**fields)
        except ParamsError:
            raise
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            message = f"this is not the description of a head: {type(error).__name__}: {error}"
            raise ParamsError(message, slug="bad_head_spec") from None


@dataclass(frozen=True)
class Repository:
    """A layout for a head that has a repository of its own, as engines read it.

    `describe` takes the head and the target's checkpoint, or None, and returns the `config.json`
    and tensors that are no parameters of the head, such as its draft vocabulary. It refuses, by
    `refuse_export`, what the layout cannot hold.
    """

    layout: Layout
    describe: Callable[[Head, Checkpoint | None], Described]


def refuse_export(spec: HeadSpec, why: str) -> NoReturn:
    """Refuse to write a head in a layout: always raises ParamsError."""
    message = f"the {spec.family} head cannot be exported so: {why}"
    raise ParamsError(message, slug="bad_layout")


@dataclass(frozen=True)
class Family:
    """A published family: what its heads are made of, and how checkpoints hold them."""

    spec: HeadSpec  # of a head, without sizes
    block: type[HeadBlock] | None = None  # None: such blocks cannot be run here
    engines: tuple[str, ...] = ()  # which of "transformers", "vllm" and "sglang" load such a head
    # By the name that `export` uses; `spec.layout` is recognised too.
    repositories: Mapping[str, Repository] = field(default_factory=dict)
    # Fields of the spec that depend on the checkpoint.
    read_fields: Callable[[Source], dict[str, Any]] | None = None
    # Number of the target's layers -> `aux_layers`, where `feed` is "aux".
    default_layers: Callable[[int], tuple[int, ...]] | None = None
    # Configuration of the target, its checkpoint -> further tensors for the target. The
    # configuration changes, so that an engine serves another architecture with such a head inside.
    adapt_target: Callable[[dict[str, Any], Checkpoint], dict[str, torch.Tensor]] | None = None
    aliases: tuple[Layout, ...] = ()  # further layouts, which are read and not written

    @property
    def layouts(self) -> tuple[Layout, ...]:
        """Every layout in which such a head is recognised."""
        others = (repository.layout for repository in self.repositories.values())
        written = (other for other in others if other is not self.spec.layout)
        return (self.spec.layout, *written, *self.aliases)
