"""How much of a host's memory the copies of a state take while it is written."""

from collections.abc import Mapping
from typing import Any

import jax
import tensorstore
from orbax.checkpoint._src.serialization import tensorstore_utils, types

from nrdm_jax.checkpointing import stored

# Tensorstore (up to 0.1.86) never frees what it makes Python objects of from JSON, and a save asks
# for that twice. Of the bytes that were written, for a line in orbax's log: half a megabyte a save.
tensorstore_utils.get_tensorstore_raw_bytes = lambda *_, **__: 0
_to_json = tensorstore.KvStore.Spec.to_json


def _json_of(spec: tensorstore.KvStore.Spec, include_defaults: bool = False) -> Any:
    """And of the directory of each leaf, which for a plain one is known: some hundred bytes."""
    plain = {"driver": "file", "path": spec.path}
    if not include_defaults and spec == tensorstore.KvStore.Spec(plain):
        return plain
    return _to_json(spec, include_defaults)


tensorstore.KvStore.Spec.to_json = _json_of  # type: ignore[method-assign, assignment]

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
