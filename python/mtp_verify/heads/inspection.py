"""A checkpoint's head under the magnifying glass: what it is, and what is wrong with it.

Heads are lost or damaged silently: fine-tuning through a library that drops their tensors leaves
the count in the configuration behind, quantisers leave a block at random. So counts come from
tensors, weights are looked at, and the head is measured on the target's own text.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from mtp_verify.errors import MtpVerifyError, ParamsError, UnsupportedModelError
from mtp_verify.heads.assemble import defects, empty_head
from mtp_verify.heads.layouts import claimed_modules
from mtp_verify.heads.probe import settle
from mtp_verify.heads.published import Published

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mtp_verify.checkpoints.folder import Checkpoint
    from mtp_verify.heads.probe import Probe
    from mtp_verify.heads.spec import HeadSpec

__all__ = ["STATES", "Inspection", "engines", "inspect_head", "weigh"]

# Kinds of defect, the gravest first; an inspection's status is the first that was found.
STATES = ("missing", "damaged", "dead", "stale", "ok")
DEAD = 0.05  # agreement at depth 1 below which a head is worth nothing
STALE = 0.7  # of the reference's accepted tokens
# A projection whose largest singular value is that of noise of its size, to this share, was never
# trained; trained ones are far above.
_NOISE = 0.1
_ITERATIONS = 16
_IN_TRANSFORMERS = (
    "deepseek_v3", "glm4_moe", "bailing", "step3p5", "mellum", "inkling", "nemotron_h",
)  # fmt: skip


@dataclass
class Inspection:
    """What was found.

    Attributes:
        spec: of the head, or None if none was recognised.
        tensors: the number that belong to it.
        parameters: numbers in them.
        dtypes: dtype -> tensors of it.
        copies: stored copies of embedding or output head -> whether they equal the target's.
        claimed: modules that the configuration claims, or None.
        defects: (kind, what is wrong).
        notes: what was not checked, and why.
        probe: measured on the target's own text, or None.
        engines: engine -> whether it would load the head, in words.
    """

    spec: HeadSpec | None = None
    tensors: int = 0
    parameters: int = 0
    dtypes: dict[str, int] = field(default_factory=dict)
    copies: dict[str, bool] = field(default_factory=dict)
    claimed: int | None = None
    defects: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    probe: Probe | None = None
    engines: dict[str, str] = field(default_factory=dict)

    @property
    def status(self) -> str:
        """The gravest kind of defect, or "ok"."""
        found = {kind for kind, _ in self.defects}
        return next(state for state in STATES if state in found or state == "ok")

    def judge(self, reference: Probe | None = None) -> None:
        """Draw the consequences of what was measured.

        Args:
            reference: of the original head on its own target.
        """
        if self.probe is None:
            return
        accepted = self.probe.readings[self.probe.best].accepted
        if accepted[0] < DEAD:
            what = f"{accepted[0]:.1%} of its first tokens are the target's; dead below {DEAD:.0%}"
            self.defects.append(("dead", what))
        elif reference is not None:
            wanted = sum(reference.readings[reference.best].accepted)
            if sum(accepted) < STALE * wanted:
                what = (
                    f"{sum(accepted):.2f} of its tokens are accepted a step, {wanted:.2f} of the "
                    "original's"
                )
                self.defects.append(("stale", what))


def inspect_head(
    checkpoint: Checkpoint,
    target: Any | None = None,
    *,
    prompts: Sequence[Sequence[int]] | None = None,
    num_tokens: int = 256,
    reference: Probe | None = None,
) -> Inspection:
    """Look at a published head.

    Args:
        checkpoint: that holds it.
        target: the model that it drafts for; without it nothing is measured.
        prompts: see `probe`.
        num_tokens: written for the probe; 0 measures nothing.
        reference: of the original head on its own target; a head that falls far below is stale.

    Raises:
        UnsupportedModelError: the checkpoint itself cannot be read.
    """
    found = Inspection()
    try:
        published = Published(checkpoint, target)
    except UnsupportedModelError as error:
        if error.slug == "no_head":
            found.defects.append(("missing", str(error)))
        elif error.slug == "unsupported_head":
            found.notes.append(str(error))
        else:
            found.defects.append(("damaged", str(error)))
        return found
    except ParamsError as error:
        found.notes.append(str(error))
        return found
    found.spec = published.spec
    found.engines = engines(published.spec)
    found.copies = published.copies
    found.claimed = claimed_modules(published.found, published.config)
    _count(found, published)
    _check(found, published, target)
    weigh(found, published)
    if found.status != "ok" or target is None or not num_tokens:
        return found
    try:
        head = published.head()
    except MtpVerifyError as error:
        found.defects.append(("damaged", str(error)))
        return found
    found.probe = settle(head, target, prompts=prompts, num_tokens=num_tokens)
    found.spec = head.spec
    found.judge(reference)
    return found


def engines(spec: HeadSpec) -> dict[str, str]:
    """Whether transformers, vLLM and SGLang would load a head, in words.

    Read in the sources of transformers 5.23, vLLM 0.32 and SGLang 0.5.23; not a promise.
    """
    family = spec.family
    own = family in ("eagle", "eagle3", "medusa")
    inside = bool(spec.layout.prefix) or family == "ernie4_5_moe"
    answers = {
        "transformers": "yes: generate(use_mtp=True), one token a module"
        if family in _IN_TRANSFORMERS
        else "no: the tensors are dropped when the target is loaded"
        if inside
        else "no",
        "vllm": "no",
        "sglang": "no",
    }
    if inside and family != "mellum":
        answers["vllm"] = 'yes: method "mtp"'
        answers["sglang"] = (
            "if it has the target's next-token module: --speculative-algorithm NEXTN"
        )
    if own:
        answers["vllm"] = f'yes: method "{family}"'
        answers["sglang"] = f"yes: --speculative-algorithm {family.upper()}" if (
            family != "medusa"
        ) else "no"  # fmt: skip
    return answers


def _count(found: Inspection, published: Published) -> None:
    infos = published.checkpoint.tensors
    names = published.names()
    found.tensors = len(names)
    for name in names:
        size = 1
        for extent in infos[name].shape:
            size *= extent
        found.parameters += size
        found.dtypes[infos[name].dtype] = found.dtypes.get(infos[name].dtype, 0) + 1
    if found.claimed is not None and found.claimed != published.spec.num_modules:
        what = (
            f"the configuration claims {found.claimed} modules and the tensors are of "
            f"{published.spec.num_modules}"
        )
        if found.claimed > published.spec.num_modules:
            found.defects.append(("missing", what))
        else:
            found.notes.append(what)


def _check(found: Inspection, published: Published, target: Any | None) -> None:
    if published.spec.block == "target" and target is None:
        found.notes.append(
            "the blocks are of the target's own kind of layer and were not checked: no target"
        )
        return
    try:
        stored, extra = published.stored()
        wrong = defects(empty_head(published.spec, target), stored, extra, published.label)
    except MtpVerifyError as error:
        found.defects.append(("damaged", str(error)))
        return
    for what in wrong:
        found.defects.append(("missing" if what.startswith("missing") else "damaged", what))


def weigh(found: Inspection, published: Published) -> None:
    """Look at the weights: not finite, all zero, or as they were initialised."""
    spec = published.spec
    neutral = 0.0 if spec.norm_kind == "rms1p" else 1.0
    untouched: list[bool] = []
    for name, tensor in _weights(published):
        if not bool(tensor.isfinite().all()):
            found.defects.append(("damaged", f"{name} holds numbers that are not finite"))
        elif tensor.dim() == 2 and not bool(tensor.any()):
            found.defects.append(("dead", f"{name} is all zero"))
        elif tensor.dim() == 1 and "norm" in name:
            untouched.append(bool((tensor == neutral).all()))
        elif published.is_fusion(name):
            untouched.append(_is_noise(tensor))
    if untouched and all(untouched):
        found.defects.append(
            ("dead", "its norms and its projection are as they were initialised: never trained")
        )


def _weights(published: Published) -> Iterator[tuple[str, torch.Tensor]]:
    for name in published.names():
        info = published.checkpoint.tensors[name]
        if info.dtype in ("F32", "F16", "BF16", "F64") and name not in published.copies:
            yield name, published.checkpoint.read(name).float()


def _is_noise(matrix: torch.Tensor) -> bool:
    """Whether the largest singular value is the one of independent noise of this deviation."""
    rows, columns = matrix.shape
    expected = float(matrix.std()) * (rows**0.5 + columns**0.5)
    # Power iteration: a whole decomposition of a large projection takes minutes.
    vector = torch.randn(columns, generator=torch.Generator().manual_seed(0))
    for _ in range(_ITERATIONS):
        vector = matrix.T @ (matrix @ vector)
        vector /= vector.norm().clamp_min(1e-30)
    return bool(float((matrix @ vector).norm()) < (1.0 + _NOISE) * expected)
