"""`export`: a head in the layout that a serving engine reads."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch

from mtp_verify.checkpoints.extend import extend, write_folder
from mtp_verify.checkpoints.folder import Checkpoint
from mtp_verify.checkpoints.tensors import write_tensors
from mtp_verify.heads.families import FAMILIES, block_of
from mtp_verify.heads.io.names import Naming
from mtp_verify.heads.io.native import save
from mtp_verify.heads.spec import Family, refuse_export

if TYPE_CHECKING:
    from pathlib import Path

    from mtp_verify.heads.base import Head


__all__ = ["LAYOUTS", "export"]

_REPOSITORIES = {name: None for family in FAMILIES.values() for name in family.repositories}
LAYOUTS = ("native", *_REPOSITORIES, "in_checkpoint")


def export(
    head: Head,
    path: str | Path,
    layout: str = "native",
    *,
    base: str | Path | None = None,
    target: Any | None = None,
) -> None:
    """Write a head for a serving engine; `load` reads every layout back bit for bit.

    Args:
        head: to be written.
        path: a new folder; it appears in one rename, complete.
        layout: "native" (see `save`); "eagle", an EAGLE or EAGLE-3 repository as vLLM and SGLang
            read it; "speculators" (EAGLE-3), as vLLM reads it; "medusa", as vLLM up to 0.32 reads
            it; "dflash" and "dspark", as z-lab's code, SpecForge, vLLM and SGLang read them;
            "in_checkpoint", a copy of the target's checkpoint with the modules inside, in the
            names of the head's family. A MiMo module goes into a Llama or Qwen2 checkpoint so that
            vLLM serves the whole as MiMo.
        base: the folder of the target's checkpoint, for "in_checkpoint", "speculators", and heads
            that read several layers, some of them counted from the end.
        target: the target, where the head is made of its own kind of layer; with "native" its
            fingerprint is kept.

    Raises:
        ParamsError: the layout cannot hold such a head; says why.

    Example:
        >>> mv.heads.export(head, "served", "in_checkpoint", base="target")  # doctest: +SKIP
    """
    spec = head.spec
    family = FAMILIES.get(spec.family) or Family(spec)
    if layout not in LAYOUTS:
        refuse_export(spec, f"layout: found {layout!r}, wanted one of: {', '.join(LAYOUTS)}")
    if layout == "native":
        save(head, path, target=target, record=head.record)
        return
    checkpoint = None if base is None else Checkpoint(base)
    if layout == "in_checkpoint":
        if not family.spec.is_inside_target:
            refuse_export(spec, "such heads have a repository of their own, no place in a target's")
        if checkpoint is None:
            refuse_export(spec, f"layout {layout!r} needs the target's checkpoint; give base=")
        _write_inside(head, path, checkpoint, target)
        return
    if layout not in family.repositories:
        others = [name for name, other in FAMILIES.items() if layout in other.repositories]
        refuse_export(spec, f"layout {layout!r} holds: {', '.join(others)}")
    repository = family.repositories[layout]
    config, more = repository.describe(head, checkpoint)
    tensors = _name_tensors(head, Naming(spec, repository.layout, tuple(range(spec.num_modules))))

    def fill(folder: Path) -> None:
        (folder / "config.json").write_text(json.dumps(config, indent=2))
        write_tensors(folder / "model.safetensors", tensors | more)

    write_folder(path, fill)


def _write_inside(head: Head, path: str | Path, base: Checkpoint, target: Any | None) -> None:
    spec, family = head.spec, FAMILIES.get(head.spec.family) or Family(head.spec)
    # The engines' modules draft from all tokens, with the target's own output head.
    if head.vocab is not None and spec.output_head == "own":
        refuse_export(spec, "a checkpoint has no place for an output head over a draft vocabulary")
    layout, first = spec.layout, base.num_layers if "{layer}" in spec.layout.prefix else 0
    numbers = tuple(range(first, first + spec.num_modules))
    tensors = _name_tensors(head, Naming(spec, layout, numbers), target)
    config = json.loads(json.dumps(base.config))
    text = base.text_part(config)
    if layout.count_keys:
        text[layout.count_keys[0]] = spec.num_modules
    if family.adapt_target is not None:
        tensors = family.adapt_target(text, base) | tensors
    extend(base, tensors, path, config=config)


def _name_tensors(head: Head, naming: Naming, target: Any | None = None) -> dict[str, torch.Tensor]:
    """Return the head's tensors under their published names; ParamsError if one has none."""
    spec, block = head.spec, block_of(head.spec)
    state = dict(head.state_dict())
    if block.needs_target and target is None:
        refuse_export(spec, "it is made of the target's own kind of layer; give target=")
    for level in range(spec.num_modules if block.needs_target else 0):
        prefix = f"levels.{level}.layers.0.{block.wrapper}"
        own = {n.removeprefix(prefix): state.pop(n) for n in list(state) if n.startswith(prefix)}
        converted = block.to_checkpoint(spec, target, own)
        state |= {prefix + name: tensor for name, tensor in converted.items()}
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        label = naming.name_of(name)
        if label is None:
            refuse_export(spec, f"the layout has no name for {name}")
        if label in tensors and not torch.equal(tensors[label], tensor):
            refuse_export(spec, f"the layout has one {label} for all modules, and theirs differ")
        tensors[label] = tensor
    return {name: tensor.detach().cpu() for name, tensor in tensors.items()}
