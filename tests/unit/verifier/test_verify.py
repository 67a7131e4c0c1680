"""`verify`: what a verdict holds, and what it may and may not depend on."""

import numpy as np
import pytest
import torch

import mtp_verify as mv

VOCAB = 12
GREEDY = mv.SamplingParams(temperature=0)


def random_case(seed: int, depth: int = 3) -> tuple[mv.Draft, np.ndarray]:
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet(np.full(VOCAB, 0.5), size=depth).astype(np.float32)
    tokens = [int(rng.choice(VOCAB, p=row / row.sum(dtype=np.float64))) for row in probs]
    # The target is near the drafter, so that drafts are accepted now and then.
    logits = rng.normal(size=(depth + 1, VOCAB)).astype(np.float32)
    logits[:depth] += np.log(probs + np.float32(1e-3))
    return mv.Draft.chain(tokens, probs), logits


def emitted(draft: mv.Draft, logits: object, params: object = None, **options: object) -> list[int]:
    verdict = mv.verify(draft, logits, params, **{"seed": 5, "position": 3, **options})
    return verdict.tokens.tolist()


def test_verdict_fields() -> None:
    draft, logits = random_case(0)
    verdict = mv.verify(draft, logits, seed=5, position=3)
    assert verdict.tokens.dtype == verdict.path.dtype == np.int64
    assert verdict.logprobs.dtype == np.float32
    assert len(verdict.tokens) == len(verdict.logprobs) == verdict.num_accepted + 1
    assert verdict.path.tolist() == list(range(1, verdict.num_accepted + 1))
    assert verdict.rule == "block"
    assert verdict.lossless


def test_logprobs_are_the_shaped_target_s() -> None:
    params = mv.SamplingParams(temperature=0.7, top_k=5)
    for seed in range(30):
        draft, logits = random_case(seed)
        verdict = mv.verify(draft, logits, params, seed=seed, position=3)
        for row, token, found in zip(
            [0, *verdict.path], verdict.tokens, verdict.logprobs, strict=True
        ):
            scaled = logits[row] / np.float32(0.7)
            kept = np.where(scaled >= np.sort(scaled)[-5], scaled, -np.inf).astype(np.float64)
            wanted = kept[token] - np.log(np.exp(kept).sum())
            assert found == pytest.approx(wanted, abs=2e-6)


def test_cut_keeps_a_prefix() -> None:
    logits = np.zeros((4, VOCAB), np.float32)
    logits[[0, 1, 2, 3], [4, 5, 6, 7]] = 60
    verdict = mv.verify(mv.Draft.chain([4, 5, 6]), logits, seed=1, position=0)
    assert verdict.tokens.tolist() == [4, 5, 6, 7]
    cut = verdict.cut(2)
    assert (cut.tokens.tolist(), cut.path.tolist(), cut.num_accepted) == ([4, 5], [1], 1)
    assert len(cut.logprobs) == 2
    for wrong in (0, 5, -1):
        with pytest.raises(mv.errors.ParamsError, match="1 <= n"):
            verdict.cut(wrong)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_dtype_and_layout_gives_the_same_verdict(dtype: torch.dtype) -> None:
    for seed in range(20):
        draft, logits = random_case(seed)
        tensor = torch.from_numpy(logits).to(dtype)
        wide = torch.full((4, VOCAB + 5), torch.nan, dtype=dtype)
        wide[:, :VOCAB] = tensor
        wanted = emitted(draft, tensor.float().numpy())
        assert emitted(draft, tensor) == wanted
        assert emitted(draft, wide[:, :VOCAB]) == wanted  # Padded rows, a stride apart.
        assert emitted(draft, tensor.clone().requires_grad_()) == wanted


def test_read_only_logits_are_read() -> None:
    draft, logits = random_case(0)
    wanted = emitted(draft, logits)
    logits.setflags(write=False)
    assert emitted(draft, logits) == wanted


def test_logits_are_not_modified() -> None:
    draft, logits = random_case(1)
    before = logits.copy()
    for rule in ("auto", "token", "target_only", "coupled"):
        emitted(draft, logits, mv.SamplingParams(top_p=0.8), rule=rule)
    np.testing.assert_array_equal(logits, before)


def test_the_same_address_gives_the_same_verdict_and_others_differ() -> None:
    draft, logits = random_case(2)
    assert emitted(draft, logits) == emitted(draft, logits)
    by_seed = {tuple(emitted(draft, logits, seed=seed)) for seed in range(200)}
    by_position = {tuple(emitted(draft, logits, position=position)) for position in range(200)}
    assert len(by_seed) > 5
    assert len(by_position) > 5


def test_tokens_stay_the_same_between_versions() -> None:
    # Golden: a change here is value-breaking and is named so in the changelog.
    draft, logits = random_case(22)
    golden = {
        "token": [[11, 9], [11, 8, 3, 3], [11, 10]],
        "block": [[11, 8, 3, 7], [11, 8, 3, 3], [11, 8, 3, 3]],
        "target_only": [[7], [11, 2], [11, 10]],
        "coupled": [[11, 7], [11, 6], [10]],
    }
    for rule, wanted in golden.items():
        assert [emitted(draft, logits, rule=rule, seed=seed) for seed in range(3)] == wanted


@pytest.mark.parametrize("rule", ["auto", "token", "block", "target_only", "coupled", "greedy"])
def test_temperature_zero_is_greedy_with_every_rule(rule: str) -> None:
    for seed in range(20):
        draft, logits = random_case(seed)
        best = logits.argmax(axis=1)
        wanted = []
        for row in range(4):
            wanted.append(int(best[row]))
            if row == 3 or draft.tokens[row + 1] != best[row]:
                break
        verdict = mv.verify(draft, logits, GREEDY, rule=rule, seed=seed, position=0)
        assert verdict.tokens.tolist() == wanted
        assert verdict.rule == "greedy"
        assert verdict.logprobs.tolist() == [0] * len(wanted)


def test_greedy_ties_go_to_the_lowest_id() -> None:
    logits = np.zeros((1, 3000), np.float32)
    logits[0, [1500, 77, 2999]] = 1
    assert emitted(mv.Draft.chain([]), logits, GREEDY) == [77]


@pytest.mark.parametrize("rule", ["token", "block"])
def test_a_target_that_drafts_for_itself_is_always_accepted(rule: str) -> None:
    for seed in range(100):
        rng = np.random.default_rng(seed)
        logits = 3 * rng.normal(size=(5, 40)).astype(np.float32)
        params = mv.SamplingParams(temperature=0.8, top_p=0.9)
        tokens = [mv._core.draw(logits[node], params, seed, 3, node + 1) for node in range(4)]
        draft = mv.Draft(
            mv.TokenTree(range(-1, 4)), [-1, *tokens], law="chain", logits=logits, params=params
        )
        verdict = mv.verify(draft, logits, params, rule=rule, seed=seed, position=3)
        assert verdict.num_accepted == 4


@pytest.mark.parametrize("rule", ["token", "block"])
def test_a_drafter_with_disjoint_support_is_never_accepted_and_the_law_holds(rule: str) -> None:
    target = np.log(np.array([[0.5, 0.3, 0.2, 0, 0], [0.2] * 5], np.float32) + 1e-38)
    target[0, 3:] = -np.inf
    probs = np.array([[0, 0, 0, 0.5, 0.5]], np.float32)
    counts = np.zeros(5)
    n = 20_000
    for seed in range(n):
        draft = mv.Draft.chain([3 + seed % 2], probs)
        verdict = mv.verify(draft, target, rule=rule, seed=seed, position=0)
        assert verdict.num_accepted == 0
        counts[verdict.tokens[0]] += 1
    # Weissman: P(L1 >= e) <= (2^5 - 2) exp(-n e^2 / 2); e = 0.05 gives 4e-10, TV 0.025 is seen.
    assert np.abs(counts / n - [0.5, 0.3, 0.2, 0, 0]).sum() < 0.05


def test_coupled_output_depends_on_seed_and_position_alone() -> None:
    for seed in range(50):
        draft, logits = random_case(seed, depth=3)
        # Plain decoding: one row at a time, no draft.
        plain = []
        for row in range(4):
            plain += emitted(
                mv.Draft.chain([]), logits[row : row + 1], rule="coupled", position=3 + row
            )
            if row == 3 or draft.tokens[row + 1] != plain[-1]:
                break
        assert emitted(draft, logits, rule="coupled") == plain
        assert emitted(mv.Draft.chain(draft.tokens[1:]), logits, rule="coupled") == plain


def test_coupled_draws_have_the_row_s_law() -> None:
    logits = np.log(np.array([[0.4, 0.3, 0.2, 0.1]], np.float32))
    n = 20_000
    draws = [emitted(mv.Draft.chain([]), logits, rule="coupled", seed=s)[0] for s in range(n)]
    found = np.bincount(draws, minlength=4) / n
    # Weissman: (2^4 - 2) exp(-n 0.05^2 / 2) = 2e-10.
    assert np.abs(found - [0.4, 0.3, 0.2, 0.1]).sum() < 0.05


def test_probability_zero_is_never_emitted() -> None:
    logits = np.full((1, 3000), -np.inf, np.float32)
    logits[0, [0, 2047, 2048, 2999]] = 0  # Around the edge of a block.
    seen = {emitted(mv.Draft.chain([]), logits, seed=seed)[0] for seed in range(500)}
    assert seen == {0, 2047, 2048, 2999}


def test_rules_are_listed_with_their_laws() -> None:
    table = {rule["name"]: rule for rule in mv.rules()}
    assert table["block"]["laws"] == ["deterministic", "chain"]
    assert table["greedy"]["lossless"]
    assert mv.best_rule(mv.Draft.chain([1])) == "target_only"
    draft, _ = random_case(0)
    assert mv.best_rule(draft) == "block"


@pytest.mark.parametrize("rule", ["topdown", "lifted", "token", "block", "hu"])
def test_rules_of_sampled_laws_run_target_only_on_deterministic_drafts(rule: str) -> None:
    logits = np.zeros((2, VOCAB), np.float32)
    verdict = mv.verify(mv.Draft.chain([1]), logits, rule=rule, seed=1, position=0)
    assert verdict.rule == "target_only"


def test_history_must_end_at_the_root() -> None:
    logits = np.zeros((1, VOCAB), np.float32)
    emitted(mv.Draft.chain([]), logits, history=[1, 2, 3, 4], prompt_len=2)
    with pytest.raises(mv.errors.ParamsError, match=r"wanted position \+ 1 = 4"):
        emitted(mv.Draft.chain([]), logits, history=[1, 2])
    with pytest.raises(mv.errors.ParamsError, match="prompt_len"):
        emitted(mv.Draft.chain([]), logits, history=[1, 2, 3, 4], prompt_len=5)


def test_derive_seed() -> None:
    assert mv.derive_seed(7, 0) == 7
    assert len({mv.derive_seed(7, row) for row in range(100)}) == 100


LAWS = ("deterministic", "chain", "iid", "swor", "top_plus_one", "mixed", "coupled", "unknown")


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("record", mv.rules(), ids=lambda record: record["name"])
def test_an_empty_draft_is_verified_by_any_rule(record, law):
    """Where the rule does not know the law, the target's token is drawn as by `target_only`."""
    rule, sampled = record["name"], [False] if law == "mixed" else None
    empty = mv.Draft(mv.TokenTree([-1]), [-1], law=law, sampled=sampled)
    params = mv.SamplingParams(temperature=0.0 if rule == "greedy" else 1.0)
    row = np.array([[0.5, 0.0, 1.0]], np.float32)
    for seed in range(20):
        verdict = mv.verify(empty, row, params, rule=rule, seed=seed, position=3)
        plain = mv.verify(empty, row, params, rule="target_only", seed=seed, position=3)
        assert verdict.num_accepted == 0
        if law not in record["laws"]:
            assert (verdict.tokens, verdict.rule) == (plain.tokens, plain.rule)
    if law in ("deterministic", "unknown", "coupled") and law not in record["laws"]:
        with pytest.raises(mv.errors.RuleError, match=f'rule "{rule}" cannot verify law "{law}"'):
            mv.verify(
                mv.Draft(mv.TokenTree([-1, 0]), [-1, 0], law=law), np.tile(row, (2, 1)), params,
                rule=rule, seed=0, position=3,
            )  # fmt: skip
    with pytest.raises(mv.errors.RuleError, match='rule "best"'):
        mv.verify(empty, row, rule="best", seed=0, position=3)
