"""Draws samples from the averaged weights of a run: a grid, a file each, and a manifest.

python -m nrdm_jax.sample --workdir=runs/openmoji32 --seeds=0-63 --labels=0,1,8 --out=samples
"""

import pathlib

from absl import flags

from nrdm_jax import command_line
from nrdm_jax import config as configuration
from nrdm_jax.processes import lifecycle


def define_flags() -> None:
    command_line.define_config(required=False)
    command_line.define_workdir()
    command_line.define_processes()
    flags.DEFINE_string("seeds", "0-63", "a sample each: numbers and ranges, such as 0,3,8-11")
    flags.DEFINE_string("labels", None, "classes, repeated over the seeds; by default all in turn")
    flags.DEFINE_string("shape", None, "of the samples, such as 24,40,3; by default data.shape")
    flags.DEFINE_integer("steps", None, "of the sampler; by default the config's", lower_bound=1)
    flags.DEFINE_float("guidance", None, "classifier-free scale, 1 is off", lower_bound=0.0)
    command_line.define_ema_width()
    flags.DEFINE_string("weaker", None, "workdir of a weaker run, or WORKDIR@STEP for an earlier "
                        "step of one, or of this: guides away from the weights there, by "
                        "--guidance, and not from no class")  # fmt: skip
    flags.DEFINE_integer("trajectory", 0, "times on the way, the first to the last, at which what "
                         "the sample looks to become is shown; 0: none", lower_bound=0)  # fmt: skip
    flags.DEFINE_string("out", None, "directory; by default WORKDIR/samples/final")


def run() -> None:
    config = command_line.config_of_flags()
    workdir = flags.FLAGS.workdir
    seeds = command_line.integers("seeds", flags.FLAGS.seeds)
    if seeds[-1] >= 2**32 or max(seeds) >= 2**32:
        raise ValueError("--seeds: give numbers below 2^32")
    classes = config.data.num_classes
    labels = command_line.integers("labels", flags.FLAGS.labels) if flags.FLAGS.labels else None
    if labels and max(labels) > classes:
        raise ValueError(
            f"--labels: {max(labels)} is no class; give 0..{classes - 1}, or {classes} for none"
        )
    shape = command_line.shape("shape", flags.FLAGS.shape) if flags.FLAGS.shape else None
    if shape:
        configuration.check_shape(config, shape, "--shape")
    command_line.start_processes()
    from nrdm_jax import scoring

    with lifecycle.Signals().installed() as signals:
        first, drawn = scoring.draw(
            config,
            workdir,
            pathlib.Path(flags.FLAGS.out or pathlib.Path(workdir) / "samples" / "final"),
            seeds=seeds,
            labels=labels and [labels[i % len(labels)] for i in range(len(seeds))],
            steps=flags.FLAGS.steps,
            guidance=flags.FLAGS.guidance,
            weaker=flags.FLAGS.weaker,
            ema_width=flags.FLAGS.ema_width,
            trajectory=flags.FLAGS.trajectory,
            shape=shape,
            signals=signals,
        )
    command_line.print_result({"samples": len(drawn), "grid": str(first)})


def main() -> None:
    define_flags()
    lifecycle.launch(run, __doc__)


if __name__ == "__main__":
    main()
