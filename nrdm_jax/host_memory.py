"""Memory of the host that nothing uses."""

import contextlib
import ctypes
import gc
from collections.abc import Iterator


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
