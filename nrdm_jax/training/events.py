"""TensorBoard's event files."""

import contextlib
import pathlib
import sys
import time
from collections.abc import Mapping
from typing import Any


class Events:
    """Scalars for TensorBoard, written by who logs them.

    tensorboardX's own writer does it in a thread, which one refusal of the disk ends: ten scalars
    later whoever logs waits for good.

    Args:
      directory: where the files are.
      first_step: what an earlier process wrote of this step or later ones is shown no more.
    """

    def __init__(self, directory: pathlib.Path, first_step: int):
        self._directory, self._opened = directory, 0
        self._file: Any = None
        event = _tensorboardx().proto.event_pb2
        start = event.SessionLog(status=event.SessionLog.START)
        self._first = [event.Event(step=first_step, session_log=start)]

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Raises:
        OSError: they could not be. The next are in a new file: this one may end within a record.
        """
        library = _tensorboardx()
        events = [
            library.proto.event_pb2.Event(
                step=step, wall_time=time.time(), summary=library.summary.scalar(name, value)
            )
            for name, value in values.items()
        ]
        is_new = self._file is None
        try:
            if is_new:
                self._open(library)
            for event in self._first + events:
                self._file.write_event(event)
            self._file.flush()
        except OSError:
            file, self._file = self._file, None
            with contextlib.suppress(OSError, AttributeError):
                file.close()
            if file is not None and is_new:  # of a disk that stays full, one a call
                pathlib.Path(file._file_name).unlink(missing_ok=True)
            raise
        self._first = []

    def _open(self, library: Any) -> None:
        suffix = f".{self._opened}" if self._opened else ""
        prefix = str(self._directory / "events")
        self._file = library.event_file_writer.EventsWriter(prefix, suffix)
        self._opened += 1

    def close(self) -> None:
        """Raises:
        OSError: as `write`.
        """
        if self._file is not None:
            self._file.close()


def _tensorboardx() -> Any:
    """The library, without the torch that it imports where there is one: seconds and memory for
    conversions of tensors that never come."""
    hidden = {"torch": None} if not {"torch", "tensorboardX"} & set(sys.modules) else {}
    sys.modules.update(hidden)  # type: ignore[arg-type]
    try:
        import tensorboardX
        import tensorboardX.event_file_writer
        import tensorboardX.summary
    finally:
        for name in hidden:
            del sys.modules[name]
    return tensorboardX
