"""Solids: procedural volumes for trying 3-D models out where no scans are at hand.

A ball, a box, a rod or a ring of random size, place and orientation in a cube, 1 inside and 0
outside, smoothed at its surface by a voxel; the kind is the label. 2,000 for training, 200 held
out. Nothing in it is measured data.
"""

from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds

from nrdm_jax.data.builders.items import ItemsBuilder

KINDS = ("ball", "box", "rod", "ring")
COUNTS = {"train": 2000, "heldout": 200}


class SolidsConfig(tfds.core.BuilderConfig):
    """Side of the cube in voxels."""

    def __init__(self, size: int = 16):
        super().__init__(name=f"{size}", version="1.0.0")
        self.size = size


class Solids(ItemsBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Features: volume (size, size, size, 1) uint8, label (4 kinds)."""

    VERSION = tfds.core.Version("1.0.0")
    SHAPE = (16, 16, 16, 1)

    @staticmethod
    def config_for(shape: tuple[int, ...]) -> SolidsConfig:
        """Raises:
        ValueError: the shape is no cube of one channel.
        """
        if len(shape) != 4 or len(set(shape[:3])) != 1 or shape[3] != 1:
            raise ValueError(f"data.shape is {shape}; solids has (n, n, n, 1) for any n")
        return SolidsConfig(shape[0])

    def _info(self) -> tfds.core.DatasetInfo:
        size = self.builder_config.size
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "volume": tfds.features.Tensor(shape=(size, size, size, 1), dtype=np.uint8),
                    "label": tfds.features.ClassLabel(names=KINDS),
                }
            ),
        )

    def _items(self):
        return {
            split: [(str(i), (split, i)) for i in range(count)] for split, count in COUNTS.items()
        }

    def _examples(self, content: tuple[str, int]) -> Iterator[dict]:
        split, i = content
        draw = np.random.default_rng([list(COUNTS).index(split), i])
        kind = KINDS[i % len(KINDS)]
        density = solid(kind, self.builder_config.size, draw)
        yield {"volume": np.rint(255 * density)[..., None].astype(np.uint8), "label": kind}


def solid(kind: str, size: int, draw: np.random.Generator) -> np.ndarray:
    """Density in [0, 1], (size, size, size) float: 1 inside, 0 outside."""
    axis = (np.arange(size) + 0.5) / size * 2 - 1
    places = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1)
    places = places - draw.uniform(-0.25, 0.25, 3)
    turn, _ = np.linalg.qr(draw.standard_normal((3, 3)))
    x, y, z = np.moveaxis(places @ turn, -1, 0)
    # Signed distances, negative inside (Quilez's for the box, rod and ring).
    if kind == "ball":
        distance = np.sqrt(x**2 + y**2 + z**2) - draw.uniform(0.35, 0.65)
    elif kind == "box":
        beyond = np.abs(np.stack([x, y, z])) - draw.uniform(0.25, 0.5, (3, 1, 1, 1))
        outside = np.linalg.norm(np.maximum(beyond, 0), axis=0)
        distance = outside + np.minimum(beyond.max(axis=0), 0)
    elif kind == "rod":
        along = np.clip(x, -0.5, 0.5)
        distance = np.sqrt((x - along) ** 2 + y**2 + z**2) - draw.uniform(0.15, 0.3)
    else:
        around = np.sqrt(x**2 + y**2) - draw.uniform(0.4, 0.6)
        distance = np.sqrt(around**2 + z**2) - draw.uniform(0.12, 0.22)
    return np.clip(0.5 - distance * size / 2, 0, 1)
