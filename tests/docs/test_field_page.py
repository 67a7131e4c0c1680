"""`docs/reference/field-rules.md` is what its script makes of the committed, current bench."""

from __future__ import annotations

import json
import re
from fractions import Fraction
from pathlib import Path

import pytest

from mtp_verify import _core
from tests.scripts import load_script

ROOT = Path(__file__).parents[2]
BENCH = json.loads((ROOT / "docs" / "data" / "field.json").read_text())
OPTIMUM = json.loads((ROOT / "docs" / "data" / "optimum.json").read_text())
LINES = {line["rule"]: line for line in BENCH}


def test_page_is_generated_from_the_bench():
    page = (ROOT / "docs" / "reference" / "field-rules.md").read_text()
    assert page == load_script("gen_field_page").render(BENCH)


def test_bench_has_the_rules_of_the_sources():
    folder = ROOT / "src" / "proof" / "field"
    names = {
        name
        for file in folder.glob("*.rs")
        if file.name not in {"tests.rs", "table.rs", "search.rs"}
        for name in re.findall(
            r'(?:name:|Rule::chain\(|shared\(|biased\()\s*"(\w+)"', file.read_text()
        )
    }
    assert names == set(LINES)
    assert all(line["holds"] for line in BENCH)


def test_every_bias_has_a_counterexample_whose_numbers_are_a_distance():
    for line in BENCH:
        example = line["counterexample"]
        assert (example is None) == line["lossless"], line["rule"]
        if example is not None:
            gap = Fraction(example["emitted"]) - Fraction(example["wanted"])
            assert 0 < gap <= Fraction(example["distance"]) <= 1
            rows = [*example["target"], *example["drafter"]]
            assert all(sum(map(Fraction, row)) == 1 for row in rows)


def test_no_lossless_rule_of_one_call_is_above_the_best_possible():
    seen = 0
    for line in BENCH:
        for case in line["cases"]:
            best = OPTIMUM[line["law"]].get(case["case"])
            if best is None or not case["expected"]:
                continue
            length = float(Fraction(case["expected"]))
            if line["lossless"] and line["rule"] != "hsd_naive":  # which asks for more rows
                assert length <= best + 1e-6, (line["rule"], case["case"])
                seen += 1
    assert seen > 60


def test_what_the_page_says_of_means_is_so():
    for case in LINES["hsd"]["cases"]:
        assert case["expected"] == dict(case["shipped"])["block"]
    for case in LINES["vllm_block"]["cases"]:
        assert case["expected"] == dict(case["shipped"])["block"]
    for case in LINES["global_resolution"]["cases"]:
        mean = Fraction(case["expected"])
        shipped = {name: Fraction(value) for name, value in case["shipped"]}
        assert mean >= shipped["traversal"]
        model, _, shape = case["case"].partition(" ")
        if shape == "[2]":
            assert (mean > shipped["traversal"]) == (model in "ABDE")
            assert (mean > shipped["gbv"]) == (model in "BD")
            assert float(mean) == pytest.approx(OPTIMUM["iid"][case["case"]], abs=1e-6)
            assert mean == shipped["global_resolution"]
        else:
            assert (mean > shipped["gbv"]) == (model in "BD")
            assert mean <= shipped["global_resolution"]
            assert (shipped["global_resolution"] >= shipped["gbv"]) == (model != "E")
            is_optimal = float(shipped["global_resolution"]) > OPTIMUM["iid"][case["case"]] - 1e-6
            assert is_optimal == (model in "AC")
    walked = {case["case"]: case for case in LINES["global_resolution"]["cases"]}
    for case, mean, traversal, gbv in [
        ("E [2]", "179/100", "43/25", "179/100"),
        ("D [2]", "2", "123/64", "15/8"),
        ("B [2, 1]", "887/324", "271/108", "287/108"),
        ("D [2, 1]", "2961/1024", "1397/512", "11123/4096"),
    ]:
        assert walked[case]["expected"] == mean
        shipped = dict(walked[case]["shipped"])
        assert (shipped["traversal"], shipped["gbv"]) == (traversal, gbv)
    assert dict(walked["E [2, 1]"]["shipped"])["gbv"] == "294/125"
    assert dict(walked["E [2, 1]"]["shipped"])["global_resolution"] == "9401/4000"
    released = {case["case"]: case for case in LINES["hsd_released"]["cases"]}
    assert released["A [1, 1]"]["expected"] == "7/3"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_bench_is_that_of_this_build():
    assert json.loads(json.dumps(_core.prove_field())) == BENCH
