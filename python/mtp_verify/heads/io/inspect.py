"""`inspect_head`: what the head in a checkpoint is, and what is wrong with it.

Tools lose or damage heads silently: fine-tuning through a library that drops their tensors leaves
the count in the configuration, quantisers leave a block at random. So counts come from tensors,
weights are checked, and the head is measured on the target's own text.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from mtp_verify.errors import MtpVerifyError, ParamsError, UnsupportedModelError
from mtp_verify.heads.families import FAMILIES, block_of
from mtp_verify.heads.io.assemble import empty_head, find_defects
from mtp_verify.heads.io.convert import convert
from mtp_verify.heads.io.load import load_published
from mtp_verify.heads.io.recognise import recognise
from mtp_verify.heads.probe import resolve_disputed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from mtp_verify.checkpoints.folder import Checkpoint
    from mtp_verify.heads.io.recognise import Source
    from mtp_verify.heads.probe import Probe
    from mtp_verify.heads.spec import HeadSpec

__all__ = ["STATES", "Inspection", "config_type", "engines", "inspect_head"]

# Kinds of defect, the worst first; an inspection's status is the first that was found.
STATES = ("missing", "damaged", "dead", "stale", "unsupported", "unchecked", "ok")
DEAD = 0.05  # agreement at depth 1 below which a head is worth nothing
STALE = 0.7  # of the reference's accepted tokens
# A projection whose largest singular value is that of noise of its size, to this share, was never
# trained; trained ones are far above.
_NOISE = 0.1
_ITERATIONS = 16
_FLOATS = ("F32", "F16", "BF16", "F64")


@dataclass
class Inspection:
    """What was found."""

    spec: HeadSpec | None = None  # None: no head was recognised
    tensors: int = 0  # that belong to the head
    parameters: int = 0
    dtypes: dict[str, int] = field(default_factory=dict)  # dtype -> tensors of it
    copies: dict[str, bool] = field(default_factory=dict)  # see `Source.copies`
    claimed: int | None = None  # modules, by the configuration
    defects: list[tuple[str, str]] = field(default_factory=list)  # (kind, what is wrong)
    notes: list[str] = field(default_factory=list)  # what was not checked, and why
    probe: Probe | None = None  # measured on the target's own text
    engines: dict[str, str] = field(default_factory=dict)  # engine -> would it load the head

    @property
    def status(self) -> str:
        """The worst kind of defect, or "ok"."""
        found = {kind for kind, _ in self.defects}
        return next(state for state in STATES if state in found or state == "ok")

    def judge(self, reference: Probe | None = None) -> None:
        """Add the defects that the measurement shows, beside that of the original head."""
        if self.probe is None:
            return
        accepted = self.probe.readings[self.probe.best].accepted
        if accepted[0] < DEAD:
            what = f"{accepted[0]:.1%} of its first tokens are the target's; dead below {DEAD:.0%}"
            self.defects.append(("dead", what))
        elif reference is not None:
            wanted = sum(reference.readings[reference.best].accepted)
            if sum(accepted) < STALE * wanted:
                what = f"{sum(accepted):.2f} of its tokens are accepted a step"
                self.defects.append(("stale", f"{what}, {wanted:.2f} of the original's"))


def inspect_head(
    checkpoint: Checkpoint,
    target: Any | None = None,
    *,
    prompts: Sequence[Sequence[int]] | None = None,
    num_tokens: int = 256,
    reference: Probe | None = None,
) -> Inspection:
    """Inspect a published head.

    Without the target that it drafts for nothing is measured, nor with `num_tokens` 0; `prompts`
    and `num_tokens` are those of `probe`. A head that falls far below `reference`, that of the
    original head on its own target, is stale.
    """
    found = Inspection()
    try:
        source = recognise(checkpoint, target)
    except (UnsupportedModelError, ParamsError) as error:
        if isinstance(error, ParamsError):
            found.notes.append(str(error))
        else:
            kinds = {"no_head": "missing", "unsupported_head": "unsupported"}
            found.defects.append((kinds.get(error.slug or "", "damaged"), str(error)))
        return found
    found.spec, found.copies = source.spec, dict(source.copies)
    found.engines = engines(source.spec, config_type(checkpoint.config))
    _count(found, source)
    found.defects += _wrong_tensors(source, found.notes)
    if found.status != "damaged":  # Of another shape, and maybe of any size.
        found.defects += _wrong_weights(source)
    if found.status != "ok" or target is None or not num_tokens:
        return found
    try:
        head = load_published(source)
    except MtpVerifyError as error:
        found.defects.append(("damaged", str(error)))
        return found
    found.probe = resolve_disputed(head, target, prompts=prompts, num_tokens=num_tokens)
    found.spec = head.spec
    found.judge(reference)
    return found


def engines(spec: HeadSpec, model_type: str | None = None) -> dict[str, str]:
    """Return whether transformers, vLLM and SGLang would load a head, in words.

    Read in the sources of vLLM 0.32 and SGLang 0.5.23; the transformers that is installed is asked
    about the target's `model_type`, where that is known. Not a promise.
    """
    name, is_inside = spec.family, spec.is_inside_target
    inside = "if it has the target's next-token module: --speculative-algorithm NEXTN"
    answers = {
        "transformers": "yes: generate(use_mtp=True), one token a module",
        "vllm": f'yes: method "{"mtp" if is_inside else name}"',
        "sglang": inside if is_inside else f"yes: --speculative-algorithm {name.upper()}",
    }
    loaded_by = FAMILIES[name].engines if name in FAMILIES else ()
    answers |= {engine: "no" for engine in answers if engine not in loaded_by}
    if name == "medusa":
        answers["vllm"] = 'no: up to 0.32 with method "medusa", and no longer'
    if "transformers" in loaded_by and not _has_modules(model_type):
        answers["transformers"] = f"no: it has no next-token modules for {model_type}"
    if is_inside and "transformers" not in loaded_by:
        answers["transformers"] = "no: the tensors are dropped when the target is loaded"
    return answers


def config_type(config: Mapping[str, Any]) -> str | None:
    """Return the type of model that a configuration, or its part for language, names."""
    part = config.get("text_config")
    kind = part.get("model_type") if isinstance(part, dict) else None
    found = kind or config.get("model_type")
    return found if isinstance(found, str) else None


def _has_modules(model_type: str | None) -> bool:
    """Return whether transformers' configuration of a type has next-token modules, if it has one.

    Types that take over DeepSeek's names and classes may drop them.
    """
    from transformers import CONFIG_MAPPING, AutoConfig

    if model_type is None:
        return True
    if model_type not in CONFIG_MAPPING:
        return False
    whole = CONFIG_MAPPING[model_type]
    language = whole.sub_configs.get("text_config", whole)
    known = whole if language is AutoConfig else language
    return hasattr(known, "num_mtp_layers") or "num_mtp_layers" in known.attribute_map


def _count(found: Inspection, source: Source) -> None:
    infos = [source.checkpoint.tensors[name] for name in source.own_names]
    found.tensors = len(infos)
    found.parameters = sum(math.prod(info.shape) for info in infos)
    found.dtypes = dict(Counter(info.dtype for info in infos))
    claims = (source.config.get(key) for key in source.naming.layout.count_keys)
    found.claimed = next((claim for claim in claims if type(claim) is int), None)
    claimed, real = found.claimed, source.spec.num_modules
    what = f"the configuration claims {claimed} modules and the tensors are of {real}"
    if claimed is not None and claimed > real:
        found.defects.append(("missing", what))
    elif claimed is not None and claimed < real:
        found.notes.append(what)


def _wrong_tensors(source: Source, notes: list[str]) -> list[tuple[str, str]]:
    """Return defects of names and shapes; notes take what could not be checked."""
    if block_of(source.spec).needs_target and source.target is None:
        what = "the blocks are of the target's own kind of layer and were not checked"
        notes.append(f"{what}: no target")
        return []
    try:
        wrong = find_defects(empty_head(source.spec, source.target), convert(source))
    except MtpVerifyError as error:
        return [("damaged", str(error))]
    return [("missing" if what.startswith("missing") else "damaged", what) for what in wrong]


def _wrong_weights(source: Source) -> Iterator[tuple[str, str]]:
    """Yield defects of the weights: not finite, all zero, or as they were initialised."""
    neutral = 0.0 if source.spec.norm_kind == "rms1p" else 1.0
    untouched: list[bool] = []
    for name in source.own_names:
        if source.checkpoint.tensors[name].dtype not in _FLOATS or name in source.copies:
            continue
        tensor = source.checkpoint.read(name).float()
        if not bool(tensor.isfinite().all()):
            yield "damaged", f"{name} holds numbers that are not finite"
        elif tensor.dim() == 2 and not bool(tensor.any()):
            yield "dead", f"{name} is all zero"
        elif tensor.dim() == 1 and "norm" in name:
            untouched.append(bool((tensor == neutral).all()))
        elif name in source.of_levels("fusion"):
            untouched.append(_is_noise(tensor))
    if untouched and all(untouched):
        yield "dead", "its norms and its projection are as they were initialised: never trained"


def _is_noise(matrix: torch.Tensor) -> bool:
    """Return whether the largest singular value is that of independent noise."""
    rows, columns = matrix.shape
    expected = float(matrix.std()) * (rows**0.5 + columns**0.5)
    # Power iteration: a whole decomposition of a large projection takes minutes.
    vector = torch.randn(columns, generator=torch.Generator().manual_seed(0))
    for _ in range(_ITERATIONS):
        vector = matrix.T @ (matrix @ vector)
        vector /= vector.norm().clamp_min(1e-30)
    return bool(float((matrix @ vector).norm()) < (1.0 + _NOISE) * expected)
