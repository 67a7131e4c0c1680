"""`studies scale`: a short run finds what the roofline says."""

from __future__ import annotations

from studies import scale


def test_speculation_pays_at_small_batches_only(monkeypatch, tmp_path):
    for name, value in {"BATCHES": (1, 8, 128), "LOADS": (0.5, 1, 1), "LENGTH": 12.0}.items():
        monkeypatch.setattr(scale, name, value)
    found = scale.run(quick=True)
    speeds = found.data["tokens_per_second_by_batch"]
    assert sorted(speeds) == [1, 128]
    assert speeds[1]["fixed 16"] > speeds[1]["plain"]
    assert speeds[128]["fixed 16"] < speeds[128]["plain"]
    assert {name for row in found.data["by_load"].values() for name in row} == set(scale.POLICIES)
    assert all(table.to_text() for table in found.tables)
