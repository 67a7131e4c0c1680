"""Wrong values for each argument of each public callable, and what may come of them."""

from __future__ import annotations

import inspect
import re
from collections import deque
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import mtp_verify as mv
from mtp_verify import drafters, heads
from mtp_verify.decoder import decode, planning
from mtp_verify.integrations import ops
from mtp_verify.verifier import growers
from tests.fuzzing.cases import NOISE, PURE
from tests.fuzzing.values import CallerError, Claims, Values
from tests.heads import tiny_head
from tests.models import tiny_model

if TYPE_CHECKING:
    from collections.abc import Callable

_OURS = (mv.MtpVerifyError, TypeError, ValueError, OverflowError)


def _raises(*args: Any, **kwargs: Any) -> Any:
    raise CallerError


WRONG: dict[str, Any] = {
    "None": None, "text": "ngram", "long text": "a" * 5000, "bytes": b"\1\2", "half": 0.5,
    "nan": float("nan"), "inf": float("inf"), "complex": 1j, "negative": -7, "huge": 2**70,
    "2**62": 2**62, "endless digits": 10**5000, "empty list": [], "nested": [[[1]]],
    "list of None": [None], "list of text": ["a"], "huge list": range(2**40), "dict": {"a": 1},
    "set": {1}, "class": drafters.NGram, "our class": mv.SamplingParams, "function": _raises,
    "path": Path("nowhere"), "float64 tensor": torch.zeros(3, dtype=torch.float64),
    "meta tensor": torch.zeros(3, 4, device="meta"), "bool array": np.ones((2, 2), bool),
    "texts array": np.array(["a"]), "0-d array": np.array(1.5), "generator": None,
    "claims": Claims(2**62), "endless": Claims(3), "draft": mv.Draft.chain([1]),
    "deque": deque([-3]), "object": object(),
    **{f"hostile {n}": value for n, value in enumerate(Values().kinds[4][:16])},
}  # fmt: skip

_MODEL = tiny_model("llama")
_IDS = [1, 2, 3]


def decoder() -> decode.Decoder:
    return decode.Decoder(_MODEL, drafters.NGram())


def _request() -> drafters.Request:
    return drafters.Request(id=0, tokens=_IDS, prompt_len=3, seed=1)


# name -> (what makes the function, usual arguments, usual keywords), beside those of the fuzzer.
MORE: dict[str, tuple[Callable[[], Callable[..., Any]], tuple[Any, ...], dict[str, Any]]] = {
    "Decoder": (
        lambda: decode.Decoder, (_MODEL,),
        {"drafter": None, "params": None, "rule": "auto", "batching": "auto", "max_batch": 4,
         "cache": None, "lossy": None, "planner": None},
    ),
    "Decoder.generate": (
        lambda: decoder().generate, (_IDS,),
        {"attention_mask": None, "max_new_tokens": 2, "seed": 1, "params": None,
         "constraint": None, "streamer": None, "eos_token_id": None, "pad_token_id": None,
         "stopping_criteria": None, "past_key_values": None, "num_return_sequences": 1,
         "processors": (), "top_logprobs": 0},
    ),
    "Decoder.submit": (
        lambda: decoder().submit, (_IDS,),
        {"max_new_tokens": 2, "seed": 1, "params": None, "constraint": None, "drafter": None,
         "eos_token_id": None, "stopping_criteria": None, "processors": (), "top_logprobs": 0},
    ),
    "heads.load": (lambda: heads.load, ("nowhere",), {}),
    "Decoder.cancel": (lambda: decoder().cancel, (0,), {}),
    "NGram": (
        lambda: drafters.NGram, (), {"max_ngram": 3, "min_ngram": 1, "num_tokens": 2,
                                     "max_history": 64},
    ),
    "Suffix": (
        lambda: drafters.Suffix, (),
        {"num_tokens": 4, "max_nodes": 4, "max_children": 2, "min_match": 1, "depth_factor": 1.0,
         "min_score": 0.1, "max_context": 8, "max_history": 64, "store": None, "tenant": "",
         "reads": ()},
    ),
    "SuffixStore": (lambda: drafters.SuffixStore, (), {"max_tokens": 300, "max_context": 4}),
    "SuffixStore.add": (lambda: drafters.SuffixStore().add, ([1, 2],), {"tenant": "a"}),
    "SuffixStore.forget": (lambda: drafters.SuffixStore().forget, ("a",), {}),
    "SuffixStore.load": (lambda: drafters.SuffixStore.load, (Path("nowhere"),), {}),
    "Recycling": (
        lambda: drafters.Recycling, (), {"shape": None, "max_nodes": 4, "num_successors": 2},
    ),
    "Combined": (
        lambda: drafters.Combined, ([drafters.NGram(), drafters.Suffix()],),
        {"mode": "merge", "max_nodes": 4},
    ),
    "Model": (
        lambda: drafters.Model, (_MODEL,),
        {"num_tokens": 2, "params": None, "min_confidence": 0.0, "translation": None},
    ),
    "ModelTree": (
        lambda: drafters.ModelTree, (_MODEL,),
        {"max_nodes": 4, "max_depth": 2, "max_children": 2, "params": None, "translation": None},
    ),
    "Heads": (
        lambda: drafters.Heads, (tiny_head("eagle", _MODEL),),
        {"num_tokens": 2, "params": None, "max_nodes": None, "max_children": 2,
         "shape": None, "law": None, "min_path": 0.0},
    ),
    "Planner": (
        lambda: planning.Planner, (planning.Costs({1: {1: 0.1}}),),
        {"max_nodes": 4, "clock": float},
    ),
    "Costs": (lambda: planning.Costs, ({1: {1: 0.1}},), {}),
    "Costs of a batch": (lambda: lambda row: planning.Costs({1: row}), ({1: 0.1},), {}),
    "TreeShape": (
        lambda: growers.TreeShape, (mv.TokenTree([-1]),), {"accepted": None, "acceptance": ()},
    ),
    "TreeShape.cut": (lambda: growers.TreeShape.by_depth(2, 1).cut, (2,), {"max_depth": None}),
    "TreeShape.load": (lambda: growers.TreeShape.load, (Path("nowhere"),), {}),
    "Verdict": (
        lambda: mv.Verdict, ([1, 2], [1], [-1.0, -2.0], "greedy"), {"top_logprobs": None},
    ),
    "VerdictBatch": (lambda: mv.VerdictBatch, ([],), {}),
    "CommitPlan": (lambda: mv.kv.CommitPlan, ([], [], 1, 0), {}),
    "CommitPlanBatch": (lambda: mv.kv.CommitPlanBatch, ([],), {}),
    "Reservation": (lambda: mv.kv.Reservation, ([1], []), {}),
    "ReservationBatch": (lambda: mv.kv.ReservationBatch, ([],), {}),
    "BlockTable.__setstate__": (lambda: mv.kv.BlockTable(2, 2).__setstate__, (None,), {}),
    "BlockTable.add_sequence": (
        lambda: partial(mv.kv.BlockTable(4, 2, True).add_sequence, 0, 3), ([1, 2, 3],),
        {"keys": {"salt": "a"}, "items": [(0, 1, "b")], "max_cached": 2},
    ),
    "BlockTable.num_cached": (
        lambda: mv.kv.BlockTable(4, 2, True).num_cached, ([1, 2, 3],),
        {"keys": {"salt": "a"}, "items": [(0, 1, "b")], "max_cached": 2},
    ),
    "kv.add_sequence": (
        lambda: partial(mv.kv.add_sequence, [mv.kv.BlockTable(4, 2, True)], 0, 3), ([1, 2, 3],),
        {"keys": {"salt": "a"}, "items": [(0, 1, "b")]},
    ),
    "heads.family": (lambda: heads.family, ("eagle3",), {}),
    "set_num_threads": (lambda: mv.verifier.set_num_threads, (1,), {}),
    "ops.DeviceVerifier": (
        lambda: ops.DeviceVerifier, (1, 2, 4, torch.float32), {"device": "cpu"},
    ),
    "ops.verify_batch": (
        lambda: ops.verify_batch, (torch.zeros(1, 2, dtype=torch.int64), torch.zeros(1, 2, 4)),
        {"params": None, "law": "deterministic", "parents": None, "probs": None, "lengths": None,
         "rule": "auto", "seeds": torch.ones(1, dtype=torch.int64),
         "positions": torch.ones(1, dtype=torch.int64)},
    ),
}  # fmt: skip

CALLS = {
    **{
        name: (lambda f=f: f, given, options)
        for name, (f, given, options) in PURE.items()
        if not name.startswith("core.")
    },
    **MORE,
}
# Not to be tried: the usual seed and position of what demands them.
_NEEDED = {
    "seed",
    "position",
    "seeds",
    "positions",
    "max_new_tokens",
    "max_nodes",
    "max_depth",
    "device",
}


def arguments(name: str) -> list[str]:
    """The names of a callable's arguments, positional ones by the signature."""
    make, given, options = CALLS[name]
    try:
        names = [*inspect.signature(make()).parameters]
    except ValueError:
        names = [f"#{index}" for index in range(len(given))]
    return [*names[: len(given)], *options]


def complaint(name: str, argument: str, value: Any) -> str | None:
    """What is wrong with the answer to a wrong value; None where nothing is."""
    make, given, options = CALLS[name]
    if value is None and options.get(argument, 0) is None:
        return None  # It is no wrong value there.
    names = arguments(name)
    place = names.index(argument)
    given = list(given)
    chosen = {key: options[key] for key in options if key in _NEEDED}
    if place < len(given):
        given[place] = value
    else:
        chosen[argument] = value
    try:
        make()(*given, **chosen)
    except CallerError:
        return None
    except OSError as error:
        return None if "path" in argument else f"{type(error).__name__}: {error}"
    except mv.errors.InternalError as error:
        return f"internal: {error}"
    except _OURS as error:
        text = "\n".join([str(error), *getattr(error, "__notes__", ())])
        spoken = {argument.rstrip("s"), _SPOKEN.get(argument, argument)}
        if argument.startswith("#") or any(re.search(rf"\b{name}", text) for name in spoken):
            return None
        return f"{argument} is not named: {type(error).__name__}: {text}"
    except BaseException as error:  # noqa: BLE001 - the panic of an extension is no Exception
        return f"{type(error).__name__}: {error}"
    return None


# Arguments that errors name by the place that they decide on.
_SPOKEN = {
    "root": "node 0", "roots": "node 0", "count": "nodes of a shape", "q": "drafter row",
    "counts": "nodes of a shape", "histories": "history", "row": "seconds",
    "past_key_values": "transformers cache", "tokens": "lengths", "vocab": "rows",
}  # fmt: skip


__all__ = ["CALLS", "NOISE", "WRONG", "arguments", "complaint", "decoder"]
