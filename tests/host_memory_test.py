"""Memory that was freed is the system's again."""

import ctypes
import pathlib
import threading

import pytest

from nrdm_jax import host_memory

COUNT, SIZE = 2048, 2**15  # blocks that are small enough to be an arena's


def resident():
    """Bytes."""
    text = pathlib.Path("/proc/self/status").read_text()
    return int(text.split("RssAnon:")[1].split()[0]) * 1024


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="another libc than glibc")
def test_what_a_thread_has_freed_is_given_back():
    libc = ctypes.CDLL(None)
    libc.malloc.restype = libc.memset.restype = ctypes.c_void_p
    libc.malloc.argtypes = [ctypes.c_size_t]
    libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    kept = []

    def work():
        blocks = [libc.malloc(SIZE) for _ in range(COUNT)]
        for block in blocks:
            libc.memset(block, 1, SIZE)
        kept.append(blocks.pop())  # above the others: what is below it does not go by itself
        for block in blocks:
            libc.free(block)

    before = resident()
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    held = resident() - before
    assert held > COUNT * SIZE / 2
    host_memory.give_back()
    assert resident() - before < held / 4
    libc.free(kept[0])
