"""The dashboard and the scrape configuration of `docs/howto/tune.md`, as text."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from mtp_verify.decoder.generation import Stats

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "monitoring"
# As vllm/v1/spec_decode/metrics.py and vllm/v1/metrics/loggers.py (0.33; the client library appends
# _total) and sglang/srt/observability/metrics_collector.py (0.5.23) name them.
OF_DRAFTS = {
    "vllm:spec_decode_num_drafts_total",
    "vllm:spec_decode_num_draft_tokens_total",
    "vllm:spec_decode_num_accepted_tokens_total",
    "vllm:spec_decode_num_accepted_tokens_per_pos_total",
}
NAMES = OF_DRAFTS | {
    "vllm:generation_tokens_total",
    "sglang:spec_accept_rate",
    "sglang:spec_accept_length",
    "sglang:spec_verify_calls_total",
    "sglang:generation_tokens_total",
}
COUNTERS = {name for name in NAMES if name.endswith("_total")}
NAME = re.compile(r"\b(?:vllm|sglang):\w+")

DASHBOARD: dict[str, Any] = json.loads((EXAMPLE / "grafana.json").read_text())
PANELS = DASHBOARD["panels"]
EXPRESSIONS = [target["expr"] for panel in PANELS for target in panel["targets"]]


def test_expressions_read_all_known_metrics_and_no_others() -> None:
    assert {name for own in EXPRESSIONS for name in NAME.findall(own)} == NAMES


def test_the_page_names_the_same() -> None:
    page = (ROOT / "docs" / "howto" / "tune.md").read_text()
    table = page[page.index("### What the dashboard shows") : page.index("### A loop")]
    assert set(NAME.findall(table)) == NAMES
    assert re.findall(r"^\| ([A-Z][^|]*?) \|", table, re.MULTILINE) == [p["title"] for p in PANELS]


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_expressions_are_whole(expression: str) -> None:
    assert all(
        expression.count(one) == expression.count(other) for one, other in ["()", "[]", "{}"]
    )
    for name in NAME.findall(expression):
        selected = rf'{name}{{model_name=~"$model"}}'
        assert selected in expression
        # A counter is read as a rate, a gauge as it is.
        is_rate = f"rate({selected}[$__rate_interval])" in expression
        assert is_rate == (name in COUNTERS)


def test_variables_and_places_of_the_dashboard() -> None:
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    text = json.dumps(PANELS).replace("$__rate_interval", "")
    assert set(re.findall(r"\$\{?(\w+)", text)) == variables
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in PANELS]
    assert len(set(places)) == len(places)
    label = DASHBOARD["templating"]["list"][1]["query"]["query"]
    assert set(NAME.findall(label)) < NAMES


def test_both_engines_are_scraped_where_they_listen() -> None:
    settings = yaml.safe_load((EXAMPLE / "prometheus.yml").read_text())
    targets = {job["job_name"]: job["static_configs"] for job in settings["scrape_configs"]}
    assert targets == {
        "vllm": [{"targets": ["localhost:8000"]}],
        "sglang": [{"targets": ["localhost:30000"]}],
    }


def test_our_own_counters_are_among_them() -> None:
    stats = Stats()
    stats.record(depth=2, num_nodes=2, num_accepted=1, num_emitted=2)
    assert set(NAME.findall(stats.as_prometheus())) == OF_DRAFTS
