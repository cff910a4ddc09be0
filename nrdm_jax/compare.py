"""Runs side by side: held-out losses at fixed noise levels and distances of samples, against images
seen and against time, and the fields in which their configs differ. Runs may be still going.

  python -m nrdm_jax.compare runs/a runs/b --out=runs/a_and_b --labels=gated,resnet
"""

import pathlib

from absl import flags

from nrdm_jax import command_line
from nrdm_jax.processes import lifecycle


def define_flags() -> None:
    flags.DEFINE_string("out", None, "directory; by default compare, in the first run")
    flags.DEFINE_list("labels", None, "a name for each run; by default those of their directories")


def run(workdirs: list[str]) -> None:
    if not workdirs:
        raise ValueError("no run is given; give directories of runs: runs/a runs/b")
    # Only now: importing numpy takes time.
    from nrdm_jax import comparison, comparison_report

    runs = comparison.read(workdirs, flags.FLAGS.labels)
    out = pathlib.Path(flags.FLAGS.out or pathlib.Path(workdirs[0]) / "compare")
    found = comparison_report.view(runs, out)
    print((out / "compare.md").read_text(), flush=True)
    command_line.print_result(
        {
            "out": str(out),
            "charts": found["charts"],
            "warnings": len(found["warnings"]),
            "runs": [
                {key: run[key] for key in ("label", "steps", "images", "seconds")}
                | {name: figures["last"] for name, figures in run["metrics"].items()}
                for run in found["runs"]
            ],
        }
    )


def main() -> None:
    define_flags()
    lifecycle.launch(run, __doc__, with_operands=True)


if __name__ == "__main__":
    main()
