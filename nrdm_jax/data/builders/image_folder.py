"""Any folder of pictures, of any size and kind: data.name=image_folder:PATH.

Classes by sub-folder, captions from text files, as `data.folders` has it. Each picture is cropped
around its middle to the aspect of data.shape and resized.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Iterator

import tensorflow_datasets as tfds

from nrdm_jax.data import folders, pictures
from nrdm_jax.data.builders.items import ItemsBuilder
from nrdm_jax.data.errors import DataError, NoRecordsError
from nrdm_jax.data.sources import fingerprint_of


class FolderConfig(tfds.core.BuilderConfig):
    """A shape, and a folder as it is at this moment: a changed one is another config, so that it
    is prepared anew. `part`: of the name, where not all files are taken."""

    def __init__(
        self, shape: tuple[int, ...], listing: folders.Listing, stride: int = 1, part: str = ""
    ):
        sides = "x".join(map(str, shape)) + (f"-every{stride}" if stride > 1 else "")
        super().__init__(name=f"{sides}-{listing.stamp}{part}", version="1.0.0")
        self.shape, self.listing, self.stride = shape, listing, stride


def folder_features(listing: folders.Listing, **further) -> tfds.features.FeaturesDict:
    """Label, caption where there are captions, and file, beside what is given."""
    captions = {"caption": tfds.features.Text()} if listing.captioned else {}
    return tfds.features.FeaturesDict(
        {
            **further,
            "label": tfds.features.ClassLabel(names=listing.classes),
            "file": tfds.features.Text(),
            **captions,
        }
    )


def told_of(file: folders.File, listing: folders.Listing) -> dict:
    """What the features say of a file.

    Raises:
      DataError: it has no caption, where others do.
    """
    if listing.captioned and file.caption is None:
        raise DataError(f"{file.path}: has no caption, and other files have")
    captions = {"caption": file.caption} if listing.captioned else {}
    return {"label": file.label, "file": file.key} | captions


@functools.lru_cache(maxsize=4)
def _sizes(path: pathlib.Path, stamp: str) -> dict[str, tuple[int, int]]:
    """(height, width) of the training pictures of a folder with this stamp, by their keys.
    Those that cannot be read are square: each is named when its bucket is prepared."""
    listing = folders.list_folder(path, pictures.SUFFIXES)
    return {file.key: pictures.size_of(file.path) or (1, 1) for file in listing.splits["train"]}


class ImageFolder(ItemsBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Features: image (H, W, 1 or 3), label, file, and caption if there are any."""

    VERSION = tfds.core.Version("1.0.0")
    SHAPE = (64, 64, 3)

    @staticmethod
    def config_for(shape: tuple[int, ...], path: pathlib.Path) -> FolderConfig:
        """Raises:
        ValueError: the shape is no picture.
        DataError: as `folders.list_folder`.
        """
        if len(shape) != 3 or shape[-1] not in (1, 3):
            raise ValueError(f"data.shape is {shape}; image_folder has (h, w, 3) or (h, w, 1)")
        return FolderConfig(shape, folders.list_folder(path, pictures.SUFFIXES))

    @staticmethod
    def config_among(
        shape: tuple[int, ...], shapes: tuple[tuple[int, ...], ...], path: pathlib.Path
    ) -> FolderConfig:
        """Training pictures whose nearest of the shapes is this one, and all that are held out.

        Raises:
          ValueError, DataError: as `config_for`.
          NoRecordsError: there is no such picture.
        """
        listing = ImageFolder.config_for(shape, path).listing
        sizes = _sizes(path, listing.stamp)
        train = tuple(
            file for file in listing.splits["train"]
            if shapes[pictures.nearest(sizes[file.key], shapes)] == shape
        )  # fmt: skip
        if not train:
            raise NoRecordsError(f"{path} has no pictures that are nearest to {shape}")
        splits = listing.splits | {"train": train}
        part = f"-of-{fingerprint_of(shapes)[:8]}"
        return FolderConfig(shape, dataclasses.replace(listing, splits=splits), part=part)

    def _info(self) -> tfds.core.DatasetInfo:
        config = self.builder_config
        image = tfds.features.Image(shape=config.shape, encoding_format="png")
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            features=folder_features(config.listing, image=image),
        )

    def _items(self):
        splits = self.builder_config.listing.splits
        return {split: [(file.key, file) for file in files] for split, files in splits.items()}

    def _examples(self, content: folders.File) -> Iterator[dict]:
        config = self.builder_config
        told = told_of(content, config.listing)
        picture = pictures.read_picture(content.path, str(content.path), config.shape)
        yield {"image": picture, **told}
