"""A level in the core: what a fused head computes, for whom, and what is refused.

That it computes what a head's own code does is in `tests/unit/models/cpu/test_fused.py`.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

import mtp_verify as mv
from mtp_verify._core import Entries, HeadBlock, HeadModule, Product
from mtp_verify.errors import MtpVerifyError
from mtp_verify.models.cpu.fused import fuse, fused_part
from tests.heads import random_hidden, round_weights, tiny_head
from tests.models import greedy_tokens, prompt, tiny_model

SHARING = {"output_head": "shared", "draft_vocab_size": 9, "context_tokens": True}


def twins(name: str, dtype: torch.dtype = torch.float32, **changes: Any) -> list[Any]:
    """Return a head and its fused twin, with weights that eight bits hold."""
    model = round_weights(tiny_model("llama")).to(dtype)
    made = [round_weights(tiny_head(name, model, **changes)).to(dtype) for _ in range(2)]
    fuse(made[1])
    return made


@torch.inference_mode()
def test_tokens_of_the_context_are_drafted_too() -> None:
    """Several sequences of a batch, which have shown other tokens and other numbers of them."""
    found = []
    for head in twins("mimo", **SHARING):
        assert head.vocab is not None
        states = [head.new_state() for _ in range(3)]
        rows: list[torch.Tensor] = []
        for turn, counts in enumerate(([2, 7, 1], [3, 1, 2], [1, 1, 1])):
            hidden = [random_hidden(head, n, seed=5 * turn + n) for n in counts]
            tokens = [prompt(n, seed=turn + n)[0] for n in counts]
            rows += head.read_batch(states, hidden, tokens)
            rows += head.step_batch(states, [[0, 0], [0], [0]], [prompt(n)[0] for n in (2, 1, 1)])
            sizes = [9 + len(state.context_tokens.ids) for state in states]
            assert [row.shape[-1] for row in rows[-3:]] == sizes
        assert len(set(sizes)) > 1
        found.append(rows)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-3)


@torch.inference_mode()
def test_a_sequences_rows_have_the_same_bits_in_any_batch() -> None:
    _, head = twins("eagle3", torch.bfloat16)

    def run(numbers: list[int]) -> dict[int, list[torch.Tensor]]:
        states = [head.new_state() for _ in numbers]
        hidden = [[own.bfloat16() for own in random_hidden(head, 2 + n, seed=n)] for n in numbers]
        tokens = [prompt(2 + n, seed=n)[0] for n in numbers]
        rows = [head.read_batch(states, hidden, tokens)]
        for parents in ([0, 0], [1, 2, 2]):
            words = [prompt(len(parents), seed=9 + n)[0] for n in numbers]
            rows.append(head.step_batch(states, [parents] * len(numbers), words))
        return {n: [own[place] for own in rows] for place, n in enumerate(numbers)}

    together = run([0, 1, 2])
    for number in (0, 1, 2):
        for one, other in zip(run([number])[number], together[number], strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["mimo", "eagle3"])
def test_fused_drafts_change_no_text(name: str) -> None:
    model = tiny_model("llama")
    head = tiny_head(name, model)
    fuse(head)
    decoder = mv.Decoder(
        model, mv.drafters.Heads(head, max_nodes=6), mv.SamplingParams(temperature=0.0)
    )
    ids = prompt(7)
    text = decoder.generate(ids, max_new_tokens=20)
    assert text.tokens[0] == greedy_tokens(model, ids, 20)
    assert text.stats.drafted


def test_many_rows_and_gradients_take_the_heads_own_code(monkeypatch: pytest.MonkeyPatch) -> None:
    _, head = twins("mimo")
    module = head.levels[0]
    seen: list[int] = []
    own = fused_part(module)
    assert own is not None
    inner = own._core

    class Core:
        def run(self, hidden: torch.Tensor, *rest: Any) -> None:
            seen.append(hidden.shape[1])
            inner.run(hidden, *rest)

    monkeypatch.setattr(own, "_core", Core())
    with torch.inference_mode():
        for count in (16, 17):
            head.read(head.new_state(), random_hidden(head, count), prompt(count)[0])
    head.read(head.new_state(), random_hidden(head, 3), prompt(3)[0])
    assert seen == [16]
    with torch.no_grad():
        # States that were made with gradients.
        hidden = [own.requires_grad_() for own in random_hidden(head, 3)]
        head.read(head.new_state(), hidden, prompt(3)[0])
    assert seen == [16, 3]


def test_another_vocabulary_or_target_drops_what_was_made_of_the_old_one() -> None:
    for change in (
        lambda head: head.set_vocab(torch.arange(9)),
        lambda head: head.attach(tiny_model("llama")),
    ):
        _, head = twins("mimo", **SHARING)
        assert fused_part(head) is not None
        change(head)
        assert fused_part(head) is None


@torch.inference_mode()
def test_another_reading_of_a_checkpoint_drops_the_modules() -> None:
    head, twin = twins("mimo")
    for changed in (head, twin):
        changed.choose(recycle="pre")
    assert fused_part(twin.levels[0]) is None
    found = []
    for one in (head, twin):
        fuse(twin)
        state = one.new_state()
        one.read(state, random_hidden(one, 3), prompt(3)[0])
        one.step(state, [0], prompt(1)[0])
        found.append(one.step(state, [1], prompt(1, seed=2)[0]))
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)


@torch.inference_mode()
def test_weights_that_are_not_finite_spoil_the_rows_alone() -> None:
    model = tiny_model("llama")
    head = tiny_head("mimo", model)
    with torch.no_grad():
        head.levels[0].fusion.weight[0, 0] = torch.nan
    fuse(head)
    row = head.read(head.new_state(), random_hidden(head, 3), prompt(3)[0])
    assert row.isnan().all()
    decoder = mv.Decoder(model, mv.drafters.Heads(head), mv.SamplingParams(temperature=0.0))
    with pytest.warns(UserWarning, match="costs speed"):
        text = decoder.generate(prompt(4), max_new_tokens=8)
    assert text.tokens[0] == greedy_tokens(model, prompt(4), 8)


WIDTH, HEADS = 8, (2, 1, 4)
ONES = torch.ones(WIDTH)


def module(**changes: Any) -> HeadModule:
    def product(outputs: int, inputs: int) -> Product:
        return Product(torch.ones(outputs, inputs))

    block = HeadBlock(
        product(16, WIDTH), product(WIDTH, 8), product(12, WIDTH), product(WIDTH, 6),
        norm=ONES, input_norm=None, head_norms=None, eps=1e-6, heads=HEADS,
    )  # fmt: skip
    parts: dict[str, Any] = {
        "fusion": product(WIDTH, 2 * WIDTH), "embed_norm": ONES, "hidden_norm": None, "norm": ONES,
        "eps": 1e-6, "is_embed_first": True, "is_stream_normed": False, "is_normed_next": True,
        **changes,
    }  # fmt: skip
    return HeadModule(parts.pop("blocks", [block]), **parts)


def run(
    paths: Any = ((0,), (0, 1)),
    past: Any = 3,
    held: Any = 0,
    entries: Any = None,
    **changes: Any,
) -> tuple[torch.Tensor, ...]:
    rows = torch.ones(2, WIDTH)
    given = {
        "hidden": rows, "embeds": rows, "cos": torch.ones(2, 4), "sin": torch.zeros(2, 4),
        "normed": torch.zeros(2, WIDTH), "next": torch.zeros(2, WIDTH), **changes,
    }  # fmt: skip
    if entries is None:
        entries = [Entries(torch.zeros(1, 1, 5, 4), torch.zeros(1, 1, 5, 4))]
    segments = given.pop("segments", [(past, held, paths, entries)])
    own = [given[name] for name in ("hidden", "embeds", "cos", "sin")]
    module().run(*own, segments, given["normed"], given["next"])
    return given["normed"], given["next"]


def test_results_are_written_where_they_are_wanted() -> None:
    normed, following = run()
    assert torch.equal(normed, following)
    assert (normed != 0).all()


MEMORY = torch.zeros(1, 1, 5, 4)


@pytest.mark.parametrize(
    ("what", "changes"),
    [
        ("hidden", {"hidden": torch.ones(3, WIDTH)}),
        ("hidden", {"hidden": torch.ones(2, WIDTH, dtype=torch.int64)}),
        ("embeds", {"embeds": torch.ones(2, WIDTH).bfloat16()}),
        ("cos", {"cos": torch.ones(2, 5)}),
        ("normed", {"normed": torch.zeros(1, WIDTH)}),
        ("paths", {"paths": ()}),
        ("paths", {"paths": ((0,), (0,))}),
        ("paths", {"paths": ((0,), (-1, 1))}),
        ("past", {"past": -1}),
        ("keys", {"past": 4}),
        ("memories", {"entries": []}),
        ("entries", {"entries": [MEMORY]}),
        ("entries", {"entries": [Entries(MEMORY, MEMORY)]}),
        ("segments", {"segments": 3}),
        ("wanted|expected|tuple", {"segments": [3]}),
    ],
)
def test_a_call_that_does_not_fit_is_refused(what: str, changes: dict[str, Any]) -> None:
    with pytest.raises((MtpVerifyError, TypeError, ValueError), match=what):
        run(**changes)


def test_one_memory_for_two_sequences_is_refused() -> None:
    shared = Entries(torch.zeros(1, 1, 5, 4), torch.zeros(1, 1, 5, 4))
    segment = (0, 0, [[0]], [shared])
    with pytest.raises(MtpVerifyError, match="entries"):
        run(segments=[segment, segment])


@pytest.mark.parametrize(
    ("what", "changes"),
    [
        ("blocks", {"blocks": []}),
        ("blocks", {"blocks": [3]}),
        ("fusion", {"fusion": Product(torch.ones(3, 3))}),
        ("norm", {"norm": torch.ones(3)}),
        ("joined", {"fusion": None}),
    ],
)
def test_parts_that_do_not_fit_are_refused(what: str, changes: dict[str, Any]) -> None:
    with pytest.raises((MtpVerifyError, TypeError), match=what):
        module(**changes)


def test_a_products_arguments_are_checked() -> None:
    made = Product(torch.eye(3), torch.ones(3))
    other = Product(torch.tensor([[1.0, 0, 0], [0, 0, -1]]))
    out = torch.full((3, 6), 9.0)
    made.multiply(torch.arange(9.0).view(3, 3), out, [(1, None), (2, other)])
    wanted = [[1, 2, 3, 9, 9, 9], [4, 5, 6, 3, -5, 9], [7, 8, 9, 6, -8, 9.0]]
    torch.testing.assert_close(out, torch.tensor(wanted), rtol=1e-4, atol=0)
    before = out.clone()
    made.multiply(torch.ones(3, 3), out)
    assert torch.equal(out[:, 3:], before[:, 3:])
    out = torch.zeros(2, 5)
    assert (made.outputs, made.nbytes) == (3, 64 * 4 + 64 * 4)  # inputs by pairs
    for call in (
        lambda: Product(torch.ones(3)),
        lambda: Product(torch.ones(3, 0)),
        lambda: Product(torch.ones(3, 3, dtype=torch.int64)),
        lambda: Product(torch.eye(3), torch.ones(2)),
        lambda: made.multiply(torch.ones(2, 3), out, [(1, other)]),
        lambda: made.multiply(torch.ones(2, 3), out, [(2, made)]),
        lambda: made.multiply(torch.ones(2, 3), out, [(2, Product(torch.eye(2)))]),
        lambda: made.multiply(torch.ones(2, 3), out, [((1 << 63), None), ((1 << 63) + 2, None)]),
        lambda: made.multiply(torch.ones(2, 4), out),
        lambda: made.multiply(torch.ones(3, 3), out),
        lambda: made.multiply(torch.ones(2, 3), out.bfloat16()),
        lambda: made.extend(torch.ones(1, 3)),
        lambda: Product(torch.eye(3)).extend(torch.ones(1, 4)),
    ):
        with pytest.raises(MtpVerifyError):
            call()
    made.multiply(torch.ones(0, 3), torch.zeros(0, 3))
