from __future__ import annotations

import importlib
import sys
import warnings

import pytest

from mtp_verify.models import supported


@pytest.mark.parametrize("version", ["5.999.0", "6.0.0.dev0", "main"])
def test_a_later_version_is_named_once_and_works(monkeypatch, version):
    pytest.importorskip("transformers")
    decode = importlib.import_module("mtp_verify.decoder.decode")
    models = importlib.import_module("tests.models")
    # Whoever imports from it first makes transformers put another module in its own place.
    monkeypatch.setattr(sys.modules["transformers"], "__version__", version)
    monkeypatch.setattr(supported, "_warned", set())
    model = models.tiny_model("llama")
    with pytest.warns(UserWarning, match=rf"transformers {version} is later .*5\.16 to 5\.\d+"):
        decoder = decode.Decoder(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decode.Decoder(model)
    result = decoder.generate(models.prompt(), max_new_tokens=3)
    assert result.finish_reasons == ["length"]


@pytest.mark.parametrize("version", ["5.16.0", "5.24.1"])
def test_tested_versions_say_nothing(version):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        supported.warn_if_untested(version)
