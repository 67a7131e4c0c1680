"""The sandbox: what programs compute, and what stops them."""

from __future__ import annotations

import pytest

from mtp_verify.study.stack import INSTRUCTIONS, MODULUS, execute


@pytest.mark.parametrize(
    ("program", "value"),
    [
        ("", 4),
        ("1 +", 5),
        ("2 -", 2),
        ("dup *", 5),  # 16
        ("1 swap -", 8),  # 1 - 4
        ("1 - again", 0),  # counts down
        ("dup 1 - again", 0),
    ],
)
def test_programs(program: str, value: int) -> None:
    assert execute(program.split(), 4) == value


@pytest.mark.parametrize(
    "program",
    [
        "+",  # one number only
        "swap",
        "1 again",  # for ever, deeper and deeper
        "dup * again",  # for ever, in place
        "import os",
        "__class__ dup",
        "dup " * 20,  # too deep
        "1 + " * 40,  # too long
    ],
)
def test_faults(program: str) -> None:
    assert execute(program.split(), 4) is None


def test_arguments_wrap_around() -> None:
    assert execute([], MODULUS + 3) == 3
    assert len(set(INSTRUCTIONS)) == len(INSTRUCTIONS) == 8
