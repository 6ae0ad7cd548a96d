from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args

from roles.load_test.library import load_report as subject


def case(seconds: list[float], *, records: int = 100, limit: int = 60, goal: int = 4, **changes: Any) -> dict[str, Any]:
    runs = [{"run_id": "r", "seconds": 1.0, "service_seconds": 0.5, "records": records}]
    repetitions = [
        {"began": 1000.0 + 100 * number, "ended": 1000.0 + 100 * number + took, "seconds": took, "runs": runs}
        for number, took in enumerate(seconds)
    ]
    queue = [{"at": 1000.0, "length": 2, "unacknowledged": 1}]
    facts = {"name": f"{records} records", "records": records, "runs": 1, "simulated_ms": 0.0, "limit": limit}
    return {**facts, "goal": goal, "result": {"repetitions": repetitions, "queue": queue}, **changes}


HOST = {
    **{"cores": 2, "memory_mib": 4096, "processor": "P", "system": "S"},
    "samples": [
        {"at": 1000.0 + second, "cpu": 0.5, "memory_mib": 100.0 + second, "read_mib": 0.0, "written_mib": 1.5}
        for second in range(10)
    ],
}


def test_the_median_is_judged_by_the_goal_and_the_slowest_by_the_limit() -> None:
    assert subject.missed(case([3.0, 4.0, 59.0])) == []
    assert subject.missed(case([3.0, 4.1, 59.0])) == ["over the goal of 4 s"]
    assert subject.missed(case([3.0, 4.0, 61.0])) == ["over the limit of 60 s"]
    assert subject.missed(case([9999.0], limit=0, goal=0)) == []


def test_the_page_shows_every_case_and_host_and_its_plots_exist(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "docs" / "figures.md"
    arguments = {
        "page": str(page),
        "title": "somewhere",
        "cases": [case([3.0, 5.0, 4.0]), case([44.0], records=10000, simulated_ms=1.0)],
        "hosts": {"worker-1": HOST, "scheduler-1": HOST},
    }
    with patch_module_args(arguments), pytest.raises(SystemExit):
        subject.main()
    said = json.loads(capsys.readouterr().out)
    assert said["missed"] == ["10000 records: over the goal of 4 s"]
    text = page.read_text()
    assert "| 100 | 1 | - | 3 | 4.0 | 5.0 | 0.5 | 60 | 4 | met |" in text
    assert "| 10,000 | 1 | 1 ms | 1 | 44.0 | 44.0 | 0.5 | 60 | 4 | **over the goal of 4 s** |" in text
    assert "| worker-1 | 2, 4 GiB | 0.50 | 0.50 | 100 | 109 | 0 | 15 |" in text
    plots = re.findall(r"\]\((figures/\w+\.svg)\)", text)
    assert len(plots) == 5
    for plot in plots:
        svg = (page.parent / plot).read_text()
        assert svg.count("<path") > 1, "no line"
        assert "<script" not in svg


def test_a_long_series_keeps_its_peaks() -> None:
    points = [(float(second), 0.0) for second in range(10_000)]
    points[7777] = (7777.0, 9.0)
    thinned = subject.thinned(points)
    assert len(thinned) <= subject.MOST_POINTS
    assert (7777.0, 9.0) in thinned
