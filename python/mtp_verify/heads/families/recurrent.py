"""Recurrent heads in repositories of their own: MLP speculators (IBM's, Arctic's), Arctic's LSTM.

References:
    MLP speculators, arXiv 2404.19124; Arctic's, snowflakedb/ArcticInference.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mtp_verify.checkpoints.tensors import bad_checkpoint
from mtp_verify.heads.blocks.recurrent import RecurrentCell
from mtp_verify.heads.spec import Family, HeadSpec, Layout

if TYPE_CHECKING:
    from mtp_verify.heads.io.recognise import Source

__all__ = ["LSTM", "MLP"]

_MOST_LEVELS = 64


def _fields(source: Source) -> dict[str, Any]:
    """Read the options of both; the number of levels is a constant of the computation."""
    config, spec = source.config, source.spec
    count = config.get("n_predict")
    if type(count) is not int or not 1 <= count <= _MOST_LEVELS:
        wanted = f"wanted a number of levels, at most {_MOST_LEVELS}"
        bad_checkpoint(source.folder, f"n_predict: found {str(count)[:50]}, {wanted}")
    for key in ("scale_input", "tie_weights"):
        if type(config.get(key, False)) is not bool:
            found = str(config[key])[:50]
            bad_checkpoint(source.folder, f"{key}: found {found}, wanted true or false")
    has_gates = spec.state == "lstm"
    if has_gates and not (config.get("tie_weights") and config.get("tie_lstm_embs")):
        what = "an LSTM whose gates have embeddings of their own, which this version does not run"
        bad_checkpoint(source.folder, what, "unsupported_head")
    return {
        "num_modules": count,
        "hidden_norm": bool(config.get("scale_input")),
        "is_tied": bool(config.get("tie_weights")) and count > 1,
    }


def _spec(name: str, state: str, names: dict[str, str], marks: tuple[str, ...]) -> HeadSpec:
    return HeadSpec(
        name, kind="recurrent", fusion="none", embed_norm=False, hidden_norm=False,
        output_norm=False, block=RecurrentCell.kind, output_head="own", state=state,
        layout=Layout(names={**names, "output": "head.{i}"}, marks=marks),
    )  # fmt: skip


_MLP = _spec(
    "mlp_speculator", "sum", {"token": "emb.{i}", "state": "proj.{i}", "state_norm": "ln.{i}"},
    ("emb.#.weight", "proj.#.weight", "ln.#.weight", "head.#.weight"),
)  # fmt: skip
# Arctic's, whose parts are sequences of one layer.
_ARCTIC = Layout(
    names={"token": "emb.{i}.0", "state": "proj.{i}.0", "state_norm": "ln.{i}.0",
           "output": "head.{i}"},
    marks=("emb.#.#.weight", "proj.#.#.weight", "ln.#.#.weight", "head.#.weight"),
)  # fmt: skip
MLP = Family(_MLP, RecurrentCell, read_fields=_fields, aliases=(_ARCTIC,))
LSTM = Family(
    _spec(
        "arctic_lstm", "lstm",
        {"token": "forget_emb.{i}", "state": "projs.{i}", "state_norm": "state_ln.{i}",
         "cell_norm": "cell_ln.{i}"},
        ("forget_emb.#.weight", "projs.#.weight", "cell_ln.#.weight"),
    ),
    RecurrentCell, read_fields=_fields,
)  # fmt: skip
