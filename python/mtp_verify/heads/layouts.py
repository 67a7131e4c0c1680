"""Names of a head's tensors in a published checkpoint: from ours to theirs, and recognised.

A family is recognised by the names of its tensors. The configuration's `model_type` decides only
between families whose names are equal; what it says of their number is compared, not believed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from mtp_verify.errors import UnsupportedModelError
from mtp_verify.heads.families import FAMILIES, OTHER_LAYOUTS

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from mtp_verify.heads.spec import HeadSpec, Layout

__all__ = ["Found", "claimed_modules", "find_head", "published_name"]

# Parts by which a layout is recognised; what is in every checkpoint proves nothing.
_PROJECTIONS = ("fusion", "embed_proj", "hidden_proj", "features")
_SIGNS = (*_PROJECTIONS, "embed_norm", "hidden_norm", "output_norm")
_WEAK = {"norm", "lm_head", "embed_tokens"}
_NUMBER = re.compile(r"\d+")
_OWN = re.compile(
    r"(?:levels\.(?P<level>\d+)\.)?"
    r"(?P<part>embed_norm|hidden_norm|fusion|norm|output|features|feature_norms|embedding|layers)"
    r"(?:\.(?P<index>\d+))?\.(?P<rest>.+)"
)


@dataclass(frozen=True)
class Found:
    """A head in a checkpoint.

    Attributes:
        spec: its family's record, with the number of modules and what is disputed.
        layout: that its names follow.
        numbers: of its modules, as they stand in the names.
    """

    spec: HeadSpec
    layout: Layout
    numbers: tuple[int, ...]

    def prefix(self, module: int) -> str:
        """What stands in front of a module's tensors."""
        return _filled(self.layout.prefix, i=module, layer=self.numbers[module])


def published_name(found: Found, name: str) -> str | None:
    """The name in the checkpoint of one of our parameters.

    Args:
        found: which layout.
        name: of a parameter, as in `head.state_dict()`.

    Returns:
        The name, or None if the layout has none for it.
    """
    match = _OWN.fullmatch(name)
    if match is None:
        return None
    level, part = int(match["level"] or 0), match["part"]
    index, rest = int(match["index"] or 0), match["rest"]
    layout, spec = found.layout, found.spec
    if part == "layers":
        key = "block"
        rest = rest.removeprefix("layer.") if spec.block == "target" else rest
        rest = layout.renames.get(rest, rest)
        for ours, theirs in layout.renames.items():
            if rest.startswith(f"{ours}."):
                rest = theirs + rest.removeprefix(ours)
    elif part == "feature_norms":
        key = f"feature_norm_{spec.feature_norm}"
    else:
        key = {"norm": "output_norm"}.get(part, part)
    template = layout.names.get(key)
    if template is None:
        return None
    fields = {"i": level, "layer": found.numbers[level], "l": index, "j": index}
    filled = _filled(template, n=spec.num_layers, **fields)
    if key == "block":
        return found.prefix(level) + filled + rest
    if filled.startswith("/"):
        return f"{filled[1:]}.{rest}"
    return f"{found.prefix(level)}{filled}.{rest}"


def find_head(names: Collection[str], config: Mapping[str, Any]) -> Found:
    """Recognise the head in a checkpoint.

    Args:
        names: of all tensors.
        config: of the language model.

    Raises:
        UnsupportedModelError: none is there; says where heads were looked for.
    """
    # Large checkpoints have 10^5 names and few forms.
    forms: dict[str, list[str]] = {}
    for name in names:
        forms.setdefault(_NUMBER.sub("#", name), []).append(name)
    matches = [
        (score, spec, layout, numbers)
        for spec, layout in _layouts()
        for score, numbers in [_matched(layout, forms)]
        if score > (0, 0)
    ]
    if not matches:
        msg = _nothing(names, config)
        raise UnsupportedModelError(msg, slug="no_head")
    best = max(score for score, *_ in matches)
    equal = [match[1:] for match in matches if match[0] == best]
    kind = config.get("model_type")
    named = [match for match in equal if kind in match[1].model_types]
    spec, layout, numbers = (named or equal)[0]
    fields = ("feed", "recycle", "zero_first")
    others = {spec.family} if named else {other.family for other, *_ in equal}
    unsettled = tuple(
        field
        for field in fields
        if len({getattr(FAMILIES[other], field) for other in others}) > 1
        and field not in spec.disputed
    )
    count = len(numbers)
    changes: dict[str, Any] = {"disputed": (*spec.disputed, *unsettled)}
    if layout.prefix or "{i}" in layout.names.get("block", ""):
        changes["num_modules"] = count
    return Found(spec.replace(**changes), layout, numbers)


def claimed_modules(found: Found, config: Mapping[str, Any]) -> int | None:
    """The number of modules that the configuration claims, or None if it says nothing."""
    for key in found.layout.count_keys:
        if type(config.get(key)) is int:
            return int(config[key])
    return None


def _layouts() -> Iterator[tuple[HeadSpec, Layout]]:
    for spec in FAMILIES.values():
        if spec.layout.names:
            yield spec, spec.layout
        for layout in OTHER_LAYOUTS.get(spec.family, {}).values():
            yield spec, layout


def _matched(
    layout: Layout, forms: Mapping[str, list[str]]
) -> tuple[tuple[int, int], tuple[int, ...]]:
    """How many signs of a layout are there, and the modules' numbers."""
    block = layout.names.get("block", "")
    signs = [layout.names[part] for part in _SIGNS if part in layout.names]
    templates = [layout.prefix + sign for sign in signs if not sign.startswith("/")]
    if not templates:
        # Parallel heads: their blocks are all that they have.
        linear = layout.renames.get("linear.weight", "linear.weight")
        templates = [layout.prefix + block + linear.removesuffix(".weight").removesuffix("weight")]
    hits = {
        template: _hits(f"{template.rstrip('.')}.weight", layout, forms) for template in templates
    }
    found = [template for template, numbers in hits.items() if numbers]
    projected = any(layout.prefix + layout.names.get(part, "?") in found for part in _PROJECTIONS)
    if not set(found) - _WEAK or (len(templates) > 1 and len(found) < 2 and not projected):
        return (0, 0), ()
    numbers = set().union(*hits.values()) - {-1}
    if "{i}" in block and "{i}" not in layout.prefix and numbers == set():
        # Modules that share all parts but the block: count the blocks.
        pattern = _pattern(layout.prefix + block, layout.prefix, layout.infix, ".*")
        names = (name for form in forms.values() for name in form)
        numbers = {int(match["number"]) for match in map(pattern.fullmatch, names) if match}
    # As many signs as can be; among equals, the layout that misses the fewest.
    return (len(found), len(found) - len(templates)), tuple(sorted(numbers)) or (0,)


def _hits(template: str, layout: Layout, forms: Mapping[str, list[str]]) -> set[int]:
    """Numbers of the modules that have such a tensor; -1 where the name has no number."""
    pattern = _pattern(template, layout.prefix, layout.infix)
    plain = _NUMBER.sub("#", re.sub(r"\{\w+\}", "#", template))
    names = list(forms.get(plain, []))
    if layout.infix:
        prefix = _NUMBER.sub("#", re.sub(r"\{\w+\}", "#", layout.prefix))
        names += forms.get(prefix + layout.infix + plain.removeprefix(prefix), [])
    matches = [match for match in map(pattern.fullmatch, names) if match]
    return {int(match["number"]) if "number" in match.groupdict() else -1 for match in matches}


@cache
def _pattern(template: str, prefix: str, infix: str, rest: str = "") -> re.Pattern[str]:
    """A template as a pattern: the module's number is a group, and the infix may be there."""
    head = prefix if template.startswith(prefix) else ""
    text = re.escape(head)
    if infix:
        text += f"(?:{re.escape(infix)})?"
    text += re.escape(template.removeprefix(head))
    for field in (r"\{layer\}", r"\{i\}"):
        text = text.replace(field, r"(?P<number>\d{1,9})", 1)
    return re.compile(text.replace(r"\{l\}", r"\d{1,9}") + rest)


def _filled(template: str, **fields: int) -> str:
    for name, value in fields.items():
        template = template.replace(f"{{{name}}}", str(value))
    return template


def _nothing(names: Collection[str], config: Mapping[str, Any]) -> str:
    claims = {
        key: config[key]
        for spec in FAMILIES.values()
        for key in spec.layout.count_keys
        if config.get(key)
    }
    if claims:
        key, value = next(iter(claims.items()))
        return (
            f"no tensor of a head is there, though the configuration says {key} = {value}: it was "
            "lost, as fine-tuning and quantising tools do; mtp-verify reattach puts it back from "
            "the original checkpoint"
        )
    shown = ", ".join(sorted(names)[:5])
    known = ", ".join(sorted(FAMILIES))
    return (
        f"no head is recognised among {len(names)} tensors ({shown[:300]}, ...); known families: "
        f"{known}"
    )
