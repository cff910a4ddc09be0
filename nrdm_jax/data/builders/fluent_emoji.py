"""Fluent emoji, animated (MIT licence): 477 loops of up to 256 x 256, with their names.

The files of npm's @lobehub/fluent-emoji-anim-1, code points in their names, which the user fetches:

    npm install --prefix DIRECTORY @lobehub/fluent-emoji-anim-1@1.0.0
    export NRDM_FLUENT_EMOJI=DIRECTORY

A clip is frames taken evenly over a whole loop; the package's still pictures are no clips. Held out
by groups of code points, as OpenMoji's drawings are.
"""

import itertools
import os
import pathlib
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds

from nrdm_jax.data import clips, pictures
from nrdm_jax.data.builders.items import ItemsBuilder
from nrdm_jax.data.builders.openmoji import (
    CLASSES,
    caption_of,
    category_of,
    group_of,
    is_heldout,
)
from nrdm_jax.data.errors import DataError, is_of_machine
from nrdm_jax.data.shard_files import Item

PACKAGE = "@lobehub/fluent-emoji-anim-1@1.0.0"
MOST_FRAMES = 1000  # of a loop that are kept; the longest has 300
ENVIRONMENT = "NRDM_FLUENT_EMOJI"


class FluentEmojiConfig(tfds.core.BuilderConfig):
    """Shape of a clip."""

    def __init__(self, shape: tuple[int, ...]):
        super().__init__(name="x".join(map(str, shape)), version="1.0.0")
        self.shape = shape


class FluentEmoji(ItemsBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Features: clip (T, n, n, 3) uint8 on white, label (10 classes), caption, code_point."""

    VERSION = tfds.core.Version("1.0.0")
    SHAPE = (16, 32, 32, 3)

    @staticmethod
    def config_for(shape: tuple[int, ...]) -> FluentEmojiConfig:
        """Raises:
        ValueError: the shape is no square colour clip.
        """
        if len(shape) != 4 or shape[0] < 2 or shape[1] != shape[2] or shape[3] != 3:
            raise ValueError(
                f"data.shape is {shape}; fluent_emoji has (t, n, n, 3) for any n and t of 2 or more"
            )
        return FluentEmojiConfig(shape)

    def _info(self) -> tfds.core.DatasetInfo:
        clip = tfds.features.Tensor(shape=self.builder_config.shape, dtype=np.uint8)
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            license="MIT",
            homepage="https://github.com/lobehub/fluent-emoji",
            features=tfds.features.FeaturesDict(
                {
                    "clip": clip,
                    "label": tfds.features.ClassLabel(names=CLASSES),
                    "caption": tfds.features.Text(),
                    "code_point": tfds.features.Text(),
                }
            ),
        )

    def _items(self):
        items: dict[str, list[Item]] = {"train": [], "heldout": []}
        for path in loops():
            split = "heldout" if is_heldout(group_of(code_point_of(path))) else "train"
            items[split].append((path.stem, path))
        return items

    def _examples(self, content: pathlib.Path) -> Iterator[dict]:
        count, *shape = self.builder_config.shape
        frames = list(itertools.islice(clips.read_frames(content, tuple(shape)), MOST_FRAMES))
        if len(frames) < count:
            raise DataError(f"{content}: has {len(frames)} frames, fewer than data.shape says")
        places = np.arange(count) * len(frames) // count
        code_point = code_point_of(content)
        yield {
            "clip": np.stack([frames[i] for i in places]),
            "label": category_of(code_point),
            "caption": caption_of(code_point),
            "code_point": code_point,
        }


def code_point_of(path: pathlib.Path) -> str:
    """`1f44b-1f3fb.webp` -> `1F44B-1F3FB`."""
    return path.stem.upper().replace("_", "-")


def loops() -> list[pathlib.Path]:
    """The animated files of the package, and those that cannot be opened.

    Raises:
      DataError: they are not there.
    """
    place = os.environ.get(ENVIRONMENT)
    files = sorted(pathlib.Path(place).rglob("*.webp")) if place else []
    found = [path for path in files if _moves(path)]
    if not found:
        where = f"{place} holds no animated .webp" if place else f"{ENVIRONMENT} is not set"
        raise DataError(
            f"{where}; `npm install --prefix DIRECTORY {PACKAGE}`, and set {ENVIRONMENT}=DIRECTORY"
        )
    return found


def _moves(path: pathlib.Path) -> bool:
    try:
        with pictures.opened(path) as picture:
            return getattr(picture, "n_frames", 1) > 1
    except Exception as error:  # as of `pictures`
        if is_of_machine(error):
            raise
        return True  # said to be corrupt when it is read
