"""Any folder of pictures, of any size and kind: data.name=image_folder:PATH.

Classes by sub-folder, captions from text files, as `data.folders` has it. Each picture is cropped
around its middle to the aspect of data.shape and resized.
"""

import pathlib
from collections.abc import Iterator

import tensorflow_datasets as tfds

from nrdm_jax.data import folders, pictures
from nrdm_jax.data.builders.items import ItemsBuilder
from nrdm_jax.data.errors import DataError


class FolderConfig(tfds.core.BuilderConfig):
    """A shape, and a folder as it is at this moment: a changed one is another config."""

    def __init__(self, shape: tuple[int, ...], listing: folders.Listing, stride: int = 1):
        sides = "x".join(map(str, shape)) + (f"-every{stride}" if stride > 1 else "")
        super().__init__(name=f"{sides}-{listing.fingerprint}", version="1.0.0")
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
