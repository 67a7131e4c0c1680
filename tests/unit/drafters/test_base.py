"""What is said to who writes a drafter of his own."""

from __future__ import annotations

import pytest

import mtp_verify as mv
from mtp_verify.decoder.planning import Costs
from mtp_verify.drafters import Combined, NGram
from mtp_verify.testing import TableTarget

GREEDY = mv.SamplingParams(temperature=0)


class Copies(mv.Drafter):
    """The least that a drafter can be: the last token again."""

    def propose(self, requests, budgets):
        return [
            mv.Draft.chain(request.tokens[-1:] * min(2, budget))
            for request, budget in zip(requests, budgets, strict=True)
        ]


def generate(drafter, **options):
    decoder = mv.Decoder(TableTarget(lambda path: [0.0, 1.0], 2), drafter, GREEDY, **options)
    return decoder.generate([0, 1], max_new_tokens=5)


def test_propose_alone_makes_a_drafter():
    found = generate(Copies())
    assert found.tokens == [[1] * 5]
    assert found.stats.forwards < 5


def test_a_class_without_propose_makes_no_object():
    with pytest.raises(TypeError, match="propose"):
        type("Mine", (mv.Drafter,), {})()


WRONG = {
    "None": (lambda drafts: None, "found None, wanted a list of 1, one mv.Draft for each request"),
    "none": (lambda drafts: [], "found 0 drafts, wanted a list of 1"),
    "two": (lambda drafts: drafts * 2, "found 2 drafts, wanted a list of 1"),
    "one draft": (lambda drafts: drafts[0], r"found .*, wanted a list of 1"),
    "tokens": (
        lambda drafts: [[1, 1]],
        r"found \[1, 1\] in place 0 of its list, wanted a mv.Draft",
    ),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("among", ["alone", "planned", "planned and pure", "first", "merge"])
def test_a_proposal_that_is_no_list_of_drafts_is_named(name, among):
    change, message = WRONG[name]

    class Mine(Copies):
        is_pure = among == "planned and pure"

        def propose(self, requests, budgets):
            return change(super().propose(requests, budgets))

    drafter, options = Mine(), {}
    if among in ("first", "merge"):
        drafter = Combined([drafter, NGram()], among)
    elif among != "alone":
        options["planner"] = mv.Planner(Costs({1: {1: 1.0, 33: 1.1}}))
    with pytest.raises(mv.errors.DraftError, match=f"Mine.propose: {message}"):
        generate(drafter, **options)


@pytest.mark.parametrize("laws", ["chain", ("chian",), [None]])
def test_laws_that_are_none_are_named(laws):
    kind = type("Mine", (Copies,), {"laws": laws})
    with pytest.raises(
        mv.errors.DraftError, match=r"Mine.laws: found .*, wanted a tuple of some of: det"
    ):
        generate(kind())
