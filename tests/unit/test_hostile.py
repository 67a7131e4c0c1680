"""Wrong values for every argument of every public callable: an answer that names the argument."""

from __future__ import annotations

import importlib
import inspect

import pytest
import torch

import mtp_verify as mv
from mtp_verify import drafters
from mtp_verify.commands import cli
from mtp_verify.verifier.cleanup import at_end, on_failure
from tests.hostile import CALLS, WRONG, arguments, complaint, decoder
from tests.models import StubDrafter, tiny_model

# Public callables that are not tried here, and why.
ELSEWHERE = {
    "Grower": "a base class", "Drafter": "a protocol", "Constraint": "a protocol",
    "Target": "a protocol", "TargetCache": "a protocol",
    "Matcher": "a base class", "Request": "a record; the decoder makes it",
    "Head": "a base class", "CausalHead": "a torch module, made by load",
    "ParallelHead": "a torch module, made by load", "Shared": "parts of a model",
    "HeadSpec": "tests/unit/heads/test_spec.py", "Layout": "a record of names",
    "Sizes": "tests/unit/heads/test_spec.py", "Probe": "a record", "Verdicts": "a record",
    "Lossy": "lossy.typical and the others",
"Plan": "a record", "MeasuredCosts": "times a model",
    "Translation": "reads two tokenizers; tests/unit/drafters/test_translation.py",
    "LLGuidance": "a grammar of another library", "XGrammar": "a grammar of another library",
    "build_info": "no arguments", "rules": "no arguments", "certify": "certification",
    "export": "tests/unit/heads", "probe": "tests/unit/heads", "reattach": "tests/unit/heads",
    "DeviceDrafts": "a record",
    "verify_planned": "tests/unit/verifier/kernels/device/test_device_verifier.py",
    "save": "tests/unit/heads", "resolve_disputed": "tests/unit/heads",
}  # fmt: skip


def test_every_public_callable_is_tried_or_has_a_reason():
    names = {name.rpartition(".")[2] for name in CALLS}
    missing = set()
    for part in (
        "",
        ".drafters",
        ".verifier.growers",
        ".heads",
        ".verifier.lossy",
        ".integrations.ops",
        ".decoder.planning",
        ".decoder.constraints",
    ):
        module = importlib.import_module(f"mtp_verify{part}")
        for name in module.__all__:
            value = getattr(module, name)
            is_error = inspect.isclass(value) and issubclass(value, Exception)
            if callable(value) and not is_error and name not in names:
                missing.add(name)
    assert missing <= ELSEWHERE.keys(), missing - ELSEWHERE.keys()


@pytest.mark.filterwarnings("ignore")  # NumPy's and torch's, about values that no user would pass.
@pytest.mark.parametrize("name", CALLS)
def test_wrong_values_are_refused_by_the_name_of_their_argument(name, capsys):
    wrong = []
    for argument in arguments(name):
        for label, value in WRONG.items():
            given = (n for n in range(3)) if label == "generator" else value
            found = complaint(name, argument, given)
            if found is not None:
                wrong.append(f"{argument} = {label}: {found[:200]}")
    assert not wrong


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            lambda: mv.Decoder(tiny_model("llama"), drafters.NGram),
            "drafter: found the class NGram, wanted an object",
        ),
        (
            lambda: mv.Decoder(tiny_model("llama"), "ngram"),
            r"drafter: found 'ngram', wanted a drafter",
        ),
        (lambda: drafters.Heads("path"), r"head: found 'path' .*mv.heads.load\(path, model\)"),
        (
            lambda: decoder().generate("hello", max_new_tokens=2),
            "input_ids: found 'hello', .*tokenise the text",
        ),
        (
            lambda: decoder().generate({"input_ids": [1]}, max_new_tokens=2),
            r'input_ids: found dict, .*: value\["input_ids"\]',
        ),
        (
            lambda: decoder().generate([1], max_new_tokens=2, params={"temperature": 0}),
            "params: found {'temperature': 0}, wanted one SamplingParams",
        ),
        (
            lambda: decoder().generate([1], max_new_tokens=2, num_return_sequences=2**70),
            "num_return_sequences: found 1180591620717411303424, wanted an integer <= 65536",
        ),
        (lambda: mv.SamplingParams(preset="sglang"), "preset: found 'sglang', wanted one of"),
    ],
)
def test_what_users_tried_is_answered(call, text):
    with pytest.raises((mv.MtpVerifyError, TypeError), match=text):
        call()


def test_an_empty_model_folder_is_one_line(tmp_path, capsys):
    assert cli.main(["generate", "hi", "--model", str(tmp_path)]) == 2
    text = capsys.readouterr().err
    assert "found no config.json, wanted a folder that save_pretrained wrote" in text
    assert text.count("\n") == 1


class TestCleanup:
    """What is raised while cleaning up is told, and hides nothing."""

    def test_the_cause_comes_out_with_a_note(self):
        def close():
            msg = "second"
            raise OSError(msg)

        for guard in (at_end, on_failure):
            with pytest.raises(ValueError, match="first") as caught, guard(close):
                raise ValueError("first")
            assert caught.value.__notes__ == ["and while cleaning up: OSError: second"]
        with pytest.raises(OSError, match="second"), at_end(close):
            pass
        with on_failure(close):
            pass

    def test_of_a_generation(self):
        class Broken(StubDrafter):
            def propose(self, requests, budgets):
                msg = "the cause"
                raise RuntimeError(msg)

            def release(self, request):
                msg = "the drafter's release"
                raise OSError(msg)

        class Streamer:
            def put(self, tokens):
                pass

            def end(self):
                msg = "the streamer's end"
                raise OSError(msg)

        own = mv.Decoder(tiny_model("llama"), Broken())
        with pytest.raises(RuntimeError, match="the cause") as caught:
            own.generate([1, 2], max_new_tokens=3, seed=1, streamer=Streamer())
        assert caught.value.__notes__ == [
            "and while cleaning up: OSError: the drafter's release",
            "and while cleaning up: OSError: the streamer's end",
        ]

    def test_of_a_processor_that_rolls_back(self):
        class Broken:
            def __call__(self, ids, scores):
                msg = "the cause"
                raise RuntimeError(msg)

            def accept(self, token):
                pass

            def rollback(self, count):
                msg = "the rollback"
                raise OSError(msg)

        with pytest.raises(RuntimeError, match="the cause") as caught:
            mv.verify(
                mv.Draft.chain([1], root=0), torch.tensor([[0.0, 90.0], [0.0, 0.0]]), seed=0,
                position=0, history=[0], processors=[_Once(Broken())],
            )  # fmt: skip
        assert caught.value.__notes__ == ["and while cleaning up: OSError: the rollback"]


class _Once:
    """Leaves the root's row alone, where nothing is rolled back."""

    def __init__(self, inner):
        self.inner = inner
        self.depth = 0

    def __call__(self, ids, scores):
        return self.inner(ids, scores) if self.depth else scores

    def accept(self, token):
        self.depth += 1

    def rollback(self, count):
        self.depth -= count
        self.inner.rollback(count)
