"""Weizmann actions: 72 clips of 9 performers, 4 actions (research use).

Read from an archive of <action>/<n>.webp, each a strip of 64 x 64 frames side by side: the one
beside the project (../shared/data/weizmann_actions.zip), or NRDM_WEIZMANN. Each performer has eight
consecutive numbers; the last two performers are held out, so that nobody is in both splits. Clips
for training overlap by three quarters; held-out ones share no frame.
"""

import functools
import io
import os
import pathlib
import re
import zipfile
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from nrdm_jax.bounded_archives import open_archive, read_member
from nrdm_jax.data import clips, pictures
from nrdm_jax.data.builders.items import ItemsBuilder
from nrdm_jax.data.errors import DataError, named
from nrdm_jax.data.pictures import fitted
from nrdm_jax.data.shard_files import Item

CAPTIONS = {
    "bend_down": "a person bending down",
    "jumping_jack": "a person doing jumping jacks",
    "wave_one_hand": "a person waving one hand",
    "wave_two_hands": "a person waving two hands",
}
ENVIRONMENT = "NRDM_WEIZMANN"
BESIDE = pathlib.Path(__file__).resolve().parents[4] / "shared" / "data" / "weizmann_actions.zip"
MEMBER = re.compile(r"^(?:[\w-]+/)?(\w+)/(\d+)\.webp$")
MOST_BYTES = 2**26  # of a video
SIDE, SHORTEST = 64, 51  # pixels of a frame, frames of the shortest clip
CLIPS_OF_A_PERFORMER, HELDOUT = 8, (7, 8)


class WeizmannConfig(tfds.core.BuilderConfig):
    """Shape of a clip, and the stride of its frames."""

    def __init__(self, shape: tuple[int, ...], stride: int):
        sides = "x".join(map(str, shape)) + (f"-every{stride}" if stride > 1 else "")
        super().__init__(name=sides, version="1.0.0")
        self.shape, self.stride = shape, stride


class Weizmann(ItemsBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Features: clip (T, n, n, 1 or 3) uint8, label (4 actions), caption, file."""

    VERSION = tfds.core.Version("1.0.0")
    SHAPE = (16, 32, 32, 3)
    ITEMS_PER_SHARD = 8  # files, of many clips each

    @staticmethod
    def config_for(shape: tuple[int, ...], *, stride: int) -> WeizmannConfig:
        """Raises:
        ValueError: the shape is no square clip, or longer than the videos.
        """
        if len(shape) != 4 or shape[0] < 2 or shape[1] != shape[2] or shape[3] not in (1, 3):
            raise ValueError(
                f"data.shape is {shape}; weizmann has (t, n, n, 3) or (t, n, n, 1) for any n and t "
                "of 2 or more"
            )
        if (shape[0] - 1) * stride >= SHORTEST:
            raise ValueError(
                f"data.shape={shape} and data.frame_stride={stride} span more than the {SHORTEST} "
                "frames of weizmann's shortest video; shorten either"
            )
        return WeizmannConfig(shape, stride)

    def _info(self) -> tfds.core.DatasetInfo:
        clip = tfds.features.Tensor(shape=self.builder_config.shape, dtype=np.uint8)
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "clip": clip,
                    "label": tfds.features.ClassLabel(names=tuple(CAPTIONS)),
                    "caption": tfds.features.Text(),
                    "file": tfds.features.Text(),
                }
            ),
        )

    def _items(self):
        items: dict[str, list[Item]] = {"train": [], "heldout": []}
        for name, action, number in members(archive_path()):
            split = "heldout" if number // CLIPS_OF_A_PERFORMER in HELDOUT else "train"
            items[split].append((name, (name, action, split)))
        return items

    def _examples(self, content: tuple[str, str, str]) -> Iterator[dict]:
        name, action, split = content
        count, *shape = self.builder_config.shape
        stride = self.builder_config.stride
        hop = max(1, count * stride // 4) if split == "train" else None
        frames = (np.asarray(fitted(f, tuple(shape))).reshape(shape) for f in read_strip(name))
        for clip in clips.windows(frames, count, stride, hop):
            yield {"clip": clip, "label": action, "caption": CAPTIONS[action], "file": name}


def archive_path() -> pathlib.Path:
    """Raises:
    DataError: there is no archive.
    """
    path = pathlib.Path(os.environ.get(ENVIRONMENT, BESIDE))
    if not path.exists():
        raise DataError(
            f"{path} is not there; set {ENVIRONMENT} to an archive (.zip) of "
            f"<action>/<number>.webp, strips of {SIDE} x {SIDE} frames side by side"
        )
    return path


def members(archive: pathlib.Path) -> list[tuple[str, str, int]]:
    """(name, action, number) of the videos in the archive.

    Raises:
      DataError: it is damaged, or holds none.
    """
    names = [MEMBER.match(name) for name in _opened(archive).namelist()]
    found = [(n[0], n[1], int(n[2])) for n in names if n and n[1] in CAPTIONS]
    if not found:
        raise DataError(f"{archive} holds no <action>/<number>.webp of {', '.join(CAPTIONS)}")
    return found


def read_strip(name: str) -> list[Image.Image]:
    """The frames of a video of the archive.

    Raises:
      DataError: it cannot be decoded, or is no strip of frames.
    """
    archive = archive_path()
    with named(f"{archive}, {name}", ": cannot be decoded"):
        content = io.BytesIO(read_member(_opened(archive), name, MOST_BYTES))
        with pictures.opened(content) as strip:
            pictures.check_size(strip.size)
            strip.load()
    if strip.height != SIDE or strip.width % SIDE:
        raise DataError(f"{archive}, {name}: is {strip.size}, no strip of {SIDE} x {SIDE} frames")
    lefts = range(0, strip.width, SIDE)
    return [strip.crop((left, 0, left + SIDE, SIDE)) for left in lefts]


@functools.cache
def _opened(archive: pathlib.Path) -> zipfile.ZipFile:
    with named(str(archive)):
        return open_archive(archive)
