"""The whole job in one command: trains (or goes on), draws samples, scores them, prints one RESULT.

python -m nrdm_jax.job --config=configs/openmoji32.py --workdir=runs/openmoji32
"""

import pathlib
import time

from absl import flags

from nrdm_jax import command_line
from nrdm_jax.processes import lifecycle


def define_flags() -> None:
    command_line.define_config(required=True)
    command_line.define_workdir()
    command_line.define_processes()
    command_line.define_fault()
    flags.DEFINE_float("at_most", None, "fail unless ratio is at most that: heldout_loss_last over "
                       "wiener; of an autoencoder, its square error over the linear projection's"
                       )  # fmt: skip


def run() -> int:
    config = command_line.config_of_flags()
    faults = command_line.faults_of_flags()
    before = time.monotonic()
    command_line.start_processes()
    from nrdm_jax import scoring, training_run
    from nrdm_jax.training.metrics import read_metrics

    workdir = flags.FLAGS.workdir
    with command_line.signals(config, "start", faults) as signals:
        summary = training_run.train(config, workdir, signals=signals)
        seeds = list(range(config.sample.examples))
        out = pathlib.Path(workdir) / "samples" / "final"
        signals.enter("sample")
        grid, drawn = scoring.draw(config, workdir, out, seeds=seeds, signals=signals)
        signals.enter("evaluate")
        scores = scoring.score(config, workdir, samples=0, drawn=drawn, signals=signals)
    losses = [row["heldout_loss"] for row in read_metrics(pathlib.Path(workdir))
              if "heldout_loss" in row]  # fmt: skip
    result = {
        "seconds": round(time.monotonic() - before, 1),
        "train_seconds": summary.get("train_seconds", 0.0),
        **scoring.report(config, losses, scores),
        "samples": len(drawn),
        "grid": str(grid),
    }
    command_line.print_result(result)
    limit = flags.FLAGS.at_most
    ratio = result["ratio"]
    return 1 if limit is not None and (ratio is None or ratio > limit) else 0


def main() -> None:
    define_flags()
    lifecycle.launch(run, __doc__)


if __name__ == "__main__":
    main()
