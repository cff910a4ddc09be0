"""Shows the denoising dynamics within a trained network (arXiv 2406.13215): the learnt gates
alpha_i(t), beta_i(t) over depth and time beside the path's own +g(t)^2/2 and -f(t), which is a
qualitative comparison, and the error of what the head reads from the trunk after each block.

python -m nrdm_jax.dynamics --workdir=runs/openmoji32
"""

import pathlib

from absl import flags

from nrdm_jax import command_line
from nrdm_jax.processes import lifecycle


def define_flags() -> None:
    command_line.define_config(required=False)
    command_line.define_workdir()
    flags.DEFINE_integer("examples", 64, "held out, denoised; 0: none", lower_bound=0)
    flags.DEFINE_string("out", None, "directory; by default WORKDIR/dynamics")


def run() -> None:
    config = command_line.config_of_flags()
    from nrdm_jax import denoising_dynamics

    out = pathlib.Path(flags.FLAGS.out or pathlib.Path(flags.FLAGS.workdir) / "dynamics")
    with command_line.signals(config, "evaluate") as signals:
        found = denoising_dynamics.view(
            config, flags.FLAGS.workdir, out, examples=flags.FLAGS.examples, signals=signals
        )
    print(found["note"], flush=True)
    command_line.print_result(
        {
            "chart": str(out / "dynamics.png"),
            "data": str(out / "dynamics.json"),
            "units": found["units"],
            "gates": [name for name in ("alpha", "beta") if name in found],
            "x0_error_first": _mean_error(found, 0),
            "x0_error_last": _mean_error(found, -1),
        }
    )


def _mean_error(found: dict, place: int) -> float | None:
    """Over the levels; None where nothing was denoised."""
    rows = found.get("x0_error", [])
    return sum(row[place] for row in rows) / len(rows) if rows else None


def main() -> None:
    define_flags()
    lifecycle.launch(run, __doc__)


if __name__ == "__main__":
    main()
