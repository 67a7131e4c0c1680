"""The sandbox: what programs compute, and what stops them."""

from __future__ import annotations

import pytest

from mtp_verify.study.machine import INSTRUCTIONS, MODULUS, execute


@pytest.mark.parametrize(
    ("program", "value"),
    [
        ("", 4),
        ("inc", 5),
        ("double", 8),
        ("negate", 7),
        ("square", 5),  # 16
        ("inc add", 9),  # the argument, not the number
        ("inc times", 9),  # 20
        ("inc again", 0),  # counts up to 11
    ],
)
def test_programs(program: str, value: int) -> None:
    assert execute(program.split(), 4) == value


@pytest.mark.parametrize(
    "program",
    [
        "square again",  # for ever
        "double again",
        "import os",
        "__class__ inc",
        "inc " * 61,  # too long
    ],
)
def test_faults(program: str) -> None:
    assert execute(program.split(), 4) is None


def test_arguments_wrap_around() -> None:
    assert execute([], MODULUS + 3) == 3
    assert execute(["inc", "times"], MODULUS + 3) == execute(["inc", "times"], 3)
    assert len(set(INSTRUCTIONS)) == len(INSTRUCTIONS) == 7
