"""Memory of the host that nothing uses."""

import contextlib
import ctypes
import gc
import os
from collections.abc import Iterator

CORES = 16  # that share one of malloc's arenas
_ARENA_MAX = -8  # M_ARENA_MAX of malloc.h


def arenas() -> int:
    """Two, and more where so many threads compile that they would wait for them."""
    return max(2, (os.cpu_count() or 1) // CORES)


def few_arenas() -> None:
    """Lets all threads of the process share a few of malloc's arenas, unless MALLOC_ARENA_MAX says
    how many; to be called before there are threads.

    glibc gives new threads an arena each, up to eight a core, and every save has new threads: what
    stays of one in an arena keeps the pages around it, and the process grows for hours.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and "MALLOC_ARENA_MAX" not in os.environ:
        mallopt(_ARENA_MAX, arenas())


def give_back() -> None:
    """Returns to the system what was freed; tens of milliseconds.

    glibc keeps it for the threads that have had it, each of which has an arena: what the compiler's
    threads have freed, and those of a save, is held by the process until it ends and used by no
    other. Elsewhere than in glibc nothing is done.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


@contextlib.contextmanager
def settled() -> Iterator[None]:
    """What there is now is taken to stay, by Python's collector of cycles, until the end of this.

    A traced and compiled program is hundreds of thousands of objects. The collector looks at all of
    them only once a quarter as many have come (cpython's Modules/gcmodule.c, long_lived_pending),
    so that figures and buffers lie about until then; and then it stops the process for a tenth of a
    second and more, and with it all that wait for it in a collective. Set apart, they are neither
    counted nor looked at: garbage goes early, in milliseconds.
    """
    gc.collect()
    gc.freeze()
    gc.collect()  # which counts what there is now: nothing
    give_back()
    try:
        yield
    finally:
        gc.unfreeze()
