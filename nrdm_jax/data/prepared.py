"""Prepared data sets by their directories, opened without running what their files name, and their
records.

TFDS imports the module of every feature's class that features.json names, whatever it is, opens
pictures of any kind that Pillow has, and reads as many records from wherever dataset_info.json
says; here the classes are TFDS's own, the pictures those of `pictures.FORMATS`, and files and
counts those that are there.
"""

import contextlib
import io
import pathlib
import re
import sys
import time
import types
from collections.abc import Collection, Sequence
from typing import Any

from PIL import Image

from nrdm_jax.bounded_files import (
    MOST_JSON,
    BoundedFile,
    check_link,
    check_name,
    parse_json,
    read_object,
)
from nrdm_jax.data import pictures
from nrdm_jax.data.errors import DataError, is_of_machine, named

ATTEMPTS = (0.0, 0.5)  # seconds before each further attempt to read a record
FEATURES, OURS = "features.json", "tensorflow_datasets.core.features."
# A class's name as protobuf's JSON has it, in its two spellings, and as TFDS had it before 4.4.
NAMES = ("pythonClassName", "python_class_name", "type")
# Of a label, each of which TFDS makes a name for where there is no file of names.
CLASSES, MOST_CLASSES = ("numClasses", "num_classes"), 2**20
# Names of shards: Python would format whatever stands in braces, and as wide as is asked for.
TEMPLATE = re.compile(
    r"([\w.@-]|\{(DATASET|SPLIT|FILEFORMAT|SHARD_INDEX|NUM_SHARDS|SHARD_X_OF_Y)\})+"
)


def open_directory(directory: pathlib.Path):
    """The TFDS builder of a directory that holds a prepared set.

    Raises:
      DataError: it holds none, is damaged, or has features that are not TFDS's.
    """
    import tensorflow_datasets as tfds

    with named(str(directory), " is no prepared data set"):
        _check_entries(directory)
        _check_features(read_object(directory / FEATURES))
        return tfds.builder_from_directory(directory)


def _check_entries(directory: pathlib.Path) -> None:
    """TFDS opens several of them, of names that features.json chooses, and reads each to its end;
    of shards, which alone have numbers at the end of their names, it reads parts."""
    for path in directory.iterdir():
        check_link(path, directory)
        if not path.is_dir():
            BoundedFile(path, None if path.name[-1].isdigit() else MOST_JSON).close()


def _check_features(node: Any) -> None:
    if isinstance(node, list):
        for value in node:
            _check_features(value)
    if not isinstance(node, dict):
        return
    for key, value in node.items():
        if key in NAMES and isinstance(value, str) and "." in value and not value.startswith(OURS):
            raise DataError(f"{FEATURES} names the class {value}, which is none of {OURS}")
        if key == "encoding" and value == "zlib":
            raise DataError(f"{FEATURES} has tensors that zlib has packed, to whatever size")
        if key in CLASSES and isinstance(value, str | int | float) and int(value) > MOST_CLASSES:
            raise DataError(f"{FEATURES} has {value} classes, more than {MOST_CLASSES:,}")
        # Of features without a message of their own the content is JSON within JSON.
        _check_features(parse_json(value) if key == "json" and isinstance(value, str) else value)


class Records:
    """The records of a split of a prepared set, decoded as they are asked for.

    Args:
      builder: of TFDS, prepared.
      split: of it.
      skip: features that are left as they are stored.

    Raises:
      DataError: its files are not there, not within its directory, or have other numbers of records
        than it says.
    """

    def __init__(self, builder, split: str, *, skip: Collection[str] = ()):
        from tensorflow_datasets.core import decode

        _bound_pictures()
        self.name = f"{builder.data_dir}, split {split}"
        skipped = {name: decode.SkipDecoding() for name in skip}
        with named(self.name):
            _check_files(builder, split)
            self._records = builder.as_data_source(split, decoders=skipped)

    def __len__(self) -> int:
        return len(self._records)

    def read(self, places: Sequence[int]) -> list[dict[str, Any]]:
        """Raises:
        DataError: a record is damaged, naming its place.
        """
        try:
            return list(self._records.__getitems__(list(places)))
        except Exception as error:  # as of `named`
            # Those of a batch are read at once, and not one of them is named. What can be read now
            # was no damage: array_record does not tell a disk's or network's fault from it.
            found = [record for place in places for record in self._again(place)]
            print(
                f"warning: {self.name}: a batch could not be read, and could be when it was read "
                f"again: {_first_line(error)}",
                file=sys.stderr,
                flush=True,
            )
            return found

    def _again(self, place: int) -> list[dict[str, Any]]:
        """A record, so often as `ATTEMPTS` says. Raises as `read`."""
        for wait in ATTEMPTS[:-1]:
            time.sleep(wait)
            with contextlib.suppress(Exception):
                return self._records.__getitems__([place])
        time.sleep(ATTEMPTS[-1])
        try:
            return self._records.__getitems__([place])
        except Exception as error:
            if is_of_machine(error):
                raise
            says = f"record {place} is damaged: {_first_line(error)}"
            raise DataError(f"{self.name}: {says}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _check_files(builder, split: str) -> None:
    """Whether the shards of a split are in the set's directory, and hold what it says."""
    from array_record.python.array_record_module import ArrayRecordReader

    info, home = builder.info.splits[split], pathlib.Path(builder.data_dir)
    template = info.filename_template
    if template is None or not TEMPLATE.fullmatch(template.template):
        said = template and template.template[:200]
        raise DataError(f"dataset_info.json has the names of files {said!r}")
    for part in filter(None, (template.dataset_name, template.split, template.filetype_suffix)):
        if "/" in check_name(part):
            raise DataError(f"dataset_info.json has the name {part[:200]!r}")
    count = len(info.shard_lengths)
    for number, said in enumerate(info.shard_lengths):
        shard = pathlib.Path(template.sharded_filepath(shard_index=number, num_shards=count))
        check_link(shard, home)
        if template.filetype_suffix != "array_record":
            continue
        reader = ArrayRecordReader(str(shard), options="readahead_buffer_size:0")
        try:
            found = reader.num_records()
        finally:
            reader.close()
        if found != said:
            raise DataError(f"{shard.name} has {found:,} records; dataset_info.json says {said:,}")


def _bound_pictures() -> None:
    from tensorflow_datasets.core.features import image_feature

    image_feature.PIL_Image = types.SimpleNamespace(**{**vars(Image), "open": _open_picture})


def _open_picture(file: io.BytesIO) -> Image.Image:
    picture = pictures.open_bounded(file)
    pictures.check_size(picture.size)
    return picture
