"""Rows of the table of faults: what goes wrong, and with which exit code and message a run has to
answer; and the ways in which a row calls an entry of the package."""

import contextlib
import dataclasses
import importlib
import io
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from unittest import mock

from absl import flags

from nrdm_jax.processes import exit_codes, lifecycle

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Seconds that a process may take.
PATIENCE = 120

Answer = tuple[int, str]  # exit code, first line of the message


@dataclasses.dataclass(frozen=True)
class Row:
    """A fault.

    Attributes:
      name: what goes wrong.
      group: of faults, such as "bad config" or "hostile file".
      expected_code: exit code.
      expected_message: a part of the message.
      run: (an empty folder) -> what was answered.
    """

    name: str
    group: str
    expected_code: int
    expected_message: str
    run: Callable[[pathlib.Path], Answer]


def seen(row: Row, scratch: pathlib.Path) -> Answer:
    """The exit code and the first line of the message, of a row in a folder of its own below
    `scratch`."""
    name = "".join(c if c.isalnum() else "_" for c in f"{row.group} {row.name}")
    folder = scratch / name[:100]
    folder.mkdir(parents=True)
    return row.run(folder)


def is_as_expected(row: Row, answer: Answer) -> bool:
    code, message = answer
    return code == row.expected_code and row.expected_message in message


def entry(name: str, *arguments: str, variables: Mapping[str, str] | None = None) -> Answer:
    """What `python -m nrdm_jax.NAME ARGUMENTS` ends with, called in this process by what decides
    its exit code.

    Args:
      name: of the entry's module.
      arguments: of it.
      variables: of the environment.
    """
    module = importlib.import_module(f"nrdm_jax.{name}")
    argv = [f"python -m nrdm_jax.{name}", *arguments]
    with (
        _flags_of(module),
        mock.patch.dict(os.environ, variables or {}),
        mock.patch.object(sys, "argv", argv),  # of which config_flags reads the fields
    ):
        launched: list[bool] = []
        # A config file's module of the name that config_flags gives to all would have its names.
        sys.modules.pop("config_config", None)
        # Whether there are operands is said by the entry's own call.
        with mock.patch.object(
            module.lifecycle,
            "launch",
            lambda *_, with_operands=False: launched.append(with_operands),
        ):
            module.main()
        return _answer(lambda: lifecycle._run(module.run, "", argv, launched[0]))


def call(action: Callable[[], object]) -> Answer:
    """The same of a function that an entry calls."""

    def main() -> None:
        action()

    with _flags_of(None):
        return _answer(lambda: lifecycle._run(main, "", ["call"], False))


def process(*command: str, variables: Mapping[str, str] | None = None) -> Answer:
    """The same of a process: python -m COMMAND."""
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, env={**os.environ, **(variables or {})},
        capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    return done.returncode, first_line(done.stderr)


def first_line(told: str) -> str:
    """Of the error that an entry tells; else of its warning, else its last line: a traceback's."""
    lines = told.strip().splitlines()
    for kind in ("error: ", "warning: "):
        for line in lines:
            if line.startswith(kind):
                return line.removeprefix("error: ")
    return lines[-1] if lines else ""


def _answer(run: Callable[[], int]) -> Answer:
    told = io.StringIO()
    with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()):
        try:
            code = run()
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else exit_codes.FAILED
    return code, first_line(told.getvalue())


@contextlib.contextmanager
def _flags_of(module) -> Iterator[None]:
    """Flags that are defined within are gone after it: one process calls many entries."""
    before: Sequence[str] = list(flags.FLAGS)
    was_parsed, gnu = flags.FLAGS.is_parsed(), flags.FLAGS.is_gnu_getopt()
    try:
        yield
    finally:
        for name in [name for name in flags.FLAGS if name not in before]:
            by = flags.FLAGS.find_module_defining_flag(name) or ""
            # Those of libraries that were imported within are read later on.
            if by.startswith("nrdm_jax") or name.split(".")[0] == "config":
                delattr(flags.FLAGS, name)
        flags.FLAGS.set_gnu_getopt(gnu)
        if not was_parsed:
            flags.FLAGS.unparse_flags()
