"""Acceptances that change the output's distribution: `mv.verify(..., lossy=mv.lossy.topk(3))`.

No rule is lossy, and none of these is ever chosen by itself. A verdict that one of them made says
so: ``lossless`` is False, ``rule`` is its name. A decoder's statistics say it too, and a
certificate shows the bias that it found and never says "pass". They need a temperature above 0.
"""

from mtp_verify._core import Lossy
from mtp_verify.verifier.intake import as_float

__all__ = ["Lossy", "ensemble", "threshold", "topk", "typical"]


def typical(eps: float, delta: float) -> Lossy:
    """Accept tokens that are likely enough for the row's entropy; the next token is the argmax.

    A token x is accepted if ``p(x) > min(eps, delta * exp(-H(p)))``, with H the entropy of the
    target's shaped row in nats; the longest accepted path is kept. For drafts of any law.

    Args:
        eps: In (0, 1).
        delta: Above 0.

    Raises:
        ParamsError: A number is out of range.

    Example:
        >>> typical(0.3, 0.09)
        mv.lossy.typical(0.3, 0.09)

    References:
        arXiv 2401.10774, section 2.3.1 (Medusa).
    """
    return Lossy("typical", [as_float("eps", eps), as_float("delta", delta)])


def threshold(tau: float) -> Lossy:
    """Accept tokens with ``p(x) >= tau``; the next token is sampled from the target.

    The longest accepted path is kept. For drafts of any law.

    Args:
        tau: In (0, 1].

    Raises:
        ParamsError: The number is out of range.

    Example:
        >>> threshold(0.25).name
        'threshold'
    """
    return Lossy("threshold", [as_float("tau", tau)])


def topk(k: int) -> Lossy:
    """Accept tokens among the k most likely; the next token is sampled.

    Equally likely tokens share a place; no token of probability 0 is accepted. The longest
    accepted path is kept. For drafts of any law.

    Args:
        k: At least 1.

    Raises:
        ParamsError: The number is out of range.

    Example:
        >>> topk(3).values
        [3.0]
    """
    return Lossy("topk", [as_float("k", k)])


def ensemble(w: float) -> Lossy:
    """Verify against ``w * p + (1 - w) * q`` in place of the target's row p.

    On one drafted token the total variation from the target is ``1 - w`` times that of the two
    models. Tokens of target probability 0 may be emitted. For drafts of law "chain", "iid", "swor".

    Args:
        w: The target's share, in (0, 1).

    Raises:
        ParamsError: The number is out of range.

    Example:
        >>> ensemble(0.5)
        mv.lossy.ensemble(0.5)

    References:
        arXiv 2604.07622 (DIVERSE); transformers has it as ``assistant_ensemble_weight``.
    """
    return Lossy("ensemble", [as_float("w", w)])
