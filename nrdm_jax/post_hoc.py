"""The power-function average of any width from a run's snapshots of a few (EDM2, arXiv 2312.02696,
section 3.2), as a workdir that samples, scores and starts other runs."""

import pathlib

import jax
import jax.numpy as jnp

from nrdm_jax import __version__, build, records, run_weights, training_run
from nrdm_jax import config as configuration
from nrdm_jax.checkpointing.manager import Checkpoints
from nrdm_jax.checkpointing.stored import StoredCheckpoints
from nrdm_jax.processes import distributed, lifecycle
from nrdm_jax.processes.workdir import Workdir
from nrdm_jax.signatures import Params
from nrdm_jax.training import power_ema

# Relative error of the profile above which the user is warned. Of widths from 0.075 to 0.25, from
# snapshots of 0.1 and 0.25, it is below this at the step of the eighth snapshot and of later ones,
# and above it between two of any number.
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
    step, factors, error = _plan(workdir, width, step)
    place = pathlib.Path(out)
    if place.exists() and not (place.is_dir() and not any(place.iterdir())):
        raise ValueError(f"--out={out} has something in it; name a new directory")
    distributed.meet("looked at out")  # before any process writes there

    parts = build.run(config)
    plain = config.copy_and_resolve_references()
    # There are none in what is written.
    plain.train.ema_widths = ()
    plain.train.ema_snapshots = configuration.default().train.ema_snapshots
    average = _sum(parts, factors, signals)  # before anything is written
    data = _data(workdir, max(stored.step for stored in factors))
    environment = training_run.environment(parts, data)
    home = Workdir(out, configuration.to_dict(plain), allow_change=False)
    try:
        home.record(environment)
        kept = records.kept_statistics(config, workdir)
        if kept is not None and distributed.is_writer():
            kept.write(home.path / records.STATISTICS)
        meta = {"step": step, "of": str(workdir), "width": width, "version": __version__}
        checkpoints = Checkpoints(str(home.path / run_weights.CHECKPOINTS), together=distributed)
        try:
            checkpoints.save(step, {"ema": average}, {"data": data, **meta})
            checkpoints.wait()
        finally:
            checkpoints.close()
    finally:
        home.release()
    return {
        "width": width,
        "step": step,
        "snapshots": len(factors),
        "largest_coefficient": max(map(abs, factors.values())),
        "relative_error": error,
        "workdir": str(out),
    }


def _plan(
    workdir: str, width: float, step: int | None
) -> tuple[int, dict[run_weights.Stored, float], float]:
    """The step, the snapshots that count with their factors, and the error of the profile."""
    power_ema.gamma_of(width)  # refused now, before anything is looked for
    steps = run_weights.steps_of(workdir, run_weights.SNAPSHOTS)
    directory = pathlib.Path(workdir) / run_weights.SNAPSHOTS
    if not steps:
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
    # Later snapshots than the first one at `step` or after it would not bring it nearer.
    last = next(s for s in steps if s >= step)
    kept = [(s, w) for s in steps if s <= last for w in run_weights.widths_of(directory, s)]
    tracked = sorted({w for _, w in kept})
    factors = power_ema.coefficients(kept, step, width)
    error = power_ema.profile_error(kept, step, width, factors)
    if error > TRUSTED:
        print(
            f"WARNING: the snapshots give the profile of width {width:g} at step {step} with a "
            f"relative error of {error:.2g}; take the step of a snapshot "
            f"({run_weights.listed(steps)}), a width nearer to {run_weights.listed(tracked)}, or "
            "train with more train.ema_snapshots",
            flush=True,
        )
    counting = {
        run_weights.Stored(directory, s, w): float(factor)
        for (s, w), factor in zip(kept, factors, strict=True)
        if abs(factor) > NEGLIGIBLE * abs(factors).max()
    }
    return step, counting, error


def _data(workdir: str, step: int) -> str:
    """The fingerprint of the data of a snapshot."""
    snapshots = StoredCheckpoints(str(pathlib.Path(workdir) / run_weights.SNAPSHOTS))
    try:
        return snapshots.meta(step)["data"]
    finally:
        snapshots.close()


def _sum(
    parts: build.Run, factors: dict[run_weights.Stored, float], signals: lifecycle.Signals
) -> Params:
    """Of the snapshots, each by its factor."""
    abstract = parts.abstract_state.ema
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    zeros = jax.jit(
        lambda: jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), abstract),
        out_shardings=shardings,
    )
    plus = jax.jit(power_ema.plus, donate_argnums=0, out_shardings=shardings)
    total = zeros()
    for stored, factor in factors.items():
        signals.check()
        # Nothing refers to a snapshot when the next one is read.
        total = plus(total, jnp.float32(factor), stored.read(abstract))
    return total
