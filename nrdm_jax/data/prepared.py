"""Prepared data sets by their directories, opened without running what their files name.

TFDS imports the module of every feature's class that features.json names, whatever it is; here they
are TFDS's own.
"""

import pathlib
from typing import Any

from nrdm_jax.bounded_files import parse_json, read_object
from nrdm_jax.data.errors import DataError, named

FEATURES, OURS = "features.json", "tensorflow_datasets."
# A class's name as protobuf's JSON has it, in its two spellings, and as TFDS had it before 4.4.
NAMES = ("pythonClassName", "python_class_name", "type")


def open_directory(directory: pathlib.Path):
    """The TFDS builder of a directory that holds a prepared set.

    Raises:
      DataError: it holds none, is damaged, or has features that are not TFDS's.
    """
    import tensorflow_datasets as tfds

    with named(str(directory), " is no prepared data set"):
        _check_features(read_object(directory / FEATURES))
        return tfds.builder_from_directory(directory)


def _check_features(node: Any) -> None:
    if isinstance(node, list):
        for value in node:
            _check_features(value)
    if not isinstance(node, dict):
        return
    for key, value in node.items():
        if key in NAMES and isinstance(value, str) and "." in value and not value.startswith(OURS):
            raise DataError(f"{FEATURES} names the class {value}, which is none of {OURS}")
        # Of features without a message of their own the content is JSON within JSON.
        _check_features(parse_json(value) if key == "json" and isinstance(value, str) else value)
