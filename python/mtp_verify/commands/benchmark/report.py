"""The runs as tables, as JSON, and as a picture."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from mtp_verify.commands.benchmark.figures import Estimate, geometric_mean, ratio, tau
from mtp_verify.commands.benchmark.measure import LIBRARY, PLAIN
from mtp_verify.console.report import Table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from mtp_verify.commands.benchmark.measure import Run
    from mtp_verify.commands.benchmark.paired import Expectation
    from mtp_verify.commands.shared.entrants import Entrant
    from mtp_verify.commands.shared.prompts import BenchPrompt
    from mtp_verify.decoder.generation import Stats

__all__ = ["ALL", "LOW_REPETITION", "as_data", "draw", "repetition", "summarise", "tables"]

ALL = "all"
# Greedy text of small models runs in circles, which flatters drafters that copy: texts of whose
# 4-grams fewer than this share occurred before are a group of their own.
LOW_REPETITION = "low repetition"
_LOW = 0.2
_GRAM = 4
_RATIOS = {"over_plain": "vs plain", "over_transformers": "vs transformers"}
# Okabe and Ito's colours, told apart by colour-blind people too, and three more.
_COLOURS = (
    "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#777777", "#d55e00",
    "#56b4e9", "#8b5a2b", "#000000", "#9acd32",
)  # fmt: skip


def summarise(
    runs: Sequence[Run],
    prompts: Sequence[BenchPrompt],
    entrants: Sequence[Entrant],
    pairs: Mapping[tuple[int, str], Sequence[Expectation]],
) -> dict[str, Any]:
    """Return the figures of each mode and drafter; by category, where that is a group of prompts.

    A drafter that is an upper bound has no speeds. `pairs` holds what `expectations` found for a
    prompt's index and a mode.
    """
    figures: dict[str, Any] = {}
    for mode in dict.fromkeys(run.mode for run in runs):
        found = {(run.prompt, run.entrant): run for run in runs if run.mode == mode}
        plain = [found[index, PLAIN] for index in range(len(prompts))]
        library = [found[index, LIBRARY] for index in range(len(prompts))]
        shares = [repetition(run.tokens) for run in plain]
        members = _members(prompts, shares)
        by_entrant = {}
        for entrant in entrants:
            mine = [found[index, entrant.name] for index in range(len(prompts))]
            stats = [run.stats for run in mine]
            drafted, accepted = [run.drafted for run in stats], [run.accepted for run in stats]
            entry: dict[str, Any] = {
                "is_upper_bound": entrant.is_upper_bound,
                "tau": {
                    name: tau([stats[at] for at in places]) for name, places in members.items()
                },
                "first_level": {
                    name: _first_level([stats[at] for at in places])
                    for name, places in members.items()
                },
                "drafted_per_step": ratio(drafted, [run.steps for run in stats]),
                "accepted_per_drafted": sum(accepted) / max(1, sum(drafted)),
            }
            if not entrant.is_upper_bound:
                entry["tokens_per_second"] = _speed(mine)
                entry["over_plain"] = _over(mine, plain, members)
                entry["over_transformers"] = _over(mine, library, members)
            by_entrant[entrant.name] = entry
        figures[mode] = {
            "plain": {"tokens_per_second": _speed(plain)},
            "transformers": {"tokens_per_second": _speed(library)},
            "repetition": {
                name: sum(shares[at] for at in places) / len(places)
                for name, places in members.items()
            },
            "drafters": by_entrant,
            "paired": _paired([pairs[index, mode] for index in range(len(prompts))], members),
        }
    return figures


def _first_level(stats: Sequence[Stats]) -> Estimate:
    """Return how often a draft's first level was accepted; 0 where nothing was drafted."""
    attempted = [sum(run.attempted[:1]) for run in stats]
    accepted = [sum(run.accepted_at[:1]) for run in stats]
    return ratio(accepted, attempted) if any(attempted) else Estimate(0.0, None, None, len(stats))


def _paired(
    found: Sequence[Sequence[Expectation]], members: dict[str, list[int]]
) -> dict[str, dict[str, Any]]:
    """Return tau of each drafter at equal places, and how far it is from the first one's."""
    figures = {}
    for rank, name in enumerate(each.entrant for each in found[0]):
        mine, first = [each[rank] for each in found], [each[0] for each in found]
        counts = [len(each.accepted) for each in mine]
        emitted = [sum(each.accepted) + count for each, count in zip(mine, counts, strict=True)]
        ahead = [sum(a.accepted) - sum(b.accepted) for a, b in zip(mine, first, strict=True)]
        figures[name] = {
            "num_places": sum(counts),
            "drafted": sum(sum(each.drafted) for each in mine) / sum(counts),
            **{
                kind: {
                    group: ratio([sums[at] for at in places], [counts[at] for at in places])
                    for group, places in members.items()
                }
                for kind, sums in (("tau", emitted), ("ahead", ahead))
            },
        }
    return figures


def repetition(tokens: Sequence[int]) -> float:
    """Return the share of a text's 4-grams that occurred in it before.

    Example:
        >>> repetition([1, 2, 3, 4, 1, 2, 3, 4])
        0.2
    """
    grams = [tuple(tokens[start : start + _GRAM]) for start in range(len(tokens) - _GRAM + 1)]
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0


def _members(prompts: Sequence[BenchPrompt], shares: Sequence[float]) -> dict[str, list[int]]:
    """Return the indices of the prompts of each category, of low repetition, and of all."""
    members: dict[str, list[int]] = {}
    for index, prompt in enumerate(prompts):
        members.setdefault(prompt.category, []).append(index)
    low = [index for index in range(len(prompts)) if shares[index] < _LOW]
    return {**members, **({LOW_REPETITION: low} if low else {}), ALL: list(range(len(prompts)))}


def _over(
    mine: Sequence[Run], theirs: Sequence[Run], members: dict[str, list[int]]
) -> dict[str, Estimate]:
    """Return how much faster the runs of each group of prompts are, prompt by prompt."""
    ratios = [
        a.tokens_per_second / b.tokens_per_second if a.late_tokens and b.late_tokens else 1.0
        for a, b in zip(mine, theirs, strict=True)
    ]
    return {name: geometric_mean([ratios[at] for at in places]) for name, places in members.items()}


def _speed(runs: Sequence[Run]) -> Estimate:
    return ratio([run.late_tokens for run in runs], [run.late_seconds for run in runs])


def as_data(figures: Any) -> Any:
    """Return the figures for JSON."""
    if isinstance(figures, Estimate):
        return asdict(figures)
    if isinstance(figures, dict):
        return {name: as_data(value) for name, value in figures.items()}
    return figures


def tables(figures: dict[str, Any]) -> list[Table]:
    """Return the tables of each mode: tau and first level by category, speeds, equal places."""
    made = []
    for mode, found in figures.items():
        drafters = found["drafters"]
        names = [name + " *" * entry["is_upper_bound"] for name, entry in drafters.items()]
        groups = next(iter(drafters.values()))["tau"]
        taus = [
            (
                category,
                str(estimate.num_prompts),
                f"{100 * found['repetition'][category]:.0f} %",
                *(_cell(entry["tau"][category]) for entry in drafters.values()),
            )
            for category, estimate in groups.items()
        ]
        firsts = [
            (category, *(_cell(entry["first_level"][category]) for entry in drafters.values()))
            for category in groups
        ]
        plain = [
            (name, "", "", _cell(found[name]["tokens_per_second"], 1), "", "")
            for name in (LIBRARY, PLAIN)
        ]
        speeds = [
            (
                name,
                f"{entry['drafted_per_step'].value:.1f}",
                f"{100 * entry['accepted_per_drafted']:.0f} %",
                _cell(entry["tokens_per_second"], 1),
                *(f"{_cell(entry[name][ALL])} x" for name in _RATIOS),
            )
            for name, entry in drafters.items()
            if not entry["is_upper_bound"]
        ]
        notes = (
            "repeats: 4-grams of the plain text that occurred in it before",
            "* the target drafts for itself: an upper bound for trees of this size",
        )
        title = f"tau, {mode} (mean tokens per step, 95 % interval over prompts)"
        made.append(Table(title, ("category", "prompts", "repeats", *names), (*taus,), notes=notes))
        title = f"accepted at the first level, {mode} (share of the steps that drafted)"
        made.append(Table(title, ("category", *names), (*firsts,)))
        title = f"speed, {mode} (decoding alone, from the first token on)"
        heads = ("drafter", "drafted/step", "kept", "tokens/s", *_RATIOS.values())
        made.append(Table(title, heads, (*plain, *speeds)))
        if found["paired"]:
            made.append(_equal_places(mode, found["paired"]))
    return made


def _equal_places(mode: str, paired: dict[str, dict[str, Any]]) -> Table:
    entries = list(paired.values())
    groups = entries[0]["tau"]
    rows = [(group, *(_cell(entry["tau"][group]) for entry in entries)) for group in groups]
    ahead = [_cell(entry["ahead"][ALL], signed=True) for entry in entries[1:]]
    drafted = [f"{entry['drafted']:.1f}" for entry in entries]
    rows += [(f"{ALL}, ahead of the first", "", *ahead), ("drafted", *drafted)]
    title = f"tau at {entries[0]['num_places']} equal places of the plain texts, {mode}"
    return Table(title, ("category", *paired), (*rows,))


def _cell(estimate: Estimate, digits: int = 2, *, signed: bool = False) -> str:
    """Return the figure, with half the width of its interval where there is one."""
    text = f"{estimate.value:{'+' * signed}.{digits}f}"
    if estimate.low is None or estimate.high is None:
        return text
    return f"{text} ±{(estimate.high - estimate.low) / 2:.{digits}f}"


def draw(figures: dict[str, Any], title: str, path: Path) -> None:
    """Draw tau and speed by category and drafter, two panels a mode; the suffix is the format."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    categories = list(next(iter(next(iter(figures.values()))["drafters"].values()))["tau"])
    height = 2.0 + 0.42 * len(categories)
    kinds = {"tau": "tokens per step (tau)", "over_plain": "speed, plain decoding = 1"}
    # Text stays text in an SVG, and the same figures give the same file.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "mtp-verify", "font.size": 9}):
        figure = Figure(figsize=(1.5 + 6.4 * len(figures), height), layout="constrained")
        panels = figure.subplots(1, 2 * len(figures), sharey=True, squeeze=False)[0]
        for place, (mode, found) in enumerate(figures.items()):
            for panel, (kind, label) in zip(panels[2 * place :], kinds.items(), strict=False):
                _fill(panel, found["drafters"], kind, categories)
                panel.set_title(mode)
                panel.set_xlabel(label)
        panels[0].set_yticks(range(len(categories)), categories)
        panels[0].set_ylim(len(categories) - 0.4, -0.6)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
        figure.suptitle(title)
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)


def _fill(panel: Any, drafters: dict[str, Any], kind: str, categories: Sequence[str]) -> None:
    """Draw one kind of figure: a point with its interval for each drafter and category."""
    for rank, (name, entry) in enumerate(drafters.items()):
        if kind not in entry:  # the speed of an upper bound means nothing
            continue
        offset = 0.7 * ((rank + 0.5) / len(drafters) - 0.5)
        estimates = [entry[kind][category] for category in categories]
        values = [estimate.value for estimate in estimates]
        colour = _COLOURS[rank % len(_COLOURS)]
        face = "white" if entry["is_upper_bound"] else colour
        label = name + " (upper bound)" * entry["is_upper_bound"]
        places = [place + offset for place in range(len(categories))]
        lows = [e.value if e.low is None else e.low for e in estimates]
        highs = [e.value if e.high is None else e.high for e in estimates]
        panel.hlines(places, lows, highs, color=colour, linewidth=0.8, alpha=0.6)
        style = {"color": colour, "markerfacecolor": face, "markersize": 3.5}
        panel.plot(values, places, "o", label=label, **style)
    # Intervals from two or three prompts can be very wide: the points set the scale.
    values = [e.value for entry in drafters.values() for e in entry.get(kind, {}).values()]
    panel.set_xlim(min(0.9, 0.95 * min(values, default=1.0)), 1.05 * max(values, default=1.0))
    panel.axvline(1.0, color="black", linewidth=0.6)
    panel.grid(axis="x", linewidth=0.3)
