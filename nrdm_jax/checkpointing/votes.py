"""Whether a step that several processes write is committed: only if each has written its part.

Orbax's processes meet at barriers in the background: one whose writing failed never comes to the
first, and the others wait there for twenty minutes, and it for them at a later one. Here each tells
how it went at the first, and all know.
"""

import itertools
import sys

from nrdm_jax.checkpointing.errors import first_line
from nrdm_jax.checkpointing.together import Together

WRITTEN, COMMITTED = "async_write_complete", "async_commit_complete"  # orbax's barriers, in order
ENDED = "set_value_start"  # that every process comes to, in whatever way it ended

_saves = itertools.count(1)


class Votes:
    """Of the processes that save under one directory; called as orbax calls its barriers."""

    def __init__(self, together: Together):
        self._together = together
        self._save = 0
        self._open: list[str] = []  # questions of the save that this process has not answered

    def begin(self) -> None:
        """A step will be saved, by all processes."""
        self._save, self._open = next(_saves), [WRITTEN, COMMITTED]

    def __call__(self, *, key: str, timeout_ms: int) -> None:
        """Raises:
        OSError: another process has failed.
        """
        if not self._together.active():
            return
        question = next((name for name in self._open if name in key), None)
        failure = sys.exception()  # that orbax ends its thread with
        if question is not None:
            self._vote(question, "", timeout_ms)
            return
        if ENDED in key and failure is not None and self._open:
            # Process 0 alone commits, after the first vote.
            self._vote(self._open[0], first_line(failure), timeout_ms, known=True)
        self._together.meet(key, timeout_ms)

    def _vote(self, question: str, failure: str, timeout_ms: int, known: bool = False) -> None:
        self._open.remove(question)
        told = self._together.agree(f"save/{self._save}/{question}", failure, timeout_ms / 1000)
        failed = {process: why for process, why in enumerate(told) if why}
        if failed:
            self._open = []
            process, why = next(iter(failed.items()))
            if not known:
                raise OSError(f"process {process} could not write its part: {why}")
