"""A TFDS builder of items: a set is a list of them, and a function that makes examples of one.

In the place of TFDS's own generation, which begins from nothing when it is stopped; the order of
the records, the files and what reads them are TFDS's.
"""

import math
import os
import pathlib
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import example_serializer, hashing
from tensorflow_datasets.core.dataset_builder import FileReaderBuilder

from nrdm_jax.data import manifest, shard_files
from nrdm_jax.data.errors import DataError
from nrdm_jax.data.shard_files import Item

SHARD_BYTES = 2**27  # of examples as they are in memory, at most


class ItemsBuilder(FileReaderBuilder, skip_registration=True):  # type: ignore[call-arg]
    """A subclass has `VERSION`, `SHAPE`, `config_for`, `_info`, `_items` and `_examples`.

    Attributes:
      SHAPE: of an example, where none is asked for.
      ITEMS_PER_SHARD: at most.
      corrupt: skip | fail, what is done about corrupt items.
    """

    SHAPE: tuple[int, ...]
    ITEMS_PER_SHARD = 1024
    corrupt = "skip"

    def _items(self) -> Mapping[str, Sequence[Item]]:
        """The items of each split, by names that are unique within it.

        Raises:
          DataError: there is nothing to make them from.
        """
        raise NotImplementedError

    def _examples(self, content: Any) -> Iterable[dict]:
        """The examples of one item: one, or none or more clips of a file. Called from several
        threads.

        Raises:
          DataError: the item is corrupt, naming it and the reason.
        """
        raise NotImplementedError

    def _records(self, content: Any) -> Iterator[bytes]:
        features = self.info.features
        serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
        for example in self._examples(content):
            message = serializer.get_tf_example(features.encode_example(example))
            # Otherwise the order of a record's features is another in every process.
            yield message.SerializeToString(deterministic=True)

    def _per_shard(self) -> int:
        sizes = [
            math.prod(side or 1 for side in feature.shape) * np.dtype(feature.np_dtype).itemsize
            for feature in self.info.features.values()
            if feature.shape
        ]
        return max(1, min(self.ITEMS_PER_SHARD, SHARD_BYTES // max(sum(sizes), 1)))

    def _download_and_prepare(self, dl_manager, download_config=None) -> None:
        """Called by TFDS, which has made `self.data_dir` for the time, and renames it after."""
        home = pathlib.Path(self.data_dir)
        # Beside the directory that the set will have, and the same for every attempt.
        place = home.parent / f"partial.{self.version}"
        for left_over in home.parent.glob(f"incomplete.*_{self.version}"):
            if left_over != home:
                shutil.rmtree(left_over, ignore_errors=True)
        items = {split: _shuffled(split, found) for split, found in self._items().items()}
        written = shard_files.write(
            place,
            items,
            self._records,
            plan=self.info.full_name,
            per_shard=self._per_shard(),
            corrupt=self.corrupt,
            threads=len(os.sched_getaffinity(0)),
        )
        self.info.set_splits(
            tfds.core.SplitDict(
                [self._settle(split, place, found) for split, found in written.items()]
            )
        )
        self.info.download_size = 0
        self.info.write_to_directory(home)
        corrupt = {
            f"{split}/{name}": reason
            for split, found in written.items()
            for shard in found
            for name, reason in shard.corrupt
        }
        manifest.write(home, self.info.full_name, corrupt)
        _tell(corrupt, sum(map(len, items.values())), self.info.full_name)
        shutil.rmtree(place)

    def _log_download_bytes(self) -> None:
        """TFDS's word on what there is to download; nothing is."""

    def _log_download_done(self) -> None:
        """TFDS's, of the same."""

    def _settle(self, split: str, place: pathlib.Path, found: list[shard_files.Shard]):
        """Moves the shards of a split that hold anything to where TFDS looks for them."""
        found = [shard for shard in found if shard.records]
        if not found:
            raise DataError(f"data set {self.info.full_name}: no records for split {split}")
        template = self._get_filename_template(split_name=split)
        for i, shard in enumerate(found):
            os.replace(
                place / shard.file,
                template.sharded_filepath(shard_index=i, num_shards=len(found)),
            )
        return tfds.core.SplitInfo(
            name=split,
            shard_lengths=[shard.records for shard in found],
            num_bytes=sum(shard.bytes for shard in found),
            filename_template=template,
        )


def _shuffled(split: str, items: Sequence[Item]) -> list[Item]:
    """In the order of TFDS: by a hash of the name and the split.

    Raises:
      DataError: two have one name.
    """
    hasher = hashing.Hasher(split)
    by_hash = {hasher.hash_key(name): (name, content) for name, content in items}
    if len(by_hash) < len(items):
        raise DataError(f"split {split}: {len(items) - len(by_hash)} items have another's name")
    return [by_hash[key] for key in sorted(by_hash)]


def _tell(corrupt: Mapping[str, str], total: int, name: str) -> None:
    if corrupt:
        reasons = "; ".join(list(corrupt.values())[:5]) + ("; …" if len(corrupt) > 5 else "")
        print(
            f"warning: {len(corrupt)} of {total:,} items of {name} cannot be used and are left "
            f"out: {reasons}; all are named in its {manifest.MANIFEST}",
            file=sys.stderr,
            flush=True,
        )
