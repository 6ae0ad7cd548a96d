#!/usr/bin/python
"""Write what a load test has measured: a page and its plots."""

from __future__ import annotations

DOCUMENTATION = r"""
module: load_report
short_description: Write the result of a load test as Markdown with SVG plots
description:
  - Runs on the controller, which has pygal. Writes O(page) and, in a folder of the same name beside it, its plots.
options:
  page: {description: The Markdown file., type: path, required: true}
  title: {description: Where it was measured; an inventory's name., required: true}
  cases:
    description: >-
      In the order in which they ran; each a dictionary with C(name), C(records), C(runs), C(simulated_ms) per record,
      C(limit) and C(goal) in seconds (0 for none), and C(result), what M(load_case) returned.
    type: list
    elements: dict
    required: true
  hosts: {description: 'Host name -> what M(host_sampler) returned.', type: dict, required: true}
attributes:
  check_mode: {support: none}
"""
EXAMPLES = r"""
- name: Write the page
  load_report:
    page: docs/baselines.md
    title: local
    cases: "{{ measured }}"
    hosts: "{{ samples }}"
  delegate_to: localhost
"""
RETURN = r"""
table: {description: The table of the cases as lines to print., type: list, returned: success}
missed: {description: Cases that took longer than their limit or goal., type: list, returned: success}
"""

import itertools
import statistics
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

Case = dict[str, Any]
Points = list[tuple[float, float]]
MOST_POINTS = 400  # of one line of a plot


def spread(case: Case) -> list[float]:
    """Seconds of each repetition, sorted."""
    return sorted(float(repetition["seconds"]) for repetition in case["result"]["repetitions"])


def missed(case: Case) -> list[str]:
    """What the case was too slow for: the slowest repetition for the quick start's limit, the median for the goal."""
    seconds = spread(case)
    too_slow = []
    if case["limit"] and seconds[-1] > case["limit"]:
        too_slow.append(f"over the limit of {case['limit']} s")
    if case["goal"] and statistics.median(seconds) > case["goal"]:
        too_slow.append(f"over the goal of {case['goal']} s")
    return too_slow


def case_rows(cases: list[Case]) -> list[list[str]]:
    """One row of the page's first table for each case."""
    rows = []
    for case in cases:
        seconds = spread(case)
        runs = [run for repetition in case["result"]["repetitions"] for run in repetition["runs"]]
        in_service = statistics.median(run["service_seconds"] for run in runs)
        rows.append(
            [
                f"{case['records']:,}",
                str(case["runs"]),
                f"{case['simulated_ms']:g} ms" if case["simulated_ms"] else "-",
                str(len(seconds)),
                f"{statistics.median(seconds):.1f}",
                f"{seconds[-1]:.1f}",
                f"{in_service:.1f}",
                f"{case['limit']}" if case["limit"] else "-",
                f"{case['goal']}" if case["goal"] else "-",
                "**" + ", ".join(missed(case)) + "**" if missed(case) else "met" if case["goal"] else "-",
            ]
        )
    return rows


def host_rows(hosts: dict[str, Any]) -> list[list[str]]:
    """One row of the page's second table for each host."""
    rows = []
    for name, host in sorted(hosts.items()):
        samples = host["samples"]
        gaps = [max(0.1, later["at"] - earlier["at"]) for earlier, later in itertools.pairwise(samples)]
        busy = [sample["cpu"] / gap for sample, gap in zip(samples[1:], gaps, strict=True)]
        memory = [sample["memory_mib"] for sample in samples]
        rows.append(
            [
                name,
                f"{host['cores']}, {host['memory_mib'] / 1024:.0f} GiB",
                f"{statistics.fmean(busy):.2f}",
                f"{max(busy):.2f}",
                f"{memory[0]:.0f}",
                f"{max(memory):.0f}",
                f"{sum(sample['read_mib'] for sample in samples):.0f}",
                f"{sum(sample['written_mib'] for sample in samples):.0f}",
            ]
        )
    return rows


def markdown(header: list[str], rows: list[list[str]]) -> list[str]:
    """Lay a table out, numbers to the right."""
    numeric = [all(row[column][:1].isdigit() or row[column] == "-" for row in rows) for column in range(len(header))]
    lines = [header, ["---:" if right else "---" for right in numeric], *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def thinned(points: Points) -> Points:
    """At most :data:`MOST_POINTS` points: of each stretch the highest, as peaks are what one looks for."""
    step = -(-len(points) // MOST_POINTS) or 1
    return [max(points[start : start + step], key=lambda point: point[1]) for start in range(0, len(points), step)]


def without_scripts(svg: Any) -> Any:
    """Leave a picture, not a program."""
    for parent in list(svg.iter()):
        for script in [child for child in parent if str(child.tag).endswith("script")]:
            parent.remove(script)
    return svg


def plot(file: Path, title: str, unit: str, lines: dict[str, Points], **options: Any) -> None:
    """Write an SVG of lines over the seconds of the test."""
    import pygal
    from pygal.style import CleanStyle

    chart = pygal.XY(
        title=title,
        y_title=unit,
        style=CleanStyle(font_family="sans-serif", background="#ffffff", plot_background="#ffffff"),
        **{"x_title": "seconds since the start of the test", "show_dots": False, **options},
        width=960,
        height=400,
        js=(),
        no_prefix=True,
        truncate_label=-1,
        legend_at_bottom=True,
        include_x_axis=True,
    )
    chart.add_xml_filter(without_scripts)
    for name, points in lines.items():
        chart.add(name, thinned(points))
    file.write_bytes(chart.render())


def draw(folder: Path, cases: list[Case], hosts: dict[str, Any]) -> None:
    """Write all plots."""
    began = min(repetition["began"] for case in cases for repetition in case["result"]["repetitions"])

    def series(field: str) -> dict[str, Points]:
        return {
            name: [(sample["at"] - began, sample[field]) for sample in host["samples"]]
            for name, host in sorted(hosts.items())
        }

    plot(folder / "cpu.svg", "Processor", "CPU seconds per second", series("cpu"))
    plot(folder / "memory.svg", "Memory of all processes", "MiB", series("memory_mib"))
    plot(folder / "disk.svg", "Written to disk", "MiB per second", series("written_mib"))
    queue = [sample for case in cases for sample in case["result"]["queue"]]
    plot(
        folder / "queue.svg",
        "Celery's queue",
        "messages",
        {
            "wait for a worker": [(sample["at"] - began, sample["length"]) for sample in queue],
            "in work": [(sample["at"] - began, sample["unacknowledged"]) for sample in queue],
        },
    )
    single = {
        f"{milliseconds:g} ms of work per record" if milliseconds else "full speed": sorted(
            (float(case["records"]), statistics.median(spread(case)))
            for case in cases
            if case["simulated_ms"] == milliseconds and case["runs"] == 1
        )
        for milliseconds in sorted({case["simulated_ms"] for case in cases})
    }
    plot(
        folder / "cost.svg",
        "How a run's time grows with its records",
        "seconds, trigger to end",
        single,
        logarithmic=True,
        show_dots=True,
        x_title="records",
        x_labels=sorted({case["records"] for case in cases}),
        x_value_formatter=lambda value: f"{value:,.0f}",
        y_labels=[1, 2, 5, 10, 20, 50, 100, 200],
    )


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "page": {"type": "path", "required": True},
            "title": {"required": True},
            "cases": {"type": "list", "elements": "dict", "required": True},
            "hosts": {"type": "dict", "required": True},
        }
    )
    page, cases, hosts = Path(module.params["page"]), module.params["cases"], module.params["hosts"]
    folder = page.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    draw(folder, cases, hosts)

    case_header = ["records", "runs at once", "work per record", "times", "median s", "slowest s", "in the service s"]
    case_table = markdown([*case_header, "limit s", "goal s", "verdict"], case_rows(cases))
    host_header = ["host", "cores, memory", "CPU mean", "CPU peak", "MiB idle", "MiB peak", "MiB read", "MiB written"]
    kinds = sorted({(host["processor"], host["system"]) for host in hosts.values()})
    lines = [
        "# Baselines",
        "",
        "What runs of `test_load` cost, written by `playbooks/load_test.yml`. Compare only with figures of the same"
        " machine.",
        "",
        f"- Measured {datetime.now(UTC):%Y-%m-%d %H:%M} UTC on inventory `{module.params['title']}`.",
        *(f"- {processor}, {system}." for processor, system in kinds),
        "",
        "## Runs",
        "",
        "Seconds go from the trigger to the end of the (last) run. *Work per record* is a wait that the"
        " TransformationService adds to each record, as a slower service would. *In the service* is the median of the"
        " jobs alone: the rest is Airflow's share. *Limit* is the quick start's and judges the slowest, *goal* is ours"
        " and judges the median.",
        "",
        *case_table,
        "",
        "![Seconds by records](baselines/cost.svg)",
        "",
        "## Hosts",
        "",
        "CPU is in cores: 1.0 is one busy core. Memory divides each shared page among those that share it. On local"
        " hosts, all share the cores and the disk of one machine.",
        "",
        *markdown(host_header, host_rows(hosts)),
        "",
        *(f"![{name}](baselines/{name.lower()}.svg)\n" for name in ("CPU", "Memory", "Disk", "Queue")),
    ]
    page.write_text("\n".join(lines).rstrip("\n").replace("(baselines/", f"({folder.name}/") + "\n", encoding="utf-8")
    slow = [f"{case['name']}: {what}" for case in cases for what in missed(case)]
    module.exit_json(changed=True, table=case_table, missed=slow)


if __name__ == "__main__":
    main()
