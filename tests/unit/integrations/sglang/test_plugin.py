"""The hooks that SGLang loads, on a stand-in of the engine."""

from __future__ import annotations

import tomllib
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import mtp_verify as mv
from mtp_verify.integrations import sglang
from mtp_verify.integrations.sglang import plugin
from tests.sglang_engine import arguments

SAMPLER = "sglang.srt.speculative.eagle_utils.eagle_sample"
WORKERS = "sglang.srt.speculative.spec_info.SpeculativeAlgorithm.create_worker"


def given(**info):
    return arguments([mv.TokenTree([-1, 0])], [[0, 1]], np.zeros((1, 2, 3)), **info)


def warns_once(match, call):
    """Call twice; the first warns, the second does not (the suite makes warnings errors)."""
    with pytest.warns(RuntimeWarning, match=match) as seen:
        call()
    assert len(seen) == 1
    return call()


def theirs(*arguments, **options):
    return arguments, options


@pytest.mark.parametrize("value", [None, "0", ""])
def test_the_plug_in_is_off_unless_asked_for(engine, monkeypatch, value):
    monkeypatch.delenv("MTP_VERIFY_SGLANG", raising=False)
    if value is not None:
        monkeypatch.setenv("MTP_VERIFY_SGLANG", value)
    sglang.register()
    assert engine.registered == []


@pytest.mark.parametrize("value", ["1", "coupled"])
def test_hooks_stand_around_the_sampler_and_behind_the_choice_of_a_worker(
    engine, monkeypatch, value
):
    monkeypatch.setenv("MTP_VERIFY_SGLANG", value)
    sglang.register()
    assert engine.registered == [
        (SAMPLER, plugin.sample, "around"),
        (WORKERS, plugin.watch_worker, "after"),
    ]


@pytest.mark.parametrize("version", ["0.5.22", "0.5.24", "0.6.0", "main"])
def test_unknown_versions_are_left_alone_with_one_warning(engine, monkeypatch, version):
    monkeypatch.setenv("MTP_VERIFY_SGLANG", "1")
    engine.modules["sglang"].__version__ = version
    match = f"MTP_VERIFY_SGLANG: .*{version}.*left as it is"
    warns_once(match, sglang.register)
    assert engine.registered == []


def test_another_signature_is_left_alone_with_one_warning(engine, monkeypatch):
    monkeypatch.setenv("MTP_VERIFY_SGLANG", "1")
    engine.modules["sglang.srt.speculative.eagle_utils"].eagle_sample = lambda verify_input: None
    warns_once("eagle_sample: found .*left as it is", sglang.register)
    assert engine.registered == []


@pytest.mark.parametrize(("version", "said"), [("0.7.0", "0.7.0 is not"), ("0.5.23", "no such")])
def test_a_sampler_that_is_gone_is_one_warning(engine, monkeypatch, version, said):
    monkeypatch.setenv("MTP_VERIFY_SGLANG", "1")
    engine.modules["sglang"].__version__ = version
    monkeypatch.setitem(engine.modules, "sglang.srt.speculative.eagle_utils", None)
    warns_once(said, sglang.register)
    assert engine.registered == []


def test_another_value_of_the_variable_is_a_warning(engine, monkeypatch):
    monkeypatch.setenv("MTP_VERIFY_SGLANG", "yes")
    with pytest.warns(RuntimeWarning, match="wanted one of: 0, 1, coupled"):
        sglang.register()
    assert engine.registered == []


def test_what_is_exact_is_ours(engine):
    found = plugin.sample(theirs, *given())
    wanted = sglang.eagle_sample(*given())
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


@pytest.mark.parametrize(
    ("setting", "name"),
    [
        ({"speculative_accept_threshold_single": 0.3}, "threshold-single below 1"),
        ({"speculative_accept_threshold_acc": 0.9}, "threshold-acc below 1"),
    ],
)
def test_thresholds_are_the_engines_own_and_said_to_be_lossy(engine, setting, name):
    vars(engine.spec).update(setting)
    batch = given()
    found, options = warns_once(
        f"{name}: left to the engine.*lossy",
        lambda: plugin.sample(theirs, *batch, None, 4, watermark_full_mask=False),
    )
    assert found == (*batch, None, 4)
    assert options == {"watermark_state": None, "watermark_full_mask": False}


def test_watermarks_of_a_batch_and_simulated_acceptance_are_the_engines_own(engine):
    state = object()
    marked = given(has_watermark_candidates=True)
    with pytest.warns(RuntimeWarning, match="a watermark"):
        _, options = plugin.sample(theirs, *marked, watermark_state=state)
    assert options["watermark_state"] is state
    # Without a candidate in the batch it is an exact one.
    assert len(plugin.sample(theirs, *given(), watermark_state=state)) == 3
    engine.modules["sglang.srt.speculative.spec_utils"].SIMULATE_ACC_LEN = 3
    with pytest.warns(RuntimeWarning, match="simulated acceptance"):
        assert len(plugin.sample(theirs, *given())) == 2


def test_an_idle_batch_is_not_asked_for_settings(engine):
    engine.spec.speculative_accept_threshold_single = 0.3
    batch = given()
    batch[1].forward_mode = SimpleNamespace(is_idle=lambda: True)
    batch[1].sampling_info = None
    assert [len(tensor) for tensor in plugin.sample(theirs, *batch)] == [0, 0, 0]


def worker_of(module):
    return type("Worker", (), {"__module__": module})


@pytest.mark.parametrize("name", ["eagle_worker_v2", "ngram_worker", "standalone_worker_v2"])
def test_workers_that_call_the_sampler_are_covered(name):
    worker = worker_of(f"sglang.srt.speculative.{name}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert plugin.watch_worker(worker, SimpleNamespace(name="EAGLE"), object()) is None


@pytest.mark.parametrize(
    ("algorithm", "module"),
    [
        ("DFLASH", "sglang.srt.speculative.dflash_worker_v2"),
        ("DSPARK", "sglang.srt.speculative.dspark_components.dspark_worker_v2"),
        ("UNO", "sglang.srt.speculative.uno_worker_v2"),
        ("EAGLE", "some_platform.worker"),
    ],
)
def test_workers_with_decisions_of_their_own_are_named_once(engine, algorithm, module):
    arguments = worker_of(module), SimpleNamespace(name=algorithm), object()
    warns_once(f"{algorithm} does not draw all", lambda: plugin.watch_worker(*arguments))


def test_the_entry_point_names_the_hook():
    project = tomllib.loads((Path(__file__).parents[4] / "pyproject.toml").read_text())["project"]
    named = project["entry-points"]["sglang.srt.plugins"]["mtp_verify"]
    assert named == "mtp_verify.integrations.sglang:register"
