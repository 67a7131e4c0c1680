"""CONTRIBUTING's recipe for a cache of many sequences: its file, its settings, a test, a line."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

import mtp_verify as mv
from mtp_verify.caches import settings
from mtp_verify.caches.many import ManyCache, SharedLayer, Storage, replace_layers
from mtp_verify.caches.settings import CacheSettings
from mtp_verify.decoder.decode import Decoder
from mtp_verify.models.cpu.fused import fuse, fused_model
from mtp_verify.testing import BatchTableTarget
from mtp_verify.verifier.kv import commit_plan
from tests.loops import Table
from tests.models import ScriptDrafter, TreeDrafter, tiny_model

# What is written into each file; here the first two stand below.
RECIPE = {
    "python/mtp_verify/caches/toy.py": "ToyStorage",
    "python/mtp_verify/caches/settings.py": "Toy",
    "tests/unit/caches/test_toy.py": "test_a_kind_of_cache_is_a_file_and_its_settings",
    "docs/howto/batches.md": "",  # its line
}


class Layer(SharedLayer):
    """Keys and values of each slot in tensors of their own, put side by side for a forward."""

    def __init__(self, cache, window):
        super().__init__(window, lambda: cache.length)
        self.cache, self.entries = cache, []

    def update(self, key_states, value_states, *_args, **_kwargs):
        shown = []
        for slot, pair in zip(
            self.cache.aimed, zip(key_states, value_states, strict=False), strict=False
        ):
            old = self.entries[slot] or [states[:, :0] for states in pair]
            length = self.cache.lengths[slot]
            self.entries[slot] = [
                torch.cat([past[:, :length], new], dim=1)
                for past, new in zip(old, pair, strict=True)
            ]
            shown.append(self.entries[slot])
        most = max(keys.shape[1] for keys, _ in shown)
        keys, values = (
            torch.stack([torch.nn.functional.pad(s, (0, 0, 0, most - s.shape[1])) for s in states])
            for states in zip(*shown, strict=True)
        )
        return keys, values


class ToyCache(ManyCache):
    def __init__(self, kv):
        super().__init__(kv)
        self.aimed = []
        self.layers = replace_layers(kv, lambda window: Layer(self, window))

    @property
    def length(self):
        return self.lengths[self.aimed[0]]

    def add(self, tokens, *, is_known):
        self.lengths.append(0)
        for layer in self.layers:
            layer.entries.append(None)

    def remove(self, slot, *, wipe=False):
        for column in (self.lengths, *(layer.entries for layer in self.layers)):
            last = column.pop()
            if slot < len(column):
                column[slot] = last

    def share(self, source, target, length):
        return False

    def aim(self, width, device, slot=None):
        self.aimed = list(range(len(self.lengths))) if slot is None else [slot]

    def commit(self, slots, drafts, verdicts):
        for slot, draft, verdict in zip(slots, drafts, verdicts, strict=True):
            plan = commit_plan(draft.tree, verdict.path, self.lengths[slot])
            for source, target in plan.moves.tolist():
                for layer in self.layers:
                    for states in layer.entries[slot]:
                        states[:, target] = states[:, source]
            self.lengths[slot] = plan.length


class ToyStorage(Storage):
    def __init__(self, new_kv):
        self.new_kv = new_kv

    def new_cache(self):
        return ToyCache(self.new_kv())


@dataclass(frozen=True)
class Toy(CacheSettings):
    def open(self, new_kv):
        return ToyStorage(new_kv)


def fused(model):
    """A model whose forwards the core would attend in, if it could reach the entries."""
    assert fuse(model) > 0
    assert fused_model(model) is not None
    return model


TARGETS = {
    "table": lambda: BatchTableTarget(Table(8, 1).rows, 8),
    "llama": lambda: tiny_model("llama"),
    "mistral": lambda: tiny_model("mistral"),
    "fused llama": lambda: fused(tiny_model("llama")),
}
PROMPTS = [[1, 2, 3, 1, 2], [4], [3, 1, 2, 3, 1, 2, 3]]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("named", [False, True])
def test_a_kind_of_cache_is_a_file_and_its_settings(target, named, monkeypatch):
    monkeypatch.setitem(settings.KINDS, "toy", Toy)
    drafter = TreeDrafter([-1, 0, 0, 1, 2], vocab=8, text=[1, 2, 3] * 9)

    def tokens(cache):
        decoder = Decoder(TARGETS[target](), drafter, rule="coupled", cache=cache)
        return decoder.generate(PROMPTS, max_new_tokens=12, seed=3, eos_token_id=()).tokens

    assert tokens("toy" if named else Toy()) == tokens(None)


@pytest.mark.parametrize("cache", ["tyo", Toy, 3])
def test_what_is_no_cache_is_named_with_what_there_is(cache):
    message = r'cache: found .*, wanted None, "paged", "static", or'
    with pytest.raises(mv.errors.ParamsError, match=message):
        Decoder(TARGETS["table"](), ScriptDrafter([1]), cache=cache)
