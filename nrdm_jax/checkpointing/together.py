"""What the processes that write one checkpoint must be able to do together.

`nrdm_jax.processes.distributed` does it; who saves hands it in, so that this layer knows of no
coordinator.
"""

from typing import Any, Protocol


class Together(Protocol):
    """Of the processes of a job; of one alone, see `Alone`."""

    def active(self) -> bool:
        """Whether there are several."""

    def is_writer(self) -> bool:
        """Whether this one writes what is of all."""

    def told(self, value: Any) -> list:
        """The values of all, plain JSON, by their numbers. All must ask equally often."""

    def agree(self, name: str, value: Any, limit: float) -> list:
        """As `told`, under a name, within so many seconds."""

    def meet(self, name: str, limit_ms: int) -> None:
        """Returns when all have come here."""

    def loss(self, error: Exception) -> tuple[int, str] | None:
        """Whether an error is another process's end: (exit code, message)."""


class Alone:
    """One process."""

    def active(self) -> bool:
        return False

    def is_writer(self) -> bool:
        return True

    def told(self, value: Any) -> list:
        return [value]

    def agree(self, name: str, value: Any, limit: float) -> list:
        return [value]

    def meet(self, name: str, limit_ms: int) -> None:
        return

    def loss(self, error: Exception) -> None:
        return
