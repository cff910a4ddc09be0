"""What huge pages give a training step on a CPU: the main job with and without them, in pairs.

  python -m benchmarks.huge_pages

launch/*.sh set GLIBC_TUNABLES=glibc.malloc.hugetlb=1 (glibc 2.35 or newer; the kernel's
transparent_hugepage must be `madvise` or `always`). Each pair starts the train entry twice, in
alternating order, and takes images a second of the last --steps. Prints the median ratio.
"""

import pathlib
import statistics
import tempfile

from absl import flags

from benchmarks import measuring
from nrdm_jax.processes import lifecycle
from nrdm_jax.training.metrics import read_metrics

TUNABLE = "glibc.malloc.hugetlb=1"


def define_flags() -> None:
    flags.DEFINE_string("config", "configs/openmoji32.py", "of the run")
    flags.DEFINE_integer("pairs", 3, "runs with and without", lower_bound=1)
    flags.DEFINE_integer("steps", 60, "that are timed, after as many that are not", lower_bound=1)


def images_per_second(tunables: str) -> float:
    steps = flags.FLAGS.steps
    with tempfile.TemporaryDirectory() as directory:
        workdir = pathlib.Path(directory) / "run"
        measuring.train(
            workdir,
            f"--config.log.every={steps}",
            f"--config.train.steps={2 * steps}",
            f"--config.checkpoint.every={2 * steps}",
            GLIBC_TUNABLES=tunables,
        )
        return read_metrics(workdir)[-1]["img/s"]


def run() -> None:
    with_them, without = [], []
    for pair in range(flags.FLAGS.pairs):
        order = [(with_them, TUNABLE), (without, "")]
        for rates, tunables in order if pair % 2 == 0 else reversed(order):
            rates.append(images_per_second(tunables))
        print(f"pair {pair}: with {with_them[-1]:.0f} img/s, without {without[-1]:.0f}", flush=True)
    ratios = [a / b for a, b in zip(with_them, without, strict=True)]
    measuring.print_result(
        {
            "ratio": round(statistics.median(ratios), 3),
            "ratio_spread": [round(min(ratios), 3), round(max(ratios), 3)],
            "images_per_second": round(statistics.median(with_them), 1),
        }
    )


def main() -> None:
    define_flags()
    lifecycle.launch(run, __doc__)


if __name__ == "__main__":
    main()
