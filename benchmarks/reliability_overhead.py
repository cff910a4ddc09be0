"""What reliability costs in step time.

  python -m benchmarks.reliability_overhead

The train step of openmoji32, in alternated pairs of segments of 10 steps within one process: with
the signals, the watchdog and the hooks of `with_hooks`, that is the guard with all its detectors,
the look for failed saves, the step lines and the account of the run's time once a segment, five
times as often as that run; and with nothing, and a program without the guard's choice between the
new state and the old. `steps` is the median ratio of their times less one, with its 95 % interval
(order statistics): many short pairs, as a machine that others use is 10 % slower for some of them.
`saves` is what a checkpoint takes longer, from the call until it is committed, than orbax's manager
alone (the fingerprints, the look for room, the flush to the disk), median of pairs, over the time
of `checkpoint.every` steps. `overhead` is the sum. Exits 1 if it is above 0.02.

One process: of several there are a question to jax at each step, and the peers' thread, as well.
"""

import itertools
import pathlib
import statistics
import tempfile
from unittest import mock

from absl import flags

from benchmarks import measuring
from benchmarks.unit_overhead import median_and_interval
from nrdm_jax import config as configuration
from nrdm_jax.processes import lifecycle

BAR = 0.02
LINE_EVERY = 10


def define_flags() -> None:
    flags.DEFINE_string("config", "configs/openmoji32.py", "of the step")
    flags.DEFINE_integer("pairs", 60, "alternated pairs of segments", lower_bound=10)
    flags.DEFINE_integer("steps", LINE_EVERY, "of a segment", lower_bound=LINE_EVERY)


def run_config():
    path, _, argument = flags.FLAGS.config.partition(":")
    c = configuration.of_file(path, pathlib.Path(path).stem, argument)
    c.log.every = c.log.sensitivity_every = LINE_EVERY
    c.train.steps = 10**9  # no segment is the last
    c.guard.spike_factor, c.guard.spike_window, c.guard.collapse_factor = 1e6, 128, 1e6
    configuration.validate(c)
    return c


def with_hooks(parts, workdir: pathlib.Path) -> list:
    """What a run has for reliability's sake at every step, in its order."""
    from nrdm_jax import reports
    from nrdm_jax.checkpointing.manager import Checkpoints
    from nrdm_jax.training import hooks
    from nrdm_jax.training.goodput import Goodput
    from nrdm_jax.training.metrics import Ledger, MetricsWriter, Progress

    ledger = Ledger()
    goodput = Goodput(workdir, ledger, 0.0)
    writer = MetricsWriter(workdir, 0, ledger=ledger, images=int, before={})
    progress = Progress(0, parts.config.train.steps)
    place = reports.Place(workdir, writer, progress, ledger, goodput)
    watch = reports.watch(parts, place, {})
    checkpoints = Checkpoints(str(workdir / "checkpoints"))
    failed = hooks.FailedSaves(checkpoints, progress)
    return [failed, watch, reports.step_lines(parts, place, watch.counts)]


def save_seconds(state, home: pathlib.Path, count: int = 9) -> tuple[float, float]:
    """Of a checkpoint here, and what it takes longer than orbax's manager alone: medians of so many
    pairs."""
    import orbax.checkpoint as ocp

    from nrdm_jax.checkpointing.manager import Checkpoints
    from nrdm_jax.training.state import save_items

    items = save_items(state)
    ours = Checkpoints(str(home / "ours"))
    options = ocp.CheckpointManagerOptions(max_to_keep=1)
    plain = ocp.CheckpointManager(home / "plain", options=options)
    arguments = {name: ocp.args.PyTreeSave(tree) for name, tree in items.items()}
    numbers = {"ours": itertools.count(), "plain": itertools.count()}

    def save() -> None:
        ours.save(next(numbers["ours"]), items, {})
        ours.wait()

    def save_plainly() -> None:
        plain.save(next(numbers["plain"]), args=ocp.args.Composite(**arguments))
        plain.wait_until_finished()

    pairs = measuring.paired_seconds(save, save_plainly, count)
    ours.close()
    plain.close()
    return statistics.median(a for a, _ in pairs), statistics.median(a - b for a, b in pairs)


def steps_of(config, *, guarded: bool):
    """The parts of a run, and its compiled steps, with or without the guard on the device."""
    import numpy as np

    from nrdm_jax import build, programs
    from nrdm_jax.training import step

    guard = step.guarded if guarded else lambda finite, updated, state: updated()
    with mock.patch.object(step, "guarded", guard):
        parts = build.run(config)
        return parts, programs.Steps(parts, np.dtype("float32"))


def run() -> int:
    import jax
    import numpy as np

    from nrdm_jax.training import loop

    f = flags.FLAGS
    parts, steps = steps_of(run_config(), guarded=True)
    _, bare = steps_of(run_config(), guarded=False)
    batch = measuring.placed_batch(parts)
    state, done = parts.fresh_state(), 0

    def segment(steps, hooks: list, **watched) -> None:
        nonlocal state, done
        state, done = loop.run(
            state,
            steps,
            itertools.repeat(batch),
            hooks,
            first_step=done,
            last_step=done + f.steps,
            **{"stop_requested": lambda: False} | watched,
        )
        jax.block_until_ready(state)

    with tempfile.TemporaryDirectory() as directory:
        hooks = with_hooks(parts, pathlib.Path(directory))
        limits = parts.config.watchdog.to_dict()
        signals = lifecycle.Signals(limits, "step", workdir=pathlib.Path(directory))

        def guarded() -> None:
            with signals.installed():
                segment(steps, hooks, stop_requested=signals.stop_requested, enter=signals.enter)

        guarded()
        segment(bare, [])
        pairs = measuring.paired_seconds(guarded, lambda: segment(bare, []), f.pairs, untimed=False)
        save, longer = save_seconds(state, pathlib.Path(directory))
    ratio, interval = median_and_interval([one / other for one, other in pairs])
    step = float(np.median([other for _, other in pairs])) / f.steps
    saves = longer / (parts.config.checkpoint.every * step)
    overhead = round(ratio - 1 + saves, 4)
    measuring.print_result(
        {
            "overhead": overhead,
            "steps": round(ratio - 1, 4),
            "interval": [round(x - 1, 4) for x in interval],
            "saves": round(saves, 5),
            "save_seconds": [round(save, 3), round(longer, 3)],
            "step_seconds": round(step, 4),
            "pairs": f.pairs,
        }
    )
    return 0 if overhead <= BAR else 1


def main() -> None:
    define_flags()
    lifecycle.launch(run, __doc__)


if __name__ == "__main__":
    main()
