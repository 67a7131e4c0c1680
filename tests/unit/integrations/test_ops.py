"""`mv.ops`: the operator against `verify`, torch's own checks of it, and loops under compile."""

from __future__ import annotations

import numpy as np
import pytest

import mtp_verify as mv

torch = pytest.importorskip("torch")

VOCAB = 7
PARENTS = [-1, 0, 0, 1]


def case(seed: int, count: int = 3) -> dict[str, object]:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.stack([torch.randperm(VOCAB, generator=generator)[:4] for _ in range(count)])
    return {
        "tokens": tokens,
        "logits": torch.randn(count, 4, VOCAB, generator=generator),
        "seeds": torch.arange(count) + 10 * seed,
        "positions": torch.arange(count) + 3,
    }


def unpadded(found: mv.ops.Verdicts, b: int) -> tuple[list[int], list[int], bytes]:
    end = int(found.num_accepted[b]) + 1
    assert set(found.tokens[b, end:].tolist()) <= {-1}
    assert set(found.path[b, end - 1 :].tolist()) <= {-1}
    assert not found.logprobs[b, end:].any()
    tokens, path = found.tokens[b, :end].tolist(), found.path[b, : end - 1].tolist()
    return tokens, path, found.logprobs[b, :end].numpy().tobytes()


@pytest.mark.parametrize("params", [mv.SamplingParams(), mv.SamplingParams(0.7, top_k=3)])
@pytest.mark.parametrize("shape", ["chain", "sampled chain", "tree", "ragged", "a tree each"])
def test_the_operator_gives_the_verdicts_of_verify(params: mv.SamplingParams, shape: str) -> None:
    for seed in range(5):
        given, more, lengths = case(seed), {}, [3, 3, 3]
        parents = [[-1, 0, 1, 2]] * 3
        if shape == "sampled chain":
            more = {"law": "chain", "probs": torch.rand(3, 3, VOCAB).softmax(-1).double()}
        elif shape == "ragged":
            lengths = [0, 3, 1]
            more = {"lengths": torch.tensor(lengths)}
        elif shape == "tree":
            parents = [PARENTS] * 3
            more = {"parents": torch.tensor(PARENTS)}
        elif shape == "a tree each":
            parents = [PARENTS, [-1, 0, 1, 1], [-1, 0, 0, 0]]
            more = {"parents": torch.tensor(parents)}
        found = mv.ops.verify_batch(params=params, **given, **more)
        for b, length in enumerate(lengths):
            part = slice(length + 1)
            draft = mv.Draft(
                mv.TokenTree(parents[b][part]),
                given["tokens"][b, part],
                more.get("law", "deterministic"),
                probs=more["probs"][b] if "probs" in more else None,
            )
            noise = {"seed": int(given["seeds"][b]), "position": int(given["positions"][b])}
            wanted = mv.verify(draft, given["logits"][b, part], params, **noise)
            numbers = wanted.tokens.tolist(), wanted.path.tolist(), wanted.logprobs.tobytes()
            assert unpadded(found, b) == numbers


def operands(seed: int) -> tuple[object, ...]:
    given = case(seed)
    rest = given["seeds"], given["positions"], "deterministic", "auto", 0.8, 0, 0.9, 0.0
    return given["tokens"], given["logits"], None, None, None, *rest, "transformers"


def test_torch_finds_nothing_wrong_with_the_operator() -> None:
    torch.library.opcheck(torch.ops.mtp_verify.verify_batch.default, operands(1))


def step(tokens, logits, seeds, positions):
    found = mv.ops.verify_batch(tokens, logits, SAMPLING, seeds=seeds, positions=positions)
    return found.tokens[:, 0] + 1, positions + 1 + found.num_accepted


SAMPLING = mv.SamplingParams(temperature=0.9)


def test_a_compiled_step_has_no_break_and_is_compiled_once() -> None:
    torch._dynamo.reset()
    graphs = []

    def eager(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(step, backend=eager, fullgraph=True)
    for seed in range(6):
        for found, wanted in zip(compiled(**case(seed)), step(**case(seed)), strict=True):
            assert found.tolist() == wanted.tolist()
    assert len(graphs) == 1


def test_shapes_are_known_without_running() -> None:
    fake = torch._subclasses.fake_tensor
    with fake.FakeTensorMode() as mode:
        given = {name: mode.from_tensor(value) for name, value in case(0).items()}
        found = mv.ops.verify_batch(**given)
    shapes = [(tuple(part.shape), part.dtype) for part in found]
    assert shapes == [
        ((3, 4), torch.int64),
        ((3, 3), torch.int64),
        ((3,), torch.int64),
        ((3, 4), torch.float32),
    ]


@pytest.mark.parametrize(
    ("change", "kind", "message", "sequence"),
    [
        (
            {"tokens": torch.zeros(3, dtype=torch.int64)},
            mv.errors.DraftError,
            r"wanted \(B, N\+1\)",
            None,
        ),
        ({"logits": torch.zeros(3, 3, VOCAB)}, mv.errors.DraftError, r"wanted \(B, N\+1\)", None),
        ({"lengths": torch.tensor([1, 4, 1])}, mv.errors.ParamsError, "lengths: found 4", 1),
        ({"lengths": torch.tensor([1, 1, -1])}, mv.errors.ParamsError, "lengths: found -1", 2),
        ({"parents": torch.tensor([-1, 0, 3, 1])}, mv.errors.DraftError, "node 2", 0),
        ({"seeds": torch.tensor([1, -1, 2])}, mv.errors.ParamsError, "seeds: found -1", 1),
        ({"law": "chain"}, mv.errors.DraftError, "needs the rows", 0),
        ({"rule": "nonsense"}, mv.errors.RuleError, "nonsense", 0),
        ({"params": mv.SamplingParams(top_p=0.9, stop_ids=(1,))}, None, "", None),
        (
            {"params": mv.SamplingParams(presence_penalty=1)},
            mv.errors.ParamsError,
            "presence",
            None,
        ),
    ],
)
def test_bad_input_is_refused(change, kind, message, sequence) -> None:
    if kind is None:
        mv.ops.verify_batch(**{**case(0), **change})
        return
    with pytest.raises(kind, match=message) as caught:
        mv.ops.verify_batch(**{**case(0), **change})
    assert caught.value.sequence == sequence


def test_an_error_inside_compiled_code_is_the_same_error() -> None:
    torch._dynamo.reset()
    bad = case(0)
    bad["logits"][1] = np.nan
    with pytest.raises(mv.errors.NumericsError) as caught:
        torch.compile(step, backend="eager", fullgraph=True)(**bad)
    assert caught.value.sequence == 1
