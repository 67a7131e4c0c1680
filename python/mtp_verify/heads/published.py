"""Heads of published checkpoints: inside a target's, or in repositories of their own."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch

from mtp_verify.checkpoints.tensors import bad_checkpoint
from mtp_verify.errors import ParamsError, UnsupportedModelError
from mtp_verify.heads.assemble import Stored, assemble, empty_head
from mtp_verify.heads.base import Shared, check_target
from mtp_verify.heads.blocks import TargetBlock
from mtp_verify.heads.convert import from_checkpoint
from mtp_verify.heads.layouts import Found, find_head, published_name
from mtp_verify.heads.spec import HeadSpec, Sizes

if TYPE_CHECKING:
    from mtp_verify.checkpoints.folder import Checkpoint
    from mtp_verify.heads.base import Head

__all__ = ["Published"]

_EMBEDDINGS = ("embed_tokens.weight", "word_embeddings.weight", "embeddings.weight")
_OUTPUTS = ("lm_head.weight",)
_MEANINGLESS = ("rotary_emb.inv_freq",)
_SPECULATORS = ("norm_before_residual", "norm_output", "eagle_aux_hidden_state_layer_ids",
                "draft_vocab_size")  # fmt: skip
_SCALE = "_scale_inv"  # of weights in blocks of eight-bit floats, as DeepSeek's
_CHUNK = 4096  # rows compared at once


class Published:
    """A published head: what it is, before its tensors are read.

    Args:
        checkpoint: that holds it.
        target: the transformers model that it drafts for.

    Raises:
        UnsupportedModelError: no head is recognised, or its configuration makes no sense.
        ParamsError: the target is needed to understand it.

    Attributes:
        found: family, layout and modules.
        spec: with sizes.
    """

    def __init__(self, checkpoint: Checkpoint, target: Any | None = None) -> None:
        self.checkpoint = checkpoint
        self.target = target
        self.config = _flattened(checkpoint)
        self.found = find_head(checkpoint.tensors, self.config)
        infix = self.found.layout.infix
        self._names = {_without(name, self._prefixes, infix): name for name in checkpoint.tensors}
        if (
            "lm_head.weight" in self._names
            and self.found.layout.names.get("output") == "lm_heads.{i}"
        ):
            # vLLM's Medusa heads may share one output head.
            shared = self._names.pop("lm_head.weight")
            for module in range(self.found.spec.num_modules):
                self._names.setdefault(f"lm_heads.{module}.weight", shared)
        self._used: set[str] = set()
        self.copies: dict[str, bool] = {}
        try:
            self.spec = self._understood(self.found.spec)
        except ParamsError as error:
            if error.slug == "head_needs_target":
                raise
            bad_checkpoint(checkpoint.folder / "config.json", str(error))
        self.found = Found(self.spec, self.found.layout, self.found.numbers)

    def head(self, dtype: torch.dtype | Literal["auto"] | None = None) -> Head:
        """Read the tensors.

        Raises:
            UnsupportedModelError: tensors that are missing, not known, or of another shape.
            ParamsError: the family needs its target.
        """
        if self.target is not None:
            check_target(self.spec, Shared.of(self.target))
        stored, extra = self.stored()
        return assemble(
            self.spec,
            stored,
            self.checkpoint.folder,
            target=self.target,
            vocab=self._vocab(),
            dtype=dtype,
            extra=extra,
            label=self.label,
        )

    def stored(self) -> tuple[dict[str, Stored], list[str]]:
        """The tensor of each parameter, and those that belong to none.

        Raises:
            UnsupportedModelError: a family that cannot be run; says why.
        """
        spec = self.spec
        if spec.num_modules * spec.num_layers > len(self._names):
            bad_checkpoint(self.checkpoint.folder, f"it claims {spec.num_modules} modules")
        stored: dict[str, Stored] = {}
        extra: list[str] = []
        if spec.block == "target" and self.target is not None:
            for module in range(spec.num_modules):
                block, unknown = self._block(module)
                stored |= block
                extra += unknown
        for name, tensor in empty_head(spec, self.target).state_dict().items():
            label = published_name(self.found, name)
            if name in stored or label is None:
                continue
            if label in self._names:
                stored[name] = self._stored(label)
            elif label.endswith("bias") and spec.block == "residual":
                # vLLM's Medusa heads may lack biases.
                shape = tuple(tensor.shape)
                beside = self._stored(label.removesuffix("bias") + "weight")
                stored[name] = Stored(label, shape, partial(_zeros, shape, beside))
        return stored, extra + self._left_over()

    def names(self) -> list[str]:
        """The checkpoint's names of all tensors that belong to the head."""
        embedding = published_name(self.found, "embedding.weight")
        return sorted(
            name
            for label, name in self._names.items()
            if self._is_mine(label) or (label == embedding and self._prefixes)
        )

    def is_fusion(self, name: str) -> bool:
        """Whether a tensor of the checkpoint is a module's projection of its two inputs."""
        levels = range(self.spec.num_modules)
        labels = [published_name(self.found, f"levels.{level}.fusion.weight") for level in levels]
        return name in (self._names.get(label) for label in labels if label)

    def main_of(self, copy: str) -> str:
        """The target's own tensor that a stored copy equals, in a checkpoint with both.

        Raises:
            UnsupportedModelError: there is none.
        """
        is_embedding = copy == self._names.get(
            published_name(self.found, "embedding.weight") or ""
        ) or copy.endswith(_EMBEDDINGS)
        main = self._main(_EMBEDDINGS if is_embedding else (*_OUTPUTS, *_EMBEDDINGS))
        if main is None:
            bad_checkpoint(self.checkpoint.folder, f"{copy} is a copy of nothing")
        return main

    @property
    def main_embedding(self) -> str | None:
        """The target's own embedding, in a checkpoint with both."""
        return self._main(_EMBEDDINGS)

    def label(self, name: str) -> str:
        """The name of a parameter as the checkpoint would have it."""
        return published_name(self.found, name) or name

    def has(self, part: str) -> bool:
        """Whether there is a tensor for one of our parameters."""
        return published_name(self.found, part) in self._names

    def _understood(self, spec: HeadSpec) -> HeadSpec:
        config, has = self.config, self.has
        if spec.block == "foreign":
            msg = f"heads of the family {spec.family} cannot be run here: {spec.obstacle}"
            raise UnsupportedModelError(msg, slug="unsupported_head")
        if config.get("target_hidden_size") not in (None, config.get("hidden_size")):
            bad_checkpoint(self.checkpoint.folder, "its hidden states are wider than the target's")
        changes: dict[str, Any] = {
            "num_layers": self._blocks(),
            "fusion_bias": has("levels.0.fusion.bias"),
        }
        if spec.family == "eagle":
            changes |= {
                "embed_norm": has("levels.0.embed_norm.weight"),
                "hidden_norm": has("levels.0.hidden_norm.weight"),
                "input_norm": has("levels.0.layers.0.input_layernorm.weight"),
            }
        if spec.family == "eagle3":
            changes |= self._eagle3()
        spec = spec.replace(**changes)
        sizes = self._sizes(spec)
        spec = spec.replace(sizes=sizes)
        self.found = Found(spec, self.found.layout, self.found.numbers)
        return spec.replace(**self._tied(spec))

    def _blocks(self) -> int:
        """Blocks of a module: as many as have tensors."""
        template = self.found.layout.names.get("block", "")
        if "{l}" not in template:
            return 1
        count = 0
        while any(
            self.has(f"levels.0.layers.{count}.{name}")
            for name in ("linear.weight", "self_attn.q_proj.weight")
        ):
            count += 1
        return max(1, count)

    def _eagle3(self) -> dict[str, Any]:
        config, has = self.config, self.has
        nested = config.get("eagle_config")
        layers = config.get("eagle_aux_hidden_state_layer_ids")
        shift = 0
        if layers is None and isinstance(nested, dict):
            # SGLang counts by what leaves a layer, vLLM and transformers by what enters it.
            layers, shift = nested.get("eagle_aux_hidden_state_layer_ids"), 1
        if layers is None:
            if self.target is None:
                msg = (
                    f"{self.checkpoint.folder}: which hidden states the head reads depends on the "
                    "target's depth; give the target: mv.heads.load(path, target=model)"
                )
                raise ParamsError(msg, slug="head_needs_target")
            depth = self.target.config.get_text_config(decoder=True).num_hidden_layers
            layers, shift = [2, depth // 2, depth - 3], 0
        if not isinstance(layers, list) or not all(type(layer) is int for layer in layers):
            bad_checkpoint(self.checkpoint.folder / "config.json", f"no sound layers: {layers}")
        feature_norm = "all" if self._is_there("input_norm.weight") else "none"
        if self._is_there("fc_norm.0.weight"):
            feature_norm = "each"
        before = config.get("norm_before_residual")
        changes: dict[str, Any] = {
            "aux_layers": tuple(layer + shift for layer in layers),
            "feature_norm": feature_norm,
            "norm_before_residual": bool(before),
            "recycle": "post" if config.get("norm_output") else "pre",
        }
        if before is None and "speculators_model_type" in config:
            # vLLM takes yes for a missing answer, speculators no.
            changes["disputed"] = ("norm_before_residual",)
        output = self._names.get("lm_head.weight")
        if output is not None and has("levels.0.output.weight") and self._is_there("d2t"):
            changes["draft_vocab_size"] = self.checkpoint.tensors[output].shape[:1][0]
        return changes

    def _sizes(self, spec: HeadSpec) -> Sizes:
        config, has = dict(self.config), self.has
        if spec.kind == "parallel":
            width = self._shape("levels.0.layers.0.linear.weight")
            rows = self._shape("levels.0.output.weight")
            config.setdefault("hidden_size", width[0] if width else None)
            config.setdefault("vocab_size", rows[0] if rows else None)
            if config["vocab_size"] is None and self.target is not None:
                config["vocab_size"] = self.target.config.get_text_config(decoder=True).vocab_size
            return Sizes.from_table(config, head_dim=0, intermediate_size=0)
        if spec.block == "target":
            window = None
            if self.target is not None:
                with torch.device("meta"):
                    window = TargetBlock(self.target).window
            return Sizes.from_table(config, window=window)
        block = "levels.0.layers.0."
        wide = self._shape(f"{block}mlp.gate_proj.weight")
        return Sizes.from_table(
            config,
            **({"intermediate_size": wide[0]} if wide else {}),
            activation=config.get("hidden_act") or "silu",
            qkv_bias=has(f"{block}self_attn.q_proj.bias"),
            output_bias=has(f"{block}self_attn.o_proj.bias"),
            mlp_bias=has(f"{block}mlp.gate_proj.bias"),
            qk_norm=has(f"{block}self_attn.q_norm.weight"),
        )

    def _tied(self, spec: HeadSpec) -> dict[str, Any]:
        """Which stored embeddings and output heads are the target's own."""
        shared = None if self.target is None else Shared.of(self.target)
        changes: dict[str, Any] = {}
        label = published_name(self.found, "embedding.weight")
        if label in self._names:
            weight = getattr(shared.embed, "weight", None) if shared else None
            changes["own_embedding"] = not self._same(label, weight, _EMBEDDINGS)
        outputs = [
            label
            for module in range(spec.num_modules)
            if (label := published_name(self.found, f"levels.{module}.output.weight"))
            in self._names
        ]
        weight = shared.output_weight if shared else None
        if spec.kind == "parallel" and outputs and "token_map" in self._names:
            rows = self.checkpoint.tensors[self._names[outputs[0]]].shape[:1]
            changes["draft_vocab_size"] = rows[0] if rows else None
            if weight is not None:
                tokens = self.checkpoint.read("token_map").to(weight.device, torch.int64)
                is_sound = tokens.numel() and tokens.min() >= 0 and tokens.max() < len(weight)
                weight = weight[tokens] if is_sound else None
        elif spec.draft_vocab_size is not None:
            changes["output_head"] = "own" if outputs else "shared"
            return changes
        same = [self._same(label, weight, (*_OUTPUTS, *_EMBEDDINGS)) for label in outputs]
        changes["output_head"] = "shared" if all(same) else "own"
        return changes

    def _same(self, label: str, weight: torch.Tensor | None, mains: tuple[str, ...]) -> bool:
        """Whether a stored copy equals the target's own matrix; it then counts as read."""
        name = self._names[label]
        shape = self.checkpoint.tensors[name].shape
        if weight is None:
            main = self._main(mains)
            if main is None or self.checkpoint.tensors[main].shape != shape:
                return False
            weight = self.checkpoint.read(main)
        same = False
        if tuple(weight.shape) == shape:
            mine = self.checkpoint.read(name)
            same = all(
                torch.equal(
                    mine[row : row + _CHUNK],
                    weight[row : row + _CHUNK].detach().to("cpu", mine.dtype),
                )
                for row in range(0, shape[0], _CHUNK)
            )
        self.copies[name] = same
        if same:
            self._used.add(name)
        return same

    def _main(self, endings: tuple[str, ...]) -> str | None:
        """The target's own matrix in the checkpoint: the shortest name with such an ending."""
        if not self._prefixes:
            return None
        mine = {self._names[label] for label in self._names if label.startswith(self._prefixes)}
        for ending in endings:
            found = [
                name
                for name in self.checkpoint.tensors
                if name.endswith(ending) and name not in mine and ".mtp" not in name
            ]
            if found:
                return min(found, key=len)
        return None

    @property
    def _prefixes(self) -> tuple[str, ...]:
        if not self.found.layout.prefix:
            return ()
        return tuple(self.found.prefix(module) for module in range(len(self.found.numbers)))

    def _block(self, module: int) -> tuple[dict[str, Stored], list[str]]:
        """A module's block, converted to the layer class of the target."""
        layout, found = self.found.layout, self.found
        start = found.prefix(module) + layout.names["block"].replace("{i}", str(module))
        parts = {
            label
            for part in ("embed_norm", "hidden_norm", "fusion", "norm", "output")
            for kind in ("weight", "bias")
            if (label := published_name(found, f"levels.{module}.{part}.{kind}"))
        } | {published_name(found, "embedding.weight")}
        tensors: dict[str, torch.Tensor] = {}
        names: dict[str, str] = {}
        for label, name in self._names.items():
            if not label.startswith(start) or label in parts or label.endswith(_SCALE):
                continue
            rest = label.removeprefix(start)
            for ours, theirs in layout.renames.items():
                if rest.startswith(f"{theirs}."):
                    rest = ours + rest.removeprefix(theirs)
            names[rest] = name
            tensors[rest] = self._stored(label).read()
        converted = from_checkpoint(self.target, tensors)
        if converted.wrong:
            msg = f"{self.checkpoint.folder}: wrong shape: {', '.join(converted.wrong[:8])}"
            raise UnsupportedModelError(msg, slug="bad_tensors")
        own = f"levels.{module}.layers.0.layer."
        stored = {
            own + name: Stored(start + name, tuple(tensor.shape), tensor.clone)
            for name, tensor in converted.tensors.items()
        }
        unknown = [
            names.get(name, start + name)
            for name in converted.unknown
            if not name.endswith(_MEANINGLESS)
        ]
        return stored, unknown

    def _stored(self, label: str) -> Stored:
        name = self._names[label]
        self._used.add(name)
        scale = self._names.get(label + _SCALE)
        if scale is not None:
            self._used.add(scale)
        shape = self.checkpoint.tensors[name].shape

        def read() -> torch.Tensor:
            tensor = self.checkpoint.read(name)
            if scale is None:
                return tensor
            return _unscaled(tensor, self.checkpoint.read(scale), self._scale_block())

        return Stored(name, shape, read)

    def _scale_block(self) -> tuple[int, int]:
        options = self.config.get("quantization_config")
        block = options.get("weight_block_size") if isinstance(options, dict) else None
        if isinstance(block, list) and len(block) == 2 and all(type(b) is int for b in block):
            return max(1, block[0]), max(1, block[1])
        return 128, 128

    def _left_over(self) -> list[str]:
        """Tensors under the head's prefixes that are no parameter's."""
        aside = {"d2t", "t2d", "token_map"}
        return sorted(
            name
            for label, name in self._names.items()
            if self._is_mine(label)
            and name not in self._used
            and name not in aside
            and not name.endswith(_MEANINGLESS)
        )

    def _is_mine(self, label: str) -> bool:
        """Whether a tensor belongs to the head and not to the target around it."""
        if self._prefixes:
            return label.startswith(self._prefixes)
        # Ernie's modules have no prefix of their own.
        return self.spec.family != "ernie4_5_moe" or label.startswith("model.mtp_")

    def _vocab(self) -> Stored | None:
        """The draft vocabulary: EAGLE-3 stores offsets, vLLM's Medusa the tokens."""
        checkpoint, size = self.checkpoint, self.spec.draft_vocab_size
        if "token_map" in self._names:
            return Stored(
                "token_map",
                checkpoint.tensors["token_map"].shape,
                lambda: checkpoint.read("token_map").to(torch.int64),
            )
        if "d2t" not in self._names or size is None:
            return None

        def read() -> torch.Tensor:
            offsets = checkpoint.read("d2t").to(torch.int64)
            tokens = offsets + torch.arange(offsets.numel())
            if "t2d" in self._names:
                known = checkpoint.read("t2d").to(torch.bool).reshape(-1)
                if not torch.equal(known.nonzero()[:, 0], tokens):
                    bad_checkpoint(checkpoint.folder, "d2t and t2d name different tokens")
            return tokens

        return Stored("d2t", checkpoint.tensors["d2t"].shape, read)

    def _is_there(self, label: str) -> bool:
        return label in self._names

    def _shape(self, name: str) -> tuple[int, ...] | None:
        label = published_name(self.found, name)
        if label not in self._names:
            return None
        return self.checkpoint.tensors[self._names[label]].shape


def _flattened(checkpoint: Checkpoint) -> dict[str, Any]:
    """The configuration in one table; `speculators` keeps the block's apart."""
    config = dict(checkpoint.text_config)
    block = config.get("transformer_layer_config")
    kind = config.get("speculators_model_type")
    if kind is None or not isinstance(block, dict):
        return config
    if kind != "eagle3":
        msg = (
            f"{checkpoint.folder}: speculators of the type {str(kind)[:50]!r} cannot be run here; "
            "the type eagle3 can"
        )
        raise UnsupportedModelError(msg, slug="unsupported_head")
    kept = {key: config[key] for key in (*_SPECULATORS, "target_hidden_size") if key in config}
    return {**block, **kept, "speculators_model_type": kind}


def _zeros(shape: tuple[int, ...], beside: Stored) -> torch.Tensor:
    return torch.zeros(shape, dtype=beside.read().dtype)


def _without(name: str, prefixes: tuple[str, ...], infix: str) -> str:
    if infix:
        for prefix in prefixes:
            if name.startswith(prefix + infix):
                return prefix + name.removeprefix(prefix + infix)
    return name


def _unscaled(weight: torch.Tensor, scale: torch.Tensor, block: tuple[int, int]) -> torch.Tensor:
    """A matrix of eight-bit floats times the scale of each block of it."""
    rows, columns = weight.shape[-2:]
    wide = scale.float().repeat_interleave(block[0], -2).repeat_interleave(block[1], -1)
    return (weight.float() * wide[..., :rows, :columns]).to(torch.bfloat16)
