"""The JSON item of a checkpoint: what a run says of itself, with the fingerprints of all leaves and
a checksum of it all."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from nrdm_jax.bounded_files import parse_json
from nrdm_jax.checkpointing.errors import DamagedCheckpoint

FINGERPRINTS, CHECKSUM = "fingerprints", "checksum"


def place(directory: Any, step: int) -> Any:
    """The file of a step's, below a directory of checkpoints; paths of any kind."""
    return directory / str(step) / "meta" / "metadata"


def signed(meta: Mapping, fingerprints: Mapping[str, int]) -> dict:
    """What is written."""
    whole = {**meta, FINGERPRINTS: dict(fingerprints)}
    return {**whole, CHECKSUM: _checksum(whole)}


def checked(text: bytes, name: str) -> tuple[dict, dict[str, int] | None]:
    """(what was signed, the fingerprints); of an older version, without those.

    Raises:
      DamagedCheckpoint: it is something else, of the checkpoint `name`.
    """
    try:
        meta = parse_json(text)
        if not isinstance(meta, dict):
            raise ValueError("it is not an object")
    except ValueError as error:
        raise DamagedCheckpoint(f"{name}: what it says of itself cannot be read: {error}") from None
    found = meta.pop(CHECKSUM, None)
    # Of an older version there is neither; where one's name was damaged the other is left.
    if found is None and FINGERPRINTS not in meta:
        return meta, None
    fingerprints = meta.get(FINGERPRINTS)
    if found != _checksum(meta) or not isinstance(fingerprints, dict):
        raise DamagedCheckpoint(f"{name}: what it says of itself has changed since it was saved")
    return meta, meta.pop(FINGERPRINTS)


def _checksum(meta: Mapping) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()
