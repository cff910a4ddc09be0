"""Pictures of a run's figures, drawn from its metrics.jsonl, so that a resumed run goes on in the
same picture."""

import os
import pathlib

import numpy as np


def sensitivity_chart(path: pathlib.Path, rows: list[dict]) -> None:
    """Heat maps of depth by step: |dL/dz_i|, the token-mean share and the trunk's RMS.

    Args:
      path: of the PNG, which appears whole or not at all.
      rows: of metrics.jsonl; those without a profile are passed over.
    """
    from matplotlib.figure import Figure

    rows = [row for row in rows if "profile" in row]
    if not rows:
        return
    panels = {
        "profile": "sensitivity |dL/dz_i|, log10",
        "token_mean_share": "token-mean share |Jz|/|Pz|, log10",
        "trunk_rms": "RMS of the trunk, log10",
    }
    steps = [row["step"] for row in rows]
    figure = Figure(figsize=(15, 4), layout="constrained")
    for axes, (name, title) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        table = np.asarray([row[name] for row in rows], np.float64).T
        with np.errstate(divide="ignore"):
            table = np.ma.masked_invalid(np.log10(table))
        image = axes.imshow(table, aspect="auto", origin="lower", interpolation="nearest")
        places = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), 6)).round().astype(int))
        axes.set_xticks(places, [str(steps[i]) for i in places])
        axes.set(title=title, xlabel="step", ylabel="unit (0: input)")
        figure.colorbar(image, ax=axes)
    partial = path.with_suffix(".partial")
    figure.savefig(partial, format="png", dpi=100)
    os.replace(partial, path)
