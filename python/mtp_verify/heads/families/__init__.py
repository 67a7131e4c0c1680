"""The table of published families, and the kinds of blocks that their heads are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mtp_verify.errors import ParamsError, UnsupportedModelError
from mtp_verify.heads.families.block import BLOCK_HEADS
from mtp_verify.heads.families.eagle import EAGLE, EAGLE3
from mtp_verify.heads.families.foreign import FOREIGN
from mtp_verify.heads.families.modules import MODULES
from mtp_verify.heads.families.parallel import HYDRA, MEDUSA, META
from mtp_verify.heads.families.recurrent import LSTM, MLP
from mtp_verify.heads.families.trained import MTP
from mtp_verify.verifier.intake import check_type, shown

if TYPE_CHECKING:
    from mtp_verify.heads.blocks.base import HeadBlock
    from mtp_verify.heads.spec import Family, HeadSpec

__all__ = ["BLOCKS", "FAMILIES", "block_of", "family"]

FAMILIES: dict[str, Family] = {
    record.spec.family: record
    for record in (
        *MODULES,
        EAGLE,
        EAGLE3,
        MTP,
        MEDUSA,
        HYDRA,
        META,
        MLP,
        LSTM,
        *BLOCK_HEADS,
        *FOREIGN,
    )
}
BLOCKS: dict[str, type[HeadBlock]] = {
    record.block.kind: record.block for record in FAMILIES.values() if record.block is not None
}


def family(name: str) -> HeadSpec:
    """Return what a head of a family is made of, without sizes.

    Raises:
        ParamsError: no such family; lists them.

    Example:
        >>> family("eagle").output_norm
        False
    """
    check_type("name", name, str)
    if name not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        message = f"name: found {shown(name)}, wanted a family of heads, one of: {known}"
        raise ParamsError(message, slug="unknown_family")
    return FAMILIES[name].spec


def block_of(spec: HeadSpec) -> type[HeadBlock]:
    """Return the class of a head's blocks.

    UnsupportedModelError says why a family cannot be run; ParamsError: no kind has this name.
    """
    if spec.block == "foreign":
        message = f"heads of the family {spec.family} cannot be run here: {spec.obstacle}"
        raise UnsupportedModelError(message, slug="unsupported_head")
    if spec.block not in BLOCKS:
        message = f"block: found {spec.block!r}, wanted one of: {', '.join(BLOCKS)}, foreign"
        raise ParamsError(message, slug="bad_head_spec")
    return BLOCKS[spec.block]
