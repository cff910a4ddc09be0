"""What is in a prepared data set: its records by class, and some of them to look at."""

import collections
import dataclasses

import numpy as np
import tensorflow_datasets as tfds

from nrdm_jax.data.errors import DataError, named
from nrdm_jax.data.prepared import Records
from nrdm_jax.data.sources import FEATURES


@dataclasses.dataclass(frozen=True)
class Some:
    """Records of a split, taken evenly.

    Attributes:
      kind: one of `sources.FEATURES`.
      x: (n, *S, C).
      titles: of each, its caption or else its class.
      captions: those with one, each once.
    """

    kind: str
    x: np.ndarray
    titles: tuple[str, ...]
    captions: tuple[str, ...]


def count_classes(builder, split: str) -> dict[str, int]:
    """Records by name of the class, in the order of the classes; nothing is decoded. Raises as
    `Records`."""
    features = builder.info.features
    if "label" not in features:
        return {}
    pictures = [f for f, kind in features.items() if isinstance(kind, tfds.features.Image)]
    records = Records(builder, split, skip=pictures)
    counts: collections.Counter[int] = collections.Counter()
    for start in range(0, len(records), 1024):
        part = records.read(range(start, min(start + 1024, len(records))))
        counts.update(int(record["label"]) for record in part)
    label = features["label"]
    return {label.int2str(i): counts[i] for i in range(label.num_classes)}


def take(builder, split: str, most: int) -> Some:
    """Up to `most` records of a split.

    Raises:
      DataError: the set has nothing that could be shown, or its records differ in shape; or as
        `Records`.
    """
    features, name = builder.info.features, builder.info.full_name
    kind = next((f for f in FEATURES if f in features), "")
    if not kind or None in features[kind].shape:
        raise DataError(
            f"data set {name} has features {', '.join(features)}; needed: one of "
            f"{', '.join(FEATURES)}, of one shape"
        )
    records = Records(builder, split)
    places = np.linspace(0, len(records) - 1, min(most, len(records))).round().astype(int)
    chosen = records.read(places.tolist())
    with named(records.name, " has a caption that is no text, or a label that is no class"):
        captions = [r["caption"].decode() if "caption" in features else "" for r in chosen]
        classes = [
            features["label"].int2str(int(r["label"])) if "label" in features else ""
            for r in chosen
        ]
    titles = [caption or label for caption, label in zip(captions, classes, strict=True)]
    return Some(
        kind,
        np.stack([record[kind] for record in chosen]),
        tuple(titles),
        tuple(dict.fromkeys(filter(None, captions))),
    )
