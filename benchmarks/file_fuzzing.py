"""Whether damaged files are refused as they are to be, in every format that is read.

  python -m benchmarks.file_fuzzing --cases=1000 --formats=a.npz,clip.mp4

Each case is a valid file with a few bits flipped, bytes set, cut, doubled or put in, or a number in
it made huge. What reads it returns, or raises an error of ours, with the file's name, that ends in
an exit code and no traceback. Anything else is a fault: another exception, an abort, more than so
many seconds or bytes, and, as Python's audit events tell it, a program or a connection begun, a
pickle's global looked up, or a file written. Prints a line of JSON a format; exits 1 for faults.
"""

import faulthandler
import itertools
import json
import pathlib
import random
import resource
import sys
import tempfile
import time
from collections.abc import Iterator

from absl import flags

from nrdm_jax.processes import lifecycle

MOST_SECONDS = 20  # of a case
MOST_BYTES = 3 * 2**29  # of the process's memory, above what it has before the first case
MOST_ADDRESSES = 2**32  # of its address space, likewise
# Numbers that sizes and places are most often wrong with.
HUGE = (0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1)
FORBIDDEN = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork",
             "socket.connect", "socket.bind", "pickle.find_class", "os.remove", "os.rename",
             "os.mkdir", "os.rmdir", "os.symlink", "os.link", "os.truncate", "os.chmod",
             "webbrowser.open", "urllib.Request")  # fmt: skip

_told: list[str] | None = None  # forbidden events, while a file is read


def define_flags() -> None:
    flags.DEFINE_integer("cases", 200, "of damage, of each format", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "of the damage")
    flags.DEFINE_list("formats", None, "names of formats; by default all")


def damaged(content: bytes, seed: int) -> Iterator[tuple[str, bytes]]:
    """(what was done, the content with that done to it), without end."""
    draw = random.Random(seed)
    told = [at for at, byte in enumerate(content) if byte] or [0]  # some files are mostly empty
    while True:
        done, now = [], bytearray(content)
        for _ in range(draw.choice((1, 1, 1, 2, 4))):
            # Headers are at the beginning or the end.
            near = draw.choice((len(now), 64, 512))
            at = draw.randrange(min(near, len(now)) or 1)
            at = len(now) - 1 - at if draw.random() < 0.2 and now else at
            at = min(draw.choice(told), len(now)) if draw.random() < 0.5 else at
            kind = draw.choice(("flip", "set", "huge", "cut", "remove", "double", "insert"))
            done.append(f"{kind} at {at}")
            if kind == "flip" and at < len(now):
                now[at] ^= 1 << draw.randrange(8)
            elif kind == "set" and at < len(now):
                now[at] = draw.choice((0, 0xFF, ord("0"), ord("-"), draw.randrange(256)))
            elif kind == "huge":
                size = draw.choice((1, 2, 4, 8))
                number = draw.choice([n for n in HUGE if n < 256**size])
                now[at : at + size] = number.to_bytes(size, draw.choice(("little", "big")))
            elif kind == "cut":
                del now[at:]
            elif kind == "remove":
                del now[at : at + draw.choice((1, 2, 16))]
            elif kind == "double":
                now[at:at] = now[at : at + draw.choice((1, 4, 64))]
            else:
                now[at:at] = draw.randbytes(draw.choice((1, 4, 64)))
        yield ", ".join(done), bytes(now)


def fault(one, path: pathlib.Path, content: bytes) -> str:
    """What is wrong with how a format's reader takes a file of this content, which is written; ""
    for nothing."""
    global _told
    path.write_bytes(content)
    _told = events = []
    begun, found = time.monotonic(), ""
    try:
        one.read(path)
    except Exception as error:
        found = _fault_of(error, path)
    finally:
        _told = None
    seconds = time.monotonic() - begun
    if seconds > MOST_SECONDS:
        events.append(f"nothing for {seconds:.0f} s")
    return found or (f"it did {events[0]}" if events else "")


def _fault_of(error: Exception, path: pathlib.Path) -> str:
    ours = isinstance(error, ValueError) and lifecycle._is_ours(error)
    if not ours and getattr(error, "exit_code", None) is None:
        return f"{type(error).__name__}: {error}"
    if path.name not in str(error) and str(path.parent) not in str(error):
        return f"without the file's name: {error}"
    return ""


def watch() -> None:
    """Notes forbidden events from now on, while files are read."""
    sys.addaudithook(_note)


def _note(event: str, arguments: tuple) -> None:
    if _told is None:
        return
    if event in FORBIDDEN:
        _told.append(f"{event} {arguments!r}"[:200])
    elif event == "open":
        path, mode, bits = arguments
        writes = any(c in str(mode or "") for c in "wax+") or (bits or 0) & 3
        if writes and path != "/dev/null":
            _told.append(f"open {path!r} to write")


def peak() -> int:
    """Bytes of memory that this process has had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def bound_addresses() -> None:
    """A read that asks for more than `MOST_ADDRESSES` from now on is a MemoryError."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MOST_ADDRESSES
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))


def fuzz(one, path: pathlib.Path, cases: int, seed: int) -> dict:
    """{"format", "cases", "seconds", "faults": [what was done, and what was wrong]}."""
    content, faults = path.read_bytes(), []
    one.read(path)  # the file itself is a valid one
    begun = time.monotonic()
    for done, now in itertools.islice(damaged(content, seed), cases):
        faulthandler.dump_traceback_later(3 * MOST_SECONDS, exit=True)
        found = fault(one, path, now)
        faulthandler.cancel_dump_traceback_later()
        if found:
            faults.append([done, found])
    path.write_bytes(content)
    seconds = round(time.monotonic() - begun, 2)
    return {"format": one.name, "cases": cases, "seconds": seconds, "faults": faults}


def run() -> int:
    import warnings

    from benchmarks.file_formats import FORMATS, made

    warnings.simplefilter("ignore")  # of libraries, of what is damaged
    names = flags.FLAGS.formats or list(FORMATS)
    unknown = [name for name in names if name not in FORMATS]
    if unknown:
        raise ValueError(f"--formats: {unknown[0]} is none; give {', '.join(FORMATS)}")
    wrong = False
    memory = pathlib.Path("/dev/shm")  # a disk would take most of the time
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as scratch:
        files = {n: made(n, pathlib.Path(scratch) / str(i)) for i, n in enumerate(names)}
        for name, path in files.items():
            FORMATS[name].read(path)  # what is imported and compiled with the first is no case's
        before = peak()
        watch()
        bound_addresses()
        for name, path in files.items():
            found = fuzz(FORMATS[name], path, flags.FLAGS.cases, flags.FLAGS.seed)
            if peak() - before > MOST_BYTES:
                found["faults"].append(["one of all", f"took {(peak() - before) >> 20:,} MiB"])
                before = peak()
            wrong |= bool(found["faults"])
            print(json.dumps(found | {"peak_mib": peak() >> 20}), flush=True)
    return int(wrong)


def main() -> None:
    define_flags()
    lifecycle.launch(run, __doc__)


if __name__ == "__main__":
    main()
