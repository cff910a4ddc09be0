"""How much of a host's memory the copies of a state take while it is written."""

from collections.abc import Mapping
from typing import Any

import jax
from orbax.checkpoint._src.serialization import tensorstore_utils, types

from nrdm_jax.checkpointing import stored

# Orbax counts the bytes that it has written for its log alone, and tensorstore (0.1.86) keeps the
# lists of what it has counted: up to half a megabyte a save, until the end of the run.
tensorstore_utils.get_tensorstore_raw_bytes = lambda *_, **__: 0

LARGE = 4  # items that are written side by side: params, ema, opt, averages


class HostCopies(types.DefaultSerializationStatusCallback):
    """At most `limit` bytes of this process. A state of which it holds less is copied at once, and
    written while training goes on; of a larger one a few leaves at a time are copied and written,
    at least one of an item, and training has to wait."""

    def __init__(self, limit: int):
        self._limit = limit
        self._in_parts = False

    def too_large(self, items: Mapping[str, Any]) -> bool:
        """Whether this process holds more of these than may be copied at once."""
        return bytes_here(items) > self._limit

    def begin(self, in_parts: bool) -> None:
        """Before they are saved, so or at once."""
        self._in_parts = in_parts

    def handlers(self) -> dict[str, Any]:
        """Orbax's, that ask this."""
        return stored.handlers(self, save_device_host_concurrent_gb=self._limit / LARGE / 1e9)

    def key_priority(self, _) -> types.TransferPriority:
        """Of a leaf: whether it is copied before the call that saves returns."""
        if self._in_parts:
            return types.TransferPriority.ASYNCHRONOUS_DEPRIORITIZED
        return types.TransferPriority.SYNCHRONOUS


def bytes_here(tree: Any) -> int:
    """Of a tree of arrays, what this process writes."""
    return sum(
        shard.data.nbytes
        for leaf in jax.tree.leaves(tree)
        for shard in leaf.addressable_shards
        if shard.replica_id == 0
    )
