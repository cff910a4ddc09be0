"""What is done with a trained run: samples, and scores of its averaged weights."""

import contextlib
import dataclasses
import functools
import itertools
import json
import os
import pathlib
import time
from typing import Any

import numpy as np

from nrdm_jax import build, drawing, likeness, measures, records, run_weights
from nrdm_jax import config as configuration
from nrdm_jax.bounded_files import read_object
from nrdm_jax.data.sources import Source
from nrdm_jax.evaluation.heldout import bits_per_dim
from nrdm_jax.processes import distributed, lifecycle
from nrdm_jax.processes.stored_config import open_config
from nrdm_jax.sample_quality import SampleQuality
from nrdm_jax.sampling import archives, writers

_calls = itertools.count()  # of this process: a meeting each
NEAREST = 1000  # of scored samples, so many are compared with every training example


def draw(
    config,
    workdir: str,
    out: pathlib.Path,
    *,
    seeds: list[int],
    labels: list[int] | None = None,
    captions: list[str] | None = None,
    signals: lifecycle.Signals,
    steps: int | None = None,
    guidance: float | None = None,
    weaker: str | None = None,
    ema_width: float | None = None,
    trajectory: int = 0,
    shape: tuple[int, ...] | None = None,
) -> tuple[pathlib.Path, np.ndarray]:
    """Writes a sample for each seed, given a label, a caption or what the task's prompts give it;
    returns the file to look at first, and the samples (n, *S, C) in the network's range. The
    weights are the EMA, or the run's average of `ema_width`. With `weaker`, another run's workdir
    or, with @STEP, an earlier step of this or another one, the guidance is away from the weights
    there (`run_weights.find_at`) and not from no class. With `trajectory`, the estimates of x0 at
    so many times on the way are written as well. With a `shape` that `config.check_shape` lets
    through, the samples have it in the place of `data.shape`, whose positions they then span.

    Raises:
      ValueError: there is no checkpoint, no such step or width, or it does not fit the config; or
        the other run's outputs are of another kind; or the sampler goes through fewer times.
    """
    drawn_as = configuration.at_shape(config, shape or config.data.shape)
    own = run_weights.find(workdir, ema_width)
    other = guide = None
    if weaker is not None:
        scale = config.sample.guidance if guidance is None else guidance
        if scale == 1.0 or config.sample.guidance_rescale:
            raise ValueError(
                f"--weaker={weaker} with guidance {scale:g} and sample.guidance_rescale="
                f"{config.sample.guidance_rescale:g}; give --guidance above 1, and a rescale of 0"
            )
        at, at_step = run_weights.at_step(weaker)
        compared = _comparable(config, at)
        guide = run_weights.find(at) if at_step is None else run_weights.find_at(at, at_step)
        other = build.run(compared)
        print(f"guided away from the {guide}", flush=True)
    parts = build.run(config)
    shown = drawing.preview_times(config, parts.path, trajectory, steps) if trajectory else None
    weights: Any = own.read(parts.abstract_state.ema)
    if guide is not None and other is not None:
        weights = (weights, guide.read(other.abstract_state.ema))
    task = build.task(drawn_as, parts.mesh)
    sampler = task.sampler(
        parts.mesh,
        steps=steps,
        scale=guidance,
        weaker=None if other is None else other.apply,
        preview_times=shown,
        apply=parts.apply,
    )

    @functools.cache
    def heldout() -> Source:
        with records.writer_first(drawn_as, "drawn"):
            data_dir = str(lifecycle.data_dir())
            return records.source(drawn_as, "heldout", data_dir, signals.check)

    given = task.prompts(
        np.asarray(seeds),
        heldout,
        None if labels is None else np.asarray(labels),
        captions,
    )
    if captions is None:
        captions = drawing.heldout_captions(drawn_as, len(seeds), heldout)
    print(f"drawing {len(seeds)} samples of the {own}", flush=True)
    drawn = sampler(weights, np.asarray(seeds), given, poll=signals.check)
    x, previews = (drawn, None) if shown is None else drawn
    manifest = {
        "seeds": seeds,
        "labels": given["label"].tolist(),
        "shape": list(drawn_as.data.shape),
        "captions": captions,
        "steps": config.sample.steps if steps is None else steps,
        "guidance": config.sample.guidance if guidance is None else guidance,
        "sampler": config.sample.sampler,
        "weights": str(workdir),
        "ema_width": ema_width,
        "step": own.step,
        "weaker": weaker,
        "weaker_weights": guide and str(guide),
        "config": configuration.to_dict(config),
    }
    to_pixels = records.to_pixels(drawn_as, parts.mesh, records.kept_statistics(config, workdir))
    pixels, seen = to_pixels(x), None if previews is None else to_pixels(previews)
    first = out
    if distributed.is_writer():
        if previews is not None and seen is not None:
            assert shown is not None
            file = writers.write_trajectory(out, previews, seen)
            manifest["trajectory"] = {"file": file.name, "times": [float(t) for t in shown]}
        c, original = config.sample, records.originals(config, parts.task, given)
        first = writers.write_samples(
            out, x, pixels, manifest, form=c.write, voxel=c.voxel_mm, original=original
        )
    distributed.meet(f"samples {next(_calls)}")  # as in `score`
    return first, x


def _comparable(config, workdir: str):
    """The config of the run in a workdir.

    Raises:
      ValueError: what its network puts out cannot be combined with that of `config`'s.
    """
    other = open_config(pathlib.Path(workdir))
    alike = {
        "diffusion": ("path", "shift", "sigma_min", "sigma_max", "sigma_data", "t_min", "t_max",
                      "prediction"),
        "data": ("shape", "num_classes", "with_class", "scale", "shift"),
        "autoencoder": ("name", "weights", "encoded"),
        "text": ("encoder", "length", "weights", "width", "with_class"),
    }  # fmt: skip
    for group, fields in alike.items():
        for field in fields:
            if other[group][field] != config[group][field]:
                raise ValueError(
                    f"--weaker={workdir} has {group}.{field}={other[group][field]!r} and this run "
                    f"{config[group][field]!r}; choose a run that differs in its network or "
                    "training alone"
                )
    return other


@dataclasses.dataclass(frozen=True)
class Scored:
    """Which scores of samples are wanted beside distances to the nearest examples.

    Attributes:
      metrics: see `evaluation.scores`.
      net, weights: see `evaluation.features.open_net`; None: the config's.
      by_class: of each class as well.
      npz: a file for the samples, as evaluators of others read them.
    """

    metrics: tuple[str, ...]
    net: str | None = None
    weights: str | None = None
    by_class: bool = False
    npz: pathlib.Path | None = None


@dataclasses.dataclass(frozen=True)
class Bits:
    """Of how many held-out examples the likelihood is wanted, and how exactly.

    Attributes:
      examples: spread evenly over the held-out ones.
      probes, steps: see `measures.bits_sums`.
    """

    examples: int
    probes: int = 1
    steps: int = 100


def score(
    config,
    workdir: str,
    *,
    samples: int,
    signals: lifecycle.Signals,
    drawn: np.ndarray | None = None,
    scored: Scored | None = None,
    bits: Bits | None = None,
    ema_width: float | None = None,
) -> dict:
    """Held-out losses of the EMA weights, or of the run's average of `ema_width`, those of the best
    linear denoiser on the same images, noise and levels, nearest-neighbour distances, and where
    they are wanted other scores of samples and the likelihood of held-out examples; also written to
    WORKDIR/evals/scores.json (scores_width_0.1.json), if that can be written.

    The nearest neighbours are `likeness.compared`'s, with its sheets in WORKDIR/evals. What was
    `drawn` before is taken; without it `samples` are drawn, 0 for none.

    Raises:
      ValueError: as `draw` and `SampleQuality`.
      DataError: the data are absent.
    """
    before = time.monotonic()
    stored = run_weights.find(workdir, ema_width)
    parts = build.run(config)
    data_dir = str(lifecycle.data_dir())
    with records.writer_first(config, "score"):
        train, heldout = (
            records.source(config, s, data_dir, signals.check) for s in ("train", "heldout")
        )
        pictures = train if scored is None else records.pictures(config, "train", data_dir, train)
    ema = stored.read(parts.abstract_state.ema)
    to_pixels = records.to_pixels(config, parts.mesh, records.statistics_of(train))
    quality = None
    if scored is not None:
        quality = _quality(parts, pictures, heldout, scored, samples, to_pixels)
    print(f"scoring the {stored}", flush=True)
    result: dict = parts.task.heldout(heldout, parts.mesh, 0)(ema, signals.check)
    result |= parts.task.yardstick(train, heldout, parts.mesh, signals.check)
    if bits is not None:
        sums = measures.bits_sums(
            config, parts.path, parts.mesh, probes=bits.probes, steps=bits.steps
        )
        batches = measures.heldout_batches(config, heldout, parts.mesh, bits.examples)
        result |= bits_per_dim(sums, ema, batches, signals.check)
        result |= {"likelihood": dataclasses.asdict(bits)}
    details = {}
    if scored is not None and quality is not None:
        shape = (samples, *pictures.shape)
        details, drawn = _sample_scores(quality, ema, shape, scored.npz, signals)
        result |= details.get("scores", {})
    elif drawn is None and samples:
        sampler = parts.task.sampler(parts.mesh)
        seeds = np.arange(samples)

        def given(rows: np.ndarray):
            return parts.task.prompts(seeds, lambda: heldout, rows=rows)

        drawn = sampler(ema, seeds, given, poll=signals.check)
    out = pathlib.Path(workdir) / "evals"
    writable = os.access(workdir, os.W_OK)
    if drawn is not None and not parts.task.original:
        result |= likeness.compared(
            config, drawn, train, heldout, to_pixels, out if writable else None
        )
    result["step"] = stored.step
    result["evaluate_seconds"] = round(time.monotonic() - before, 1)
    if distributed.is_writer() and writable:
        out.mkdir(exist_ok=True)
        name = "scores" if ema_width is None else f"scores_width_{ema_width:g}"
        _write(out / f"{name}.json", result, details)
    distributed.meet("scored")  # none leaves before what the writer does alone is done
    return result


def _write(path: pathlib.Path, result: dict, details: dict) -> None:
    """Scores as JSON, beside what was measured of the same step before; `nets` has, for each
    feature network, its scores with their protocol."""
    known: dict = {}
    with contextlib.suppress(OSError, ValueError):
        known = read_object(path)
    known = known if known.get("step") == result["step"] else {}
    nets = known["nets"] if isinstance(known.get("nets"), dict) else {}
    if details:
        nets[details["protocol"]["net"]] = details
    path.write_text(json.dumps(known | result | ({"nets": nets} if nets else {}), indent=2))


def report(config, losses: list[float], scores: dict) -> dict:
    """What the job reports of a run: of the held-out losses within it, and of its scores."""
    return build.task(config).result(losses, scores)


def _quality(
    parts, pictures: Source, heldout: Source, scored: Scored, samples: int, to_pixels
) -> SampleQuality:
    config = parts.config
    return SampleQuality(
        parts,
        pictures,
        parts.task.sampler(parts.mesh),
        measures.feature_net(config, scored.net, scored.weights),
        heldout,
        metrics=scored.metrics,
        samples=samples,
        by_class=scored.by_class,
        to_pixels=to_pixels,
    )


def _sample_scores(quality, ema, shape, npz: pathlib.Path | None, signals):
    """(scores with their protocol, the first samples in the network's range)."""
    archive = None
    if npz is not None and distributed.is_writer():
        archive = archives.NpzWriter(npz, shape)
    first: list[np.ndarray] = []

    def sink(x: np.ndarray, pixels: np.ndarray, labels: np.ndarray) -> None:
        if archive is not None:
            archive.add(pixels, labels)
        if sum(map(len, first)) < NEAREST:
            first.append(x)

    try:
        details = quality(ema, signals.check, sink)
    finally:
        if archive is not None:
            archive.close()
    return details, np.concatenate(first)[:NEAREST]
