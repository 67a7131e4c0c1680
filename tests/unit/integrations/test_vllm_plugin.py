"""What the plug-in replaces in either model runner of vLLM, and when it says that it does not."""

from __future__ import annotations

import sys
import warnings
from types import SimpleNamespace

import pytest
import torch

import mtp_verify as mv
from mtp_verify.integrations import vllm as plugin
from mtp_verify.integrations.vllm import seams
from tests.vllm_standins import OWN, batch, put, stand_in, states

V1_RUNNER, V2_RUNNER = seams.V1.runner, seams.V2.runner
METHODS = (("v1", "forward"), ("v2", "_verify"), ("plain", "sample"))


@pytest.fixture(autouse=True)
def _warnings_anew():
    seams.warn_once.cache_clear()


@pytest.fixture(params=["0.32.0", "0.33.0"])
def engine(request, monkeypatch):
    """A vLLM with both runners' samplers."""
    return stand_in(monkeypatch, request.param)


def methods(engine):
    return [getattr(getattr(engine, owner), name) for owner, name in METHODS]


def load(monkeypatch, runner, *classes):
    """Load a model runner, which imports the classes of its samplers by name."""
    if runner == V2_RUNNER:
        put(monkeypatch, runner, {"RejectionSampler": classes[0].v2, "Sampler": classes[0].plain})
    else:
        put(monkeypatch, runner, {"RejectionSampler": classes[0].v1})


@pytest.mark.parametrize("value", [None, "", "0"])
def test_nothing_happens_unless_asked_for(engine, monkeypatch, value):
    monkeypatch.delenv(plugin.GATE.variable, raising=False)
    if value is not None:
        monkeypatch.setenv(plugin.GATE.variable, value)
    own = methods(engine)
    plugin.register()
    assert methods(engine) == own
    assert not plugin.is_installed()


@pytest.mark.parametrize("value", ["1", "block", "coupled"])
def test_the_entry_point_installs_and_uninstall_restores(engine, monkeypatch, value):
    own = methods(engine)
    monkeypatch.setenv(plugin.GATE.variable, value)
    plugin.register()
    plugin.register()  # vLLM may call it several times
    load(monkeypatch, V2_RUNNER, engine)
    assert plugin.is_installed()
    assert [now is before for now, before in zip(methods(engine), own, strict=True)] == [
        False,
        False,
        value != "coupled",
    ]
    plugin.uninstall()
    assert methods(engine) == own
    assert not plugin.is_installed()


def test_the_rule_can_be_changed_and_the_plain_sampler_is_given_back(engine):
    own = methods(engine)
    plugin.install("coupled")
    plugin.install("token")
    assert methods(engine)[2] is own[2]


def test_it_is_not_installed_without_vllm(monkeypatch):
    for name in ("vllm", "vllm.v1"):
        monkeypatch.setitem(sys.modules, name, None)
    assert not plugin.is_installed()
    with pytest.raises(ImportError):
        plugin.install()


def test_a_vllm_without_the_second_runner_is_known(monkeypatch):
    stand_in(monkeypatch, "0.32.0", has_v2=False)
    plugin.install()
    assert plugin.is_installed()


def test_it_is_installed_only_where_the_loaded_runner_samples_by_it(engine, monkeypatch):
    plugin.install()
    assert plugin.is_installed()
    load(monkeypatch, V2_RUNNER, engine)
    assert plugin.is_installed()
    # Another plug-in's class, or a method that somebody else replaced.
    put(monkeypatch, V2_RUNNER, {"RejectionSampler": type("Other", (), {})})
    assert not plugin.is_installed()
    load(monkeypatch, V2_RUNNER, engine)
    monkeypatch.setattr(engine.v2, "_verify", lambda *_: OWN)
    assert not plugin.is_installed()
    # Where the other runner is loaded alone, this one does not count.
    monkeypatch.delitem(sys.modules, V2_RUNNER)
    load(monkeypatch, V1_RUNNER, engine)
    assert plugin.is_installed()


def test_coupled_is_not_installed_in_the_first_runner_and_it_says_so(engine, monkeypatch):
    plugin.install("coupled")
    assert not plugin.is_installed()  # Nobody knows yet which runner will be built.
    load(monkeypatch, V1_RUNNER, engine)
    assert not plugin.is_installed()
    with pytest.warns(RuntimeWarning, match="the V1 model runner does not tell: vLLM's sampler"):
        assert engine.v1().forward(None, None, None, None) == OWN
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert engine.v1().forward(None, None, None, None) == OWN  # Said once.


@pytest.mark.parametrize("version", ["0.31.1", "0.35.0", "1.0", "0.33.0rc1"])
def test_other_versions_are_refused_and_left_untouched(monkeypatch, version):
    engine = stand_in(monkeypatch, version)
    own = methods(engine)
    monkeypatch.setenv(plugin.GATE.variable, "1")
    wanted = rf"vLLM {version} is not supported .supported: 0\.32 to 0\.34.; it was left as it is"
    with pytest.warns(RuntimeWarning, match=wanted) as caught:
        plugin.register()
    assert len(caught) == 1
    assert methods(engine) == own
    assert not plugin.is_installed()


@pytest.mark.parametrize(
    ("owner", "name"), [*METHODS, ("plain", "apply_sampling_params")], ids=lambda name: name
)
def test_a_known_version_whose_function_changed_is_left_untouched(engine, monkeypatch, owner, name):
    def changed(self, logits, something_new):
        return None

    monkeypatch.setattr(getattr(engine, owner), name, changed)
    own = methods(engine)
    monkeypatch.setenv(plugin.GATE.variable, "1")
    with pytest.warns(
        RuntimeWarning, match=rf"{name}: found \(self, logits, something_new\), want"
    ):
        plugin.register()
    assert methods(engine) == own
    assert not plugin.is_installed()


def test_a_class_without_the_method_is_left_untouched(engine, monkeypatch):
    monkeypatch.delattr(engine.v2, "_verify")
    with pytest.raises(mv.errors.UnsupportedModelError, match="_verify: found no such function"):
        plugin.install()
    assert not plugin.is_installed()


def test_unknown_rules_are_refused_with_the_known_ones(engine):
    with pytest.raises(mv.errors.UnsupportedModelError, match=r"auto, target_only, .*token, block"):
        plugin.install("kseq")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("synthetic_mode", True, "synthetic acceptance is no sampling"),
        ("use_fly", True, "fly is not lossless"),
    ],
)
def test_lossy_methods_of_the_first_runner_stay_the_engines_own(engine, field, value, message):
    plugin.install()
    subject = engine.v1()
    subject.synthetic_mode = False
    setattr(subject, field, value)
    with pytest.warns(RuntimeWarning, match=message):
        assert subject.forward(None, None, torch.zeros(1), None) == OWN


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("synthetic_conditional_rates", torch.ones(2), "synthetic is no sampling"),
        ("fly_window_size", 2, "fly is not lossless"),
        ("watermark_key", 7, "watermarks are drawn by vLLM's own noise"),
    ],
)
def test_methods_of_the_second_runner_stay_the_engines_own(engine, field, value, message):
    plugin.install()
    subject = engine.v2(None, 2)
    setattr(subject, field, value)
    given = batch([[1, 2]], [3], [5])
    with pytest.warns(RuntimeWarning, match=message):
        assert subject._verify(torch.zeros(3, 5), None, *given.values()) == OWN


def test_rows_and_rules_that_no_device_takes_stay_the_engines_own(engine):
    plugin.install()
    subject = engine.v2(None, 2)
    given = batch([[1, 2]], [3], [5])
    with pytest.warns(RuntimeWarning, match=r"logits of torch\.float64 are not read"):
        assert subject._verify(torch.zeros(3, 5).double(), None, *given.values()) == OWN
    plugin.install("gbv")
    with pytest.warns(RuntimeWarning, match="gbv runs on the host alone: vLLM's sampler runs"):
        assert subject._verify(torch.zeros(3, 5), None, *given.values()) == OWN


def test_samplers_with_noise_of_their_own_keep_it_under_coupled(engine):
    class Watermarking(engine.plain):
        pass

    plugin.install("coupled")
    given = batch([[]], [3], [5])
    given.pop("verify_draft_sampled"), given.pop("cu_num_logits")
    subject = Watermarking(states([1.0], [1], [3]))
    order = ("expanded_idx_mapping", "idx_mapping", "idx_mapping_np", "pos", "draft_sampled")
    words = [given[name] for name in (*order, "expanded_local_pos", "seq_lens_upper_bound_np")]
    with pytest.warns(RuntimeWarning, match="Watermarking draws by its own noise"):
        assert subject.sample(torch.zeros(1, 5), *words)[0] == OWN


def test_the_first_runner_verifies_by_it(engine):
    plugin.install()
    subject = engine.v1()
    subject.synthetic_mode, subject.is_processed_logprobs_mode = False, False
    metadata = SimpleNamespace(
        draft_token_ids=torch.zeros(0, dtype=torch.int32), num_draft_tokens=[0]
    )
    sampling = SimpleNamespace(
        all_greedy=True,
        max_num_logprobs=None,
        no_penalties=True,
        bad_words_token_ids={},
        allowed_token_ids_mask=None,
        logitsprocs=SimpleNamespace(non_argmax_invariant=[]),
    )
    out = subject.forward(metadata, None, torch.eye(5)[3:4], sampling)
    assert out.sampled_token_ids.tolist() == [[3]]
