"""What is tried on a device: models, pairs of rule and law, and the options that change rows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mtp_verify.verifier.api import rules
from mtp_verify.verifier.params import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from mtp_verify.verifier.words import Law, RuleCore, RuleName

__all__ = ["MODELS", "PAIRS", "REFUSED", "Case", "Model", "cases", "few_cases"]


class Model(NamedTuple):
    """Rows of weights of a target and of a drafter.

    The row after a path of tokens is number ``(length + sum of the tokens) mod (number of rows)``.
    """

    name: str
    target: NDArray[np.float64]
    drafter: NDArray[np.float64]


def _model(name: str, target: list[list[float]], drafter: list[list[float]]) -> Model:
    return Model(name, np.array(target), np.array(drafter))


MODELS = (
    _model("alike", [[2, 3, 5], [4, 4, 2]], [[3, 3, 4], [5, 3, 2]]),
    _model("zeros", [[0, 1, 1], [3, 1, 0], [1, 0, 0]], [[1, 1, 0], [1, 0, 3], [1, 1, 1]]),
    _model("apart", [[1, 2, 3, 4], [8, 1, 1, 0]], [[4, 3, 2, 1], [1, 1, 1, 5]]),
    _model("peaked", [[997, 2, 1], [1, 1, 998]], [[990, 5, 5], [2, 996, 2]]),
    # What a rejection leaves has several tokens, and the set is one of them.
    _model("leaning", [[5, 1, 3, 1], [4, 3, 2, 1]], [[14, 0, 5, 13], [2, 1, 1, 1]]),
)

# Shapes of trees: children by depth. Rules that test no drafted token need fewer of them.
_CHAINS = ((1,), (1, 1), (), (1, 1, 1))
_TREES = ((2,), (2, 1), (3,), (1, 2))
_TESTED: dict[Law, tuple[RuleName, ...]] = {
    "chain": ("token", "block"),
    "iid": ("specinfer", "traversal"),
    "swor": ("rrsw", "traversal"),
    "top_plus_one": ("hu", "lifted_hu"),
    "mixed": ("hu", "lifted_hu"),
}
_WALKED: dict[Law, tuple[tuple[int, ...], ...]] = {
    "deterministic": ((2,), (2, 1)),
    "chain": ((1,), (1, 1)),
    "iid": ((2,),),
    "swor": ((2,), (2, 1)),
    "top_plus_one": ((2,), (2, 1)),
    "mixed": ((2,), (2, 1)),
    "unknown": ((2,), (2, 1)),
}
# The pairs of rule and law that a device decides, and the shapes on which they are tried: those of
# the core's proof (`greedy` is none of them: every rule decides alike at temperature 0).
PAIRS: dict[tuple[RuleName, Law], tuple[tuple[int, ...], ...]] = {
    **{
        (rule, law): shapes
        for law, shapes in _WALKED.items()
        for rule in ("greedy", "target_only", "coupled")
    },
    **{
        (rule, law): _CHAINS if law == "chain" else _TREES
        for law, named in _TESTED.items()
        for rule in named
    },
}
# Pairs of the core's proof that a device refuses: rules that look at several paths at once.
REFUSED: tuple[tuple[RuleName, Law], ...] = (
    ("gbv", "chain"),
    ("kseq", "iid"),
    ("gbv", "iid"),
    ("global_resolution", "iid"),
)

_SHAPED = SamplingParams(temperature=0.5, top_k=3, top_p=0.95, min_p=0.01)
_CORES: dict[RuleName, RuleCore] = {record["name"]: record["core"] for record in rules()}


@dataclass(frozen=True)
class Case:
    """A rule on drafts of one law and shape from one model.

    Attributes:
        model: Its rows.
        rule: The rule's name.
        law: Of the drafts.
        shape: How many children a node has, by its depth.
        params: How the target's logits are shaped; the drafter's are too, but for penalties.
        is_logits: Whether the drafter's rows are given as logits, or as probabilities.
        has_noise: Whether the numbers are those of the device's own noise, looked for by position,
            or given in its place. A race has no given ones.
        forbidden: The tokens that a bitmask forbids after every node.
        vocab: The tokens that the drafter knows; None for all.
        is_spread: Whether the tokens lie in several blocks of a long row.
    """

    model: Model
    rule: RuleName
    law: Law
    shape: tuple[int, ...]
    params: SamplingParams = field(default_factory=SamplingParams)
    is_logits: bool = False
    has_noise: bool = False
    forbidden: tuple[int, ...] = ()
    vocab: tuple[int, ...] | None = None
    is_spread: bool = False

    @property
    def core(self) -> RuleCore:
        """The decision code of the rule."""
        return _CORES[self.rule]

    def __str__(self) -> str:
        """Describe the case in a cell of a table."""
        shape = "-".join(map(str, self.shape))
        options = {
            "shaped": self.params != SamplingParams(),
            "own noise": self.has_noise,
            "masked": bool(self.forbidden),
            "sub-vocabulary": self.vocab is not None,
            "long rows": self.is_spread,
        }
        words = [f"{self.law} {shape}", self.model.name]
        return ", ".join([*words, *(name for name, is_on in options.items() if is_on)])


def _case(
    rule: RuleName,
    law: Law,
    shape: tuple[int, ...],
    number: int,
    params: SamplingParams | None = None,
    *,
    is_logits: bool = False,
) -> Case:
    """Return a case of a pair on a model by its number."""
    if rule == "greedy":
        params = SamplingParams(temperature=0)
    has_noise = rule == "coupled"
    own = params or SamplingParams()
    return Case(MODELS[number], rule, law, shape, own, is_logits, has_noise)


def cases() -> Iterator[Case]:
    """List all cases: every pair on four models, some of them shaped, with both kinds of rows.

    A race is won by the least likely token of "peaked" in too few positions to look for them.
    """
    for (rule, law), shapes in PAIRS.items():
        for number in range(3 if rule == "coupled" else 4):
            for shape in shapes:
                yield _case(rule, law, shape, number, is_logits=number % 2 > 0)
            yield _case(rule, law, shapes[-1][:2], number, _SHAPED, is_logits=True)
    yield from _with_options()


def few_cases() -> Iterator[Case]:
    """List cases for a device that takes long: every pair twice, and all options."""
    for rule, law in PAIRS:
        shapes = PAIRS[rule, law]
        yield _case(rule, law, shapes[0], 0, is_logits=True)
        yield _case(rule, law, shapes[-1] if len(shapes) < 3 else shapes[1], 1)
    yield from _with_options()


def _with_options() -> Iterator[Case]:
    """List cases of options that change rows, and of where numbers come from."""
    penalties = SamplingParams(presence_penalty=0.7, logit_bias={1: 0.5})
    tested: tuple[tuple[RuleName, Law], ...] = (("rrsw", "swor"), ("lifted_hu", "mixed"))
    for rule, law in tested:
        yield Case(MODELS[4], rule, law, (2,), has_noise=True)
        yield Case(MODELS[0], rule, law, (2,), _SHAPED, is_logits=True)
        yield Case(MODELS[0], rule, law, (2,), forbidden=(1,))
        yield Case(MODELS[0], rule, law, (2,), vocab=(2, 0), is_logits=True)
    yield Case(MODELS[0], "block", "chain", (1,), penalties)
    for rule in ("hu", "lifted_hu"):
        yield Case(MODELS[4], rule, "mixed", (2,), is_spread=True)
