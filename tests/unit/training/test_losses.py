"""Losses of single rows against their formulas, and of levels against plain sums."""

from __future__ import annotations

import pytest
import torch

from mtp_verify.training import losses

IDS = torch.tensor([[2, 0, -1], [3, 1, 2]])
PROBS = torch.tensor([[0.5, 0.3, 0.15], [0.7, 0.2, 0.05]])


def _logits() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 4, generator=generator, dtype=torch.float32).requires_grad_()


def _full(ids: torch.Tensor, probs: torch.Tensor) -> torch.Tensor:
    """The target's law over the draft vocabulary, by a loop."""
    full = torch.zeros(2, 4)
    for row in range(2):
        for place, prob in zip(ids[row].tolist(), probs[row].tolist(), strict=True):
            if place >= 0:
                full[row, place] = prob
    return full


def test_overlap_and_distillation_equal_their_dense_formulas() -> None:
    logits = _logits()
    p, q = _full(IDS, PROBS), logits.softmax(1)
    assert torch.allclose(losses.overlap(logits, IDS, PROBS), torch.minimum(p, q).sum(1))
    assert torch.allclose(losses.distillation(logits, IDS, PROBS), -(p * q.log()).sum(1))
    assert torch.allclose(
        losses.total_variation(logits, IDS, PROBS), 1 - torch.minimum(p, q).sum(1)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_log_probabilities_have_the_gradient_that_autograd_finds(dtype: torch.dtype) -> None:
    start = _logits().detach().to(dtype)
    start[1, 0] = -torch.inf  # a token that its sequence has not shown
    ids = torch.tensor([[2, 0, 0], [3, 1, 2]])
    grad = torch.tensor([[0.5, -1.0, 0.25], [1.0, 0.0, 2.0]])
    mine, own = (start.clone().requires_grad_() for _ in range(2))
    found = losses._log_probs(mine, ids)
    wanted = own.float().log_softmax(1).gather(1, ids)
    assert torch.equal(found, wanted)
    found.backward(grad)
    wanted.backward(grad)
    assert mine.grad.dtype == dtype
    torch.testing.assert_close(mine.grad, own.grad)


def test_the_gradient_of_the_overlap_is_the_known_one() -> None:
    logits = _logits()
    p, q = _full(IDS, PROBS), logits.softmax(1).detach()
    losses.overlap(logits, IDS, PROBS).sum().backward()
    below = (q < p).float()
    assert torch.allclose(logits.grad, q * (below - (q * below).sum(1, keepdim=True)), atol=1e-6)


def test_log_overlap_has_the_scaled_gradient_of_total_variation() -> None:
    one, two = _logits(), _logits()
    losses.log_overlap(one, IDS, PROBS).sum().backward()
    losses.total_variation(two, IDS, PROBS).sum().backward()
    share = losses.overlap(two, IDS, PROBS).detach()
    assert torch.allclose(one.grad, two.grad / share[:, None], atol=1e-6)


@pytest.mark.parametrize("name", list(losses.LOSSES))
def test_losses_stay_finite_where_the_head_is_certain_and_wrong(name: str) -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0, 500.0]]).requires_grad_()
    loss = losses.LOSSES[name](logits, torch.tensor([[0, 1, -1]]), torch.tensor([[0.6, 0.3, 0.1]]))
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(logits.grad).all()


def test_cross_entropy_leaves_out_unknown_tokens() -> None:
    logits = _logits()
    loss = losses.cross_entropy(logits, torch.tensor([2, -1]))
    assert loss[0].item() == pytest.approx(-logits.log_softmax(1)[0, 2].item(), abs=1e-6)
    assert loss[1].item() == 0.0


def test_hybrid_lies_between_its_two_parts() -> None:
    logits = _logits()
    value = losses.hybrid(logits, IDS, PROBS)
    parts = torch.stack(
        [losses.distillation(logits, IDS, PROBS), losses.total_variation(logits, IDS, PROBS)]
    )
    assert (value >= parts.min(0).values).all()
    assert (value <= parts.max(0).values).all()


def test_the_sum_of_deepseek_weighs_the_mean_of_the_levels() -> None:
    total = losses.mtp_loss(torch.tensor(2.0), [torch.tensor(1.0), torch.tensor(3.0)], 0.3)
    assert total.item() == pytest.approx(2.0 + 0.3 * 2.0)


def test_one_head_after_the_other_gives_the_gradients_of_the_sum() -> None:
    torch.manual_seed(0)
    trunk = torch.nn.Linear(4, 4)
    heads = [torch.nn.Linear(4, 3) for _ in range(3)]
    x = torch.randn(2, 5, 4)
    parameters = [*trunk.parameters(), *(p for head in heads for p in head.parameters())]

    sum(head(trunk(x)).square().mean() for head in heads).backward()
    wanted = [p.grad.clone() for p in parameters]
    for p in parameters:
        p.grad = None
    total = losses.sequential_backward(
        trunk(x), [lambda h, head=head: head(h).square().mean() for head in heads]
    )
    assert all(
        torch.allclose(p.grad, w, atol=1e-7) for p, w in zip(parameters, wanted, strict=True)
    )
    with torch.no_grad():
        wanted_total = sum(head(trunk(x)).square().mean().item() for head in heads)
    assert total == pytest.approx(wanted_total, abs=1e-6)


def test_the_discriminator_learns_without_changing_its_inputs() -> None:
    torch.manual_seed(0)
    judge = losses.Discriminator(4)
    made = torch.randn(6, 4, requires_grad=True)
    judge.own_loss(torch.randn(6, 4), made).sum().backward()
    assert made.grad is None
    assert all(p.grad is not None for p in judge.parameters())
    assert (judge.head_loss(made) > 0).all()
