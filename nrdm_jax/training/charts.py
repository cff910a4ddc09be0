"""Pictures of a run's figures."""

import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

# What is known of every unit, by its name in metrics.jsonl.
OF_UNITS = {
    "profile": "sensitivity |dL/dz_i|",
    "token_mean_share": "token-mean share |Jz|/|Pz|",
    "trunk_rms": "RMS of the trunk",
}
COLUMNS = 400  # records in a heat map, at most: more are narrower than a pixel


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
