"""Checkpoints of a run as they are saved, over orbax's v0 manager.

Steps are written asynchronously and committed by a rename, so that a kill at any moment leaves the
previous step whole. What a step holds, and how it is read: `stored`; which steps stay: `kept`.
"""

import contextlib
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from nrdm_jax import durability, host_memory
from nrdm_jax.checkpointing import fingerprints, notes
from nrdm_jax.checkpointing.errors import CannotBegin, say, system_message
from nrdm_jax.checkpointing.host_copies import HostCopies
from nrdm_jax.checkpointing.kept import PARTIAL, KeptCheckpoints
from nrdm_jax.checkpointing.retention import Retention
from nrdm_jax.checkpointing.together import Alone, Together
from nrdm_jax.checkpointing.votes import Votes

SAVE_TIMEOUT = 7200  # seconds that a save in the background may take
HOST_BYTES = 64 * 2**30
PROBE = ".probe"


class Checkpoints(KeptCheckpoints):
    """The checkpoints under one directory, and who saves there.

    Args:
      directory: made if absent; what a save that was killed has left there is removed.
      keep: which steps stay as new ones are committed; a number is of the newest, None all.
      host_bytes: of this process's memory that a save may take. A state of which it holds more is
        copied in parts, and `save` returns when it is written.
      most_failed: saves in a row that fail are an error then, and before that a warning; 0: never.
      together: what the processes do together that save here.

    Raises:
      ValueError: there are several processes, and nothing by which they save together.
    """

    def __init__(
        self,
        directory: str,
        *,
        keep: Retention | int | None = 1,
        host_bytes: int = HOST_BYTES,
        most_failed: int = 0,
        together: Together | None = None,
    ):
        if together is None and jax.process_count() > 1:
            raise ValueError("several processes save one checkpoint together; say how")
        self._most_failed, self._failed = most_failed, 0  # in a row
        self._copies = HostCopies(host_bytes)
        self._votes = Votes(together or Alone())
        self._being_saved: int | None = None
        self._problem: str | None = None  # what went wrong with a save, until it is told
        self._gave_up = False  # the last save, whose failure orbax raises again
        self._abandoned: set[pathlib.Path] = set()  # what such saves may yet write
        home = epath.Path(directory)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self.preservation(),
            cleanup_tmp_directories=True,
            # A failed directory creation in the background can hang the process at its exit.
            async_options=ocp.AsyncOptions(
                create_directories_asynchronously=False,
                timeout_secs=SAVE_TIMEOUT,
                barrier_sync_fn=self._votes,
                post_finalization_callback=self._flush,
            ),
            # A run writes several directories at a time, and its processes meet for each.
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                barrier_sync_key_prefix=home.name
            ),
        )
        manager = _Manager(home.resolve(), options=options, item_handlers=self._copies.handlers())
        retention = keep if isinstance(keep, Retention) else Retention(newest=keep)
        super().__init__(directory, retention=retention, together=together, manager=manager)

    def save(self, step: int, items: Mapping[str, Any], meta: dict) -> None:
        """Copies the items (trees of arrays, names of `ITEMS`) and writes them in the background;
        whether that went well `failed` tells, and `wait`. What went wrong with the save before, and
        was not asked for, is told here.

        Raises:
          CannotBegin: of several processes this one alone, which must end: no other one goes on.
          OSError: this save is the last of so many in a row that have failed.
        """
        self.settle()
        self._clear()
        is_last = 0 < self._most_failed <= self._failed + 1
        self._begin(step, items, meta)
        if not is_last:
            return
        self._finish()
        if self._failed >= self._most_failed:
            problem, self._problem = self._problem, None
            raise OSError(
                f"{self._directory}: {problem}, the last of {self._failed} in a row "
                "(checkpoint.most_failed); make room, or mend the disk: the same command goes on "
                "from the newest step there"
            )

    def _begin(self, step: int, items: Mapping[str, Any], meta: dict) -> None:
        arguments = {name: ocp.args.PyTreeSave(tree) for name, tree in items.items()}
        self._remember(step, meta)
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
                # The others wait within the library.
                message = f"{self._directory}: step {step} cannot be begun: {error}"
                raise CannotBegin(message) from error
            self._give_up(step, error)
        except Exception:  # a defect: nothing is being saved
            self._being_saved = None
            raise
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
        self._failed += 1
        self._problem = f"step {step} was not saved: {why}"
        self._manager.reload()  # until then it is taken for the newest
        if self._together.is_writer():
            self._abandoned.add(pathlib.Path(self._directory, f"{step}{PARTIAL}"))
            self._clear()

    def _clear(self) -> None:
        """Removes what abandoned saves have taken of the disk, which is needed. Their threads may
        be writing yet, also where nothing is now, and are not in the way the next time."""
        for partial in self._abandoned:
            shutil.rmtree(partial, ignore_errors=True)

    def _finish(self) -> None:
        """Waits until what is being saved is committed, or given up."""
        try:
            with self._writing():
                self._manager.wait_until_finished()
        except OSError as error:
            if self._being_saved is None:
                if self._gave_up:  # orbax raises it again, to each thread that asks
                    return
                raise
            if not self._is_there(self._being_saved, error):
                self._give_up(self._being_saved, error)
        step, self._being_saved = self._being_saved, None
        if step is None:
            return
        self._failed = 0
        if self._together.is_writer():
            durability.flush_name(pathlib.Path(self._directory, str(step)))
        host_memory.give_back()

    def _is_there(self, step: int, error: OSError) -> bool:
        """Whether the step is committed all the same: then an older one could not be removed."""
        self.reload()
        there = step in self.steps()
        if there:
            self._gave_up = True
            say(
                f"warning: {self._directory}: step {step} is saved, and of older ones some could "
                f"not be removed: {error}"
            )
        return there

    def settle(self) -> None:
        """Returns when no step is being saved; tells of one that was not."""
        self._finish()
        if self._problem is not None and self._together.is_writer():
            say(f"WARNING: {self._problem}")
        self._problem = None

    def _flush(self) -> None:
        """In the background, before the directory of a step gets its name."""
        durability.flush_tree(pathlib.Path(self._directory, f"{self._being_saved}{PARTIAL}"))

    def failed(self) -> str | None:
        """What went wrong with the save before, once it has ended: told once. Never waits."""
        if not self._manager.is_saving_in_progress():
            self._finish()
        problem, self._problem = self._problem, None
        return problem

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
            self.wait()
        finally:
            try:
                with self._writing():
                    self._manager.close()
            except OSError:
                if not self._gave_up:
                    raise
            finally:
                self._clear()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """What tensorstore could not write is a ValueError there."""
        try:
            yield
        except ValueError as error:
            if not (system := system_message(error)):
                raise
            raise OSError(f"{self._directory} cannot be written: {system}") from error


class _Manager(ocp.CheckpointManager):
    """One that does not ask whether to stop. Orbax's asks what `processes.distributed.preempted`
    asks, of a counter that is the process's one, with numbers of its own: a signal that comes
    within a save would be agreed on for a step that never comes."""

    def reached_preemption(self, step: int) -> bool:
        return False
