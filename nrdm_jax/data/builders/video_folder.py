"""Any folder of videos, of any size and length: data.name=video_folder:PATH.

mp4, mov, webm, mkv, avi through PyAV (the extra `video`); gif, webp, apng through Pillow. Each file
is cut into clips of data.shape that share no frame, of every data.frame_stride'th; what is left at
its end is not used. Classes by sub-folder, captions from text files, as `data.folders` has it; what
is held out is whole files.
"""

import pathlib
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds

from nrdm_jax.data import clips, folders
from nrdm_jax.data.builders.image_folder import FolderConfig, folder_features, told_of
from nrdm_jax.data.builders.items import ItemsBuilder
from nrdm_jax.data.errors import DataError


class VideoFolder(ItemsBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Features: clip (T, H, W, 1 or 3) uint8, label, file, and caption if there are any."""

    VERSION = tfds.core.Version("1.0.0")
    SHAPE = (16, 64, 64, 3)
    ITEMS_PER_SHARD = 8  # files, of many clips each

    @staticmethod
    def config_for(shape: tuple[int, ...], path: pathlib.Path, *, stride: int) -> FolderConfig:
        """Raises:
        ValueError: the shape is no clip, or PyAV is needed and not there.
        DataError: as `folders.list_folder`.
        """
        if len(shape) != 4 or shape[0] < 2 or shape[-1] not in (1, 3):
            raise ValueError(
                f"data.shape is {shape}; video_folder has (t, h, w, 3) or (t, h, w, 1), "
                "with t of 2 or more"
            )
        listing = folders.list_folder(path, clips.SUFFIXES)
        clips.check(file.path for files in listing.splits.values() for file in files)
        return FolderConfig(shape, listing, stride)

    def _info(self) -> tfds.core.DatasetInfo:
        config = self.builder_config
        clip = tfds.features.Tensor(shape=config.shape, dtype=np.uint8)
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            features=folder_features(config.listing, clip=clip),
        )

    def _items(self):
        splits = self.builder_config.listing.splits
        return {split: [(file.key, file) for file in files] for split, files in splits.items()}

    def _examples(self, content: folders.File) -> Iterator[dict]:
        config = self.builder_config
        told = told_of(content, config.listing)
        made = 0
        frames = clips.read_frames(content.path, config.shape[1:])
        for clip in clips.windows(frames, config.shape[0], config.stride):
            made += 1
            yield {"clip": clip, **told}
        if not made:
            raise DataError(
                f"{content.path}: has fewer frames than a clip of data.shape={config.shape} and "
                f"data.frame_stride={config.stride}"
            )
