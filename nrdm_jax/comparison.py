"""Runs side by side: what their metrics.jsonl say, against images seen and against time, and where
their configs differ. Two measurements are set side by side only if they are of the same thing."""

import dataclasses
import math
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from nrdm_jax import config as configuration
from nrdm_jax.bounded_files import parse_json, read_lines
from nrdm_jax.processes.stored_config import read_whole_config
from nrdm_jax.training.metrics import nulls, read_metrics

LOSS, ERROR, LEVEL = "heldout_loss", "heldout_x0_error", "heldout_loss/log_snr="
SCORED_EXAMPLES = "scored_examples"
HELDOUT_EXAMPLES = "heldout_examples"
# Of samples: what begins so, but for counts, in the order shown; the second say more is better.
DISTANCES = ("fd_", "fid", "sfd_", "sfid", "fvd", "kid_", "inception_score", "precision", "recall")
SCORES = ("inception_score", "precision", "recall")
# Fields on which the value of a held-out loss depends: what is denoised, and, for the loss in the
# network's own terms, what it predicts. The x0 error is of all predictions and paths.
DATA_FIELDS = (
    "task",
    "data.name",
    "data.shape",
    "data.scale",
    "data.shift",
    "autoencoder.name",
    "autoencoder.weights",
)
LOSS_FIELDS = (
    "diffusion.path",
    "diffusion.shift",
    "diffusion.sigma_min",
    "diffusion.sigma_max",
    "diffusion.sigma_data",
    "diffusion.prediction",
    "autoencoder.reconstruction",
)
# Fields on which distances depend, beside the data and how samples are drawn.
DISTANCE_FIELDS = ("evaluate.reference", "evaluate.weights")
# Fields of `sample` that say how much is drawn and when, and not how.
DRAWN_ALIKE = ("sample.every", "sample.examples", "sample.batch_size")


class Curve(NamedTuple):
    """A figure over a run, a point a row: images seen, seconds (NaN where no row says), value."""

    images: np.ndarray
    seconds: np.ndarray
    values: np.ndarray


@dataclasses.dataclass(frozen=True)
class Run:
    """What a workdir says of its run.

    label: its name here.
    config: whole, as plain JSON values.
    start: of env.json, the last process's line; {} where there is none.
    rows: of metrics.jsonl; [] where there are none yet.
    """

    label: str
    workdir: str
    config: dict
    start: dict
    rows: list[dict]

    @property
    def last(self) -> dict:
        """Where the run stands: steps, images, seconds and step_seconds, None where unknown."""
        row = self.rows[-1] if self.rows else {"step": 0}
        return {
            "steps": row["step"],
            "images": self.images(row),
            "seconds": row.get("seconds"),
            "step_seconds": row.get("step_seconds"),
        }

    def images(self, row: dict) -> int:
        """Seen at a row; a row of an older version does not say, and then the batch size was one
        for the whole run."""
        return row.get("images", row["step"] * self.config["train"]["batch_size"])


def read(workdirs: Sequence[str], labels: Sequence[str] | None = None) -> list[Run]:
    """The runs, named by `labels`, or by their directories: the last parts of the paths, as many as
    tell them apart.

    Raises:
      ValueError: a directory is no run or given twice, or the labels are not one each.
    """
    paths = [pathlib.Path(workdir) for workdir in workdirs]
    resolved = [path.resolve() for path in paths]
    twice = [str(p) for i, p in enumerate(paths) if resolved[i] in resolved[:i]]
    if twice:
        raise ValueError(f"run {twice[0]} is given twice; give each once")
    if labels is None:
        labels = _names(resolved)
    if len(labels) != len(paths) or len(set(labels)) != len(labels) or "" in labels:
        raise ValueError(
            f"--labels={','.join(labels)} are {len(labels)} for {len(paths)} runs; give each run "
            "one, no two the same"
        )
    return [
        Run(label, str(path), read_whole_config(path), _last_start(path), read_metrics(path))
        for label, path in zip(labels, paths, strict=True)
    ]


def _names(paths: Sequence[pathlib.Path]) -> list[str]:
    """The fewest last parts of the paths that tell them apart."""
    for parts in range(1, max(len(path.parts) for path in paths)):
        names = ["/".join(path.parts[-parts:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def _last_start(path: pathlib.Path) -> dict:
    file = path / "env.json"
    lines = [line for _, line in read_lines(file)] if file.exists() else []
    try:
        found = parse_json(lines[-1]) if lines else {}
    except ValueError:  # of a run that starts just now
        return {}
    return found if isinstance(found, dict) else {}


def curves(run: Run) -> dict[str, Curve]:
    """Of each held-out loss and each distance that the rows have."""
    found: dict[str, list[tuple[float, float, float]]] = {}
    for row in run.rows:
        for name, value in row.items():
            if _is_shown(name) and isinstance(value, int | float):
                point = (run.images(row), row.get("seconds", math.nan), value)
                found.setdefault(name, []).append(point)
    return {
        name: Curve(*np.asarray(points, np.float64).T) for name, points in sorted(found.items())
    }


def _is_shown(name: str) -> bool:
    return (
        name in (LOSS, ERROR)
        or name.startswith(LEVEL)
        or (name.startswith(DISTANCES) and not name.endswith("_std"))
    )


def figures(curve: Curve, more_is_better: bool = False, at: float | None = None) -> dict:
    """First, last and best value, the images at which the best was, last over first, and the value
    at `at` images. None: there is no such, or it is not finite."""
    finite = np.isfinite(curve.values)
    images, values = curve.images[finite], curve.values[finite]
    best = None
    if len(values):
        best = int(values.argmax() if more_is_better else values.argmin())
    first, last = float(curve.values[0]), float(curve.values[-1])
    equal = values[images == at]
    found = {
        "first": first,
        "last": last,
        "best": None if best is None else float(values[best]),
        "best_images": None if best is None else int(images[best]),
        "last_over_first": last / first if first else math.nan,
        "at_equal_images": float(equal[-1]) if len(equal) else None,
    }
    return nulls(found)


def levels_of(names: Iterable[str]) -> list[str]:
    """Names of losses at a level, from noise to data."""
    return sorted(
        (name for name in names if name.startswith(LEVEL)),
        key=lambda name: float(name.removeprefix(LEVEL)),
    )


def alike(runs: Sequence[Run]) -> tuple[list[dict[str, Curve]], list[str]]:
    """For each run its curves that may be set beside those of the first run, and a line for each
    reason why some may not.

    Held-out losses must be of the same data, examples, noise levels, path and prediction; the mean
    of runs whose levels differ is over the levels that all have. Distances must be of the same data
    and number of samples, beside the same reference, by the same weights. What a run measured on
    another number of examples before is left out of its own curves.
    """
    lines = [f"{run.label} has no metrics yet" for run in runs if not run.rows]
    found = []
    for run in runs:
        kept, left_out = _measured_as_at_last(run)
        found.append(curves(dataclasses.replace(run, rows=kept)))
        if left_out:
            lines.append(
                f"{run.label} was measured in another way up to step {left_out[-1]['step']}: its "
                f"first {len(left_out)} measurements are left out"
            )
    for run, own in zip(runs[1:], found[1:], strict=True):
        if not own:
            continue
        if differs := _differing(runs[0], run, DATA_FIELDS) or _other_fingerprint(runs[0], run):
            lines.append(f"{_apart(runs[0], run, differs)}: its losses and distances are left out")
            own.clear()
        elif differs := _differing(runs[0], run, LOSS_FIELDS):
            lines.append(
                f"{_apart(runs[0], run, differs)}: its losses, which are in terms of the network's "
                "own target, are left out; its x0 error is not"
            )
            _drop(own, [LOSS, *levels_of(own)])
        if differs := _differing(runs[0], run, DISTANCE_FIELDS):
            distances = [name for name in own if name.startswith(DISTANCES)]
            if distances and any(name.startswith(DISTANCES) for name in found[0]):
                lines.append(f"{_apart(runs[0], run, differs)}: its distances are left out")
                _drop(own, distances)
    lines += _unequal_examples(runs, found)
    lines += _unequal_levels(runs, found)
    lines += _drawn_otherwise(runs, found)
    return found, lines


def _measured_as_at_last(run: Run) -> tuple[list[dict], list[dict]]:
    """The rows that are of as many examples as the last of their kind, and the others."""
    counts = (HELDOUT_EXAMPLES, SCORED_EXAMPLES)
    last = {name: row[name] for row in run.rows for name in counts if name in row}
    kept: list[dict] = []
    left_out: list[dict] = []
    for row in run.rows:
        same = all(row[name] == last[name] for name in counts if name in row)
        (kept if same else left_out).append(row)
    return kept, left_out


def _drop(own: dict[str, Curve], names: Iterable[str]) -> None:
    for name in names:
        own.pop(name, None)


def _value(config: dict, field: str) -> Any:
    value: Any = config
    for part in field.split("."):
        value = value.get(part, "(absent)")
    return value


def _differing(first: Run, run: Run, fields: Sequence[str]) -> list[str]:
    return [
        f"{field} is {_value(run.config, field)!r} and not {_value(first.config, field)!r}"
        for field in fields
        if _value(run.config, field) != _value(first.config, field)
    ]


def _other_fingerprint(first: Run, run: Run) -> list[str]:
    a, b = first.start.get("data"), run.start.get("data")
    return [f"its data are {b} and not {a}"] if a and b and a != b else []


def _apart(first: Run, run: Run, differs: list[str]) -> str:
    return f"{run.label} is not comparable with {first.label}: {'; '.join(differs)}"


def _examples(run: Run, name: str) -> int | None:
    """How many examples the last value of a figure is of."""
    row: dict = next((row for row in reversed(run.rows) if name in row), {})
    return row.get(HELDOUT_EXAMPLES if name.startswith("heldout_") else SCORED_EXAMPLES)


def _unequal_examples(runs: Sequence[Run], found: Sequence[dict[str, Curve]]) -> list[str]:
    """Drops figures that are of another number of examples than the first run's that has them."""
    lines = []
    dropped: dict[tuple[str, int, str, int], list[str]] = {}
    for name in sorted({name for own in found for name in own}):
        having = [i for i, own in enumerate(found) if name in own]
        first = _examples(runs[having[0]], name)
        for i in having[1:]:
            count = _examples(runs[i], name)
            if first and count and count != first:
                reason = (runs[i].label, count, runs[having[0]].label, first)
                dropped.setdefault(reason, []).append(name)
                del found[i][name]
    for (label, count, other, first), names in dropped.items():
        shown = ["held-out losses"] if any(name.startswith("heldout_") for name in names) else []
        shown += [name for name in names if not name.startswith("heldout_")]
        lines.append(
            f"{label} is measured on {count} examples and {other} on {first}: the "
            f"{', '.join(shown)} of {label} are left out"
        )
    return lines


def _unequal_levels(runs: Sequence[Run], found: Sequence[dict[str, Curve]]) -> list[str]:
    """Where the levels differ, keeps those that all have, and the mean over them."""
    if len({tuple(_value(run.config, "evaluate.log_snr")) for run, own in
            zip(runs, found, strict=True) if ERROR in own}) > 1:  # fmt: skip
        for own in found:  # those without comparable losses have it, too
            _drop(own, [ERROR])
    having = [(run, own) for run, own in zip(runs, found, strict=True) if LOSS in own]
    sets = [frozenset(levels_of(own)) for _, own in having]
    if len(set(sets)) < 2:
        return []
    kept = levels_of(frozenset.intersection(*sets))
    for run, own in having:
        _drop(own, [LOSS, ERROR, *(name for name in levels_of(own) if name not in kept)])
        rows = [row for row in run.rows if kept and all(name in row for name in kept)]
        means = [{**row, LOSS: sum(row[name] for name in kept) / len(kept)} for row in rows]
        own |= {k: v for k, v in curves(dataclasses.replace(run, rows=means)).items() if k == LOSS}
    shown = ", ".join(name.removeprefix(LEVEL) for name in kept) or "none"
    return [
        "evaluate.log_snr differs: losses are shown at the levels that all have, and their mean is "
        f"over those: {shown}; x0 errors are left out"
    ]


def _drawn_otherwise(runs: Sequence[Run], found: Sequence[dict[str, Curve]]) -> list[str]:
    """Distances of samples that were drawn in another way stay, since that may be what is compared:
    but they are not of the networks alone."""
    having = [
        run
        for run, own in zip(runs, found, strict=True)
        if any(name.startswith(DISTANCES) for name in own)
    ]
    fields = [f for f in config_differences(having) if f.startswith("sample.")]
    fields = [f for f in fields if f not in DRAWN_ALIKE]
    if not fields:
        return []
    return [f"{', '.join(fields)} differ: distances are of samples that were not drawn alike"]


def config_differences(runs: Sequence[Run]) -> dict[str, list]:
    """{field: its value in each run} of the fields that are not the same in all."""
    fields: dict[str, None] = {}
    for run in runs[1:]:
        for line in configuration.difference(runs[0].config, run.config):
            fields[line.split(":")[0]] = None
    return {field: [_value(run.config, field) for run in runs] for field in sorted(fields)}


def _order(name: str) -> tuple[int, str]:
    """Distances in the order of DISTANCES."""
    return next(i for i, start in enumerate(DISTANCES) if name.startswith(start)), name


def _latest_of_all(measured: Sequence[Curve]) -> int | None:
    """The most images at which every one of the curves was measured; None: at no time."""
    common = set(measured[0].images.tolist()).intersection(*(c.images.tolist() for c in measured))
    return int(max(common)) if common and max(common) > 0 else None


def summarise(runs: Sequence[Run]) -> tuple[dict, list[dict[str, Curve]]]:
    """What compare.json says, and the curves that the charts show."""
    shown, warnings = alike(runs)
    names = {name for own in shown for name in own}
    equal = {name: _latest_of_all([own[name] for own in shown if name in own]) for name in names}
    summary = {
        "warnings": warnings,
        "levels": levels_of(names),
        "distances": sorted((n for n in names if n.startswith(DISTANCES)), key=_order),
        "equal_images": {name: images for name, images in sorted(equal.items()) if images},
        "config": config_differences(runs),
        "runs": [
            {
                "label": run.label,
                "workdir": run.workdir,
                **run.last,
                "of_steps": run.config["train"]["steps"],
                "parameters": run.start.get("parameters"),
                "devices": run.start.get("devices"),
                "metrics": {
                    name: figures(curve, name.startswith(SCORES), equal[name])
                    | {"examples": _examples(run, name)}
                    for name, curve in own.items()
                },
                "left_out": {
                    name: figures(curve, name.startswith(SCORES))
                    for name, curve in curves(run).items()
                    if name not in own
                },
            }
            for run, own in zip(runs, shown, strict=True)
        ],
    }
    return summary, shown
