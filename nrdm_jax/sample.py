"""Draws samples from the averaged weights of a run: a grid, a file each, and a manifest.

python -m nrdm_jax.sample --workdir=runs/openmoji32 --seeds=0-63 --labels=0,1,8 --out=samples
python -m nrdm_jax.sample --workdir=runs/text --seeds=0-3 --captions="a red car;a blue fish"
"""

import pathlib

from absl import flags

from nrdm_jax import command_line
from nrdm_jax import config as configuration
from nrdm_jax.bounded_files import read_text
from nrdm_jax.processes import lifecycle

MOST_CAPTIONS = 2**24  # bytes of a file


def define_flags() -> None:
    command_line.define_config(required=False)
    command_line.define_workdir()
    command_line.define_processes()
    flags.DEFINE_string("seeds", "0-63", "a sample each: numbers and ranges, such as 0,3,8-11")
    flags.DEFINE_string("labels", None, "classes, repeated over the seeds; by default all in turn")
    flags.DEFINE_string("shape", None, "of the samples, such as 24,40,3; by default data.shape")
    flags.DEFINE_string("captions", None, "texts, repeated over the seeds: 'a red car;a blue "
                        "fish', or a file with one a line; by default held-out ones")  # fmt: skip
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
    texts = captions(flags.FLAGS.captions) if flags.FLAGS.captions is not None else None
    command_line.start_processes()
    from nrdm_jax import scoring

    with command_line.signals(config, "sample") as signals:
        first, drawn = scoring.draw(
            config,
            workdir,
            pathlib.Path(flags.FLAGS.out or pathlib.Path(workdir) / "samples" / "final"),
            seeds=seeds,
            labels=labels and [labels[i % len(labels)] for i in range(len(seeds))],
            captions=texts and [texts[i % len(texts)] for i in range(len(seeds))],
            steps=flags.FLAGS.steps,
            guidance=flags.FLAGS.guidance,
            weaker=flags.FLAGS.weaker,
            ema_width=flags.FLAGS.ema_width,
            trajectory=flags.FLAGS.trajectory,
            shape=shape,
            signals=signals,
        )
    command_line.print_result({"samples": len(drawn), "grid": str(first)})


def captions(given: str) -> list[str]:
    """The lines of a file of that name; without one, the parts between semicolons. "" is no text.

    Raises:
      ValueError: the file cannot be read, or has none; or what ends in .txt is none.
    """
    path = pathlib.Path(given)
    try:
        is_file = path.is_file()
    except OSError:  # a text that is too long for a name
        is_file = False
    if not is_file:
        if path.suffix == ".txt":
            raise ValueError(f"--captions: there is no file {path}")
        return [part.strip() for part in given.split(";")]
    try:
        lines = read_text(path, MOST_CAPTIONS).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--captions: {path} cannot be read: {error}") from error
    if not lines:
        raise ValueError(f"--captions: {path} is empty")
    return [line.strip() for line in lines]


def main() -> None:
    define_flags()
    lifecycle.launch(run, __doc__)


if __name__ == "__main__":
    main()
