"""Names of a head's tensors in a published checkpoint: from ours to theirs, and recognised.

A family is recognised by the names of its tensors. The configuration's `model_type` only decides
between families whose names are equal; the number of modules that it claims is compared with that
of the tensors, not believed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from mtp_verify.checkpoints.tensors import listed
from mtp_verify.errors import UnsupportedModelError
from mtp_verify.heads.families import FAMILIES, block_of

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from mtp_verify.heads.spec import HeadSpec, Layout

__all__ = ["Naming", "find_head"]

# Parts by which a layout is recognised; what is in every checkpoint proves nothing.
_PROJECTIONS = ("fusion", "embed_proj", "hidden_proj", "features")
_SIGNS = (*_PROJECTIONS, "embed_norm", "hidden_norm", "output_norm")
# Fields that decide what the parameters mean.
_DECISIVE = ("norm_kind", "block", "fusion", "output_norm")
_PLAIN = (("block", "target"), ("layer_like", "last"), ("layer_attention", ""), ("layer_mlp", ""))
_MARKED = 100  # more than any number of signs
_WEAK = {"norm", "lm_head", "embed_tokens"}
_NUMBER = re.compile(r"\d+")
# What tools put before all names of a head or of a language model, the shortest first.
_STARTS = ("", "model.", "language_model.", "speculator.", "drafter.", "draft_model.")
# Parts of names that only heads have, in whatever layout.
_HEADLIKE = re.compile(
    r"(?:^|[._])(?:mtp|nextn|eagle|medusa|hydra|draft|drafter|speculator)(?:[._\d]|$)|eh_proj"
)
_PARAMETER = re.compile(
    r"(?:levels\.(?P<level>\d+)\.)?"
    r"(?P<part>embed_norm|hidden_norm|fusion|norm|output|features|feature_norms|embedding|layers|"
    r"prefix_norm|prefix|token|state|state_norm|cell_norm|mask_hidden|"
    r"correction\.(?:token|output|gate|joint|cell|mix))"
    r"(?:\.(?P<index>\d+))?(?:\.(?P<rest>.+))?"
)


@dataclass(frozen=True)
class Naming:
    """The names of a head's tensors in a checkpoint."""

    spec: HeadSpec  # as far as it is known
    layout: Layout
    numbers: tuple[int, ...]  # of the modules, as the names have them
    start: str = ""  # what stands before the names of the head, and maybe before all others

    @property
    def prefixes(self) -> tuple[str, ...]:
        """For each module what its names start with; empty if the layout has no prefix."""
        if not self.layout.prefix:
            return ()
        return tuple(self._prefix(module) for module in range(len(self.numbers)))

    def block_prefix(self, module: int) -> str:
        """Return what the names of a module's block start with, where it has one block."""
        return self._prefix(module) + self.layout.names["block"].replace("{i}", str(module))

    def name_of(self, parameter: str) -> str | None:
        """Return the checkpoint's name of a parameter, or None if the layout has none for it."""
        match, layout, spec = _PARAMETER.fullmatch(parameter), self.layout, self.spec
        if match is None:
            return None
        level, index = int(match["level"] or 0), int(match["index"] or 0)
        part, rest = match["part"], match["rest"] or ""
        keys = {
            "layers": "block",
            "norm": "output_norm",
            "feature_norms": f"feature_norm_{spec.feature_norm}",
        }
        key = keys.get(part, part)
        if (template := layout.names.get(key)) is None:
            return None
        if key == "block":
            rest = rest.removeprefix(block_of(spec).wrapper)
            rest = layout.renames.get(rest, rest)
            for ours, theirs in layout.renames.items():
                if rest.startswith(f"{ours}."):
                    rest = theirs + rest.removeprefix(ours)
        layer = self._number(level)
        places = {"l": index, "j": index, "k": index + 1, "m": 2 * index + 3}
        filled = _filled(template, i=level, layer=layer, n=spec.num_layers, **places)
        if filled.startswith("/"):
            return f"{filled[1:]}.{rest}"
        return f"{self._prefix(level)}{filled}{'' if key == 'block' or not rest else '.'}{rest}"

    def _prefix(self, module: int) -> str:
        return _filled(self.layout.prefix, i=module, layer=self._number(module))

    def _number(self, module: int) -> int:
        # Levels that share their weights need not be there by number.
        return self.numbers[module] if module < len(self.numbers) else module


def find_head(
    names: Collection[str], config: Mapping[str, Any], model_types: Sequence[str] = ()
) -> Naming:
    """Recognise the head in a checkpoint by the names of all its tensors.

    The spec is the family's, with the number of modules and the disputed fields. `model_types` are
    of the checkpoint and then of its language model. Where there is no head, or one that may be of
    several families, an UnsupportedModelError says why.
    """
    for start in _STARTS:
        if start and not any(name.startswith(start) for name in names):
            continue
        found = _find([name.removeprefix(start) for name in names], model_types, start)
        if found is not None:
            return found
    raise UnsupportedModelError(_why_not(names, config), slug="no_head")


def _find(names: Collection[str], model_types: Sequence[str], start: str) -> Naming | None:
    # Large checkpoints have 10^5 names and few forms.
    forms: dict[str, list[str]] = {}
    for name in names:
        forms.setdefault(_NUMBER.sub("#", name), []).append(name)
    matches = [
        (score, Naming(family.spec, layout, numbers, start))
        for family in FAMILIES.values()
        for layout in family.layouts
        if layout.names
        # Without what stands before it, every target has the names of a few parts of a head.
        for score, numbers in [_match(layout, forms, needs_projection=bool(start))]
        if score > (0, 0)
    ]
    if not matches:
        return None
    best = max(score for score, _ in matches)
    equal = [naming for score, naming in matches if score == best]
    named = [n for kind in model_types for n in equal if kind in n.layout.model_types]
    rivals = named[:1] or _plainest(equal, model_types)
    found = rivals[0]
    disputed = dict.fromkeys(found.spec.disputed)
    for field in ("feed", "recycle", "zero_first"):
        if len({getattr(rival.spec, field) for rival in rivals}) > 1:
            disputed[field] = None
    changes: dict[str, Any] = {"disputed": tuple(disputed)}
    if found.layout.prefix or "{i}" in found.layout.names.get("block", ""):
        changes["num_modules"] = len(found.numbers)
    return Naming(found.spec.replace(**changes), found.layout, found.numbers, start)


def _plainest(rivals: list[Naming], model_types: Sequence[str]) -> list[Naming]:
    """Return families that a checkpoint of none of their configurations may be of.

    Blocks that are not simply one more layer of their target are those of its own configurations
    alone. UnsupportedModelError: the others differ in what no probe decides.
    """
    plain = [n for n in rivals if all(getattr(n.spec, name) == kind for name, kind in _PLAIN)]
    plain = plain or rivals
    apart = [name for name in _DECISIVE if len({getattr(n.spec, name) for n in plain}) > 1]
    if apart:
        found = ", ".join(sorted(set(model_types))) or "none"
        wanted = ", ".join(sorted({kind for n in rivals for kind in n.layout.model_types}))
        families = ", ".join(naming.spec.family for naming in plain)
        why = f"its tensors are named as those of {families}, which differ in {', '.join(apart)}"
        message = f"model_type: found {found}, wanted one of {wanted}: {why}"
        raise UnsupportedModelError(message, slug="unsupported_head")
    return plain


def _match(
    layout: Layout, forms: Mapping[str, list[str]], *, needs_projection: bool
) -> tuple[tuple[int, int], tuple[int, ...]]:
    """Return how many signs of a layout are there, and the modules' numbers."""
    if layout.marks:
        if not forms.keys() >= {*layout.marks}:
            return (0, 0), ()
        inside = _pattern(layout.prefix, ".*")
        each = map(inside.fullmatch, (name for form in forms.values() for name in form))
        counted = {int(match["number"]) for match in each if match and layout.prefix}
        return (_MARKED, len(layout.marks)), tuple(sorted(counted)) or (0,)
    block = layout.names.get("block", "")
    signs = [layout.names[part] for part in _SIGNS if part in layout.names]
    templates = [layout.prefix + sign for sign in signs if not sign.startswith("/")]
    if not templates:
        # Parallel heads: their blocks are all that they have.
        linear = layout.renames.get("linear.weight", "linear.weight")
        templates = [layout.prefix + block + linear.removesuffix(".weight").removesuffix("weight")]
    hits = {template: _hits(f"{template.rstrip('.')}.weight", forms) for template in templates}
    found = [template for template, numbers in hits.items() if numbers]
    projected = any(layout.prefix + layout.names.get(part, "?") in found for part in _PROJECTIONS)
    if needs_projection and not projected:
        return (0, 0), ()
    if not set(found) - _WEAK or (len(templates) > 1 and len(found) < 2 and not projected):
        return (0, 0), ()
    numbers = set().union(*hits.values()) - {-1}
    if "{i}" in block and "{i}" not in layout.prefix and numbers == set():
        # Modules that share all parts but the block: count the blocks.
        pattern = _pattern(layout.prefix + block, ".*")
        names = (name for form in forms.values() for name in form)
        numbers = {int(match["number"]) for match in map(pattern.fullmatch, names) if match}
    # As many signs as can be; among equals, the layout that misses the fewest.
    return (len(found), len(found) - len(templates)), tuple(sorted(numbers)) or (0,)


def _hits(template: str, forms: Mapping[str, list[str]]) -> set[int]:
    """Return numbers of the modules that have such a tensor; -1 if the name has no number."""
    pattern, form = _pattern(template), _NUMBER.sub("#", re.sub(r"\{\w+\}", "#", template))
    names = forms.get(form, [])
    matches = [match for match in map(pattern.fullmatch, names) if match]
    return {int(match["number"]) if "number" in match.groupdict() else -1 for match in matches}


@cache
def _pattern(template: str, rest: str = "") -> re.Pattern[str]:
    """Return a template as a pattern, the module's number as a group."""
    text = re.escape(template)
    for field in (r"\{layer\}", r"\{i\}"):
        text = text.replace(field, r"(?P<number>\d{1,9})", 1)
    return re.compile(text.replace(r"\{l\}", r"\d{1,9}") + rest)


def _filled(template: str, **fields: int) -> str:
    for name, value in fields.items():
        template = template.replace(f"{{{name}}}", str(value))
    return template


def _why_not(names: Collection[str], config: Mapping[str, Any]) -> str:
    if headlike := sorted(name for name in names if _HEADLIKE.search(name)):
        return f"it has tensors of a head, in names that no known family has: {listed(headlike)}"
    for family in FAMILIES.values():
        for key in family.spec.layout.count_keys:
            if config.get(key):
                return (
                    f"no tensor of a head is there, though the configuration says {key} = "
                    f"{config[key]}: it was lost, as fine-tuning and quantising tools do; "
                    "mtp-verify reattach puts it back from the original checkpoint"
                )
    if config.get("pard_token") is not None:
        return (
            "it is a PARD drafter: a language model that drafts at mask tokens; load it with "
            "transformers and draft with mv.drafters.Model(model, mask_token=pard_token)"
        )
    shown, known = ", ".join(sorted(names)[:5])[:300], ", ".join(sorted(FAMILIES))
    what = f"no head is recognised among {len(names)} tensors ({shown}, ...)"
    return f"{what}; known families: {known}"
