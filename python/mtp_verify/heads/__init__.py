"""Draft heads: small networks that read a target's hidden states and guess what it says next.

`family(name)` is the record of a published kind, `CausalHead` and `ParallelHead` run them, `load`,
`save` and `export` bring them from and to disk, `mv.drafters.Heads` drafts with one.
"""

from mtp_verify.heads.base import Head, Shared
from mtp_verify.heads.causal import CausalHead
from mtp_verify.heads.families import FAMILIES, family
from mtp_verify.heads.io.export import export
from mtp_verify.heads.io.load import load
from mtp_verify.heads.io.native import save
from mtp_verify.heads.io.reattach import reattach
from mtp_verify.heads.parallel import ParallelHead
from mtp_verify.heads.probe import Probe, probe, resolve_disputed
from mtp_verify.heads.spec import HeadSpec, Layout, Sizes

__all__ = [
    "CausalHead", "FAMILIES", "Head", "HeadSpec", "Layout", "ParallelHead", "Probe", "Shared",
    "Sizes", "export", "family", "load", "probe", "reattach", "resolve_disputed", "save",
]  # fmt: skip
