"""Makes the power-function average of any width from the snapshots of a run that tracked a few
(train.ema_widths), as a workdir that other entries read: EDM2's post-hoc EMA (arXiv 2312.02696).

python -m nrdm_jax.ema --workdir=runs/openmoji32 --width=0.12 --out=runs/openmoji32_ema_0.12
python -m nrdm_jax.sample --workdir=runs/openmoji32_ema_0.12
"""

from absl import flags

from nrdm_jax import command_line
from nrdm_jax.processes import lifecycle


def define_flags() -> None:
    command_line.define_config(required=False)
    command_line.define_workdir()
    command_line.define_processes()
    flags.DEFINE_float("width", None, "standard deviation of the average over the steps before it, "
                       "as a share of those: within (0, 0.289)")  # fmt: skip
    flags.DEFINE_integer("step", None, "after which it is the average; by default that of the "
                         "newest snapshot", lower_bound=1)  # fmt: skip
    flags.DEFINE_string("out", None, "directory, new or empty: a workdir with these weights")
    flags.mark_flags_as_required(["width", "out"])


def run() -> None:
    config = command_line.config_of_flags()
    command_line.start_processes()
    from nrdm_jax import post_hoc

    with command_line.signals(config, "evaluate") as signals:
        found = post_hoc.reconstruct(
            config,
            flags.FLAGS.workdir,
            flags.FLAGS.out,
            width=flags.FLAGS.width,
            step=flags.FLAGS.step,
            signals=signals,
        )
    command_line.print_result(found)


def main() -> None:
    define_flags()
    lifecycle.launch(run, __doc__)


if __name__ == "__main__":
    main()
