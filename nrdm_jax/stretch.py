"""A stretch of a training run: from a state that is fresh, or was restored, to the last step, a
signal, or a trouble that the run goes back from."""

import dataclasses
import pathlib
from collections.abc import Callable

import jax
import numpy as np

from nrdm_jax import __version__, build, programs, reports, run_weights
from nrdm_jax import config as configuration
from nrdm_jax.checkpointing.kept import METRICS
from nrdm_jax.checkpointing.manager import Checkpoints
from nrdm_jax.data.buckets import BucketLoader
from nrdm_jax.data.loader import Loader
from nrdm_jax.data.sources import Source
from nrdm_jax.processes import distributed, lifecycle
from nrdm_jax.sample_quality import SampleQuality
from nrdm_jax.sampling.generate import Generator
from nrdm_jax.training import hooks, loop
from nrdm_jax.training.drill import Drill
from nrdm_jax.training.goodput import Goodput
from nrdm_jax.training.metrics import Ledger, MetricsWriter, Progress
from nrdm_jax.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class Job:
    """What a run trains and is looked at with, before there is a workdir.

    Attributes:
      parts: that need no data.
      records, heldout: the two splits, of `data.shape`.
      to_pixels: of what is drawn.
      batches: of the records, of all shapes.
      sampler: for previews and scores.
      quality: that scores samples, if asked for.
    """

    parts: build.Run
    records: Source
    heldout: Source
    to_pixels: Callable[[np.ndarray], np.ndarray]
    batches: Loader | BucketLoader
    sampler: Generator
    quality: SampleQuality | None


@dataclasses.dataclass(frozen=True)
class Tools:
    """What a run is trained with, through all rollbacks.

    Attributes:
      workdir, checkpoints, snapshots, signals, ledger, goodput: of the run.
      train_step: compiled.
    """

    workdir: pathlib.Path
    checkpoints: Checkpoints
    snapshots: Checkpoints | None
    signals: lifecycle.Signals
    ledger: Ledger
    goodput: Goodput
    train_step: programs.Steps


class Stretch:
    """One of them; to be run once.

    Args:
      job: what is trained.
      tools: of the run.
      first_step: of the state that it begins with.
      begun: what that state's checkpoint says of the run so far, see `meta`.
    """

    def __init__(self, job: Job, tools: Tools, first_step: int, begun: dict):
        parts, workdir, ledger = job.parts, tools.workdir, tools.ledger
        self._job, self._tools, self._first_step, self._begun = job, tools, first_step, begun
        if tools.snapshots is not None:
            # They are of steps that are now done again, maybe with another config.
            tools.snapshots.remove_after(first_step)
        self._writer = MetricsWriter(
            workdir, first_step, ledger=ledger, images=self._images, before=begun
        )
        self._progress = Progress(first_step, parts.config.train.steps)
        self._place = reports.Place(workdir, self._writer, self._progress, ledger, tools.goodput)
        self._watch = reports.watch(parts, self._place, begun["guard"])
        self._evaluation = reports.evaluation(parts, job.heldout, tools.signals, self._place)
        self._probe = reports.probe(parts, self._place)
        self._scores = reports.scores(
            parts, job.quality, tools.signals, self._place, job.batches.records_a_step
        )
        log = parts.config.log
        self._profile = hooks.Profile(workdir, log.profile_start, log.profile_steps)
        self._drill = Drill(
            tools.signals.faults,
            workdir=workdir,
            process=distributed.index(),
            checkpoints=workdir / run_weights.CHECKPOINTS,
            is_saving=tools.checkpoints.is_saving,
        )
        saved = first_step if first_step in tools.checkpoints.steps() else None
        self._save = self._drill.saving(hooks.Save(tools.checkpoints, self.meta, saved=saved))

    def run(self, state: TrainState) -> int:
        """Trains to the last step or a signal; saves, and returns the steps done.

        Raises:
          guard.Broken: the run must not go on as it does.
        """
        tools, batches = self._tools, self._job.batches
        try:
            self._pay(state)
            state, step = loop.run(
                state,
                tools.train_step,
                self._drill.batches(batches.iterate(self._begun["position"]), self._first_step),
                self._hooks(),
                first_step=self._first_step,
                last_step=self._job.parts.config.train.steps,
                stop_requested=tools.signals.stop_requested,
                enter=tools.signals.enter,
            )
            self._settle(step, state)
        finally:
            self._close()
        return step

    def meta(self, step: int) -> dict:
        """The JSON item of a checkpoint."""
        config, so_far = self._job.parts.config, self._writer.so_far(step)
        return {
            "step": step,
            "records_seen": so_far["images"],
            **{name: so_far[name] for name in MetricsWriter.SECONDS if name in so_far},
            "seed": config.seed,
            "batch_size": config.train.batch_size,
            "batch_sizes": configuration.batch_sizes(config),
            "data": self._job.batches.fingerprint,
            "version": __version__,
            "position": self._position(step),
            "left_out": self._begun["left_out"],
            "guard": self._watch.memory(),
            METRICS: self._evaluation.at(step),
        }

    def _position(self, step: int) -> int:
        """The number of the next record in the order of the run."""
        done = step - self._first_step
        return self._job.batches.position_after(self._begun["position"], done)

    def _images(self, step: int) -> int:
        """That the state was trained on."""
        since = self._position(step) - self._position(self._first_step)
        return self._begun["records_seen"] + since

    def _pay(self, state: TrainState) -> None:
        """What an earlier process was to tell of the first state, and did not come to."""
        parts, step, tools = self._job.parts, self._first_step, self._tools
        if reports.losses_owed(parts, tools.workdir, step):
            with tools.ledger.account("evaluate"):
                self._evaluation(step, state)
        owed = reports.owed(parts, tools.workdir, step, self._job.batches.records_a_step)
        tools.signals.unsaved = True
        for hook in self._scores if owed else ():
            hook(step, state, {}, 0.0)

    def _hooks(self) -> list[loop.Hook]:
        """In the order in which they are called after a step."""
        job, tools, place = self._job, self._tools, self._place
        parts, signals = job.parts, tools.signals
        config, ledger = parts.config, tools.ledger
        return [
            hooks.FailedSaves(tools.checkpoints, self._progress),
            self._watch,
            *self._probe,
            reports.step_lines(parts, place, self._watch.counts),
            hooks.Every(
                self._evaluation,
                ledger,
                "evaluate",
                every=config.evaluate.every,
                last_step=config.train.steps if config.evaluate.every else None,
            ),
            reports.grids(parts, job.sampler, job.heldout, job.to_pixels, signals, place),
            # Before the checkpoint of the same step: what is restored has all its snapshots.
            *self._snapshots(),
            hooks.Every(
                self._save,
                ledger,
                "save",
                every=config.checkpoint.every,
                last_step=config.train.steps,
            ),
            *self._scores,
            self._profile,
            *self._drill.hooks,
        ]

    def _snapshots(self) -> list[hooks.Snapshots]:
        """The record of the power-function averages, where it is asked for."""
        config, snapshots = self._job.parts.config, self._tools.snapshots
        if snapshots is None or not takes_snapshots(config):
            return []
        return [
            hooks.Snapshots(
                snapshots,
                self.meta,
                self._tools.ledger,
                self._progress,
                count=config.train.ema_snapshots,
                last_step=config.train.steps,
            )
        ]

    def _settle(self, step: int, state: TrainState) -> None:
        """After the last step: all of it is on disk."""
        tools = self._tools
        self._watch.settle()
        jax.block_until_ready(state.step)  # what the device still owes is the step's time
        with tools.ledger.account("save"):
            if step < self._job.parts.config.train.steps:
                self._save(step, state)
            tools.checkpoints.wait()
        tools.signals.unsaved = False
        self._drill.settle(step)

    def _close(self) -> None:
        self._profile.close()
        for hook in self._probe:
            hook.close()
        self._progress.close()
        self._writer.close()


def takes_snapshots(config) -> bool:
    """Whether a run keeps the record of its power-function averages."""
    return bool(config.train.ema_widths and config.train.ema_snapshots)
