"""The checkpoints of a run as they are read: what a step has, whether it is whole, and itself.

A step directory holds items, each restorable by itself: of a run `params`, `ema`, `opt` and `loop`
(step and key), `importance` and `averages` where it has them, and `meta`, a JSON item with the
fingerprints of all leaves (`notes`), by which what is restored is checked.
"""

import contextlib
import os
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp
from etils import epath

from nrdm_jax import trees
from nrdm_jax.bounded_files import MOST_JSON, read_bytes
from nrdm_jax.checkpointing import differences, fingerprints, notes, verification
from nrdm_jax.checkpointing.errors import (
    PAUSES,
    DamagedCheckpoint,
    RemovedCheckpoint,
    first_line,
    is_of_machine,
    retried,
)
from nrdm_jax.checkpointing.together import Alone, Together

T = TypeVar("T")

ITEMS = ("params", "ema", "opt", "loop", "importance", "averages")


def steps_in(directory: pathlib.Path) -> list[int]:
    """The steps that are committed there, by their names, from the oldest; nothing is opened."""
    names = [path.name for path in directory.iterdir()] if directory.is_dir() else []
    return sorted(int(name) for name in names if name.isdecimal())


class StoredCheckpoints:
    """The checkpoints under one directory; nothing is written there or cleaned up.

    Args:
      directory: of them.
      together: what the processes do together that read here; alone, where each reads for itself.
      manager: orbax's, of who also saves there.

    Attributes:
      directory: as given.
    """

    def __init__(
        self,
        directory: str,
        *,
        together: Together | None = None,
        manager: ocp.CheckpointManager | None = None,
    ):
        self.directory = directory
        self._directory = epath.Path(directory)
        self._together: Together = together or Alone()
        self._manager = manager or ocp.CheckpointManager(
            self._directory.resolve(),
            options=ocp.CheckpointManagerOptions(
                read_only=True, save_interval_steps=0, create=False
            ),
            item_handlers=handlers(),
        )

    def latest_step(self) -> int | None:
        """The newest committed step, by number and not by time; None where there is none."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """All committed steps, from the oldest."""
        return sorted(self._manager.all_steps())

    def restore(self, step: int, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """The items of `wanted` (abstract trees with shardings), bit for bit.

        Raises:
          ValueError: a leaf is absent, or of another shape or type, with a table of all of them.
          DamagedCheckpoint: it cannot be read, or is not what was saved.
        """
        _, known = self._note(step)
        with self._reading(step):
            rows = [row for item in wanted for row in self._rows(step, item, wanted[item])]
        self._check(step, rows)
        arguments = {name: _arguments(tree) for name, tree in wanted.items()}
        with self._reading(step, as_one=True):
            restored = self._attempted(
                lambda: self._manager.restore(step, args=ocp.args.Composite(**arguments))
            )
        found = {name: restored[name] for name in wanted}
        self._compare(step, known, found)
        return found

    def restore_part(self, step: int, item: str, wanted: Any) -> Any:
        """The leaves of `wanted` (as above) of an item that may have more; those are not read.

        Raises:
          ValueError, DamagedCheckpoint: as `restore`.
        """
        _, known = self._note(step)
        with self._reading(step):
            rows = self._rows(step, item, wanted)
        self._check(step, [(path, a, b) for path, a, b in rows if b != differences.ABSENT])
        arguments = _arguments(wanted, partial_restore=True)
        handler = handlers()[item]
        with self._reading(step, as_one=True), ocp.Checkpointer(handler) as checkpointer:
            place = (self._directory / str(step) / item).resolve()
            found = self._attempted(lambda: checkpointer.restore(place, args=arguments))
        self._compare(step, known, {item: found})
        return found

    def _attempted(self, restore: Callable[[], T]) -> T:
        """Of several processes, which meet on the way, none can try again alone."""
        return restore() if self._together.active() else retried(restore)

    def parts_of(self, step: int, item: str) -> list[str]:
        """The first names in the tree of an item; none where there is no such item."""
        with self._reading(step):
            paths = [path for path, _ in trees.leaves_with_path(self._stored(step, item))]
        return sorted({path.split("/")[0] for path in paths})

    def _stored(self, step: int, item: str) -> Any:
        """The tree of an item, of what says shapes and types; None where there is no such item."""

        def ask() -> Any:
            return self._manager.item_metadata(step).get(item)

        stored = retried(ask)
        if stored is None and item in self._items(step):
            stored = retried(ask)  # orbax takes what it cannot list for what is not there
        return getattr(stored, "tree", stored)

    def _rows(self, step: int, item: str, wanted: Any) -> list[differences.Row]:
        return differences.rows(item, self._stored(step, item), wanted)

    def _check(self, step: int, rows: list[differences.Row]) -> None:
        if rows:
            raise ValueError(
                f"checkpoint {self._directory}/{step} does not fit the config "
                f"({len(rows)} leaves differ); use the config it was made with, or another workdir:"
                f"\n{differences.table(rows)}"
            )

    def meta(self, step: int, pauses: Sequence[float] = PAUSES) -> dict:
        """The JSON item of a step; read again after these seconds, if it cannot be read.

        Raises:
          DamagedCheckpoint: it is not what was saved.
          OSError: it is not known whether it is.
        """
        return self._note(step, pauses)[0]

    def _note(
        self, step: int, pauses: Sequence[float] = PAUSES
    ) -> tuple[dict, dict[str, int] | None]:
        name = f"{self._directory}/{step}"
        try:
            text = retried(
                lambda: read_bytes(notes.place(self._directory, step), MOST_JSON), iter(pauses)
            )
        except (OSError, ValueError) as error:
            message = f"{name}: what it says of itself cannot be read: {error}"
            if is_of_machine(error):
                raise OSError(message) from None
            self._check_there(step)
            raise DamagedCheckpoint(message) from None
        return notes.checked(text, name)

    def leaves(self, step: int) -> dict[str, tuple[str, tuple[int, ...], int]]:
        """{path: (type, shape, bytes)} of what a step has.

        Raises:
          DamagedCheckpoint: it cannot be read.
        """
        with self._reading(step):
            return {
                f"{item}/{path}": (str(leaf.dtype), leaf.shape, fingerprints.bytes_of(leaf))
                for item in self._items(step)
                for path, leaf in trees.leaves_with_path(self._stored(step, item))
            }

    def _items(self, step: int) -> list[str]:
        names = retried(lambda: os.listdir(self._directory / str(step)))
        return [item for item in ITEMS if item in names]

    def faults(self, step: int, process: int = 0, processes: int = 1) -> list[str]:
        """See `verification.faults`."""
        try:
            _, known = self._note(step)
            with self._reading(step):
                stored = {item: self._stored(step, item) for item in self._items(step)}
        except DamagedCheckpoint as error:
            return [str(error)]
        directory = (self._directory / str(step)).resolve()
        return verification.faults(directory, stored, known, process, processes)

    def reload(self) -> None:
        """Looks again at what is there."""
        self._manager.reload()

    def _compare(
        self, step: int, known: Mapping[str, int] | None, restored: Mapping[str, Any]
    ) -> None:
        if known is None:
            print(
                f"warning: {self._directory}/{step} was saved without fingerprints: whether it is "
                "damaged cannot be seen",
                file=sys.stderr,
            )
            return
        found = fingerprints.of_tree(dict(restored))
        wrong = sorted(path for path, number in found.items() if known.get(path) != number)
        if wrong:
            raise DamagedCheckpoint(
                f"{self._directory}/{step}: {len(wrong)} of {len(found)} leaves have changed since "
                f"they were saved, such as {wrong[0]}; nrdm checkpoint verify names them all"
            )

    @contextlib.contextmanager
    def _reading(self, step: int, *, as_one: bool = False) -> Iterator[None]:
        """Whatever a library makes of damaged bytes; of processes that read `as_one`, which meet on
        the way, an error may be that another one has ended."""
        try:
            yield
        except DamagedCheckpoint:
            raise
        except Exception as error:
            if as_one and self._together.loss(error) is not None:
                raise
            message = f"{self._directory}/{step} cannot be read: {first_line(error)}"
            if is_of_machine(error):
                raise OSError(message) from error
            self._check_there(step)
            raise DamagedCheckpoint(message) from error

    def _check_there(self, step: int) -> None:
        """Raises:
        RemovedCheckpoint: it is not.
        OSError: that cannot be seen.
        """
        try:
            os.stat(self._directory / str(step))
        except FileNotFoundError:
            raise RemovedCheckpoint(
                f"{self._directory}/{step} was removed while it was read, as by a run that goes on "
                "and keeps newer ones; the same command reads the newest that there is now"
            ) from None

    def close(self) -> None:
        """Ends what orbax holds."""
        self._manager.close()


def handlers(callback: Any = None, **more) -> dict[str, Any]:
    """Orbax's, of each item.

    Args:
      callback: asked as arrays are copied to be written.
      **more: of `PyTreeCheckpointHandler`.
    """
    # Without orbax's files on arrays: no restore here needs them, and `verification`, which does
    # not read them, would take a step for whole that they keep from being restored.
    arrays = ocp.type_handlers.ArrayHandler(array_metadata_store=None, callback=callback)
    registry = ocp.type_handlers.create_type_handler_registry((jax.Array, arrays))
    trees_of = {
        item: ocp.PyTreeCheckpointHandler(type_handler_registry=registry, **more) for item in ITEMS
    }
    return trees_of | {"meta": ocp.JsonCheckpointHandler()}


def _arguments(wanted: Any, **more) -> ocp.args.PyTreeRestore:
    """With the shardings of `wanted`: what a file says of those of before is not read."""
    restore_args = ocp.checkpoint_utils.construct_restore_args(wanted)
    return ocp.args.PyTreeRestore(wanted, restore_args=restore_args, **more)
