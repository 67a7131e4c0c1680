"""Drafters with repositories of their own that are recognised by name, and not run here.

References:
    DFlash 2, z-lab/dflash 0.1; ReDrafter, arXiv 2403.09919.
"""

from __future__ import annotations

from mtp_verify.heads.spec import Family, HeadSpec, Layout

__all__ = ["FOREIGN"]


def _foreign(name: str, obstacle: str, *layouts: Layout, feed: str = "aux") -> Family:
    spec = HeadSpec(
        name, kind="parallel", feed=feed, fusion="none", embed_norm=False, block="foreign",
        obstacle=obstacle, layout=layouts[0],
    )  # fmt: skip
    return Family(spec, aliases=layouts[1:])


FOREIGN = (
    _foreign("dflash2", "a block head with convolutions and a selector of candidates, which this "
             "version does not run",
             Layout(names={"features": "fc", "block": "layers.{l}."},
                    marks=("fc.weight", "hidden_norm.weight",
                           "candidate_selector.hidden_projection.weight"))),
    _foreign("redrafter",
             "a recurrent head: its state goes from token to token, which this version does not "
             "run",
             Layout(names={"block": "rnn_w."}, marks=("rnn_u.weight", "rnn_w.weight")),
             Layout(names={"block": "lm_head."},
                    marks=("input_proj.weight", "lm_head.#.linear.weight")),
             feed="post"),
)  # fmt: skip
