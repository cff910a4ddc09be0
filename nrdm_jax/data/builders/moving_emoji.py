"""Moving emoji: procedural clips of real glyphs. The drawings are OpenMoji's, the motions are ours.

A drawing of half the frame's side moves over white in one of eight ways, which is the label. One
clip for each group of drawings (see `openmoji`); split as the drawings are, so that no held-out
clip shows a drawing of training.
"""

import hashlib

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from nrdm_jax.data.builders.openmoji import drawings, group_of, is_heldout, render

MOTIONS = ("right", "left", "down", "up", "clockwise", "anticlockwise", "growing", "shrinking")


class MovingEmojiConfig(tfds.core.BuilderConfig):
    """Frames and the side of a square frame in pixels."""

    def __init__(self, frames: int = 8, size: int = 32):
        super().__init__(name=f"{frames}x{size}px", version="1.0.0")
        self.frames, self.size = frames, size


class MovingEmoji(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Features: clip (frames, size, size, 3) uint8, label (8 motions), code_point."""

    VERSION = tfds.core.Version("1.0.0")

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
                    "code_point": tfds.features.Text(),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        firsts: dict[str, object] = {}
        for path in drawings():
            firsts.setdefault(group_of(path.stem), path)
        return {
            split: self._generate_examples(
                [path for group, path in firsts.items() if is_heldout(group) == wanted]
            )
            for split, wanted in (("train", False), ("heldout", True))
        }

    def _generate_examples(self, paths):
        frames, size = self.builder_config.frames, self.builder_config.size
        for path in paths:
            draw = np.random.default_rng(list(hashlib.sha256(path.stem.encode()).digest()[:8]))
            motion = MOTIONS[draw.integers(len(MOTIONS))]
            start = draw.uniform(0.3, 0.7, 2)
            glyph = render(path, size)
            yield (
                path.stem,
                {
                    "clip": clip(glyph, motion, frames, size, start),
                    "label": motion,
                    "code_point": path.stem,
                },
            )


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
        elif motion in ("clockwise", "anticlockwise"):
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
