"""Fashion-MNIST (MIT licence): 60,000 + 10,000 grey pictures of clothes, 28 x 28, 10 classes.

Read from the IDX files of Debian's dataset-fashion-mnist. With data.shape = (32, 32, 1) a border of
two black pixels is added, so that patches of 4 and U-shaped stacks fit.
"""

import math
import pathlib
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from nrdm_jax.bounded_archives import read_gzip
from nrdm_jax.bounded_files import BoundedFile, read_bytes
from nrdm_jax.data.builders.items import ItemsBuilder
from nrdm_jax.data.errors import DataError, named

CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
           "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")  # fmt: skip
MOST_BYTES = 2**27  # of a file; the largest of the set has 47 million
DIRECTORY = pathlib.Path("/usr/share/datasets/fashion-mnist")
FILES = {"train": "train", "heldout": "t10k"}


class FashionMnistConfig(tfds.core.BuilderConfig):
    """A square size in pixels, 28 or 32."""

    def __init__(self, size: int = 28):
        super().__init__(name=f"{size}px", version="1.0.0")
        self.size = size


class FashionMnist(ItemsBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Features: image (size, size, 1), label. Splits: train, heldout (the published test set)."""

    VERSION = tfds.core.Version("1.0.0")
    SHAPE = (32, 32, 1)

    @staticmethod
    def config_for(shape: tuple[int, ...]) -> FashionMnistConfig:
        """Raises:
        ValueError: the shape is neither (28, 28, 1) nor (32, 32, 1).
        """
        if shape not in ((28, 28, 1), (32, 32, 1)):
            raise ValueError(f"data.shape is {shape}; fashion_mnist has (28, 28, 1) or (32, 32, 1)")
        return FashionMnistConfig(shape[0])

    def _info(self) -> tfds.core.DatasetInfo:
        size = self.builder_config.size
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            license="MIT",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(size, size, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=CLASSES),
                }
            ),
        )

    def _items(self):
        items = {}
        for split, prefix in FILES.items():
            images = read_idx(DIRECTORY / f"{prefix}-images-idx3-ubyte")
            labels = read_idx(DIRECTORY / f"{prefix}-labels-idx1-ubyte")
            pairs = zip(images, labels, strict=True)
            items[split] = [(str(i), pair) for i, pair in enumerate(pairs)]
        return items

    def _examples(self, content: tuple[np.ndarray, int]) -> Iterator[dict]:
        image, label = content
        padded = np.pad(image, (self.builder_config.size - 28) // 2)
        yield {"image": Image.fromarray(padded), "label": int(label)}


def read_idx(path: pathlib.Path) -> np.ndarray:
    """An IDX file of bytes (LeCun's format, plain or .gz) as an array of its own shape.

    Raises:
      DataError: it is not there, or not such a file, or cut short.
    """
    packed = path.with_name(path.name + ".gz")
    if path.exists():
        with named(str(path)):
            raw = read_bytes(path, MOST_BYTES)
    elif packed.exists():
        with named(str(packed)), BoundedFile(packed) as file:
            raw = read_gzip(file, MOST_BYTES)
    else:
        raise DataError(
            f"{path} is not there; `apt-get install dataset-fashion-mnist`, or prepare the set "
            "with TFDS and use data.name=tfds:fashion_mnist"
        )
    if len(raw) < 4 or raw[:3] != b"\x00\x00\x08" or len(raw) < 4 + 4 * raw[3]:
        raise DataError(f"{path} is no IDX file of bytes")
    shape = np.frombuffer(raw, ">u4", count=raw[3], offset=4).tolist()
    values = np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3])
    if values.size != math.prod(shape) or not values.size:
        raise DataError(f"{path} holds {values.size} bytes where its header says {shape}")
    return values.reshape(shape)
