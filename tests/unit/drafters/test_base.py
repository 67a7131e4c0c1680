"""What is said to who writes a drafter of his own."""

from __future__ import annotations

import ast
import pathlib

import pytest

import mtp_verify as mv
from mtp_verify.decoder.planning import Costs
from mtp_verify.drafters import Combined, NGram
from mtp_verify.testing import BatchTableTarget, TableTarget

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


class Duck:
    """Has every method of a drafter, and does not derive from `mv.Drafter`."""

    laws, makes_trees, is_pure, hidden_layers = (), False, False, ()
    start = propose = observe = commit = release = choose = lambda self, *given: None


NO_DRAFTERS = {
    "a duck": (Duck(), "found .*Duck.*, wanted a drafter such as .*derive a class of your own"),
    "its class": (Copies, r"found the class Copies, wanted an object of it: Copies\(...\)"),
    "its name": ("NGram", "found 'NGram', wanted a drafter"),
}


@pytest.mark.parametrize("name", NO_DRAFTERS)
def test_what_is_no_drafter_is_refused_by_name(name):
    drafter, message = NO_DRAFTERS[name]
    target = TableTarget(lambda path: [0.0, 1.0], 2)
    ways = {
        "drafter": [
            lambda: mv.Decoder(target, drafter),
            lambda: mv.Decoder(target).submit([0, 1], max_new_tokens=1, drafter=drafter),
            lambda: mv.testing.assert_drafter(drafter, [0], 2),
        ],
        r"drafters\[1\]": [lambda: Combined([NGram(), drafter])],
    }
    for argument, calls in ways.items():
        for call in calls:
            with pytest.raises(TypeError, match=f"^{argument}: {message}"):
                call()


def test_hidden_layers_that_are_no_numbers_are_named():
    kind = type("Mine", (Copies,), {"hidden_layers": [-1]})
    with pytest.raises(
        mv.errors.DraftError, match=r"Mine.hidden_layers: found \[-1\], wanted a tu"
    ):
        generate(kind())


HOOKS = (
    "check_vocabulary",
    "check_rule",
    "start",
    "choose",
    "propose",
    "observe",
    "commit",
    "release",
)


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("among", ["alone", "combined", "planned"])
def test_the_loop_calls_every_hook(hook, among):
    calls = []

    def counted(self, *given):
        calls.append(hook)
        return getattr(Copies, hook)(self, *given)

    drafter, options = type("Mine", (Copies,), {hook: counted})(), {}
    if among == "combined":
        drafter = Combined([NGram(), drafter])
    if among == "planned":
        options["planner"] = mv.Planner(Costs({1: {1: 1.0, 33: 1.1}}))
    generate(drafter, **options)
    # Only a planner asks who drafts next.
    assert bool(calls) == (hook != "choose" or among == "planned")


@pytest.mark.parametrize("hook", HOOKS[2:])
def test_what_a_hook_raises_is_raised_and_the_next_call_works(hook):
    raises = [hook]

    def once(self, *given):
        if raises:
            raise RuntimeError(raises.pop())
        return getattr(Copies, hook)(self, *given)

    drafter = type("Mine", (Copies,), {hook: once})()
    planner = mv.Planner(Costs({1: {1: 1.0, 33: 1.1}}))
    with pytest.raises(RuntimeError, match=hook):
        generate(drafter, planner=planner)
    assert generate(drafter, planner=planner).tokens == [[1] * 5]


@pytest.mark.parametrize("room", ["decoder", "drafters", "integrations", "testing"])
def test_no_module_probes_a_drafter(room):
    package = pathlib.Path(mv.__file__).parent
    probes = {"getattr", "hasattr", "callable"}
    for file in (package / room).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                asked = ast.unparse(node.args[0]) if node.args else ""
                is_probe = node.func.id in probes and asked.endswith("drafter")
                assert not is_probe, f"{file.name}: {ast.unparse(node)}"


@pytest.mark.parametrize("batching", ["each", "together"])
def test_results_are_kept_where_the_end_of_one_raises(batching):
    raises = ["release"]

    class Mine(Copies):
        def release(self, request):
            if raises:
                raise RuntimeError(raises.pop())

    target = BatchTableTarget(lambda path: [0.0, 1.0], 2)
    decoder = mv.Decoder(target, Mine(), GREEDY, batching=batching)
    numbers = [decoder.submit([0, 1], max_new_tokens=5) for _ in range(3)]

    def run():
        while decoder.num_unfinished:
            decoder.step()

    with pytest.raises(RuntimeError, match="release"):
        run()
    run()
    results = decoder.results()
    assert [results[number].tokens for number in numbers] == [[[1] * 5]] * 3
