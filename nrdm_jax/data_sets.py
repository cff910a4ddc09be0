"""Data sets: prepare one, show what is in it, or check its files against their checksums.

  python -m nrdm_jax.data_sets prepare openmoji --shape=64,64,3
  python -m nrdm_jax.data_sets show image_folder:pictures --out=sheets
  python -m nrdm_jax.data_sets verify openmoji --shape=64,64,3

A preparation that was stopped goes on where it was. A run prepares what it needs in the same way.
"""

import pathlib

from absl import flags

from nrdm_jax import command_line
from nrdm_jax import config as configuration
from nrdm_jax.processes import lifecycle

COMMANDS = ("prepare", "show", "verify")


def define_flags() -> None:
    usual = configuration.default().data
    flags.DEFINE_string("shape", None, "of an example, channels last, such as 32,32,3; by default "
                        "the set's own choice")  # fmt: skip
    flags.DEFINE_string("dir", None, "of prepared sets; by default TFDS_DATA_DIR, or .cache/data")
    flags.DEFINE_enum("corrupt", usual.corrupt, configuration.CHOICES["data.corrupt"],
                      "what is done about files that cannot be read")  # fmt: skip
    flags.DEFINE_integer("frame_stride", usual.frame_stride, "of weizmann and video_folder: frames "
                         "from one of a clip to the next", lower_bound=1)  # fmt: skip
    flags.DEFINE_integer("examples", 64, "that are shown", lower_bound=1)
    flags.DEFINE_string("out", None, "directory of what is shown; by default runs/data/NAME")


def run(operands: list[str]) -> None:
    f = flags.FLAGS
    if len(operands) != 2 or operands[0] not in COMMANDS:
        raise ValueError(
            f"{' '.join(operands) or 'nothing'!r} is not understood; give {'|'.join(COMMANDS)} and "
            "the name of a data set, such as `show openmoji`"
        )
    command, name = operands
    shape = tuple(command_line.integers("shape", f.shape, lowest=1)) if f.shape else None
    data_dir = f.dir or str(lifecycle.data_dir())
    # Only now: importing tensorflow_datasets takes time.
    from nrdm_jax import data_reports

    options = {"corrupt": f.corrupt, "stride": f.frame_stride}
    if command == "prepare":
        found = data_reports.prepare(name, shape, data_dir, **options)
    elif command == "verify":
        found = data_reports.verify(name, shape, data_dir, stride=f.frame_stride)
    else:
        out = pathlib.Path(f.out or pathlib.Path("runs", "data", pathlib.Path(name).name))
        found = data_reports.show(name, shape, data_dir, out, examples=f.examples, **options)
    command_line.print_result(found)


def main() -> None:
    define_flags()
    lifecycle.launch(run, __doc__, with_operands=True)


if __name__ == "__main__":
    main()
