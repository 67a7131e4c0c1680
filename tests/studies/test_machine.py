"""The sandbox: what programs print, and what stops them."""

from __future__ import annotations

import pytest

from studies.machine import INSTRUCTIONS, MODULUS, execute


@pytest.mark.parametrize(
    ("program", "printed"),
    [
        ("", []),
        ("inc", [5]),
        ("double", [8]),
        ("negate", [7]),
        ("square", [5]),  # 16
        ("inc add", [5, 9]),  # the argument, not the number
        ("inc times inc", [5, 9, 10]),  # 20
    ],
)
def test_programs(program: str, printed: list[int]) -> None:
    assert execute(program.split(), 4) == printed


@pytest.mark.parametrize("program", ["import os", "__class__ inc", "inc " * 61])
def test_faults(program: str) -> None:
    assert execute(program.split(), 4) is None


def test_arguments_wrap_around() -> None:
    assert execute(["inc", "times"], MODULUS + 3) == execute(["inc", "times"], 3)
    assert len(set(INSTRUCTIONS)) == len(INSTRUCTIONS) == 6
