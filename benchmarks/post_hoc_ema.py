"""How near the averages that `nrdm ema` makes are to those that a run would have tracked.

  python -m benchmarks.post_hoc_ema --config=configs/openmoji32.py:smoke

Trains --steps steps that track six widths and keep 32 snapshots; makes four of the widths from the
snapshots of the two others, 0.1 and 0.25, at the end and half-way. Of each, `apart` is the norm of
the difference from the tracked average over the norm of that, and `relative_error` what the command
tells of the profile. Exits 1 if any is more than 1e-4 apart, or, at the snapshots of the two
themselves, more than 1e-6.
"""

import json
import pathlib
import tempfile

from absl import flags

from benchmarks import measuring
from nrdm_jax.processes import lifecycle

SNAPSHOTS = 32
KEPT, MADE = (0.1, 0.25), (0.05, 0.075, 0.15, 0.2)
MOST_APART, MOST_APART_KEPT = 1e-4, 1e-6


def define_flags() -> None:
    flags.DEFINE_string("config", "configs/openmoji32.py:smoke", "of the run")
    flags.DEFINE_integer("steps", 1280, "of the run", lower_bound=2 * SNAPSHOTS)


def of_kept(workdir: pathlib.Path, copy: pathlib.Path) -> None:
    """The run as if it had tracked the two widths only."""
    copy.mkdir()
    (copy / "ema_snapshots").symlink_to(workdir / "ema_snapshots")
    values = json.loads((workdir / "config.json").read_text())
    values["train"]["ema_widths"] = list(KEPT)
    (copy / "config.json").write_text(json.dumps(values))


def compared(workdir: pathlib.Path, copy: pathlib.Path, width: float, step: int) -> dict:
    import jax
    import numpy as np
    import optax

    from nrdm_jax import build, config, post_hoc, run_weights
    from nrdm_jax.processes.stored_config import read_config

    out = copy.with_name(f"out_{width}_{step}")
    c = config.from_dict(read_config(copy))
    told = post_hoc.reconstruct(
        c, str(copy), str(out), width=width, step=step, signals=lifecycle.Signals()
    )
    abstract = build.run(c).abstract_state.ema
    tracked = run_weights.Stored(workdir / "ema_snapshots", step, width).read(abstract)
    made = run_weights.find(str(out)).read(abstract)
    apart = optax.global_norm(jax.tree.map(np.subtract, made, tracked))
    row = {
        "width": width,
        "step": step,
        "apart": float(apart / optax.global_norm(tracked)),
        "relative_error": told["relative_error"],
        "largest_coefficient": told["largest_coefficient"],
    }
    print(" ".join(f"{name}={value:.3g}" for name, value in row.items()), flush=True)
    return row


def run() -> int:
    steps = flags.FLAGS.steps
    with tempfile.TemporaryDirectory() as directory:
        workdir, copy = pathlib.Path(directory) / "w", pathlib.Path(directory) / "kept"
        measuring.train(
            workdir,
            f"--config.train.steps={steps}",
            f"--config.checkpoint.every={steps}",
            f"--config.train.ema_widths={(*KEPT, *MADE)}",
            f"--config.train.ema_snapshots={SNAPSHOTS}",
        )
        of_kept(workdir, copy)
        half = steps * (SNAPSHOTS // 2) // SNAPSHOTS
        rows = [compared(workdir, copy, w, at) for at in (steps, half) for w in (*KEPT, *MADE)]
    measuring.print_result(
        {
            "most_apart": max(row["apart"] for row in rows if row["width"] in MADE),
            "most_apart_kept": max(row["apart"] for row in rows if row["width"] in KEPT),
            "rows": rows,
        }
    )
    fine = all(
        row["apart"] <= (MOST_APART_KEPT if row["width"] in KEPT else MOST_APART) for row in rows
    )
    return 0 if fine else 1


def main() -> None:
    define_flags()
    lifecycle.launch(run, __doc__)


if __name__ == "__main__":
    main()
