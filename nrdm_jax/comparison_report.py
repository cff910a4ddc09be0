"""Files of a comparison: its tables as Markdown and JSON, and its charts."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

from nrdm_jax.comparison import ERROR, LEVEL, LOSS, SCORES, Curve, Run, summarise
from nrdm_jax.training import charts
from nrdm_jax.training.metrics import duration

NOT_FINITE = "not finite"


def view(runs: Sequence[Run], out: pathlib.Path) -> dict:
    """Writes compare.md, compare.json and, of what there is, losses.png and distances.png into
    `out`; returns what is in compare.json."""
    summary, shown = summarise(runs)
    out.mkdir(parents=True, exist_ok=True)
    labels = [run.label for run in runs]

    def panel(name: str) -> dict[str, Curve]:
        own = zip(labels, shown, strict=True)
        return {label: curves[name] for label, curves in own if name in curves}

    drawn = []
    means = {f"{name}, mean over levels": panel(name) for name in (LOSS, ERROR)}
    means = {title: lines for title, lines in means.items() if lines}
    at_levels = {f"log-SNR {name.removeprefix(LEVEL)}": panel(name) for name in summary["levels"]}
    if means or at_levels:
        drawn.append(out / "losses.png")
        charts.losses_chart(drawn[-1], labels, means, at_levels)
    if summary["distances"]:
        drawn.append(out / "distances.png")
        distances = {name: panel(name) for name in summary["distances"]}
        scores = [name for name in distances if name.startswith(SCORES)]
        charts.distances_chart(drawn[-1], labels, distances, scores)
    for name in {"losses.png", "distances.png"} - {path.name for path in drawn}:
        (out / name).unlink(missing_ok=True)  # of a comparison before
    summary["charts"] = [str(path) for path in drawn]
    (out / "compare.json").write_text(json.dumps(summary, indent=2, allow_nan=False) + "\n")
    (out / "compare.md").write_text(markdown(summary))
    return summary


def markdown(summary: dict) -> str:
    """The tables of `summarise`'s summary."""
    runs = summary["runs"]
    parts = [f"# {', '.join(run['label'] for run in runs)}"]
    parts += [f"Warning: {line}." for line in summary["warnings"]]
    header = ["run", "workdir", "steps", "images", "time", "of it steps", "parameters", "devices"]
    rows = [
        [run["label"], run["workdir"], _steps(run), run["images"]]
        + [_time(run["seconds"]), _time(run["step_seconds"]), run["parameters"], run["devices"]]
        for run in runs
    ]
    parts.append(_table(header, rows))
    for name, what in ((LOSS, "loss"), (ERROR, "x0 error")):
        parts += _figures_of(summary, name, f"Held-out {what} of the EMA weights, mean over levels")
    levels = summary["levels"]
    if levels:
        parts.append("## Last held-out loss at each log-SNR (noise on the left)")
        rows = [
            [run["label"], *(_figure(run, name, "last") for name in levels)]
            for run in runs
            if any(name in run["metrics"] for name in levels)
        ]
        parts.append(_table(["run", *(name.removeprefix(LEVEL) for name in levels)], rows))
    for name in summary["distances"]:
        better = "more is better" if name.startswith(SCORES) else "less is better"
        parts += _figures_of(summary, name, f"{name} ({better})")
    if len(runs) > 1:
        parts.append("## Config fields that differ")
        rows = [[field, *map(json.dumps, values)] for field, values in summary["config"].items()]
        header = ["field", *(run["label"] for run in runs)]
        parts.append(_table(header, rows) if rows else "None.")
    return "\n\n".join(parts) + "\n"


def _figures_of(summary: dict, name: str, title: str) -> list[str]:
    """A table of one figure, under its title; nothing where no run has it."""
    having = [run for run in summary["runs"] if name in run["metrics"]]
    if not having:
        return []
    columns = {
        "first": "first",
        "last": "last",
        "last / first": "last_over_first",
        "best": "best",
        "best at images": "best_images",
        "examples": "examples",
    }
    if name in summary["equal_images"]:
        columns[f"at {summary['equal_images'][name]:,} images"] = "at_equal_images"
    rows = [[run["label"], *(_figure(run, name, key) for key in columns.values())]
            for run in having]  # fmt: skip
    return [f"## {title}", _table(["run", *columns], rows)]


def _figure(run: dict, name: str, key: str) -> float | str | None:
    """None where there is none; what was measured and is no number is said to be so."""
    if name not in run["metrics"]:
        return None
    value = run["metrics"][name][key]
    return NOT_FINITE if value is None and key in ("first", "last") else value


def _steps(run: dict) -> str:
    unfinished = "" if run["steps"] >= run["of_steps"] else ", unfinished"
    return f"{run['steps']:,} of {run['of_steps']:,}{unfinished}"


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else duration(seconds)


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Markdown; text on the left, numbers on the right, padded so that it reads as text, too."""
    cells = [[_cell(value) for value in row] for row in (header, *rows)]
    widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
    numeric = [
        all(not isinstance(row[i], str) or row[i] == NOT_FINITE for row in rows)
        for i in range(len(header))
    ]

    def line(row: Sequence[str]) -> str:
        padded = (
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        )
        return f"| {' | '.join(padded)} |"

    rule = (
        "-" * (width - 1) + ":" if right else "-" * width
        for width, right in zip(widths, numeric, strict=True)
    )
    return "\n".join([line(cells[0]), f"| {' | '.join(rule)} |", *map(line, cells[1:])])


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value).replace("|", "\\|")
