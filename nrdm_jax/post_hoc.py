"""The power-function average of any width from a run's snapshots of a few (EDM2, arXiv 2312.02696,
section 3.2), as a workdir that samples, scores and starts other runs."""

import pathlib

import jax
import jax.numpy as jnp

from nrdm_jax import __version__, build, run_weights, training_run
from nrdm_jax import config as configuration
from nrdm_jax.checkpointing.manager import Checkpoints
from nrdm_jax.processes import distributed, lifecycle
from nrdm_jax.processes.workdir import Workdir
from nrdm_jax.training import power_ema

# Relative error of the profile above which the user is warned. Between two snapshots it is 0.1 to
# 0.9, at one of them, after eight or more, below this (widths from 0.07 of 0.1 and 0.25).
TRUSTED = 0.05
# Snapshots that count less than this beside the one that counts most are not read: float32 would
# not show them.
NEGLIGIBLE = 1e-9


def reconstruct(
    config,
    workdir: str,
    out: str,
    *,
    width: float,
    signals: lifecycle.Signals,
    step: int | None = None,
) -> dict:
    """Writes the average of `width` after `step` steps (by default those of the newest snapshot) to
    OUT/checkpoints, and the run's config beside it. One snapshot of one width is held at a time,
    beside the sum.

    Returns the width, the step, the snapshots that count and their largest coefficient, and
    `relative_error`, see `power_ema.profile_error`.

    Raises:
      ValueError: the run has no snapshots, none as late as `step`, or of other shapes; the width is
        impossible; or `out` has something in it.
      Stop: `out` cannot be written, or a signal came.
    """
    power_ema.gamma_of(width)  # refused now, before anything is looked for
    steps = run_weights.steps_of(workdir, run_weights.SNAPSHOTS)
    tracked = run_weights.tracked_widths(workdir)
    if not steps or not tracked:
        raise ValueError(
            f"{workdir} has no snapshots; train with train.ema_widths, such as (0.1, 0.25), and "
            "train.ema_snapshots above 0"
        )
    step = steps[-1] if step is None else step
    if not 0 < step <= steps[-1]:
        raise ValueError(
            f"--step={step}: the snapshots of {workdir} are of steps {steps[0]} to {steps[-1]}; "
            "give one of those, or train on"
        )
    if pathlib.Path(out).exists() and (not pathlib.Path(out).is_dir() or any(_entries(out))):
        raise ValueError(f"--out={out} has something in it; name a new directory")
    distributed.meet("looked at out")  # before any process writes there

    # Later snapshots than the first one at `step` or after it would not be nearer.
    last = next(s for s in steps if s >= step)
    kept = [(s, w) for s in steps if s <= last for w in tracked]
    factors = power_ema.coefficients(kept, step, width)
    error = power_ema.profile_error(kept, step, width, factors)
    largest = float(abs(factors).max())
    counting = [
        (*k, f) for k, f in zip(kept, factors, strict=True) if abs(f) > NEGLIGIBLE * largest
    ]
    if error > TRUSTED:
        print(
            f"WARNING: the snapshots give the profile of width {width:g} at step "
            f"{step} with a relative error of {error:.2g}; take the step of a snapshot "
            f"({run_weights.listed(steps)}), a width nearer to {run_weights.listed(tracked)}, or "
            "train with more train.ema_snapshots",
            flush=True,
        )

    parts = build.run(config)
    plain = config.copy_and_resolve_references()
    # There are none in what is written.
    plain.train.ema_widths = ()
    plain.train.ema_snapshots = configuration.default().train.ema_snapshots
    home = Workdir(
        out, configuration.to_dict(plain), training_run.environment(parts), allow_change=False
    )
    try:
        average = _sum(parts, workdir, counting, signals)
        checkpoints = Checkpoints(str(home.path / run_weights.CHECKPOINTS))
        try:
            checkpoints.save(step, {"ema": average}, _meta(workdir, last) | {
                "step": step, "of": str(workdir), "width": width, "version": __version__,
            })  # fmt: skip
            checkpoints.wait()
        finally:
            checkpoints.close()
    finally:
        home.release()
    return {
        "width": width,
        "step": step,
        "snapshots": len(counting),
        "largest_coefficient": largest,
        "relative_error": error,
        "workdir": str(out),
    }


def _meta(workdir: str, step: int) -> dict:
    """Of a snapshot."""
    snapshots = Checkpoints(str(pathlib.Path(workdir) / run_weights.SNAPSHOTS), read_only=True)
    try:
        return snapshots.meta(step)
    finally:
        snapshots.close()


def _entries(path: str):
    return pathlib.Path(path).iterdir()


def _sum(parts: build.Run, workdir: str, counting, signals: lifecycle.Signals):
    """Of the snapshots, each (step, width) by its factor."""
    abstract = parts.abstract_state.ema
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    zeros = jax.jit(
        lambda: jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), abstract),
        out_shardings=shardings,
    )
    plus = jax.jit(power_ema.plus, donate_argnums=0, out_shardings=shardings)
    total = zeros()
    for step, width, factor in counting:
        signals.check()
        snapshot = run_weights.Stored(
            pathlib.Path(workdir) / run_weights.SNAPSHOTS, step, width
        ).read(abstract)
        total = plus(total, jnp.float32(factor), snapshot)
    return total
