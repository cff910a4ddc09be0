"""Table and figures of the depth study, docs/depth/README.md, from docs/depth/runs and from what is
said of them in docs/depth/findings.md."""

import collections
import json
import pathlib
import statistics

import numpy as np

from benchmarks import depth_runs, measuring
from nrdm_jax.processes import lifecycle
from nrdm_jax.training.charts import OF_UNITS
from nrdm_jax.training.metrics import nans

DOCS = pathlib.Path("docs/depth")
# Those that are compared in full lines; forms of gated and of mv_split in broken ones.
STYLES = {
    structure: {
        "color": f"C{i}" if i < 10 else "black",
        "linestyle": "-" if structure in depth_runs.COMPARED else "--",
    }
    for i, structure in enumerate(depth_runs.STRUCTURES)
}
ABOUT = """# What depth does to residual structures

Made by `python -m benchmarks.depth_stability --report` from the runs in `runs/`, which are made by
`python -m benchmarks.depth_stability --study`.

Every run is `configs/depth_1000.py` with another depth, structure, learning rate or seed: OpenMoji
at 16 x 16 in patches of 4 x 4, width 64, 16 tokens, 2 heads, batch 8, 1,000 steps of AdamW (warm-up
50, gradients clipped at 1), rectified flow, velocity prediction. All structures have the same
branches; what their gates add is in its own column. The learning rates are
{rates}; the last one is there to provoke
collapse. Losses are means over 8 noise levels of 128 held-out drawings, of the EMA weights, at the
end. A network that answers every input with the same picture has {picture:.2f} at best; one that
answers every token of every input alike, as where the trunk's tokens have become equal,
{patch:.2f}. "jump" is the first step at which the training loss (mean of 10 steps) was 1.5 times
the least median of five such before it; "stopped" is the last line of the run before its loss or
gradient was no number any more.

This is 1,000 steps of batch 8: it shows what trains and what breaks at once, not what is best after
a million.
"""


def write() -> int:
    results = [json.loads(path.read_text()) for path in sorted(depth_runs.RESULTS.glob("*.json"))]
    if not results:
        raise ValueError(f"no runs in {depth_runs.RESULTS}; run --study first")
    missing = [
        run.name for run in depth_runs.study() if run.name not in {r["name"] for r in results}
    ]  # fmt: skip
    rates = ", ".join(
        f"{name} ({depth_runs.RATE * factor:g})" for name, factor in depth_runs.RATES.items()
    )
    picture, patch = blind_losses(*pictures())
    findings = DOCS / "findings.md"
    parts = [
        ABOUT.format(rates=rates, picture=picture, patch=patch),
        findings.read_text() if findings.exists() else "",
        summary(results),
        *(section(results, depth) for depth in sorted({r["depth"] for r in results})),
    ]
    if missing:
        parts.append(
            f"## Runs that are missing\n\n{len(missing)} of {len(depth_runs.study())}: "
            + ", ".join(missing)
            + "\n"
        )
    for depth in sorted({r["depth"] for r in results}):
        chart(results, depth, DOCS / f"depth_{depth}.png")
    (DOCS / "README.md").write_text("\n".join(part for part in parts if part))
    measuring.print_result({"runs": len(results), "missing": len(missing)})
    return 0


def pictures() -> tuple[np.ndarray, np.ndarray, int]:
    """Those that the runs train on, those they are scored on (N, H, W, C), and the patch's side."""
    from nrdm_jax import build, config, measures

    c = config.of_file(depth_runs.CONFIG, "depth_1000")
    train, heldout = (
        np.concatenate(
            list(measures.example_blocks(c, build.source(c, split, str(lifecycle.data_dir()))))
        )
        for split in ("train", "heldout")
    )
    return train, heldout[: c.evaluate.examples], c.model.patch[0]


def blind_losses(train: np.ndarray, heldout: np.ndarray, patch: int) -> tuple[float, float]:
    """Held-out loss of the best network that answers every input with one picture; and of the best
    that answers every token with one patch.

    The target is eps - x0 at every level, and eps, of variance 1, is independent of both."""

    def tokens(x: np.ndarray) -> np.ndarray:
        n, height, width, channels = x.shape
        x = x.reshape(n, height // patch, patch, width // patch, patch, channels)
        return x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, patch, patch, channels)

    picture = 1 + np.mean((heldout - train.mean(0)) ** 2)
    return float(picture), float(1 + np.mean((tokens(heldout) - tokens(train).mean(0)) ** 2))


def grouped(results: list[dict], key: str) -> dict:
    """(structure, value of `key`) -> its runs, those of several seeds."""
    of: dict = collections.defaultdict(list)
    for r in results:
        of[r["structure"], r[key]].append(r)
    return of


def table(lines: list[list[str]]) -> str:
    """The first line is the head."""
    lines = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def summary(results: list[dict]) -> str:
    """Structures against depth, at rate one."""
    of = grouped([r for r in results if r["rate"] == "one"], "depth")
    depths = sorted({depth for _, depth in of})
    lines = [["structure", *(f"{depth:,} blocks" for depth in depths)]]
    for structure in depth_runs.STRUCTURES:
        if any((structure, depth) in of for depth in depths):
            lines.append([structure, *(loss_cell(of[structure, depth]) for depth in depths)])
    return f"## Held-out loss against depth, rate one\n\n{table(lines)}\n"


def section(results: list[dict], depth: int) -> str:
    """A depth's table and figure."""
    of = grouped([r for r in results if r["depth"] == depth], "rate")
    structures = [s for s in depth_runs.STRUCTURES if any(key[0] == s for key in of)]
    head = ["structure", "parameters", "of these gates"]
    head += [f"held-out loss, {rate}" for rate in depth_runs.RATES]
    head += ["sensitivity slope, one", "token-mean share, one"]
    lines = [head]
    for structure in structures:
        runs = [of[structure, rate] for rate in depth_runs.RATES]
        first = next(run[0] for run in runs if run)
        cells = [structure, f"{first['parameters']:,}", f"{first['gate_parameters']:,}"]
        cells += [loss_cell(run) for run in runs]
        probed = [r for r in of[structure, "one"] if r["probed_at"]]
        cells += [
            mean_cell(nans([r[key][-1] for r in probed]))
            for key in ("slope", "token_mean_share_max")
        ]
        lines.append(cells)
    units = 2 * depth
    return (
        f"## {depth:,} blocks, {units:,} units\n\n{table(lines)}\n\n"
        f"![{depth} blocks: losses, profile, token-mean share and trunk](depth_{depth}.png)\n"
    )


def loss_cell(runs: list[dict]) -> str:
    """Mean over seeds and half their spread; and when it jumped or stopped."""
    if not runs:
        return "-"
    whole = [r["heldout_loss"][-1][1] for r in runs if r["finished"]]
    text = f"{statistics.mean(whole):.3f}" if whole else ""
    if len(whole) > 1:
        text += f" ± {(max(whole) - min(whole)) / 2:.3f}"
    for r in runs:
        if not r["finished"]:
            text += f" stopped {r['last_step']}"
        elif r["jumped_at"]:
            text += f" jump {r['jumped_at']}"
    return text.strip()


def chart(results: list[dict], depth: int, path: pathlib.Path) -> None:
    """Losses against steps at each rate; what is over depth, at the end, at rate one."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 8), layout="constrained")
    above, below = figure.subplots(2, 3)
    shown = {}
    for r in results:
        if r["depth"] != depth or r["seed"]:
            continue
        style = STYLES[r["structure"]]
        axes = above[list(depth_runs.RATES).index(r["rate"])]
        steps, losses = np.asarray(r["loss"], float).T
        axes.plot(steps, smooth(losses), **style, alpha=0.4, linewidth=1)
        (shown[r["structure"]],) = axes.plot(*np.asarray(r["heldout_loss"], float).T, **style)
        if r["rate"] == "one" and r["profile"]:
            for panel, key in zip(below, OF_UNITS, strict=True):
                values = np.asarray(r[key][-1], float)
                panel.plot(np.linspace(0, r["units"], len(values)), values, **style)
    for axes, rate in zip(above, depth_runs.RATES, strict=True):
        axes.set(title=f"loss (faint) and held-out loss, {rate}", xlabel="step", yscale="log")
    for axes, title in zip(below, OF_UNITS.values(), strict=True):
        axes.set(title=f"{title}, at the end, one", xlabel="unit", yscale="log")
    for axes in (*above, *below):
        if not axes.lines:
            axes.set_axis_off()
    named = [s for s in depth_runs.STRUCTURES if s in shown]
    figure.legend([shown[s] for s in named], named, loc="outside lower center", ncols=6)
    figure.suptitle(f"{depth:,} blocks, {2 * depth:,} units")
    figure.savefig(path, dpi=80)


def smooth(values: np.ndarray, over: int = 5) -> np.ndarray:
    """Mean of the last `over`."""
    return np.asarray([values[max(0, i - over + 1) : i + 1].mean() for i in range(len(values))])


def mean_cell(values: list[float]) -> str:
    """Two digits; a slope is NaN where the sensitivity has vanished on its way to the input."""
    if not values:
        return "-"
    return f"{statistics.mean(values):.2f}" if np.all(np.isfinite(values)) else "vanished"
