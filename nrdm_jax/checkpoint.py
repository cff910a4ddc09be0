"""Checkpoints of a run: which there are, whether they are whole, and what is in one.

  python -m nrdm_jax.checkpoint list   runs/openmoji32
  python -m nrdm_jax.checkpoint verify runs/openmoji32
  python -m nrdm_jax.checkpoint show   runs/openmoji32 --step=500

Of any mesh, on any machine: leaves are read on the host, a few at a time, and nothing is written.
verify ends with exit code 65 where a step is damaged, and names the leaves.
"""

from absl import flags

from nrdm_jax import command_line
from nrdm_jax.processes import exit_codes, lifecycle

COMMANDS = ("list", "verify", "show")


def define_flags() -> None:
    flags.DEFINE_integer("step", None, "that is verified or shown; by default all are verified, "
                         "and the newest is shown", lower_bound=0)  # fmt: skip


def run(operands: list[str]) -> int:
    if len(operands) != 2 or operands[0] not in COMMANDS:
        raise ValueError(
            f"{' '.join(operands) or 'nothing'!r} is not understood; give {'|'.join(COMMANDS)} and "
            "the directory of a run, such as `list runs/openmoji32`"
        )
    command, place = operands
    # Only now: it imports jax.
    from nrdm_jax import checkpoint_report

    found = getattr(checkpoint_report, f"{command}_steps")(place, flags.FLAGS.step)
    command_line.print_result(found)
    return exit_codes.BAD_DATA if found.get("bad") else exit_codes.DONE


def main() -> None:
    define_flags()
    lifecycle.launch(run, __doc__, with_operands=True)


if __name__ == "__main__":
    main()
