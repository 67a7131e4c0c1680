"""Drafters with repositories of their own that are recognised by name, and not run here.

References:
    DFlash, arXiv 2602.06036; DSpark, arXiv 2607.05147; Domino, arXiv 2605.29707; JetSpec,
    arXiv 2606.18394; P-EAGLE, arXiv 2602.01469; MLP speculators, arXiv 2404.19124 (IBM; Arctic's
    LSTM builds on it); ReDrafter, arXiv 2403.09919.
"""

from __future__ import annotations

from mtp_verify.heads.families.eagle import SPECULATORS
from mtp_verify.heads.spec import Family, HeadSpec, Layout

__all__ = ["FOREIGN"]

_BLOCK = "a block head: one forward drafts a whole block, which this version does not run"
_STATE = "a recurrent head: its state goes from token to token, which this version does not run"
_DFLASH = {"features": "fc", "hidden_norm": "hidden_norm", "output_norm": "norm",
           "block": "layers.{l}."}  # fmt: skip


def _foreign(
    name: str, obstacle: str, *layouts: Layout, engines: tuple[str, ...] = (), feed: str = "aux"
) -> Family:
    spec = HeadSpec(
        name, kind="parallel", feed=feed, fusion="none", embed_norm=False, block="foreign",
        obstacle=obstacle, layout=layouts[0],
    )  # fmt: skip
    return Family(spec, None, engines, aliases=layouts[1:])


def _dflash(*marks: str) -> Layout:
    return Layout(names=_DFLASH, marks=("fc.weight", "hidden_norm.weight", *marks))


_ENGINES = ("vllm", "sglang")
FOREIGN = (
    _foreign("dflash", f"{_BLOCK} (JetSpec's tensors have the same names)", _dflash(),
             engines=_ENGINES),
    _foreign("dflash2", _BLOCK, _dflash("candidate_selector.hidden_projection.weight")),
    _foreign("dspark", _BLOCK, _dflash("markov_head.markov_w#.weight"), engines=_ENGINES),
    _foreign("domino", _BLOCK, _dflash("prefix_gru.weight_ih_l#")),
    _foreign("peagle", f"{_BLOCK}, though its tensors are EAGLE-3's",
             Layout(names=SPECULATORS.names, marks=("mask_hidden",)),
             Layout(names={**SPECULATORS.names, "block": "midlayer."}, marks=("mask_hidden",)),
             engines=("vllm",)),
    _foreign("redrafter", _STATE,
             Layout(names={"block": "rnn_w."}, marks=("rnn_u.weight", "rnn_w.weight")),
             Layout(names={"block": "lm_head."},
                    marks=("input_proj.weight", "lm_head.#.linear.weight")),
             feed="post"),
)  # fmt: skip
