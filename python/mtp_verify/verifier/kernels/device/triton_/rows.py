"""Read rows as the core does: the same IEEE operations in the same order, so the same bits.

A multiplication and an addition round twice where the core rounds twice, and once where it says
`fma`: so kernels that use these functions are launched with `OPTIONS`.
"""

# Kernels take the compiler's own values, which have no types that a checker knows.
# ruff: noqa: ANN001, ANN201, ANN202
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import triton
import triton.language as tl

from mtp_verify.verifier.kernels.device import layout

if TYPE_CHECKING:
    from torch import Tensor

    from mtp_verify.verifier.kernels.device.layout import Step

__all__ = [
    "COUNTS",
    "OPTIONS",
    "Source",
    "ceiling_of",
    "divide",
    "divisor_of",
    "drafter_source",
    "even_exponent",
    "exponent_around",
    "floor_of",
    "fold",
    "located",
    "opened",
    "power_of_two",
    "raw",
    "reached",
    "read",
    "scaled",
    "sum_blocks",
    "target_source",
    "weigh",
    "weigh_reached",
    "weight",
    "weights",
]

# Numbers that differ from step to step: kernels are not compiled anew for 1 or multiples of 16.
COUNTS = ["NODES", "DRAFTED", "TARGET_GROUPS"]
OPTIONS: dict[str, Any] = {"enable_fp_fusion": False}
if torch.version.hip is None:
    # Without it ptxas spills a few registers so that one more program fits a multiprocessor.
    OPTIONS["ptx_options"] = "--minnctapersm=1"

BLOCK = tl.constexpr(layout.BLOCK)
LANES = tl.constexpr(layout.LANES)
# Stripes between two turns of a loop.
UNROLLED = tl.constexpr(8)

# The core's constants (`src/rows/simd/exp.rs`).
LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
MAGIC = tl.constexpr(12582912.0)
BELOW = tl.constexpr(124)
ABOVE = tl.constexpr(100)


class Source(NamedTuple):
    """Rows in memory, as kernels take them (where `values` and `type` are names of a tuple's own).

    Attributes:
        data: (n, width) float32, bfloat16 or float16.
        stride: Values between rows.
        width: Tokens of a row.
        place: (R,) int32, where in `data` a row is; None if rows are numbered as they lie there.
        temperature: (n,) float32, 0 for greedy rows; None for rows of probabilities.
        bitmask: (n, ceil(width / 32)) int32 or None.
        words: Words of the mask between rows.
        shadow: (S, width) float32 or None.
        shadow_stride: Values between its rows.
        shadow_of: (n,) int32, -1 for none; None with `shadow`.
    """

    data: Tensor
    stride: int
    width: int
    place: Tensor | None
    temperature: Tensor | None
    bitmask: Tensor | None
    words: int | None
    shadow: Tensor | None
    shadow_stride: int | None
    shadow_of: Tensor | None


def target_source(step: Step) -> Source:
    """Return the target's rows of a step, numbered by node."""
    bitmask, shadow, shadow_of = step.edited
    return Source(
        data=step.logits,
        stride=step.logits.stride(0),
        width=step.capacity.vocab,
        place=step.nodes.place,
        temperature=step.shaping.temperature,
        bitmask=bitmask,
        words=None if bitmask is None else bitmask.stride(0),
        shadow=shadow,
        shadow_stride=None if shadow is None else shadow.stride(0),
        shadow_of=shadow_of,
    )


def drafter_source(step: Step) -> Source | None:
    """Return the drafter's rows of a step, or None where it has none."""
    if step.drafted is None:
        return None
    rows, shaping, _, place = step.drafted
    return Source(
        data=rows,
        stride=rows.stride(0),
        width=step.capacity.columns,
        place=place,
        temperature=None if shaping is None else shaping.temperature,
        bitmask=None,
        words=None,
        shadow=None,
        shadow_stride=None,
        shadow_of=None,
    )


@triton.jit
def power_of_two(power):
    """Return 2**power as float64; 0 below the normal numbers."""
    bits = (tl.minimum(power, 1023) + 1023).to(tl.int64) << 52
    return tl.where(power < -1022, 0.0, bits.to(tl.float64, bitcast=True))


@triton.jit
def even_exponent(x):
    """Return the even 2 m with 4**m <= x < 4**(m + 1), of a positive float64."""
    exponent = ((x.to(tl.int64, bitcast=True) >> 52) & 0x7FF).to(tl.int32) - 1023
    return exponent & -2


@triton.jit
def exponent_around(y):
    """Return the even exponent under which a logit within reach has a weight of 1/2 to 4."""
    return 2 * tl.floor(y.to(tl.float64) * (LOG2_E / 2.0)).to(tl.int32)


@triton.jit
def _nats(power):
    return (power.to(tl.float64) * LN_2).to(tl.float32)


@triton.jit
def floor_of(exponent):
    """Return the logit below which weights under an exponent are 0."""
    return _nats(exponent - BELOW)


@triton.jit
def ceiling_of(exponent):
    """Return the logit at which weights under an exponent are capped."""
    return _nats(exponent + ABOVE)


@triton.jit
def weight(y, exponent, ceiling, cut):
    """Return exp(y) 2**-exponent as float32; 0 below `cut`.

    Args:
        y: Scaled logits, float32.
        exponent: int32, even.
        ceiling: `ceiling_of` that exponent; what is above, or NaN, has a huge weight.
        cut: At least `floor_of` that exponent.
    """
    magic = MAGIC - exponent.to(tl.float32)
    x = tl.minimum(y, ceiling)  # Of NaN it takes the other.
    shifted = tl.fma(x, LOG2_E, magic)
    r = tl.fma(x, LOG2_E, magic - shifted)
    p = tl.fma(r, 0.00015453262, 0.0013390979)
    p = tl.fma(p, r, 0.009618082)
    p = tl.fma(p, r, 0.05550357)
    p = tl.fma(p, r, 0.2402265)
    p = tl.fma(p, r, LN_2)
    p = tl.fma(p, r, 1.0)
    bits = p.to(tl.int32, bitcast=True) + (shifted.to(tl.int32, bitcast=True) << 23)
    return tl.where(y < cut, 0.0, bits.to(tl.float32, bitcast=True))


@triton.jit
def fold(x):
    """Return the sums over the last axis of (M, N), N a power of two: halves onto halves.

    Only sums of two are left to the compiler, so their order is the core's.
    """
    rows: tl.constexpr = x.shape[0]
    if x.shape[1] == 1:
        return tl.reshape(x, (rows,))
    else:
        halves = tl.reshape(x, (rows, 2, x.shape[1] // 2))
        return fold(tl.sum(halves, 1))


@triton.jit
def located(source, row):
    """Return where a row of logits (or many) lies, for `read`."""
    place = row
    if source.place is not None:
        place = tl.load(source.place + row)
    values = source.data + place.to(tl.int64) * source.stride
    shadow, of, words = values, -1, values
    if source.shadow is not None:
        of = tl.load(source.shadow_of + row)
        shadow = source.shadow + of.to(tl.int64) * source.shadow_stride
    if source.bitmask is not None:
        words = source.bitmask + row.to(tl.int64) * source.words
    return values, shadow, of, words


@triton.jit
def read(source, located_row, tokens, within):
    """Return logits of a located row: edited, not yet divided; -inf where not `within`."""
    values, shadow, of, words = located_row
    if source.shadow is None:
        x = tl.load(values + tokens, within, float("-inf")).to(tl.float32)
    else:
        own = tl.where(within, of, 0) < 0
        edited = tl.where(within, of, -1) >= 0
        x = tl.load(values + tokens, own, float("-inf")).to(tl.float32)
        x = tl.where(edited, tl.load(shadow + tokens, edited, float("-inf")), x)
    if source.bitmask is not None:
        word = tl.load(words + (tokens >> 5), within, 0)
        x = tl.where(((word >> (tokens & 31)) & 1) != 0, x, float("-inf"))
    return x


@triton.jit
def raw(source, row, tokens, within):
    """Return logits of a row, or each of a row of its own, as `read` does."""
    return read(source, located(source, row), tokens, within)


@triton.jit
def divisor_of(source, row):
    """Return the temperature by which a row is divided, and its reciprocal; greedy rows are not."""
    temperature = tl.load(source.temperature + row)
    divisor = tl.where(temperature > 0.0, temperature, 1.0)
    return divisor, tl.div_rn(1.0, divisor)


@triton.jit
def divide(x, divisor, reciprocal):
    """Return x / divisor as IEEE rounds it, where quotient and reciprocal are normal numbers.

    The remainder of a division is exact with `fma`. The first correction leaves an error below one
    unit, the second one rounds as a division does (Markstein, IBM J. Res. Dev. 34(1), 1990).
    """
    first = x * reciprocal
    q = tl.fma(tl.fma(-first, divisor, x), reciprocal, first)
    q = tl.fma(tl.fma(-q, divisor, x), reciprocal, q)
    # Infinities and NaN have no remainder.
    return tl.where(tl.abs(first) < float("inf"), q, first)


@triton.jit
def scaled(source, row, tokens, within):
    """Return logits divided by the temperature (greedy rows: as they are); -inf where not `within`.

    `row` is one row, or a row for each token.
    """
    divisor, reciprocal = divisor_of(source, row)
    return divide(raw(source, row, tokens, within), divisor, reciprocal)


@triton.jit
def opened(records, row):
    """Return what `weigh` needs to know of a row (or of many): the same for all of its tokens."""
    exponent = tl.load(records.exponent + row)
    cut = tl.load(records.cut + row)
    tie_end = tl.load(records.tie_end + row)
    origin = tl.load(records.origin + row)
    only = tl.load(records.only + row)
    return exponent, ceiling_of(exponent), cut, tie_end, origin, only


@triton.jit
def reached(source, row):
    """Return where a row lies (or many), and how it is divided: the same for all of its tokens."""
    divisor, reciprocal = 1.0, 1.0
    if source.temperature is not None:
        divisor, reciprocal = divisor_of(source, row)
    return located(source, row), divisor, reciprocal


@triton.jit
def weigh_reached(source, reached_row, opened_row, tokens, within):
    """Return the weights of tokens in a row that was reached and opened, as `weigh` does."""
    place, divisor, reciprocal = reached_row
    if source.temperature is None:
        values, _, _, _ = place
        return tl.load(values + tokens, within, 0.0).to(tl.float32)
    else:
        exponent, ceiling, cut, tie_end, origin, only = opened_row
        y = divide(read(source, place, tokens, within), divisor, reciprocal) - origin
        kept = (y > cut) | ((y >= cut) & (tokens < tie_end))
        w = tl.where(kept, weight(y, exponent, ceiling, cut), 0.0)
        return tl.where(only < 0, w, (within & (tokens == only)).to(tl.float32))


@triton.jit
def weigh(source, opened_row, row, tokens, within):
    """Return the weights of tokens in an opened row, float32; 0 where not `within`."""
    return weigh_reached(source, reached(source, row), opened_row, tokens, within)


@triton.jit
def weights(source, records, row, tokens, within):
    """Return the weights of tokens in a row, or each in a row of its own; 0 where not `within`."""
    return weigh(source, opened(records, row), row, tokens, within)


@triton.jit
def sum_blocks(source, opened_row, row, blocks, GROUP: tl.constexpr):
    """Return the sums of weights of GROUP blocks of an opened row; 0 for those behind its end."""
    first = blocks[:, None] * BLOCK + tl.arange(0, LANES)[None, :]
    stripes = tl.cdiv(source.width - tl.min(blocks, 0) * BLOCK, LANES)
    stripes = tl.minimum(stripes, BLOCK // LANES)
    place = reached(source, row)
    sums = tl.zeros((GROUP, LANES), tl.float64)
    for start in range(0, stripes, UNROLLED):
        for stripe in tl.static_range(UNROLLED):
            tokens = first + (start + stripe) * LANES
            w = weigh_reached(source, place, opened_row, tokens, tokens < source.width)
            sums += w.to(tl.float64)
    return fold(sums)
