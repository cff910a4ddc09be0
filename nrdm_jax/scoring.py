"""What is done with a trained run: samples, and scores of its EMA weights."""

import json
import os
import pathlib
import time
from typing import Any

import numpy as np

from nrdm_jax import build
from nrdm_jax import config as configuration
from nrdm_jax.evaluation import linear_denoiser
from nrdm_jax.evaluation.heldout import heldout_losses
from nrdm_jax.evaluation.nearest import nearest
from nrdm_jax.processes import distributed, lifecycle
from nrdm_jax.processes.workdir import read_config
from nrdm_jax.sampling import generate, writers
from nrdm_jax.training_run import read_ema


def draw(
    config,
    workdir: str,
    out: pathlib.Path,
    *,
    seeds: list[int],
    labels: list[int],
    signals: lifecycle.Signals,
    steps: int | None = None,
    guidance: float | None = None,
    weaker: str | None = None,
    trajectory: int = 0,
) -> tuple[pathlib.Path, np.ndarray]:
    """Writes a sample for each seed and label; returns the file to look at first, and the samples
    (n, *S, C) in the network's range. With `weaker`, the workdir of another run, the guidance is
    away from its EMA weights and not from no class. With `trajectory`, the estimates of x0 at so
    many times on the way are written as well.

    Raises:
      ValueError: there is no checkpoint, or it does not fit the config; or the other run's outputs
        are of another kind; or the sampler goes through fewer times.
    """
    if weaker is not None:
        scale = config.sample.guidance if guidance is None else guidance
        if scale == 1.0 or config.sample.guidance_rescale:
            raise ValueError(
                f"--weaker={weaker} with guidance {scale:g} and sample.guidance_rescale="
                f"{config.sample.guidance_rescale:g}; give --guidance above 1, and a rescale of 0"
            )
    other = None if weaker is None else build.run(_comparable(config, weaker))
    parts = build.run(config)
    steps = config.sample.steps if steps is None else steps
    shown = build.preview_times(config, parts.path, trajectory, steps) if trajectory else None
    weights: Any = read_ema(workdir, parts.abstract_state.ema)
    if other is not None:
        assert weaker is not None
        weights = (weights, read_ema(weaker, other.abstract_state.ema))
    guidance = config.sample.guidance if guidance is None else guidance
    sampler = build.generator(
        config,
        parts.apply,
        parts.path,
        parts.mesh,
        steps=steps,
        scale=guidance,
        weaker=None if other is None else other.apply,
        preview_times=shown,
    )
    drawn = sampler(weights, np.asarray(seeds), np.asarray(labels), poll=signals.check)
    x, previews = (drawn, None) if shown is None else drawn
    manifest = {
        "seeds": seeds,
        "labels": labels,
        "steps": steps,
        "guidance": guidance,
        "sampler": config.sample.sampler,
        "weights": str(workdir),
        "weaker": weaker,
        "config": configuration.to_dict(config),
    }
    if not distributed.is_writer():
        return out, x
    if previews is not None:
        assert shown is not None
        file = writers.write_trajectory(out, previews, generate.to_pixels(previews))
        manifest["trajectory"] = {"file": file.name, "times": [float(t) for t in shown]}
    return writers.write_samples(out, x, generate.to_pixels(x), manifest), x


def _comparable(config, workdir: str):
    """The config of the run in a workdir.

    Raises:
      ValueError: what its network puts out cannot be combined with that of `config`'s.
    """
    other = configuration.from_dict(read_config(pathlib.Path(workdir)))
    alike = {
        "diffusion": ("path", "shift", "sigma_min", "sigma_max", "sigma_data", "t_min", "t_max",
                      "prediction"),
        "data": ("shape", "num_classes", "scale", "shift"),
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


def score(
    config,
    workdir: str,
    *,
    samples: int,
    signals: lifecycle.Signals,
    drawn: np.ndarray | None = None,
) -> dict:
    """Held-out losses of the EMA weights, those of the best linear denoiser on the same images,
    noise and levels, and nearest-neighbour distances; also written to WORKDIR/evals/scores.json, if
    that can be written.

    `nearest_samples` is the mean distance of samples to the training set, `nearest_heldout` that of
    as many held-out examples: much less than it would be copying. RMS, pixels in [-1, 1]. What was
    `drawn` before is taken; without it `samples` are drawn, 0 for none.

    Raises:
      ValueError: as `draw`.
      DataError: the data are absent.
    """
    before = time.monotonic()
    parts = build.run(config)
    data_dir = str(lifecycle.data_dir())
    with distributed.writer_first("score"):
        records, heldout = (build.source(config, s, data_dir) for s in ("train", "heldout"))
    ema = read_ema(workdir, parts.abstract_state.ema)
    batches = build.heldout_batches(config, heldout, parts.mesh)
    levels = config.evaluate.log_snr

    sums = build.level_sums(config, parts.apply, parts.path, parts.mesh)
    scores: dict = heldout_losses(sums, ema, batches, levels)
    signals.check()
    training = build.all_examples(config, records)
    linear = linear_denoiser.fit(training)
    signals.check()
    linear_sums = build.linear_level_sums(config, parts.path, parts.mesh)
    wiener = heldout_losses(linear_sums, linear, batches, levels)
    scores["wiener"] = wiener["heldout_loss"]
    scores |= {
        name.replace("heldout_loss", "wiener"): value
        for name, value in wiener.items()
        if name.startswith("heldout_loss/")
    }
    if drawn is None and samples:
        sampler = build.generator(config, parts.apply, parts.path, parts.mesh)
        seeds = np.arange(samples)
        drawn = sampler(ema, seeds, seeds % config.data.num_classes, poll=signals.check)
    if drawn is not None:
        count = len(drawn)
        some = build.all_examples(config, heldout)[:: max(1, len(heldout) // count)][:count]
        scores["nearest_samples"] = float(nearest(drawn, training)[0].mean())
        scores["nearest_heldout"] = float(nearest(some, training)[0].mean())
    scores["evaluate_seconds"] = round(time.monotonic() - before, 1)
    out = pathlib.Path(workdir) / "evals"
    if distributed.is_writer() and os.access(workdir, os.W_OK):
        out.mkdir(exist_ok=True)
        (out / "scores.json").write_text(json.dumps(scores, indent=2))
    return scores
