"""A store of past texts: what it drafts, for whom, how much it holds, and what files it takes."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import mtp_verify as mv
from mtp_verify.checkpoints.tensors import write_tensors
from mtp_verify.drafters import Combined, NGram, Request, Suffix, SuffixStore
from mtp_verify.errors import ParamsError

GREEDY = mv.SamplingParams(temperature=0.0)


def request(tokens, seed=1, prompt_len=None, params=None):
    params = mv.SamplingParams() if params is None else params
    length = len(tokens) if prompt_len is None else prompt_len
    return Request(next(_IDS), [*tokens], length, params, seed=seed)


_IDS = iter(range(1 << 30))


def drafted(drafter, tokens, budget=16, **more):
    """The tokens that are drafted after a text, below the root."""
    one = request(tokens, **more)
    (draft,) = drafter.propose([one], [budget])
    assert draft.law == "deterministic"
    assert draft.tokens[0] == tokens[-1]
    return draft.tokens[1:].tolist()


def finish(drafter, prompt, answer, **more):
    """A request that is answered."""
    one = request(prompt, **more)
    drafter.start(one)
    drafter.propose([one], [4])
    one.tokens += answer
    drafter.release(one)


def kept(store):
    return [(tenant, tokens.tolist()) for tenant, tokens in store._core.contents()[0]]


class TestDrafts:
    def test_what_was_answered_is_copied(self):
        store = SuffixStore()
        drafter = Suffix(store=store)
        finish(drafter, [1, 2, 3], [4, 5, 6], seed=1)
        assert drafted(drafter, [9, 2, 3], seed=2) == [4, 5]
        assert drafted(drafter, [9, 3, 2], seed=3) == []
        assert drafted(Suffix(), [9, 2, 3]) == []
        assert (store.num_lookups, store.num_hits) == (3, 1)

    def test_of_the_prompt_only_its_end_is_kept(self):
        store = SuffixStore(max_context=3)
        drafter = Suffix(store=store)
        finish(drafter, [*range(10)], [20, 21], seed=1)
        assert kept(store) == [("", [7, 8, 9, 20, 21])]
        finish(drafter, [*range(10)], [], seed=2)
        assert store.num_texts == 1

    def test_the_longer_match_drafts_and_the_own_one_of_two_that_are_equal(self):
        store = SuffixStore()
        store.add([1, 2, 3, 8])
        drafter = Suffix(store=store)
        assert drafted(drafter, [2, 3, 7, 1, 2, 3], seed=1)[0] == 8
        assert drafted(drafter, [2, 3, 7, 5, 2, 3], seed=2)[0] == 7

    def test_frequent_continuations_come_first(self):
        store = SuffixStore()
        for last in (9, 7, 9, 8):
            store.add([1, 2, last])
        assert drafted(Suffix(store=store), [1, 2]) == [9]
        tree = Suffix(max_nodes=8, store=store).propose([request([1, 2], seed=2)], [8])[0]
        assert tree.tokens.tolist() == [2, 9, 7, 8]
        assert tree.tree.parents.tolist() == [-1, 0, 0, 0]

    def test_budgets_ends_and_depths(self):
        store = SuffixStore(max_context=4)
        store.add([*range(1, 20)])
        drafter = Suffix(depth_factor=9.0, store=store)
        assert drafted(drafter, [1, 2], 0, seed=1) == []
        assert drafted(drafter, [1, 2], 3, seed=2) == [3, 4, 5]
        assert drafted(drafter, [1, 2, 3, 4, 5], seed=3) == [6, 7, 8, 9]
        one = Request(0, [1, 2], 2, seed=4, eos_ids=frozenset({4}))
        assert drafter.propose([one], [9])[0].tokens.tolist() == [2, 3, 4]

    def test_a_request_that_comes_back_goes_on(self):
        """One that was preempted is released, and started again later."""
        store = SuffixStore()
        drafter = Suffix(store=store)
        one = request([1, 2], seed=5)
        for tokens in ([3], [4, 5]):
            drafter.start(one)
            drafter.propose([one], [2])
            one.tokens += tokens
            drafter.release(one)
            drafter.release(one)
        assert kept(store) == [("", [1, 2, 3]), ("", [1, 2, 3, 4, 5])]

    def test_of_several_drafters_only_one_keeps(self):
        store = SuffixStore()
        drafter = Combined([Suffix(store=store), Suffix(store=store), NGram()])
        finish(drafter, [1, 2], [3], seed=1)
        assert store.num_texts == 1


class TestTenants:
    def test_texts_are_copied_for_their_tenant_alone(self):
        store = SuffixStore()
        drafters = {name: Suffix(store=store, tenant=name) for name in ("a", "b", "")}
        finish(drafters["a"], [1, 2], [3, 4], seed=1)
        assert drafted(drafters["a"], [1, 2], seed=2) == [3, 4]
        assert drafted(drafters["b"], [1, 2], seed=3) == []
        assert drafted(drafters[""], [1, 2], seed=4) == []
        reader = Suffix(store=store, tenant="b", reads=["a"])
        assert drafted(reader, [1, 2], seed=5) == [3, 4]
        finish(reader, [7, 8], [9], seed=6)
        assert drafted(drafters["a"], [7, 8], seed=7) == []

    def test_the_tenants_of_one_batch(self):
        """Each request of a decoder has a drafter of its own."""
        answers = {"a": [3, 4, 5], "b": [6, 7, 8]}
        store = SuffixStore()
        for name, answer in answers.items():
            store.add([1, 2, *answer], tenant=name)
        table = np.random.default_rng(0).normal(size=(12, 12)).astype(np.float32)
        target = mv.testing.TableTarget(lambda path: table[path[-1]], 12)
        decoder = mv.Decoder(target, None)
        for seed, name in enumerate(answers):
            drafter = Suffix(store=store, tenant=name)
            decoder.submit([1, 2], max_new_tokens=6, seed=seed, drafter=drafter)
        while decoder.step():
            pass
        texts = kept(store)
        assert [tenant for tenant, _ in texts].count("a") == 2
        assert [tenant for tenant, _ in texts].count("b") == 2

    def test_a_tenant_is_forgotten(self):
        store = SuffixStore()
        store.add([1, 2, 3], tenant="a")
        store.add([1, 2, 4], tenant="b")
        store.forget("a")
        store.forget("nothing of this name")
        assert kept(store) == [("b", [1, 2, 4])]
        assert drafted(Suffix(store=store, tenant="a"), [1, 2]) == []


class TestSeeds:
    """Of the sampled requests with one seed only the first uses the store."""

    def test_a_later_one_neither_reads_nor_writes(self):
        store = SuffixStore()
        drafter = Suffix(store=store)
        finish(drafter, [1, 2], [3, 4], seed=1)
        assert drafted(drafter, [1, 2], seed=1) == []
        finish(drafter, [5, 6], [7], seed=1)
        assert store.num_texts == 1
        assert drafted(drafter, [1, 2], seed=2) == [3, 4]

    def test_greedy_ones_always_do(self):
        store = SuffixStore()
        drafter = Suffix(store=store)
        for last in (3, 4):
            finish(drafter, [1, 2], [last], seed=1, params=GREEDY)
        assert store.num_texts == 2
        assert drafted(drafter, [1, 2], seed=1, params=GREEDY) == [3]

    def test_an_emptied_store_takes_nothing_from_requests_of_before(self):
        store = SuffixStore()
        drafter = Suffix(store=store)
        one = request([1, 2], seed=1)
        drafter.propose([one], [4])
        store.clear()
        one.tokens.append(3)
        drafter.release(one)
        assert store.num_texts == 0
        finish(drafter, [1, 2], [3], seed=1)
        assert store.num_texts == 1


class TestBounds:
    def test_what_was_used_last_stays(self):
        store = SuffixStore(256)
        texts = [[100 * n + k for k in range(60)] for n in range(4)]
        for text in texts[:3]:
            store.add(text)
        assert drafted(Suffix(store=store), texts[0][:2], seed=1)
        store.add(texts[3])
        assert [tokens[0] for _, tokens in kept(store)] == [200, 0, 300]

    def test_nothing_exceeds_the_limit(self):
        rng = np.random.default_rng(0)
        store = SuffixStore(1000)
        for _ in range(200):
            store.add(rng.integers(0, 5, rng.integers(0, 400)), tenant=str(rng.integers(3)))
            assert store.num_tokens + 16 * store.num_texts <= 1000
        store.add(range(5000))
        assert kept(store)[-1][1] == [*range(5000 - 984, 5000)]
        assert store.num_texts == 1
        assert store.num_bytes < 40 * 1000 + 10_000

    @pytest.mark.parametrize(
        ("call", "name"),
        [
            (lambda: SuffixStore(255), "max_tokens"),
            (lambda: SuffixStore(2**40), "max_tokens"),
            (lambda: SuffixStore(max_context=257), "max_context"),
            (lambda: SuffixStore().add([1, -2]), "tokens"),
            (lambda: SuffixStore().add([1, 2], tenant="x" * 129), "tenant"),
            (lambda: SuffixStore().add([1, 2], tenant="\ud800"), "tenant"),
            (lambda: Suffix(tenant="a"), "tenant"),
            (lambda: Suffix(store=SuffixStore(), reads=["x" * 129]), "reads"),
        ],
    )
    def test_what_is_out_of_range_is_named(self, call, name):
        with pytest.raises(ParamsError, match=name):
            call()

    def test_other_objects_are_refused(self):
        for call in (
            lambda: Suffix(store={}),
            lambda: SuffixStore().add([1, 2], tenant=3),
            lambda: SuffixStore().forget(None),
        ):
            with pytest.raises(TypeError, match=r"store|tenant"):
                call()


def test_eight_threads_read_while_others_write():
    """No thread finds the store borrowed, and every draft is one that some state of it gives."""
    store = SuffixStore(20_000)
    drafter = Suffix(store=store)
    texts = [[n, n + 1, *range(100 * n, 100 * n + 60)] for n in range(1, 400)]
    store.add(texts[0])
    done = threading.Event()

    def write(part):
        for text in texts[part::2]:
            store.add(text)
            store.add(texts[0])

    def read(part):
        drafts = set()
        while not done.is_set():
            one = request([1, 2], seed=part, params=GREEDY)
            drafts.add(tuple(drafter.propose([one], [4])[0].tokens.tolist()))
            drafter.release(one)
        return drafts

    with ThreadPoolExecutor(10) as pool:
        readers = [pool.submit(read, part) for part in range(8)]
        for writer in [pool.submit(write, part) for part in range(2)]:
            writer.result()
        done.set()
        found = set().union(*(reader.result() for reader in readers))
    assert found == {(2, 100, 101)}
    assert store.num_tokens + 16 * store.num_texts <= 20_000


class TestFiles:
    @pytest.fixture
    def full(self):
        store = SuffixStore(4096, max_context=5)
        drafter = Suffix(store=store, tenant="ä")
        store.add([1, 2, 3])
        finish(drafter, [7, 8], [9, 2**32 - 1], seed=2**64 - 1)
        store.add([4, 5])
        return store

    def test_a_store_comes_back(self, full, tmp_path):
        path = tmp_path / "store.safetensors"
        full.save(path)
        again = SuffixStore.load(path)
        assert kept(again) == kept(full)
        assert (again.max_tokens, again.max_context) == (1 << 20, 5)
        assert again._core.contents()[1].tolist() == [2**64 - 1]
        drafter = Suffix(store=again, tenant="ä")
        assert drafted(drafter, [7, 8], seed=1) == [9, 2**32 - 1]
        assert drafted(drafter, [7, 8], seed=2**64 - 1) == []

    def test_an_empty_one_too(self, tmp_path):
        SuffixStore().save(tmp_path / "empty")
        assert SuffixStore.load(tmp_path / "empty").num_texts == 0

    def test_what_does_not_fit_is_left_out_or_refused(self, full, tmp_path):
        path = tmp_path / "store"
        store = SuffixStore(4096)
        for n in range(20):
            store.add([n, n + 1])
        store.save(path)
        assert kept(SuffixStore.load(path, 256))[-1] == ("", [19, 20])
        store.add(range(300))
        store.save(path)
        with pytest.raises(ParamsError, match="found 340 tokens, wanted at most 256"):
            SuffixStore.load(path, 256)

    @pytest.mark.parametrize(
        "change",
        [
            {"lengths": [3, 1, 5]}, {"lengths": [3, 4]}, {"lengths": [-2, 4, 7]},
            {"lengths": [2**62, 2**62, 9]}, {"owners": [0, 1, 2]}, {"owners": [0, -1, 0]},
            {"owners": [0, 0]}, {"names": [255, 254]}, {"name_lengths": [1, 2]},
            {"name_lengths": [0, 0, 0, 0]}, {"name_lengths": [-1, 3]},
            {"tokens": None}, {"more": [1]}, {"kind": "other"}, {"version": "2"},
            {"max_context": "0"}, {"max_context": "9999999"}, {"max_context": "1e2"},
            {"max_context": "²"},
        ],
        ids=json.dumps,
    )  # fmt: skip
    def test_what_does_not_fit_together_is_refused(self, full, tmp_path, change):
        path = tmp_path / "store"
        full.save(path)
        tensors, about = _contents(path)
        for name, value in change.items():
            if isinstance(value, str):
                about[name] = value
            elif value is None:
                del tensors[name]
            else:
                kind = tensors[name].dtype if name in tensors else torch.int64
                tensors[name] = torch.tensor(value, dtype=kind)
        write_tensors(path, tensors, about)
        with pytest.raises(ParamsError) as error:
            SuffixStore.load(path)
        assert error.value.slug in ("bad_store_file", "param_out_of_range")

    def test_any_damage_is_an_error_or_a_store(self, full, tmp_path):
        """Bytes of the file are changed, dropped and doubled."""
        path = tmp_path / "store"
        full.save(path)
        good = path.read_bytes()
        rng = np.random.default_rng(0)
        refused = 0
        for turn in range(300):
            data = bytearray(good)
            at = int(rng.integers(len(data)))
            if turn % 3 == 0:
                data[at] = int(rng.integers(256))
            elif turn % 3 == 1:
                del data[at : at + int(rng.integers(1, 9))]
            else:
                data[at:at] = data[at : at + 8]
            path.write_bytes(data)
            try:
                store = SuffixStore.load(path)
            except ParamsError:
                refused += 1
            else:
                assert store.num_tokens <= 16
        assert refused > 200

    def test_other_files_are_refused(self, tmp_path):
        import os
        import pickle

        pickled = tmp_path / "pickled"
        pickled.write_bytes(pickle.dumps({"tokens": [1, 2]}))
        pipe = tmp_path / "pipe"
        os.mkfifo(pipe)
        for path in (pickled, pipe, tmp_path):
            with pytest.raises(ParamsError) as error:
                SuffixStore.load(path)
            assert error.value.slug in ("bad_store_file", "not_a_file")
        with pytest.raises(FileNotFoundError):
            SuffixStore.load(tmp_path / "missing")


def _contents(path):
    from mtp_verify.checkpoints.tensors import TensorFile

    file = TensorFile(path)
    return {name: file.read(name) for name in file.tensors}, dict(file.metadata)
