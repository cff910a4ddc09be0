"""Flags that entries share. Imports no jax."""

import contextlib
import json
import pathlib
import re
import sys

from absl import flags
from ml_collections import config_flags

from nrdm_jax import config as configuration
from nrdm_jax.processes import distributed, faults, lifecycle
from nrdm_jax.processes.stored_config import open_config


def define_config(required: bool) -> None:
    """--config=FILE.py[:ARGUMENT], and --config.FIELD=VALUE for each of its fields."""
    note = "config file, FILE.py[:ARGUMENT]; fields by --config.FIELD=VALUE"
    config_flags.DEFINE_config_file(
        "config", None, note if required else f"{note}; by default the workdir's own"
    )
    if required:
        flags.mark_flag_as_required("config")


def define_workdir() -> None:
    flags.DEFINE_string("workdir", None, "directory of the run: config, checkpoints, metrics")
    flags.mark_flag_as_required("workdir")
    flags.register_validator(
        "workdir", lambda path: path is None or "://" not in path,
        message="is an address; mount the bucket, and give the directory that it is mounted as",
    )  # fmt: skip


def define_processes() -> None:
    """--coordinator, --num_processes, --process_id, --start_timeout: of a job of several
    processes."""
    flags.DEFINE_string("coordinator", "", "HOST:PORT at which process 0 of several listens; on "
                        "SLURM, Open MPI and Cloud TPU it is found")  # fmt: skip
    flags.DEFINE_integer("num_processes", 0, "of the job, where the cluster does not say")
    flags.DEFINE_integer("process_id", -1, "of this process, from 0")
    flags.DEFINE_integer("start_timeout", distributed.ARRIVAL, "seconds that the processes of the "
                         "job may take to be there", lower_bound=1)  # fmt: skip


def define_ema_width() -> None:
    flags.DEFINE_float("ema_width", None, "the run's average of this width, one of its "
                       "train.ema_widths, in the place of the EMA")  # fmt: skip


def define_fault() -> None:
    flags.DEFINE_string("fault", "", "a drill: what goes wrong, such as kill@step=7 or "
                        "hang@step=5:rank=1; see nrdm_jax/processes/faults.py")  # fmt: skip


def faults_of_flags() -> tuple[faults.Fault, ...]:
    """Those of --fault. Raises as `faults.parse`."""
    return faults.parse(flags.FLAGS.fault)


def signals(
    config, section: str, planned: tuple[faults.Fault, ...] = ()
) -> contextlib.AbstractContextManager[lifecycle.Signals]:
    """The owner of the signals, with the watchdog of `config`, in the block."""
    workdir = pathlib.Path(flags.FLAGS.workdir)
    limits = config.watchdog.to_dict()
    return lifecycle.Signals(limits, section, workdir=workdir, faults=planned).installed()


def start_processes() -> None:
    """Joins the other processes of the job, if there are any. Raises as `distributed.start`."""
    f = flags.FLAGS
    distributed.start(f.coordinator, f.num_processes, f.process_id, f.start_timeout)


def config_of_flags():
    """The validated config of --config; without it, that of the run in --workdir. Warns of fields
    that were set and that nothing reads.

    Raises:
      ValueError: as `config.validate` or `open_config`.
    """
    try:
        config = flags.FLAGS.config
        if config is not None:
            config.keys()  # what stands for a file that could not be read raises only now
    except Exception as error:
        raise ValueError(f"--config: {str(error).strip().splitlines()[-1].strip()}") from error
    if config is None:
        config = open_config(pathlib.Path(flags.FLAGS.workdir))
    else:
        configuration.validate(config)
    for text in configuration.idle_fields(config):
        print(f"warning: {text}", file=sys.stderr, flush=True)
    return config


def integers(name: str, text: str, lowest: int = 0) -> list[int]:
    """`0,3,8-11` -> [0, 3, 8, 9, 10, 11].

    Raises:
      ValueError: it is not of this form, or below `lowest`, naming the flag.
    """
    values: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*", part)
        if not found or int(found[2] or found[1]) < int(found[1]):
            raise ValueError(f"--{name}={text!r}: give numbers and ranges, such as 0,3,8-11")
        values += range(int(found[1]), int(found[2] or found[1]) + 1)
    if min(values) < lowest:
        raise ValueError(f"--{name}={text!r}: give numbers of at least {lowest}")
    return values


def shape(name: str, text: str) -> tuple[int, ...]:
    """`24,40,3` -> (24, 40, 3).

    Raises:
      ValueError: it is not of this form, naming the flag.
    """
    if not re.fullmatch(r"\s*\d+\s*(,\s*\d+\s*)*", text):
        raise ValueError(f"--{name}={text!r}: give the axes of an example, such as 24,40,3")
    return tuple(map(int, text.split(",")))


def print_result(values: dict) -> None:
    """The last line of an entry: RESULT and a JSON object."""
    print("RESULT " + json.dumps(values), flush=True)
