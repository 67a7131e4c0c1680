"""The core's attention over torch's memory: torch's own values, and every misuse refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional

from mtp_verify._core import Attention, Entries
from mtp_verify.errors import MtpVerifyError

HEADS, KEPT, DIM = 6, 2, 8
PASTS, COUNTS = [3, 0], [2, 3]


def step(dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Two sequences at places 1 and 2 of a memory of three."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    return {
        "given": drawn(5, (HEADS + 2 * KEPT) * DIM),
        "cos": drawn(5, DIM),
        "sin": drawn(5, DIM),
        "keys": drawn(3, KEPT, 9, DIM),
        "values": drawn(3, KEPT, 9, DIM),
        "out": torch.zeros((5, HEADS * DIM), dtype=dtype),
        "ancestors": torch.tensor([[[1, 0, 0], [1, 1, 0], [1, 0, 1]]] * 2) == 1,
    }  # fmt: skip


def attend(parts: dict[str, Any], pasts: Any = PASTS, counts: Any = COUNTS, first: Any = 1) -> Any:
    turn = {name: parts[name] for name in ("cos", "sin", "out")}
    heads = parts.get("heads", HEADS)
    attention = Attention(pasts, counts, parts["ancestors"], heads=heads, **turn)
    attention.attend(parts["given"], Entries(parts["keys"], parts["values"]), first)
    return parts["out"]


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 1e-6), (torch.bfloat16, 0.03), (torch.float16, 0.004)],
)
def test_it_is_torchs_own(dtype: torch.dtype, tolerance: float) -> None:
    parts = step(dtype)
    before = parts["keys"].clone(), parts["values"].clone()
    out = attend(parts).float().view(5, HEADS, DIM)
    heads = parts["given"].view(5, -1, DIM)
    turned = heads[:, : HEADS + KEPT]
    swapped = turned.roll(DIM // 2, -1)
    turned = turned * parts["cos"][:, None] + swapped * parts["sin"][:, None]
    for place, past, rows in ((1, 3, slice(0, 2)), (2, 0, slice(2, 5))):
        count = rows.stop - rows.start
        keys, values = (old[place].clone() for old in before)
        keys[:, past : past + count] = turned[rows, HEADS:].transpose(0, 1)
        values[:, past : past + count] = heads[rows, HEADS + KEPT :].transpose(0, 1)
        # Kept where they belong, rounded as torch rounds them, and nothing else is touched.
        assert torch.equal(parts["keys"][place], keys)
        assert torch.equal(parts["values"][place], values)
        seen = torch.ones(count, past + count, dtype=torch.bool)
        seen[:, past:] = parts["ancestors"][0, :count, :count]
        expected = functional.scaled_dot_product_attention(
            turned[None, rows, :HEADS].transpose(1, 2).float(),
            keys[None, :, : past + count].float(),
            values[None, :, : past + count].float(),
            attn_mask=seen,
            enable_gqa=True,
        )
        torch.testing.assert_close(
            out[rows], expected[0].transpose(0, 1), atol=tolerance, rtol=tolerance
        )
    for name, old in zip(("keys", "values"), before, strict=True):
        assert torch.equal(parts[name][0], old[0])


def test_without_ancestors_each_row_sees_all_before_it() -> None:
    parts, other = step(), step()
    other["ancestors"] = torch.ones((2, 3, 3), dtype=torch.bool).tril()
    parts["ancestors"] = None
    assert torch.equal(attend(parts), attend(other))


def test_numpy_arrays_are_memory_too() -> None:
    parts = {name: tensor.numpy() for name, tensor in step().items()}
    assert torch.equal(torch.from_numpy(attend(parts)), attend(step()))


def _frozen(array: Any) -> Any:
    array = array.numpy().copy()
    array.flags.writeable = False
    return array


CHANGES = {
    "a dtype of its own": {"cos": lambda t: t.double()},
    "integers": {"given": lambda t: t.int()},
    "given in another format": {"given": lambda t: t.bfloat16()},
    "entries in another format": {"keys": lambda t: t.half(), "values": lambda t: t.half()},
    "too few rows": {"given": lambda t: t[:4]},
    "gaps": {"given": lambda t: torch.cat([t, t], dim=1)[:, : t.shape[1]]},
    "transposed entries": {"keys": lambda t: t.transpose(2, 3).contiguous().transpose(2, 3)},
    "entries of other shapes": {"keys": lambda t: t[:2]},
    "entries without heads": {"keys": lambda t: t[0], "values": lambda t: t[0]},
    "too few sequences": {"keys": lambda t: t[:2].clone(), "values": lambda t: t[:2].clone()},
    "no room": {
        "keys": lambda t: t[:, :, :4].contiguous(),
        "values": lambda t: t[:, :, :4].contiguous(),
    },
    "a small out": {"out": lambda t: t[:3]},
    "ancestors as numbers": {"ancestors": lambda t: t.long()},
    "ancestors of fewer nodes": {"ancestors": lambda t: t[:, :2, :2].contiguous()},
    "no tensor": {"sin": lambda t: t.tolist()},
    "read-only": {"out": _frozen},
    "heads that share nothing": {"heads": lambda _: 5},
    "no heads": {"heads": lambda _: 0},
    # 2**61 * 8 * 5 and 0 are the same number of 64 bits.
    "more heads than there are numbers": {"heads": lambda _: 2**61 + HEADS},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=list(CHANGES))
def test_what_does_not_fit_is_refused_and_changes_nothing(change: dict[str, Any]) -> None:
    parts = step()
    parts |= {name: make(parts.get(name)) for name, make in change.items()}
    memory = {name: parts[name].float().clone() for name in ("keys", "values")}
    with pytest.raises((MtpVerifyError, BufferError)):
        attend(parts)
    for name, before in memory.items():
        assert torch.equal(parts[name].float(), before)


@pytest.mark.parametrize(
    ("pasts", "counts", "first"),
    [
        ([3], [2, 3], 1), ([3, 0], [2, 0], 1), ([3, 0], [2, 4], 1), ([3, -1], [2, 3], 1),
        ([3, 2**62], [2, 3], 1), (PASTS, COUNTS, 2), (PASTS, COUNTS, -1),
        (PASTS, COUNTS, 2**63 - 1), (PASTS, [2, 2**40], 1), ("ab", COUNTS, 1),
        (PASTS, COUNTS, "1"), ([], [], 0),
    ],
)  # fmt: skip
def test_places_that_do_not_exist_are_refused(pasts: Any, counts: Any, first: Any) -> None:
    parts = step()
    with pytest.raises((MtpVerifyError, TypeError)):
        attend(parts, pasts, counts, first)
    assert not parts["out"].any()


@pytest.mark.parametrize("pair", [("keys", "values"), ("out", "given"), ("keys", "out")])
def test_memory_that_overlaps_is_refused(pair: tuple[str, str]) -> None:
    parts = step()
    one, other = pair
    size = max(parts[one].numel(), parts[other].numel())
    shared = torch.zeros(size + 1)
    for offset, name in enumerate(pair):
        shape = parts[name].shape
        parts[name] = shared[offset : offset + parts[name].numel()].view(shape)
    with pytest.raises(MtpVerifyError, match="another of the tensors"):
        attend(parts)
