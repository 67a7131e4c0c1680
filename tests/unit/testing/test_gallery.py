"""Each fault of the gallery is found, and the same engine without it passes.

Seeds are fixed. Samples, power and false alarms are those of `certify`: a right engine fails with
probability 1e-4. docs/reference/gallery.md says how few samples suffice.
"""

from __future__ import annotations

import math

import httpx2
import numpy as np
import pytest

import mtp_verify as mv
from mtp_verify.certification import certify, certify_accept
from mtp_verify.certification.blackbox import make_prompts
from mtp_verify.certification.server import LOADS, Client, ServerSampler
from mtp_verify.certification.server.sampler import seed_of
from mtp_verify.commands import cli
from mtp_verify.testing import exact_law, gallery
from mtp_verify.testing.server import ToyServer
from tests.slow import few

SAMPLED = [name for name, fault in gallery.FAULTS.items() if fault.found_by == "samples"]
# Found with few samples at the usual options.
QUICK = [name for name in SAMPLED if not gallery.FAULTS[name].options]


def options(name):
    given = {"min_tv": 0.1, **gallery.FAULTS[name].options}
    return given | {"prompts": make_prompts(given.get("prompts", 3))}


@pytest.mark.parametrize("name", QUICK)
def test_faults_that_move_much_are_found_quickly(name):
    assert certify(gallery.engine(name), max_samples=2_160, **options(name)).verdict == "biased"


@pytest.mark.slow
@pytest.mark.stat
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", SAMPLED)
def test_every_fault_is_found_and_without_it_the_engine_passes(name):
    assert certify(gallery.engine(name), **options(name)).verdict == "biased"
    assert certify(gallery.engine(name, is_fixed=True), **options(name)).verdict == "pass"


def served(engine):
    app = ToyServer(engine.rows, engine=engine)
    client = Client("http://toy/v1", transport=httpx2.ASGITransport(app))
    num = min(5, engine.length)
    return ServerSampler(client, engine.rows, num=num, load=LOADS["n"])


def test_a_faulty_engine_is_the_same_behind_a_server():
    engine = gallery.engine("block-residual")
    sampler = served(engine)
    with sampler.client:
        found = sampler((1, 2), 8, 5)
    assert (found == engine((1, 2), 8, seed_of(5, 0))[:, : found.shape[1]]).all()


@pytest.mark.parametrize("name", few(SAMPLED, QUICK[-1:]))
@pytest.mark.timeout(1200)
def test_faults_are_found_over_http(name):
    for is_fixed in (False, True):
        engine = gallery.engine(name, is_fixed=is_fixed)
        sampler = served(engine)
        with sampler.client:
            allowed = getattr(engine, "allowed", None)
            found = certify(sampler, allowed=allowed, **options(name))
        assert found.verdict == ("pass" if is_fixed else "biased")


def test_the_boundary_is_seen_from_inside_alone():
    found = certify_accept(gallery.cdf_boundary, num_drafts=1)
    assert found.verdict == "biased"
    assert max(found.distances.values()) < 1e-6  # no sample shows it
    assert {edge.name for edge in found.edges if edge.problem} == {
        "u = 0, target probability 0",
        "u = 0, last uniform 0",
    }
    assert certify_accept(gallery.cdf_boundary_fixed).verdict == "pass"


@pytest.mark.parametrize("name", [name for name in QUICK if name != "greedy"])
def test_mended_engines_have_the_law_of_their_target(name):
    # 40,000 strings: cells of 16 or fewer strings; fails with probability 1e-9 for a right engine.
    engine = gallery.engine(name, is_fixed=True)
    if engine.grammar:
        return  # its law has a grammar: the slow test
    law = exact_law(engine.rows, (1, 2), 2)
    mv.testing.assert_same_law(engine((1, 2), 40_000, 3), law, min_tv=0.1)


def test_coarse_uniforms_take_what_is_computed():
    # 2,000,000 tokens of which some 1,100 are unlikely: within five standard deviations.
    coarse = gallery.CoarseEngine()
    mass = 65_535 * math.exp(-18)
    wanted = 2_000_000 * mass / (1 + mass)
    seen = sum(int((coarse((0,), 500_000, seed) != 0).sum()) for seed in range(4))
    left = wanted * (1 - coarse.lost())
    assert abs(seen - left) < 5 * math.sqrt(left) < wanted - left
    fixed = gallery.CoarseEngine(is_fixed=True)
    seen = sum(int((fixed((0,), 500_000, seed) != 0).sum()) for seed in range(4))
    assert abs(seen - wanted) < 5 * math.sqrt(wanted)


def test_a_flat_mask_lets_tokens_through_that_the_grammar_forbids():
    wrong, right = (gallery.engine("flat-mask", is_fixed=fixed) for fixed in (False, True))
    allowed = wrong.allowed.matrix

    def forbidden(engine):
        strings = engine((1, 2), 2_000, 0)
        return int((~allowed[strings[:, :-1], strings[:, 1:]]).sum())

    assert forbidden(wrong) > 100
    assert forbidden(right) == 0


def test_numbers_are_rounded_as_bfloat16_is():
    torch = pytest.importorskip("torch")
    values = np.random.default_rng(0).normal(0, 40, 10_000)
    wanted = torch.tensor(values, dtype=torch.float32).bfloat16().double().numpy()
    assert (gallery._bfloat16(values) == wanted).all()


def test_every_fault_says_where_it_was_reported():
    for name, fault in gallery.FAULTS.items():
        assert fault.trackers, name
        for tracker in fault.trackers:
            repository, number = tracker.split("#")
            assert repository.count("/") == 1
            assert number.isdecimal()


def test_unknown_faults_and_settings_are_refused():
    with pytest.raises(mv.errors.ParamsError, match="shared-noise"):
        gallery.engine("none")
    with pytest.raises(mv.errors.ParamsError, match="shared-noise"):
        gallery.engine("cdf-boundary")
    with pytest.raises(mv.errors.ParamsError, match="temperature"):
        gallery.engine("coarse-uniforms", temperature=0.5)


def test_the_command_runs_modes_of_the_gallery(capsys):
    words = ["certify", "--engine", "gallery", "--min-tv", "0.2", "--horizon", "4", "--mode"]
    assert cli.main([*words, "block-residual"]) == 1
    assert "gallery block-residual" in capsys.readouterr().out
    assert cli.main([*words, "block-residual-fixed"]) == 0
    assert cli.main([*words, "block-residual", "--eos", "3"]) != 0
