"""Pictures of a run's figures."""

import os
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

import numpy as np

# What is known of every unit, by its name in metrics.jsonl.
OF_UNITS = {
    "profile": "sensitivity |dL/dz_i|",
    "token_mean_share": "token-mean share |Jz|/|Pz|",
    "trunk_rms": "RMS of the trunk",
}
COLUMNS = 400  # records in a heat map, at most: more are narrower than a pixel
LEGEND_CHARACTERS = 130  # that stand side by side above the panels
MARKED = 40  # points of a run that are marked, at most: more hide the line


class Line(Protocol):
    """Of one run; seconds are NaN where they are unknown."""

    @property
    def images(self) -> np.ndarray: ...
    @property
    def seconds(self) -> np.ndarray: ...
    @property
    def values(self) -> np.ndarray: ...


Lines = Mapping[str, Line]  # by the run's label


def sensitivity_chart(
    path: pathlib.Path, steps: Sequence[int], records: Mapping[str, Sequence[np.ndarray]]
) -> None:
    """Heat maps of depth by step: |dL/dz_i|, the token-mean share and the trunk's RMS.

    Args:
      path: of the PNG, which appears whole or not at all.
      steps: of the records, at least one.
      records: {name in `OF_UNITS`: (units + 1,) a step}.
    """
    shown = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), COLUMNS)).round().astype(int))
    steps = [steps[i] for i in shown]
    figure = _figure(15, 4)
    for axes, (name, title) in zip(figure.subplots(1, 3), OF_UNITS.items(), strict=True):
        table = np.asarray([records[name][i] for i in shown], np.float64).T
        with np.errstate(divide="ignore"):
            table = np.ma.masked_invalid(np.log10(table))
        image = axes.imshow(table, aspect="auto", origin="lower", interpolation="nearest")
        places = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), 6)).round().astype(int))
        axes.set_xticks(places, [str(steps[i]) for i in places])
        axes.set(title=f"{title}, log10", xlabel="step", ylabel="unit (0: input)")
        figure.colorbar(image, ax=axes)
    _save(figure, path)


def memory_chart(
    path: pathlib.Path, title: str, bars: Mapping[str, Mapping[str, float]], room: float | None
) -> None:
    """A bar a program: what lies in a device's memory, GiB.

    Args:
      path: of the PNG, which appears whole or not at all.
      title: above.
      bars: {name: {what: GiB}}.
      room: of the device, GiB; None where it is unknown.
    """
    figure = _figure(9, 1.5 + 0.5 * len(bars))
    axes = figure.subplots()
    names = list(bars)
    left = np.zeros(len(names))
    for what in dict.fromkeys(part for parts in bars.values() for part in parts):
        size = np.asarray([bars[name].get(what, 0.0) for name in names])
        axes.barh(names, size, left=left, label=what)
        left += size
    if room:
        axes.axvline(room, color="black", label=f"memory, {room:.1f} GiB")
    axes.invert_yaxis()
    axes.set(title=title, xlabel="GiB")
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    _save(figure, path)


def dynamics_chart(path: pathlib.Path, found: dict) -> None:
    """Gates over depth and time beside the path's coefficients, and x0 errors over depth.

    Args:
      path: of the PNG, which appears whole or not at all.
      found: what `denoising_dynamics.view` finds.
    """
    figure = _figure(16, 8)
    figure.suptitle(
        f"{found['variant']}, {found['units']} units, path {found['path']}; {found['note']}",
        fontsize=9,
    )
    t = np.asarray(found["t"])
    panels = figure.subplots(2, 3)
    beside = {"alpha": ("half_g_squared", "+g(t)^2 / 2"), "beta": ("minus_f", "-f(t)")}
    for row, (gate, (key, label)) in zip(panels, beside.items(), strict=True):
        _gate_panels(figure, row, gate, found, t, np.asarray(found[key]), label)
    if "x0_error" not in found:
        panels[0, 2].set_axis_off()
        panels[1, 2].set_axis_off()
    else:
        after, errors = found["after_blocks"], np.asarray(found["x0_error"])
        for level, error in zip(found["log_snr"], errors, strict=True):
            colour = _colour(level, found["log_snr"])
            panels[0, 2].plot(after, error, color=colour, label=f"{level:g}")
            panels[1, 2].plot(after, error / error[-1], color=colour, label=f"{level:g}")
        panels[0, 2].set(
            title="x0 error of the trunk, read by the head", xlabel="after blocks", yscale="log"
        )
        panels[1, 2].set(
            title="the same over that of the whole network", xlabel="after blocks", yscale="log"
        )
        panels[0, 2].legend(title="log-SNR", fontsize=7)
    _save(figure, path)


def _gate_panels(figure, row, gate: str, found: dict, t, coefficient, label: str) -> None:
    """A heat map of the gate over depth and time, and its mean over depth beside the path's."""
    if gate not in found:
        row[0].text(0.5, 0.5, f"{found['variant']} has no {gate}", ha="center")
        row[0].set_axis_off()
    else:
        mean, rms = (np.asarray(found[gate][key]) for key in ("mean", "rms"))
        # Gates of channels have either sign: their mean says little of how much they let through.
        image = row[0].pcolormesh(t, np.arange(len(rms)), rms, shading="nearest")
        row[0].set(title=f"{gate}_i(t), RMS over channels", ylabel="unit (0: input)")
        figure.colorbar(image, ax=row[0])
        row[1].plot(t, mean.mean(0), label=f"{gate}: mean over units and channels")
        row[1].plot(t, rms.mean(0), "--", label=f"{gate}: RMS over channels, mean over units")
    other = row[1].twinx()
    other.plot(t, coefficient, color="black", linewidth=1, label=label)
    other.set(ylabel=label, yscale="log" if np.all(coefficient > 0) else "linear")
    row[1].set(title=f"{gate} over the depth, beside {label}")
    if gate in found:
        row[1].legend(fontsize=7)
    for axes in row[:2]:
        axes.set(xlabel="t (noise on the left)", xlim=(t.max(), t.min()))


def losses_chart(
    path: pathlib.Path,
    labels: Sequence[str],
    means: Mapping[str, Lines],
    levels: Mapping[str, Lines],
) -> None:
    """Held-out losses of runs: means against images and against time, and small panels of levels
    against images.

    Args:
      path: of the PNG, which appears whole or not at all.
      labels: of all runs: a run has one colour in every chart of theirs.
      means: {title: {label: line}}, a row of two panels each.
      levels: the same, a small panel each.
    """
    columns = min(len(levels), 4)
    rows = -(-len(levels) // columns) if levels else 0
    heights = [3.6 * len(means), 2.4 * rows]
    figure = _figure(13, sum(heights) + 0.6)
    parts = figure.subfigures(2, 1, height_ratios=heights) if all(heights) else (figure, figure)
    # One scale for all, so that slopes may be compared.
    logarithmic = any(_falls_far(lines) for lines in [*means.values(), *levels.values()])
    if means:
        _against_both(parts[0], labels, means, dict.fromkeys(means, logarithmic))
    if levels:
        panels = list(parts[1].subplots(rows, columns, squeeze=False, sharex=True).flat)
        for axes, (title, lines) in zip(panels, levels.items(), strict=False):
            _draw_runs(axes, labels, lines, "images", logarithmic=logarithmic)
            axes.set_title(title, fontsize=9)
            axes.tick_params(labelsize=8)
        for axes in panels[len(levels) :]:
            axes.set_axis_off()
        for axes in panels[max(0, len(levels) - columns) : len(levels)]:  # the lowest of a column
            axes.set_xlabel("images")
            axes.tick_params(labelbottom=True)
    _legend_of_runs(figure, labels, [*means.values(), *levels.values()])
    _save(figure, path)


def distances_chart(
    path: pathlib.Path,
    labels: Sequence[str],
    distances: Mapping[str, Lines],
    scores: Collection[str] = (),
) -> None:
    """Distances and scores of runs' samples, a row each: against images and against time.

    Args:
      path, labels: as of `losses_chart`.
      distances: {name: {label: line}}.
      scores: those of them of which more is better: on a linear axis.
    """
    figure = _figure(13, 3.2 * len(distances) + 0.6)
    logarithmic = {
        name: name not in scores and _falls_far(lines) for name, lines in distances.items()
    }
    _against_both(figure, labels, distances, logarithmic)
    _legend_of_runs(figure, labels, distances.values())
    _save(figure, path)


def _against_both(
    figure, labels: Sequence[str], titled: Mapping[str, Lines], logarithmic: Mapping[str, bool]
) -> None:
    """For each title a panel against images and one against time, of one height."""
    rows = figure.subplots(len(titled), 2, squeeze=False, sharey="row")
    longest = max(
        (np.nanmax(line.seconds, initial=0.0) for lines in titled.values()
         for line in lines.values()), default=0.0,
    )  # fmt: skip
    unit, seconds = ("hours", 3600.0) if longest >= 7200 else ("minutes", 60.0)
    for (left, right), (title, lines) in zip(rows, titled.items(), strict=True):
        _draw_runs(left, labels, lines, "images", logarithmic=logarithmic[title])
        left.set(title=title, xlabel="images")
        timed = {label: line for label, line in lines.items() if np.any(np.isfinite(line.seconds))}
        _draw_runs(right, labels, timed, "seconds", seconds, logarithmic=logarithmic[title])
        right.set(title=title, xlabel=f"{unit} of the run, evaluation included")
        untimed = [label for label in lines if label not in timed]
        if untimed:
            right.text(0.98, 0.96, f"no times known: {', '.join(untimed)}", ha="right", va="top",
                       transform=right.transAxes, fontsize=8)  # fmt: skip


def _draw_runs(
    axes,
    labels: Sequence[str],
    lines: Lines,
    against: str,
    unit: float = 1.0,
    *,
    logarithmic: bool,
) -> None:
    from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, NullFormatter

    for label, line in lines.items():
        # A figure that was not finite leaves a gap.
        marker = "o" if len(line.values) <= MARKED else None
        axes.plot(getattr(line, against) / unit, line.values, marker=marker, markersize=3,
                  linewidth=1.4, color=_colour_of_run(label, labels))  # fmt: skip
    axes.grid(alpha=0.3)
    if logarithmic:
        values = _finite(lines)
        within_a_decade = len(values) and values.max() < 10 * values.min()
        subs = (1, 1.5, 2, 3, 4, 5, 7) if within_a_decade else (1, 2, 3, 5)
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=subs))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    if against == "images":
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def _falls_far(lines: Lines) -> bool:
    """So far that differences at the end would not be seen on a linear axis."""
    values = _finite(lines)
    return bool(len(values) and 0 < 5 * values.min() < values.max())


def _finite(lines: Lines) -> np.ndarray:
    values = np.concatenate([np.zeros(0), *(line.values for line in lines.values())])
    return values[np.isfinite(values)]


def _legend_of_runs(figure, labels: Sequence[str], shown) -> None:
    """Above all panels, so that it covers no line."""
    from matplotlib.lines import Line2D

    present = {label for lines in shown for label in lines}
    handles = [
        Line2D([], [], color=_colour_of_run(label, labels), linewidth=3, label=label)
        for label in labels
        if label in present
    ]
    longest = max((len(str(handle.get_label())) for handle in handles), default=1)
    columns = max(1, min(len(handles), LEGEND_CHARACTERS // (longest + 8)))
    figure.legend(handles=handles, loc="outside upper center", ncols=columns)


def _colour_of_run(label: str, labels: Sequence[str]):
    from matplotlib import colormaps

    place = list(labels).index(label)
    if len(labels) <= 10:
        return colormaps["tab10"](place)
    return colormaps["turbo"](0.05 + 0.9 * place / (len(labels) - 1))


def _colour(value: float, values: list[float]):
    from matplotlib import colormaps

    low, high = min(values), max(values)
    return colormaps["viridis"]((value - low) / max(high - low, 1e-12))


def _figure(width: float, height: float):
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _save(figure, path: pathlib.Path) -> None:
    partial = path.with_suffix(".partial")
    figure.savefig(partial, format="png", dpi=100)
    os.replace(partial, path)
