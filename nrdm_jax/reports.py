"""What tells of a training run while it goes: step lines, sensitivity, held-out losses, sample
grids and scores; the hooks of `training` with the parts of `build`."""

import dataclasses
import math
import pathlib
from collections.abc import Callable

import numpy as np

from nrdm_jax import build, drawing, measures, programs, records
from nrdm_jax.data.sources import Source
from nrdm_jax.processes import distributed, lifecycle
from nrdm_jax.processes.exit_codes import NotFinite, Stop
from nrdm_jax.sample_quality import SampleQuality
from nrdm_jax.sampling import writers
from nrdm_jax.sampling.generate import Generator
from nrdm_jax.signatures import Params
from nrdm_jax.training import guard, hooks, loop
from nrdm_jax.training.goodput import Goodput
from nrdm_jax.training.metrics import (
    Ledger,
    MetricsWriter,
    Progress,
    read_metrics,
    warned_of,
)


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a run's figures go.

    Attributes:
      workdir: for pictures, samples and scores.
      writer, progress: for figures and lines.
      ledger: which is charged with the time that each takes.
      goodput: the account of the run, of which the ledger is this process's part.
    """

    workdir: pathlib.Path
    writer: MetricsWriter
    progress: Progress
    ledger: Ledger
    goodput: Goodput


def probe(parts: build.Run, place: Place) -> list[hooks.SensitivityLog]:
    """The record of the units' sensitivity, where it is asked for."""
    log = parts.config.log
    if not (log.sensitivity_every and parts.task.units):
        return []
    return [
        hooks.SensitivityLog(
            place.workdir,
            place.writer,
            place.progress,
            place.ledger,
            every=log.sensitivity_every,
            last_step=parts.config.train.steps,
        )
    ]


def check_watched(parts: build.Run) -> None:
    """Raises:
    ValueError: the model has no units whose tokens could become alike.
    """
    factor = parts.config.guard.collapse_factor
    if factor and not parts.task.units:
        raise ValueError(
            f"guard.collapse_factor is {factor}, and this model has no units whose token-mean "
            "share is measured; set it to 0"
        )


def watch(parts: build.Run, place: Place, memory: dict) -> guard.Guard:
    """The policy of bad steps, with what it remembers of the run so far."""
    config, g = parts.config, parts.config.guard
    limits = guard.Limits(g.most_in_a_row, g.spike_factor, g.spike_window, g.collapse_factor)

    def is_waited_for(step: int) -> bool:
        regular = step % config.log.every == 0 or step % config.checkpoint.every == 0
        return regular or step == config.train.steps

    return guard.Guard(
        guard.Policy(limits, memory),
        place.progress.line,
        is_waited_for,
        shares_every=config.log.sensitivity_every if g.collapse_factor else 0,
    )


def step_lines(
    parts: build.Run, place: Place, counts: Callable[[], dict[str, int]]
) -> hooks.StepLog:
    config = parts.config
    return hooks.StepLog(
        place.writer,
        place.progress,
        place.ledger,
        parts.schedule,
        goodput=place.goodput,
        counts=counts,
        every=config.log.every,
        last_step=config.train.steps,
        devices=parts.mesh.size,
        peak_flops=programs.peak_flops(config),
    )


def evaluation(
    parts: build.Run, heldout: Source, signals: lifecycle.Signals, place: Place
) -> hooks.HeldoutLoss:
    """Held-out losses, to be called at a step. A signal within ends them: they are then
    `losses_owed`."""
    found = parts.task.heldout(heldout, parts.mesh, parts.config.evaluate.examples)

    def losses(params: Params) -> dict[str, float]:
        try:
            return found(params, signals.check)
        except Stop:  # the loop will stop, and save
            return {}

    return hooks.HeldoutLoss(losses, place.writer, place.progress)


def losses_owed(parts: build.Run, workdir: pathlib.Path, step: int) -> bool:
    """Whether the held-out losses of this step are asked for, and the run has none of it."""
    config = parts.config
    if not config.evaluate.every:
        return False
    if step % config.evaluate.every and step != config.train.steps:
        return False
    rows = read_metrics(workdir) if distributed.is_writer() else []
    told = any(row["step"] == step and "heldout_loss" in row for row in rows)
    return bool(distributed.of_writer(np.int32(not told)))


def grids(
    parts: build.Run,
    sampler: Generator,
    heldout: Source,
    to_pixels: Callable[[np.ndarray], np.ndarray],
    signals: lifecycle.Signals,
    place: Place,
) -> hooks.Every:
    """Previews: the same seeds each time, given the same; originals beside them. A signal within
    ends them."""
    config = parts.config
    seeds = np.arange(config.sample.examples)

    def draw(params: Params, directory: pathlib.Path) -> pathlib.Path | None:
        given = parts.task.prompts(seeds, lambda: heldout)
        try:
            x = sampler(params, seeds, given, poll=signals.check)
        except Stop:  # the loop will stop, and save
            return None
        manifest = {
            "seeds": seeds.tolist(),
            "labels": given["label"].tolist(),
            "captions": drawing.heldout_captions(config, len(seeds), lambda: heldout),
        }
        # Decoding is the work of all.
        pixels, c = to_pixels(x), config.sample
        if not distributed.is_writer():
            return directory
        with warned_of(f"{directory} is not whole"):
            # A mesh of noise, as at a run's start, takes 9 MB: of what is no picture, sheets do.
            return writers.write_samples(
                directory,
                x,
                pixels,
                manifest,
                form=c.write,
                voxel=c.voxel_mm,
                each=pixels.ndim == 4,
                original=records.originals(config, parts.task, given),
            )
        return None

    grid = hooks.SampleGrid(draw, place.workdir, place.progress)
    return hooks.Every(grid, place.ledger, "sample", every=config.sample.every)


def quality(
    parts: build.Run,
    pictures: Source,
    heldout: Source,
    sampler: Generator,
    to_pixels: Callable[[np.ndarray], np.ndarray],
) -> SampleQuality | None:
    """What scores samples beside `pictures`, where that is asked for. Raises as it and
    `measures.feature_net`."""
    if not parts.config.evaluate.metrics_every:
        return None
    net = measures.feature_net(parts.config)
    return SampleQuality(parts, pictures, sampler, net, heldout, to_pixels=to_pixels)


def scores(
    parts: build.Run,
    scorer: SampleQuality | None,
    signals: lifecycle.Signals,
    place: Place,
    images_a_step: float,
) -> list[loop.Hook]:
    """Scores of samples, every so many images and at the last step. A signal within ends them: they
    are then `owed`."""
    if scorer is None:
        return []

    def evaluate(params: Params) -> dict:
        try:
            return scorer(params, signals.check)
        except NotFinite as error:  # it is once more, however often this step is scored
            return {"scores": {}, "problem": str(error)} if distributed.is_writer() else {}
        except Stop:  # the loop will stop, and save
            return {}

    scored = hooks.SampleScores(evaluate, place.workdir, place.writer, place.progress)
    last_step = parts.config.train.steps
    every = _scored_every(parts, images_a_step)
    return [hooks.Every(scored, place.ledger, "score", every=every, last_step=last_step)]


def owed(parts: build.Run, workdir: pathlib.Path, step: int, images_a_step: float) -> bool:
    """Whether the scores of this step are asked for, and the run has ended without them."""
    config = parts.config
    if not config.evaluate.metrics_every or not step:
        return False
    if step % _scored_every(parts, images_a_step) and step != config.train.steps:
        return False
    missing = not hooks.SampleScores.file(workdir, step).exists()
    return bool(distributed.of_writer(np.int32(missing)))


def _scored_every(parts: build.Run, images_a_step: float) -> int:
    return math.ceil(parts.config.evaluate.metrics_every / images_a_step)
