"""Moving emoji: procedural clips of real glyphs. The drawings are OpenMoji's, the motions are ours.

A drawing of half the frame's side moves over white in one of eight ways, which is the label. One
clip for each group of drawings (see `openmoji`); split as the drawings are, so that no held-out
clip shows a drawing of training.
"""

import hashlib
import pathlib
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from nrdm_jax.data.builders.items import ItemsBuilder
from nrdm_jax.data.builders.openmoji import caption_of, drawings, group_of, is_heldout, render

MOTIONS = ("right", "left", "down", "up", "clockwise", "anticlockwise", "growing", "shrinking")
TURNS = ("clockwise", "anticlockwise")


class MovingEmojiConfig(tfds.core.BuilderConfig):
    """Frames and the side of a square frame in pixels."""

    def __init__(self, frames: int = 8, size: int = 32):
        super().__init__(name=f"{frames}x{size}px", version="1.1.0")
        self.frames, self.size = frames, size


class MovingEmoji(ItemsBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Features: clip (frames, size, size, 3) uint8, label (8 motions), caption, code_point."""

    VERSION = tfds.core.Version("1.1.0")
    SHAPE = (8, 32, 32, 3)

    @staticmethod
    def config_for(shape: tuple[int, ...]) -> MovingEmojiConfig:
        """Raises:
        ValueError: the shape is no square colour clip.
        """
        if len(shape) != 4 or shape[0] < 2 or shape[1] != shape[2] or shape[3] != 3:
            raise ValueError(
                f"data.shape is {shape}; moving_emoji has (t, n, n, 3) for any n and t of 2 or more"
            )
        return MovingEmojiConfig(shape[0], shape[1])

    def _info(self) -> tfds.core.DatasetInfo:
        frames, size = self.builder_config.frames, self.builder_config.size
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            license="CC-BY-SA 4.0",
            homepage="https://openmoji.org",
            features=tfds.features.FeaturesDict(
                {
                    "clip": tfds.features.Tensor(shape=(frames, size, size, 3), dtype=np.uint8),
                    "label": tfds.features.ClassLabel(names=MOTIONS),
                    "caption": tfds.features.Text(),
                    "code_point": tfds.features.Text(),
                }
            ),
        )

    def _items(self):
        firsts: dict[str, pathlib.Path] = {}
        for path in drawings():
            firsts.setdefault(group_of(path.stem), path)
        return {
            split: [(p.stem, p) for group, p in firsts.items() if is_heldout(group) == wanted]
            for split, wanted in (("train", False), ("heldout", True))
        }

    def _examples(self, content: pathlib.Path) -> Iterator[dict]:
        frames, size = self.builder_config.frames, self.builder_config.size
        draw = np.random.default_rng(list(hashlib.sha256(content.stem.encode()).digest()[:8]))
        motion = MOTIONS[draw.integers(len(MOTIONS))]
        start = draw.uniform(0.3, 0.7, 2)
        yield {
            "clip": clip(render(content, size), motion, frames, size, start),
            "label": motion,
            "caption": f"{caption_of(content.stem)} {in_words(motion)}",
            "code_point": content.stem,
        }


def in_words(motion: str) -> str:
    """`moving right`, `turning clockwise`, `growing`."""
    verb = "turning " if motion in TURNS else "moving " if motion in MOTIONS[:4] else ""
    return verb + motion


def clip(
    glyph: Image.Image, motion: str, frames: int, size: int, start: np.ndarray
) -> np.ndarray:  # fmt: skip
    """A drawing in motion: (frames, size, size, 3) uint8 on white.

    Args:
      glyph: square.
      motion: one of `MOTIONS`.
      start: where its middle is half-way, (across, down) over the frame's side. In the eight
        frames of a clip it moves by half the side, turns by a quarter, or doubles its side.
    """
    out = np.empty((frames, size, size, 3), np.uint8)
    for i, progress in enumerate(np.linspace(-0.5, 0.5, frames)):
        middle, side, angle = np.array(start), size / 2, 0.0
        if motion in ("right", "left"):
            middle[0] = 0.5 + progress / 2 * (1 if motion == "right" else -1)
        elif motion in ("down", "up"):
            middle[1] = 0.5 + progress / 2 * (1 if motion == "down" else -1)
        elif motion in TURNS:
            angle = 90 * (progress + 0.5) * (-1 if motion == "clockwise" else 1)
        else:
            side *= 2 ** (progress if motion == "growing" else -progress)
        scale = glyph.width / side
        turn = np.deg2rad(angle)
        cos, sin = np.cos(turn) * scale, np.sin(turn) * scale
        across, down = middle * size
        half = glyph.width / 2
        matrix = (
            cos, -sin, half - cos * across + sin * down,
            sin, cos, half - sin * across - cos * down,
        )  # fmt: skip
        # PIL's transform takes one sample a pixel: four times as fine, then reduced.
        fine = (4 * size, 4 * size)
        a, b, c, d, e, f = matrix
        frame = glyph.transform(
            fine, Image.Transform.AFFINE, (a / 4, b / 4, c, d / 4, e / 4, f),
            Image.Resampling.BILINEAR, fillcolor="white",
        )  # fmt: skip
        out[i] = np.asarray(frame.resize((size, size), Image.Resampling.BOX))
    return out
