"""Samples held against what they were learnt from: the nearest training example of each, how far it
is, and real examples that were held out."""

import itertools
import json
import pathlib
from collections.abc import Callable

import numpy as np

from nrdm_jax import measures
from nrdm_jax.data.captions import plain
from nrdm_jax.data.errors import DataError
from nrdm_jax.data.sources import Source
from nrdm_jax.evaluation import feature_sets
from nrdm_jax.evaluation.nearest import nearest
from nrdm_jax.processes import distributed
from nrdm_jax.sampling import comparisons, pictures
from nrdm_jax.sampling.files import whole

_calls = itertools.count()  # of this process: a meeting each
SHOWN = 32  # samples that are on the sheets


def compared(
    config,
    drawn: np.ndarray,
    train: Source,
    heldout: Source,
    to_pixels: Callable[[np.ndarray], np.ndarray],
    out: pathlib.Path | None,
) -> dict[str, float]:
    """`nearest_samples`, the mean distance of samples to the training set, and `nearest_heldout`,
    that of as many held-out examples: much less than it would be copying. RMS, in the network's
    range. By the writer, {} on the other processes; all must call it.

    Into `out`, if there is one: nearest.json, of each sample the number of its nearest training
    example, its caption or class, and the distance; nearest.png, samples beside those; beside.png,
    samples beside held-out examples.

    Args:
      config: of the run.
      drawn: samples (n, *S, C), in the network's range.
      train, heldout: its records.
      to_pixels: see `records.to_pixels`.
      out: a directory, made where it is absent.
    """
    writer = distributed.is_writer()
    spread = feature_sets.spread(len(drawn), len(heldout))
    real = np.concatenate(list(measures.example_blocks(config, heldout, spread)))
    found: dict[str, tuple[np.ndarray, ...]] = {}
    numbers = np.zeros(len(drawn), np.int32)
    if writer:
        both = nearest(np.concatenate([drawn, real]), measures.example_blocks(config, train))
        found = {
            "samples": tuple(values[: len(drawn)] for values in both),
            "heldout": tuple(values[len(drawn) :] for values in both),
        }
        numbers = found["samples"][1].astype(np.int32)
    # The others would give up on a collective that the writer is late for.
    distributed.meet(f"nearest {next(_calls)}")
    # Decoding is the work of all.
    numbers = np.asarray(distributed.of_writer(numbers))
    count = min(SHOWN, len(drawn), len(real))
    closest = np.concatenate(list(measures.example_blocks(config, train, numbers[:count])))
    pixels = [to_pixels(x) for x in (drawn[:count], closest, real[:count])]
    if writer and out is not None:
        distances, titles = found["samples"][0], _titles(train, numbers)
        out.mkdir(parents=True, exist_ok=True)
        with whole(out / "nearest.json") as partial:
            partial.write_text(json.dumps([
                {"sample": i, "distance": float(distance), "example": int(number), "title": title}
                for i, (distance, number, title)
                in enumerate(zip(distances, numbers, titles, strict=True))
            ], indent=1))  # fmt: skip
        samples = pixels[0], [f"sample {i}" for i in range(count)]
        near = [f"{d:.2f} {title}" for d, title in zip(distances, titles, strict=True)]
        for name, others in (
            ("nearest", (pixels[1], near[:count])),
            ("beside", (pixels[2], _titles(heldout, spread[:count], "real: "))),
        ):
            sheet = comparisons.comparison([samples, others], config.sample.write)
            if sheet is not None:
                pictures.write_png(out / f"{name}.png", sheet)
    return {f"nearest_{name}": float(values.mean()) for name, (values, _) in found.items()}


def _titles(records: Source, numbers: np.ndarray, before: str = "") -> list[str]:
    """Captions, or classes where there are none, whatever of them the network is told."""
    records = plain(records)
    try:
        words = records.captions(numbers)
    except DataError:  # there are none
        names, labels = records.class_names, records.gather(numbers)["label"]
        words = [names[label] if label < len(names) else "" for label in labels]
    return [before + word for word in words]
