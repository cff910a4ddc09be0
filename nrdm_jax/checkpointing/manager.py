"""Checkpoints of a run, over orbax's v0 manager: the one place that knows orbax.

A step directory holds items, each restorable by itself: of a run `params`, `ema`, `opt` and `loop`
(step and key), `importance` and `averages` where it has them, and `meta`, a JSON item. Steps are
written asynchronously and committed by a rename, so that a kill at any moment leaves the previous
step whole.
"""

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from nrdm_jax import trees

ITEMS = ("params", "ema", "opt", "loop", "importance", "averages")
ABSENT = "absent"


class Checkpoints:
    """The checkpoints under one directory.

    Args:
      directory: made if absent, unless `read_only`.
      keep: newest steps kept; older ones are removed as new ones are committed. None: all.
      read_only: for sampling and evaluating; nothing is written or cleaned up.
    """

    def __init__(self, directory: str, *, keep: int | None = 1, read_only: bool = False):
        self._directory = epath.Path(directory)
        if read_only:
            options = ocp.CheckpointManagerOptions(
                read_only=True, save_interval_steps=0, create=False
            )
        else:
            options = ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                cleanup_tmp_directories=True,
                # A failed directory creation in the background can hang the process at its exit.
                async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
                # A run writes several directories at a time, and its processes meet for each.
                multiprocessing_options=ocp.options.MultiprocessingOptions(
                    barrier_sync_key_prefix=self._directory.name
                ),
            )
        handlers: dict[str, Any] = {item: ocp.StandardCheckpointHandler() for item in ITEMS}
        self._manager = ocp.CheckpointManager(
            self._directory.resolve(),
            options=options,
            item_handlers=handlers | {"meta": ocp.JsonCheckpointHandler()},
        )

    def latest_step(self) -> int | None:
        """The newest committed step, by number and not by time; None where there is none."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """All committed steps, from the oldest."""
        return sorted(self._manager.all_steps())

    def remove_after(self, step: int) -> None:
        """Removes what was committed of later steps."""
        for later in [s for s in self.steps() if s > step]:
            self._manager.delete(later)

    def save(self, step: int, items: Mapping[str, Any], meta: dict) -> None:
        """Copies the items (trees of arrays, names of `ITEMS`) and writes them in the background.

        Raises:
          OSError: they, or those of the save before, cannot be written, as on a disk that is full.
        """
        arguments = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
        with self._writing():
            self._manager.save(
                step, args=ocp.args.Composite(**arguments, meta=ocp.args.JsonSave(meta)), force=True
            )

    def restore(self, step: int, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """The items of `wanted` (abstract trees with shardings), bit for bit.

        Raises:
          ValueError: a leaf is absent, or of another shape or type, with a table of all of them.
        """
        self._check(step, [row for item in wanted for row in self._rows(step, item, wanted[item])])
        arguments = {name: ocp.args.StandardRestore(tree) for name, tree in wanted.items()}
        restored = self._manager.restore(step, args=ocp.args.Composite(**arguments))
        return {name: restored[name] for name in wanted}

    def restore_part(self, step: int, item: str, wanted: Any) -> Any:
        """The leaves of `wanted` (as above) of an item that may have more; those are not read.

        Raises:
          ValueError: as `restore`.
        """
        rows = self._rows(step, item, wanted)
        self._check(step, [(path, a, b) for path, a, b in rows if b != ABSENT])
        arguments = ocp.args.PyTreeRestore(
            wanted,
            restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
            partial_restore=True,
        )
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            return checkpointer.restore(
                (self._directory / str(step) / item).resolve(), args=arguments
            )

    def parts_of(self, step: int, item: str) -> list[str]:
        """The first names in the tree of an item; none where there is no such item."""
        stored = self._manager.item_metadata(step).get(item)
        paths = [path for path, _ in trees.leaves_with_path(getattr(stored, "tree", stored))]
        return sorted({path.split("/")[0] for path in paths})

    def _rows(self, step: int, item: str, wanted: Any) -> list[tuple[str, str, str]]:
        return _differences(item, self._manager.item_metadata(step).get(item), wanted)

    def _check(self, step: int, rows: list[tuple[str, str, str]]) -> None:
        if rows:
            table = "\n".join(f"  {path}: stored {a}, wanted {b}" for path, a, b in rows[:40])
            raise ValueError(
                f"checkpoint {self._directory}/{step} does not fit the config "
                f"({len(rows)} leaves differ); use the config it was made with, or another workdir:"
                f"\n{table}"
            )

    def meta(self, step: int) -> dict:
        """The JSON item of a step."""
        return json.loads((self._directory / str(step) / "meta" / "metadata").read_text())

    def is_saving(self) -> bool:
        """Whether a step is being written in the background."""
        return self._manager.is_saving_in_progress()

    def wait(self) -> None:
        """Returns when everything saved is committed; raises as `save` what went wrong
        meanwhile."""
        with self._writing():
            self._manager.wait_until_finished()

    def close(self) -> None:
        with self._writing():
            self._manager.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """What tensorstore could not write is a ValueError there."""
        try:
            yield
        except ValueError as error:
            system = re.search(r"(\w[\w ]+) \[os_error_code=", str(error))
            if not system:
                raise
            raise OSError(f"{self._directory} cannot be written: {system[1]}") from error


def _differences(item: str, stored, wanted) -> list[tuple[str, str, str]]:
    """(path, stored, wanted) of each leaf that is not the same in shape and type."""

    def described(tree) -> dict[str, str]:
        leaves = trees.leaves_with_path(tree)
        return {f"{item}/{path}": f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves}

    # Stored containers come back as dicts and lists: compare by path alone.
    a = described(getattr(stored, "tree", stored))
    b = described(jax.tree.map(lambda x: x, wanted))
    return [
        (path, a.get(path, ABSENT), b.get(path, ABSENT))
        for path in sorted(a.keys() | b.keys())
        if a.get(path) != b.get(path)
    ]
