"""Scores the averaged weights of a run on held-out data: loss at fixed noise levels, beside that of
the best linear denoiser, and the distance of samples to their nearest training examples.

  python -m nrdm_jax.evaluate --workdir=runs/openmoji32 --samples=64
"""

from absl import flags

from nrdm_jax import command_line
from nrdm_jax.processes import lifecycle


def define_flags() -> None:
    command_line.define_config(required=False)
    command_line.define_workdir()
    command_line.define_processes()
    command_line.define_ema_width()
    flags.DEFINE_integer("samples", 64, "compared with the training set; 0: none", lower_bound=0)


def run() -> None:
    config = command_line.config_of_flags()
    command_line.start_processes()
    from nrdm_jax import scoring

    with lifecycle.Signals().installed() as signals:
        scores = scoring.score(
            config,
            flags.FLAGS.workdir,
            samples=flags.FLAGS.samples,
            ema_width=flags.FLAGS.ema_width,
            signals=signals,
        )
    command_line.print_result(scores)


def main() -> None:
    define_flags()
    lifecycle.launch(run, __doc__)


if __name__ == "__main__":
    main()
