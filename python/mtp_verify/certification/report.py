"""Certificates for people and machines: a terminal table, JSON, one self-contained HTML page."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from mtp_verify.console.report import Report, Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mtp_verify.certification.blackbox import Certificate
    from mtp_verify.certification.tally import Check, Tally
    from mtp_verify.certification.whitebox import AcceptCertificate
    from mtp_verify.testing import stats

__all__ = ["PAGE_STYLE", "CertificateReport", "accept_report", "report"]

_NOT_ENOUGH = "not enough data"
_MOST_BARS = 40
_MOST_STRINGS = 5
# Attributes of a certificate that its data have under the same names.
_SETTINGS = ("min_tv", "alpha", "power", "power_reached", "horizon")


@dataclass
class CertificateReport(Report):
    """A report with an HTML page; its exit code is 2 if there was not enough data to decide."""

    certificates: Sequence[Certificate] = field(default=())
    appendix: Sequence[Table] = field(default=())  # of the page; `sections` has them for the text

    @property
    def exit_code(self) -> int:
        """0 pass, 1 biased or lossy (or a control failed), 2 not enough data."""
        if not self.ok:
            return 1
        return 2 if any(c.verdict == _NOT_ENOUGH for c in self.certificates) else 0

    def to_html(self) -> str:
        """Render one page that loads nothing: tables, and bars of expected and observed."""
        body = "".join(_as_html(table) for table in self.appendix)
        body += "".join(_section(certificate) for certificate in self.certificates)
        return (
            f'<!doctype html><html lang="en"><meta charset="utf-8">'
            f"<title>mtp-verify certify</title><style>{PAGE_STYLE}</style>"
            f"<h1>mtp-verify certify</h1><p>{escape(self.summary)}</p>{body}</html>\n"
        )


def report(certificates: Sequence[Certificate]) -> CertificateReport:
    """Make one report of one or several black-box certificates."""
    biased = [c for c in certificates if c.verdict == "biased" or not c.is_sound]
    short = [c for c in certificates if c.verdict == _NOT_ENOUGH]
    lossy = [c for c in certificates if c.lossy]
    status = "failed" if biased else "lossy" if lossy else "not_enough_data" if short else "ok"
    if biased:
        whys = [f"TV {_interval(c.tv)}" if c.is_sound else "a control failed" for c in biased]
        found = [f"{c.name} ({why})" for c, why in zip(biased, whys, strict=True)]
        summary = f"FAILED: {', '.join(found)}"
    elif lossy:
        summary = "; ".join(
            f"{c.name}: lossy by its own account ({c.lossy}), TV {_interval(c.tv)}" for c in lossy
        )
    elif short:
        summary = "; ".join(f"{c.name}: not enough data, {_missing(c)}" for c in short)
    else:
        summary = (
            f"nothing of total variation {min(c.min_tv for c in certificates)} or more found "
            "(that is not a proof: `make prove` makes one, of the rules of mtp-verify)"
        )
    return CertificateReport(
        "certify",
        ok=not (biased or lossy),
        data={"status": status, "certificates": [_as_data(c) for c in certificates]},
        sections=[_table(certificates), *(text for c in biased for text in _where(c))],
        summary=summary,
        certificates=certificates,
    )


def _missing(c: Certificate) -> str:
    if len(c.prompts) < c.num_prompts:
        return f"the law of {len(c.prompts)} of {c.num_prompts} prompts was known in time"
    return f"{c.num_missing:,} samples missing (power {_power_reached(c)})"


def _power_reached(c: Certificate) -> str:
    """Round down: what is shown was reached."""
    return f"{math.floor(c.power_reached * 1000) / 1000:g}"


def _interval(interval: stats.Interval) -> str:
    return f"{interval.estimate:.4f} [{interval.low:.4f}, {interval.high:.4f}]"


def _table(certificates: Sequence[Certificate]) -> Table:
    rows = []
    for c in certificates:
        least = min(c.checks, key=lambda check: check.adjusted)
        controls = "ok" if c.is_sound else "FAILED"
        cells = (f"{c.num_samples:,}", f"{c.num_needed:,}", f"{least.adjusted:.1e}")
        rows.append((c.name, c.verdict, *cells, _interval(c.tv), controls, f"{c.seconds:.0f}"))
    first = certificates[0]
    short = tuple(
        f"{c.name} ended early: {_missing(c)}." for c in certificates if c.verdict == _NOT_ENOUGH
    )
    notes = (
        "",
        f"looked for: TV >= {first.min_tv} with power {first.power}; a right engine fails with "
        f"probability {first.alpha:.2g}.",
        *short,
        "p: the least p-value after Holm's correction. TV: total variation of the joint law, "
        "mean over prompts.",
        f"beside the joint law, {first.horizon} tokens were compared one by one, given those "
        "before, and their noise.",
        "controls: plain sampling passed the same tests, and a sampler that is wrong by "
        f"{min(1.0, 2 * first.min_tv)} failed them.",
    )
    columns = ("engine", "verdict", "samples", "needed", "p", "TV [95 %]", "controls", "s")
    return Table("", columns, tuple(rows), left=2, notes=notes)


def _where(certificate: Certificate) -> list[Table]:
    """Show which tests failed, and which strings are most off at the worst prompt."""
    failed = [check for check in certificate.checks if check.adjusted < certificate.alpha]
    failed.sort(key=lambda check: (check.adjusted, -check.fit.statistic / max(1, check.fit.df)))
    tests = tuple(
        (_place(check, certificate), f"{check.fit.statistic:.1f}", f"{check.fit.df}",
         f"{check.adjusted:.1e}")
        for check in failed[:_MOST_STRINGS]
    )  # fmt: skip
    tables = [Table(f"{certificate.name}: where", ("test", "statistic", "df", "p"), tests)]
    tables += _ranks(failed, certificate)
    worst = next((c.prompt for c in failed if c.prompt is not None), None)
    if worst is None and tables[1:]:
        return tables
    worst = worst or 0
    tally = certificate.tallies[worst]
    counts = tally.halves.sum(axis=0)
    expected = tally.law.probs * counts.sum()
    # A string that cannot occur stands out most.
    off = np.abs(counts - expected) / np.sqrt(np.where(expected > 0, expected, 1e-12))
    strings = tuple(
        (str(tally.law.string(i)), f"{counts[i] / counts.sum():.4f}", f"{tally.law.probs[i]:.4f}")
        for i in np.argsort(-off)[:_MOST_STRINGS].tolist()
    )
    title = f"{certificate.name}: strings most off after the prompt {certificate.prompts[worst]}"
    tables.append(Table(title, ("tokens", "seen", "expected"), strings))
    return tables


def _ranks(failed: Sequence[Check], certificate: Certificate) -> list[Table]:
    """Show how often each rank was seen at the token that is most off, given those before."""
    name = next((check.name for check in failed if " given those before" in check.name), None)
    if name is None or certificate.paths is None:
        return []
    seen, expected = certificate.paths.ranks(int(name.split()[1]) - 1)
    rows = tuple(
        (f"{rank}", f"{number:,}", f"{wanted:,.1f}")
        for rank, (number, wanted) in enumerate(zip(seen.tolist(), expected.tolist(), strict=True))
    )
    title = f"{certificate.name}: {name.split(',')[0]}, by rank in its law (0: the likeliest)"
    return [Table(title, ("rank", "seen", "expected"), rows)]


def _place(check: Check, certificate: Certificate) -> str:
    if check.prompt is None:
        return f"{check.name}, all prompts"
    return f"{check.name}, prompt {certificate.prompts[check.prompt]}"


def _as_data(c: Certificate) -> dict[str, Any]:
    return {
        "engine": c.name,
        "verdict": c.verdict,
        "lossy": c.lossy or None,
        "total_variation": vars(c.tv),
        "samples": c.num_samples,
        "samples_needed": c.num_needed,
        "samples_missing": c.num_missing,
        **{name: getattr(c, name) for name in _SETTINGS},
        "seeds": {"first": c.seeds[0], "last": c.seeds[1]},
        "same_seed_same_output": c.repeats,
        "ties": c.ties,
        "controls": c.controls,
        "prompts_wanted": c.num_prompts,
        "prompts": [
            {"tokens": prompt, "total_variation": vars(interval)}
            for prompt, interval in zip(c.prompts, c.intervals, strict=True)
        ],
        "tests": [
            {"name": check.name, "prompt": check.prompt, "adjusted_p": check.adjusted}
            | vars(check.fit)
            for check in c.checks
        ],
        "seconds": c.seconds,
        **c.details,
    }


PAGE_STYLE = (
    "body{font:15px system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#222}"
    "table{border-collapse:collapse;margin:1em 0}td,th{padding:2px 10px;text-align:left}"
    "th{border-bottom:1px solid #888}svg text{font:11px monospace}.seen{fill:#d97706}"
    ".want{fill:#2563eb}.biased,.lossy{color:#b91c1c}.pass{color:#15803d}"
)


def _as_html(table: Table) -> str:
    head = "".join(f"<th>{escape(name)}" for name in table.columns)
    rows = "".join(f"<tr>{''.join(f'<td>{escape(cell)}' for cell in row)}" for row in table.rows)
    return f"<h2>{escape(table.title)}</h2><table><tr>{head}{rows}</table>"


def _section(certificate: Certificate) -> str:
    """Render one certificate as HTML."""
    c = certificate
    kind = c.verdict if c.verdict in {"pass", "biased", "lossy"} else ""
    facts = (
        ("lossy", c.lossy or "no"),
        ("total variation [95 %]", _interval(c.tv)),
        ("samples", f"{c.num_samples:,} of {c.num_needed:,} needed"),
        ("looked for", f"TV {c.min_tv}, power {c.power}, false alarms {c.alpha:.2g}"),
        ("power reached", _power_reached(c)),
        ("prompts whose law was known in time", f"{len(c.prompts)} of {c.num_prompts}"),
        ("controls", ", ".join(f"{name}: {ok}" for name, ok in c.controls.items())),
        ("tokens compared one by one", f"{c.horizon}"),
        ("seeds", f"{c.seeds[0]} to {c.seeds[1]}; same seed, same output: {c.repeats}"),
        ("strings that left the greedy one at a tie", f"{c.ties:,}"),
        *((key, str(value)) for key, value in c.details.items()),
    )
    rows = "".join(f"<tr><th>{escape(k)}<td>{escape(v)}" for k, v in facts)
    tests = "".join(
        f"<tr><td>{escape(_place(check, c))}<td>{check.fit.statistic:.1f}<td>{check.fit.df}"
        f"<td>{check.adjusted:.2e}"
        for check in c.checks
    )
    pictures = "".join(
        f"<h3>After the prompt {escape(str(prompt))}</h3>{_bars(tally)}"
        for prompt, tally in zip(c.prompts, c.tallies, strict=True)
    )
    return (
        f'<h2>{escape(c.name)}: <span class="{kind}">{c.verdict}</span></h2><table>{rows}</table>'
        f"<table><tr><th>test<th>statistic<th>df<th>p (Holm){tests}</table>{pictures}"
    )


def _bars(tally: Tally) -> str:
    """Draw the likeliest strings: expected share above, observed below."""
    counts = tally.halves.sum(axis=0)
    seen = counts / max(1, int(counts.sum()))
    shown = np.argsort(-np.maximum(tally.law.probs, seen), kind="stable")[:_MOST_BARS].tolist()
    scale = 560 / max(1e-12, float(max(tally.law.probs.max(), seen.max())))
    parts = []
    for line, i in enumerate(shown):
        y = 16 * line
        want, got = float(tally.law.probs[i]), float(seen[i])
        label = " ".join(str(token) for token in tally.law.string(i))
        parts.append(
            f'<text x="0" y="{y + 11}">{label}</text>'
            f'<rect class="want" x="90" y="{y + 1}" height="6" width="{want * scale:.1f}"/>'
            f'<rect class="seen" x="90" y="{y + 7}" height="6" width="{got * scale:.1f}"/>'
            f'<text x="660" y="{y + 11}">{want:.4f} {got:.4f}</text>'
        )
    height = 16 * len(shown) + 4
    return (
        f'<p><svg width="800" height="{height}" role="img" aria-label="expected and observed">'
        f"{''.join(parts)}</svg><p>blue: expected; orange: observed ({len(shown)} of "
        f"{len(seen)} strings)"
    )


def accept_report(certificate: AcceptCertificate) -> Report:
    """Make the report of a white-box certificate."""
    c = certificate
    ok = c.verdict == "pass" and c.is_sound
    bad = [edge for edge in c.edges if edge.problem]
    laws = tuple((name, f"{distance:.1e}") for name, distance in c.distances.items())
    edges = tuple((edge.name, edge.found, edge.problem or "ok") for edge in c.edges)
    largest = max(c.distances.values())
    found = f"largest TV {largest:.1e}, {len(bad)} of {len(c.edges)} edge cases wrong"
    if not c.is_sound:
        found = "a control failed"
    data = {
        "accept": c.name,
        "verdict": c.verdict,
        "total_variation": c.distances,
        "edges": [vars(edge) for edge in c.edges],
        "controls": c.controls,
        "calls": c.num_calls,
    }
    sections: list[Table | str] = [
        Table("law of the emitted tokens, exact in the uniforms", ("model", "TV"), laws),
        Table("edge cases", ("case", "emitted", "verdict"), edges, left=3),
    ]
    summary = f"{c.name}: {'pass' if ok else 'FAILED'} ({found})"
    return Report("certify", ok=ok, data=data, sections=sections, summary=summary)
