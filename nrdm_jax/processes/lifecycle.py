"""The one owner of the process's life: environment, flags, exit codes and the end; signals and the
watchdog are in `signals`.

Imports no jax: `--help` and every configuration error must answer in under two seconds.
"""

import atexit
import contextlib
import importlib.util
import os
import pathlib
import re
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable

from absl import flags, logging

from nrdm_jax import host_memory
from nrdm_jax.processes import distributed, exit_codes
from nrdm_jax.processes.signals import Signals, say

__all__ = ["Signals", "bounded", "cache_dir", "data_dir", "launch", "prepare_environment"]

AT_EXIT = 60.0  # seconds for what ends by itself: threads of loaders, what libraries do at exit

OPEN_FILES = 65_536  # at a time, where the system lets a process have as many

# One of them is there on a machine with NVIDIA's GPUs, the second under Windows.
NVIDIA_DEVICES = ("/dev/nvidiactl", "/dev/dxg", "/dev/nvgpu")


def cache_dir() -> pathlib.Path:
    """`.cache` of the clone; of the current directory where the package is installed elsewhere."""
    root = pathlib.Path(__file__).resolve().parents[2]
    return (root if (root / "setup.py").exists() else pathlib.Path.cwd()) / ".cache"


def data_dir() -> pathlib.Path:
    """Where prepared data sets are, unless the config says."""
    return pathlib.Path(os.environ.get("TFDS_DATA_DIR", cache_dir() / "data"))


def prepare_environment() -> None:
    """Settles where caches go and how memory is kept, before jax is imported, where the user has
    set nothing else; and lets as many files be open as the system does."""
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache_dir() / "jax"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "1")
    # A compiler for GPUs that is installed (the extra gpu-aot) takes itself for a GPU's driver.
    compiler = importlib.util.find_spec("jax_cuda13_plugin")
    if compiler and not any(map(os.path.exists, NVIDIA_DEVICES)):
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    host_memory.few_arenas()
    # A reader of shards holds one file open for each.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    # XLA's and TensorStore's notes on CPU features would bury our own lines.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def launch(
    main: Callable[..., int | None], summary: str | None, *, with_operands: bool = False
) -> None:
    """Parses the flags, runs `main`, and leaves with the exit code of what happened.

    `with_operands`: `main` takes the list of arguments that are no flags, before or after them;
    without it there may be none.

    ValueError is a user's error (exit code 2, no traceback) and so is an exception of our own that
    has an `exit_code`; anything else is a defect, and shows its traceback.
    """
    # The first that is registered is the last that is called: no teardown of libraries after it,
    # in which some hang.
    ended: list[int] = []
    atexit.register(_end, ended)
    # Of an entry that has not come so far as to poll, nothing is lost.
    early = Signals(patience=0.0)
    numbers = [signal.SIGTERM]
    # A shell lets what its scripts put into the background ignore Ctrl-C; elsewhere it raises.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        numbers.append(signal.SIGINT)
    with early.installed(numbers):
        code = _run(main, summary or "", sys.argv, with_operands)
    ended.append(code)
    distributed.leave(code)
    threading.Thread(target=_end_late, args=(code,), name="exit", daemon=True).start()
    sys.exit(code)


def _end(ended: list[int]) -> None:
    if ended:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(ended[0])


def _end_late(code: int) -> None:
    time.sleep(AT_EXIT)
    threads, main = threading.enumerate(), threading.main_thread()
    alive = [t.name for t in threads if t is not main and not t.daemon]
    say(f"warning: the exit takes over {AT_EXIT:.0f} s, for {alive}; leaving without it")
    os._exit(code)


def bounded(what: str, action: Callable[[], object], seconds: float) -> None:
    """Does `action`, which closes something, and raises what it raises; after so many seconds it is
    left to itself, with a warning. 0: any."""
    raised: list[BaseException] = []

    def do() -> None:
        try:
            action()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=do, name=f"closing {what}", daemon=True)
    thread.start()
    thread.join(timeout=seconds or None)
    if thread.is_alive():
        say(f"warning: closing {what} takes over {seconds:g} s; left to itself")
    if raised:
        raise raised[0]


def _run(
    main: Callable[..., int | None], summary: str, argv: list[str], with_operands: bool
) -> int:
    if any(a in ("--help", "-h", "-help", "--helpfull") for a in argv[1:]):
        print(summary.strip(), "\n")
        print(_help())
        return exit_codes.DONE
    if with_operands:
        flags.FLAGS.set_gnu_getopt(True)  # flags may come after operands
    try:
        _, *operands = flags.FLAGS(argv)
    except Exception as error:  # config_flags raises whatever the config file raised
        return _fail(_flag_message(error, argv), exit_codes.USAGE)
    if operands and not with_operands:
        return _fail(f"unexpected argument {operands[0]!r}; see --help", exit_codes.USAGE)
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.ERROR)
    prepare_environment()
    try:
        return (main(operands) if with_operands else main()) or exit_codes.DONE
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except Exception as error:
        code = getattr(error, "exit_code", None)
        # First: of a jitted function that is called here, it comes as a ValueError raised here.
        if code is None and (lost := distributed.loss(error)) is not None:
            return _fail(lost[1], lost[0])
        if code is None and isinstance(error, ValueError) and _is_ours(error):
            code = exit_codes.USAGE
        if code is None and isinstance(error, OSError):
            code = exit_codes.IO
        if code is None:
            traceback.print_exc()
            return exit_codes.FAILED
        return _fail(str(error), code)


def _help() -> str:
    """Of all flags that an entry defines, its own and those it shares with others."""
    modules = [m for m in flags.FLAGS.flags_by_module_dict()
               if m == sys.argv[0] or m.split(".")[0] in ("nrdm_jax", "benchmarks")]  # fmt: skip
    return "\n".join(flags.FLAGS.module_help(module) for module in modules)


def _is_ours(error: BaseException) -> bool:
    """Whether a function of this package raised it itself: a ValueError from inside a library is a
    defect, and its traceback is needed."""
    frames = traceback.extract_tb(error.__traceback__)
    package = str(pathlib.Path(__file__).resolve().parents[1])
    return bool(frames) and (
        frames[-1].filename.startswith(package) or "configs" in frames[-1].filename
    )


def _fail(message: str, code: int) -> int:
    with contextlib.suppress(OSError):  # of a log on the disk that is full
        print(f"error: {message}", file=sys.stderr, flush=True)
    return code


def _flag_message(error: Exception, argv: list[str]) -> str:
    """What a flag or config file raised, with the argument that it was about, and no traceback."""
    message = str(error.args[0] if error.args else error) or type(error).__name__
    message = message.replace("\\'", "'").replace("\\n", "\n").strip("'\" ")
    if "Traceback (most recent call last)" in message:
        message = message.split("\n")[0] + " " + message.strip().split("\n")[-1]
    named = re.match(r"\w+", message)
    about = [a for a in argv[1:] if named and re.search(rf"[.]{named[0]}(=|$)", a)]
    return f"{about[0]}: unknown field '{message}" if about else message
