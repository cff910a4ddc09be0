"""What the sensitivity penalty does, and costs: the same run with and without it.

  python -m benchmarks.sensitivity_penalty

OpenMoji at 16 x 16, width 64, 16 tokens (configs/depth_1000.py) with --depth blocks, for each of
--variants. `unevenness` is what the penalty is a multiple of: the mean over units of
log(|s_i|^2 / |s_n|^2)^2, of the last record of a run.
"""

import pathlib
import statistics
import tempfile

import numpy as np
from absl import flags

from benchmarks import measuring
from nrdm_jax.processes import lifecycle
from nrdm_jax.training import sensitivity
from nrdm_jax.training.metrics import read_metrics


def define_flags() -> None:
    flags.DEFINE_string("config", "configs/depth_1000.py", "of the runs")
    flags.DEFINE_integer("depth", 28, "blocks", lower_bound=2)
    flags.DEFINE_integer("steps", 300, "of each run", lower_bound=20)
    flags.DEFINE_float("penalty", 1e-2, "its factor", lower_bound=0.0)
    flags.DEFINE_list("variants", ["gated", "resnet"], "of the units")


def measured(variant: str, penalty: float) -> dict:
    f = flags.FLAGS
    with tempfile.TemporaryDirectory() as directory:
        workdir = pathlib.Path(directory) / "run"
        measuring.train(
            workdir,
            f"--config.model.depth={f.depth}",
            f"--config.model.variant={variant}",
            f"--config.train.steps={f.steps}",
            f"--config.optim.sensitivity_penalty={penalty}",
            f"--config.evaluate.every={f.steps}",
            "--config.log.every=10",
            "--config.log.sensitivity_every=10",
        )
        rows = read_metrics(workdir)
    last = [row for row in rows if "profile" in row][-3:]
    return {
        "unevenness": float(
            np.mean([sensitivity.unevenness(np.asarray(row["profile"]) ** 2) for row in last])
        ),
        "slope": float(np.mean([row["sensitivity_slope"] for row in last])),
        "heldout_loss": [row["heldout_loss"] for row in rows if "heldout_loss" in row][-1],
        "step_time": statistics.median(row["step_time"] for row in rows if "step_time" in row),
    }


def run() -> None:
    blocks = flags.FLAGS.depth
    found: dict = {"penalty": flags.FLAGS.penalty, "blocks": blocks, "units": 2 * blocks}
    for variant in flags.FLAGS.variants:
        off, on = (measured(variant, penalty) for penalty in (0.0, flags.FLAGS.penalty))
        for key in ("unevenness", "slope", "heldout_loss"):
            found[f"{variant}_{key}"] = [off[key], on[key]]
        found[f"{variant}_step_time_ratio"] = on["step_time"] / off["step_time"]
    measuring.print_result(found)


def main() -> None:
    define_flags()
    lifecycle.launch(run, __doc__)


if __name__ == "__main__":
    main()
