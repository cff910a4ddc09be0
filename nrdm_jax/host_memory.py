"""Memory of the host that nothing uses."""

import ctypes


def give_back() -> None:
    """Returns to the system what was freed; tens of milliseconds.

    glibc keeps it for the threads that have had it, each of which has an arena: what the compiler's
    threads have freed, and those of a save, is held by the process until it ends and used by no
    other. Elsewhere than in glibc nothing is done.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
