"""Checkpoints of a run, over orbax's v0 manager: the one place that knows orbax.

A step directory holds items, each restorable by itself: of a run `params`, `ema`, `opt` and `loop`
(step and key), `importance` and `averages` where it has them, and `meta`, a JSON item with the
fingerprints of all leaves (`notes`), by which what is restored is checked. Steps are written
asynchronously and committed by a rename, so that a kill at any moment leaves the previous step
whole.
"""

import contextlib
import dataclasses
import itertools
import pathlib
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from nrdm_jax import trees
from nrdm_jax.checkpointing import differences, durability, fingerprints, notes, verification
from nrdm_jax.checkpointing.errors import (
    DamagedCheckpoint,
    RemovedCheckpoint,
    first_line,
    system_message,
)
from nrdm_jax.checkpointing.host_copies import HostCopies
from nrdm_jax.checkpointing.retention import Retention
from nrdm_jax.checkpointing.together import Alone, Together
from nrdm_jax.checkpointing.votes import Votes

ITEMS = ("params", "ema", "opt", "loop", "importance", "averages")
METRICS = "metrics"  # of a note: of the held-out records at that step
HOST_BYTES = 64 * 2**30
PROBE = ".probe"
PARTIAL = ".orbax-checkpoint-tmp"  # orbax's name for what is not committed


def steps_in(directory: pathlib.Path) -> list[int]:
    """The steps that are committed there, by their names, from the oldest; nothing is opened."""
    names = [path.name for path in directory.iterdir()] if directory.is_dir() else []
    return sorted(int(name) for name in names if name.isdecimal())


class Checkpoints:
    """The checkpoints under one directory.

    Args:
      directory: made if absent, unless `read_only`.
      keep: which steps stay as new ones are committed; a number is of the newest, None all.
      read_only: for sampling and evaluating; nothing is written or cleaned up.
      host_bytes: of this process's memory that a save may take. A state of which it holds more is
        copied in parts, and `save` returns when it is written.
      together: what the processes do together that save here; alone, where they only read.

    Raises:
      ValueError: there are several processes, and nothing by which they save together.
    """

    def __init__(
        self,
        directory: str,
        *,
        keep: Retention | int | None = 1,
        read_only: bool = False,
        host_bytes: int = HOST_BYTES,
        together: Together | None = None,
    ):
        if together is None and not read_only and jax.process_count() > 1:
            raise ValueError("several processes save one checkpoint together; say how")
        self._together: Together = together or Alone()
        self._directory = epath.Path(directory)
        self._retention = keep if isinstance(keep, Retention) else Retention(newest=keep)
        self._values: dict[int, float | None] = {}  # of the retention's metric
        self._copies = HostCopies(host_bytes)
        self._votes = Votes(self._together)
        self._being_saved: int | None = None
        self._problem: str | None = None  # what went wrong with a save, until it is told
        self._gave_up = False  # the last save, whose failure orbax raises again when it is closed
        if read_only:
            options = ocp.CheckpointManagerOptions(
                read_only=True, save_interval_steps=0, create=False
            )
        else:
            options = ocp.CheckpointManagerOptions(
                preservation_policy=_Kept(self._to_keep),
                cleanup_tmp_directories=True,
                # A failed directory creation in the background can hang the process at its exit.
                async_options=ocp.AsyncOptions(
                    create_directories_asynchronously=False,
                    barrier_sync_fn=self._votes,
                    post_finalization_callback=self._flush,
                ),
                # A run writes several directories at a time, and its processes meet for each.
                multiprocessing_options=ocp.options.MultiprocessingOptions(
                    barrier_sync_key_prefix=self._directory.name
                ),
            )
        self._manager = _Manager(
            self._directory.resolve(),
            options=options,
            item_handlers=self._copies.handlers(ITEMS) | {"meta": ocp.JsonCheckpointHandler()},
        )

    def _to_keep(self, steps: list[int]) -> set[int]:
        values = {step: self._value(step) for step in steps} if self._retention.best else {}
        return self._retention.kept(
            steps, {step: value for step, value in values.items() if value is not None}
        )

    def _value(self, step: int) -> float | None:
        """What a step's note says of the metric by which the best are kept."""
        if step not in self._values:
            self._values[step] = None
            with contextlib.suppress(DamagedCheckpoint):
                self._values[step] = self.meta(step).get(METRICS, {}).get(self._retention.metric)
        return self._values[step]

    def latest_step(self) -> int | None:
        """The newest committed step, by number and not by time; None where there is none."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """All committed steps, from the oldest."""
        return sorted(self._manager.all_steps())

    def at_most(self, planned: Sequence[int]) -> int:
        """How many more than now there will be at once, as these ascending steps are saved."""
        have = self.steps()
        return self._retention.most([*have, *planned]) - len(have)

    def remove_after(self, step: int) -> None:
        """Removes what was committed of later steps."""
        for later in [s for s in self.steps() if s > step]:
            self._manager.delete(later)

    def save(self, step: int, items: Mapping[str, Any], meta: dict) -> None:
        """Copies the items (trees of arrays, names of `ITEMS`) and writes them in the background;
        whether that went well `failed` tells, and `wait`. What went wrong with the save before, and
        was not asked for, is told here.

        Raises:
          OSError: of several processes this one cannot begin, alone.
        """
        self.settle()
        arguments = {name: ocp.args.PyTreeSave(tree) for name, tree in items.items()}
        self._values[step] = meta.get(METRICS, {}).get(self._retention.metric)
        meta = notes.signed(meta, fingerprints.of_tree(dict(items)))
        told = self._together.told([self._obstacle(items), self._copies.too_large(items)])
        if why := told[0][0]:
            self._give_up(step, why)
            return
        # Where one has to wait all do: the others would wait in the next step's collectives, which
        # give up sooner.
        in_parts = any(large for _, large in told)
        self._copies.begin(in_parts)
        self._votes.begin()
        self._being_saved, self._gave_up = step, False
        try:
            with self._writing():
                self._manager.save(
                    step,
                    args=ocp.args.Composite(**arguments, meta=ocp.args.JsonSave(meta)),
                    force=True,
                )
        except OSError as error:
            if self._together.active():
                raise  # the others wait within the library
            self._give_up(step, error)
        if in_parts:
            self._finish()

    def _obstacle(self, items: Mapping[str, Any]) -> str:
        """Why the writer cannot write here, if that can be seen: all skip the step then, and none
        waits for one that could not begin."""
        if not self._together.is_writer():
            return ""
        probe = pathlib.Path(self._directory, PROBE)
        try:
            probe.mkdir(exist_ok=True)
            probe.rmdir()
            free = shutil.disk_usage(self._directory).free
        except OSError as error:
            return str(error)
        needed = sum(map(fingerprints.bytes_of, jax.tree.leaves(dict(items))))
        return "" if free > needed else (
            f"No space left: {free / 2**30:.2f} GiB are free, and it takes {needed / 2**30:.2f} GiB"
        )  # fmt: skip

    def _give_up(self, step: int, why: object) -> None:
        """As if the step had never been tried: older ones are as they were, and the next can be."""
        self._being_saved, self._gave_up = None, True
        self._problem = f"step {step} was not saved: {why}"
        self._manager.reload()  # until then it is taken for the newest
        if self._together.is_writer():
            partial = pathlib.Path(self._directory, f"{step}{PARTIAL}")
            shutil.rmtree(partial, ignore_errors=True)  # what it has taken of a disk is needed

    def _finish(self) -> None:
        """Waits until what is being saved is committed, or given up."""
        try:
            with self._writing():
                self._manager.wait_until_finished()
                step, self._being_saved = self._being_saved, None
                if step is not None and self._together.is_writer():
                    durability.flush_name(pathlib.Path(self._directory, str(step)))
        except OSError as error:
            if self._being_saved is None:
                raise
            self._give_up(self._being_saved, error)

    def settle(self) -> None:
        """Returns when no step is being saved; tells of one that was not."""
        self._finish()
        if self._problem is not None and self._together.is_writer():
            print(f"WARNING: {self._problem}", file=sys.stderr, flush=True)
        self._problem = None

    def _flush(self) -> None:
        """In the background, before the directory of a step gets its name."""
        durability.flush(pathlib.Path(self._directory, f"{self._being_saved}{PARTIAL}"))

    def failed(self) -> str | None:
        """What went wrong with the save before, once it has ended: told once. Never waits."""
        if not self._manager.is_saving_in_progress():
            self._finish()
        problem, self._problem = self._problem, None
        return problem

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
            restored = self._manager.restore(step, args=ocp.args.Composite(**arguments))
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
        handler = ocp.PyTreeCheckpointHandler()
        with self._reading(step, as_one=True), ocp.Checkpointer(handler) as checkpointer:
            found = checkpointer.restore(
                (self._directory / str(step) / item).resolve(), args=arguments
            )
        self._compare(step, known, {item: found})
        return found

    def parts_of(self, step: int, item: str) -> list[str]:
        """The first names in the tree of an item; none where there is no such item."""
        with self._reading(step):
            paths = [path for path, _ in trees.leaves_with_path(self._stored(step, item))]
        return sorted({path.split("/")[0] for path in paths})

    def _stored(self, step: int, item: str) -> Any:
        """The tree of an item, of what says shapes and types; None where there is no such item."""
        stored = self._manager.item_metadata(step).get(item)
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

    def meta(self, step: int) -> dict:
        """The JSON item of a step.

        Raises:
          DamagedCheckpoint: it is not what was saved.
        """
        return self._note(step)[0]

    def _note(self, step: int) -> tuple[dict, dict[str, int] | None]:
        name = f"{self._directory}/{step}"
        try:
            text = (self._directory / str(step) / "meta" / "metadata").read_bytes()
        except OSError as error:
            self._check_there(step)
            raise DamagedCheckpoint(f"{name}: what it says of itself is missing: {error}") from None
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
        return [item for item in ITEMS if (self._directory / str(step) / item).exists()]

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

    def set_aside(self, step: int) -> epath.Path:
        """Moves a step out of the way, and says where to: nothing is deleted. Of several processes
        one does it."""
        home = self._directory.parent / f"{self._directory.name}_bad"
        home.mkdir(parents=True, exist_ok=True)
        names = (f"{step}.{n}" if n else str(step) for n in itertools.count())
        place = next(home / name for name in names if not (home / name).exists())
        (self._directory / str(step)).rename(place)
        return place

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
            self._check_there(step)
            raise DamagedCheckpoint(
                f"{self._directory}/{step} cannot be read: {first_line(error)}"
            ) from error

    def _check_there(self, step: int) -> None:
        """Raises:
        RemovedCheckpoint: it is not.
        """
        if not (self._directory / str(step)).exists():
            raise RemovedCheckpoint(
                f"{self._directory}/{step} was removed while it was read, as by a run that goes on "
                "and keeps newer ones; the same command reads the newest that there is now"
            )

    def is_saving(self) -> bool:
        """Whether a step is being written in the background."""
        return self._manager.is_saving_in_progress()

    def wait(self) -> None:
        """Returns when everything saved is committed, and would outlive a loss of power.

        Raises:
          OSError: the last save was not written, as on a disk that is full.
        """
        self._finish()
        if self._problem is not None:
            problem, self._problem = self._problem, None
            raise OSError(f"{self._directory}: {problem}")

    def close(self) -> None:
        """Raises:
        OSError: the last save was not written, and nobody has asked for it.
        """
        try:
            with self._writing():
                self._manager.close()
        except OSError:
            if not self._gave_up:
                raise

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """What tensorstore could not write is a ValueError there."""
        try:
            yield
        except ValueError as error:
            if not (system := system_message(error)):
                raise
            raise OSError(f"{self._directory} cannot be written: {system}") from error


def _arguments(wanted: Any, **more) -> ocp.args.PyTreeRestore:
    """With the shardings of `wanted`: what a file says of those of before is not read."""
    restore_args = ocp.checkpoint_utils.construct_restore_args(wanted)
    return ocp.args.PyTreeRestore(wanted, restore_args=restore_args, **more)


class _Manager(ocp.CheckpointManager):
    """One that does not ask whether to stop. Orbax's asks what `processes.distributed.preempted`
    asks, of a counter that is the process's one, with numbers of its own: a signal that comes
    within a save would be agreed on for a step that never comes."""

    def reached_preemption(self, step: int) -> bool:
        return False


@dataclasses.dataclass
class _Kept(ocp.checkpoint_managers.PreservationPolicy):
    """Ascending steps -> those that stay."""

    choose: Callable[[list[int]], set[int]]

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        kept = self.choose([info.step for info in checkpoints])
        return [info.step in kept for info in checkpoints]
