"""The table of faults: what a run answers to each, beside what it has to.

  python -m benchmarks.fault_table
  python -m benchmarks.fault_table --groups=disk,process
  python -m benchmarks.fault_table --write

Each fault befalls a run, or another entry, in a folder of its own; looked at are the exit code and
the message. `--write` puts the table, or the groups of it that were asked for, into
docs/reliability.md. Exits 1, and writes nothing, unless all are as expected.
"""

import collections
import dataclasses
import pathlib
import re
import shutil
import tempfile
import time

from absl import flags

from benchmarks import bad_configs, fault_rows, hostile_files, measuring, process_faults
from benchmarks.fault_rows import ROOT, Row
from nrdm_jax.processes import lifecycle
from nrdm_jax.processes.exit_codes import USAGE, Stop

DOC = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- fault_table: begin -->", "<!-- fault_table: end -->"
HEAD = "| fault | expected code | seen code | message |\n|---|---|---|---|"
LONGEST = 150  # characters of a message


def define_flags() -> None:
    flags.DEFINE_list("groups", [], "of the faults; by default all")
    flags.DEFINE_bool("write", False, "put the table into docs/reliability.md")


@dataclasses.dataclass(frozen=True)
class Line:
    """Of the table. Attributes:
    row: that was tried.
    code, message: seen.
    """

    row: Row
    code: int
    message: str

    @property
    def is_equal(self) -> bool:
        return fault_rows.is_as_expected(self.row, (self.code, self.message))


def rows() -> list[Row]:
    return [*process_faults.rows(), *bad_configs.rows(), *hostile_files.rows()]


def tried(row: Row, scratch: pathlib.Path) -> Line:
    """The message is without what is another each time: the scratch folder's name, and who holds a
    workdir."""
    try:
        code, message = fault_rows.seen(row, scratch)
    except Exception as error:  # the table goes on
        code, message = -1, f"{type(error).__name__}: {error}"
    found = re.sub(rf"{re.escape(str(scratch))}/\w+", "…", message)
    found = re.sub(r"\(process \d+ on [^)]*\)", "(process …)", found)
    for path in scratch.iterdir():
        shutil.rmtree(path, ignore_errors=True)
    return Line(row, code, found)


def shortened(line: Line) -> str:
    """What the message says around the part that was expected, on one line, as Markdown's code."""
    part = line.row.expected_message
    text = re.sub(r"[^\x20-\x7e\xa0-\uffff]+", " ", line.message).replace("`", "'")
    at = max(text.find(part), 0)
    first = at if at + len(part) > LONGEST else 0
    shown = text[first : first + LONGEST]
    whole = ("…" if first else "") + shown.strip() + ("…" if first + LONGEST < len(text) else "")
    return "`" + whole.replace("|", "\\|") + "`"


def tables(lines: list[Line]) -> dict[str, str]:
    """Of each group, in Markdown."""
    groups: dict[str, str] = {}
    for line in lines:
        groups.setdefault(line.row.group, HEAD)
        groups[line.row.group] += (
            f"\n| {line.row.name} | {line.row.expected_code} | {line.code} | {shortened(line)} |"
        )
    return groups


def written() -> dict[str, str]:
    """The tables between the marks."""
    text = DOC.read_text().partition(BEGIN)[2].partition(END)[0]
    parts = re.split(r"^\*\*(.+)\*\*$", text, flags=re.MULTILINE)[1:]
    return {name: table.strip() for name, table in zip(parts[::2], parts[1::2], strict=True)}


def write(found: dict[str, str], order: list[str]) -> None:
    """In the place of those that are there of these groups; all in their order."""
    every = written() | found
    text = "\n".join(f"**{group}**\n\n{every[group]}\n" for group in order if group in every)
    before, _, rest = DOC.read_text().partition(BEGIN)
    DOC.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{rest.partition(END)[2]}")


def run() -> int:
    # Of what is hostile to a reader that is not there nothing would be seen.
    measuring.require("av", "nibabel", "pydicom", "tokenizers", extra="video,medical,text")
    f, every = flags.FLAGS, rows()
    known = list(dict.fromkeys(row.group for row in every))
    if unknown := set(f.groups) - set(known):
        raise Stop(USAGE, f"--groups: {min(unknown)!r} is none; give some of {', '.join(known)}")
    wanted = [row for row in every if not f.groups or row.group in f.groups]
    lines = []
    with tempfile.TemporaryDirectory() as directory:
        for row in wanted:
            before = time.monotonic()
            line = tried(row, pathlib.Path(directory))
            lines.append(line)
            print(
                f"{'equal' if line.is_equal else 'DIFFERENT'}: {row.group}: {row.name}: "
                f"{line.code} (expected {row.expected_code}), {line.message[:300]!r}"
                + ("" if line.is_equal else f" (expected {row.expected_message!r})")
                + f", {time.monotonic() - before:.1f} s",
                flush=True,
            )
    equal = [line for line in lines if line.is_equal]
    if f.write and len(equal) == len(lines):
        write(tables(lines), known)
    counts = collections.Counter(line.row.group for line in lines)
    measuring.print_result(
        {
            "rows": len(lines),
            "equal": len(equal),
            "groups": dict(counts),
            "different": [f"{x.row.group}: {x.row.name}" for x in lines if not x.is_equal],
        }
    )
    return 0 if len(equal) == len(lines) else 1


def main() -> None:
    define_flags()
    lifecycle.launch(run, __doc__)


if __name__ == "__main__":
    main()
