"""Trains a model, or goes on where the run in --workdir stopped.

python -m nrdm_jax.train --config=configs/openmoji32.py --workdir=runs/openmoji32
python -m nrdm_jax.train --config=configs/imagenet256_dit_xl2.py --workdir=/tmp/w --dry_run
"""

import pathlib

from absl import flags

from nrdm_jax import command_line
from nrdm_jax import config as configuration
from nrdm_jax.processes import lifecycle
from nrdm_jax.processes.stored_config import changes


def define_flags() -> None:
    command_line.define_config(required=True)
    command_line.define_workdir()
    command_line.define_processes()
    command_line.define_fault()
    flags.DEFINE_bool("dry_run", False, "print mesh, parameters, FLOPs and memory, and stop")
    flags.DEFINE_bool("allow_config_change", False, "go on with a config that differs")


def run() -> None:
    config = command_line.config_of_flags()
    faults = command_line.faults_of_flags()
    changes(
        pathlib.Path(flags.FLAGS.workdir),
        configuration.to_dict(config),
        allowed=flags.FLAGS.allow_config_change or flags.FLAGS.dry_run,
    )
    # Only now: importing jax, flax, orbax and grain takes seconds.
    command_line.start_processes()
    if flags.FLAGS.dry_run:
        from nrdm_jax import dry_run

        command_line.print_result(dry_run.describe(config))
        return
    from nrdm_jax import training_run

    with command_line.signals(config, "start", faults) as signals:
        summary = training_run.train(
            config,
            flags.FLAGS.workdir,
            signals=signals,
            allow_config_change=flags.FLAGS.allow_config_change,
        )
    command_line.print_result(summary)


def main() -> None:
    define_flags()
    lifecycle.launch(run, __doc__)


if __name__ == "__main__":
    main()
