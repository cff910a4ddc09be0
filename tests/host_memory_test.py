"""Memory that was freed is the system's again."""

import ctypes
import json
import os
import pathlib
import subprocess
import sys
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


ARENAS_OF = """
import ctypes, os, re, sys, threading
from nrdm_jax import host_memory

if sys.argv[1] == "few":
    host_memory.few_arenas()
libc = ctypes.CDLL(None)
libc.fmemopen.restype, libc.fdopen.restype = ctypes.c_void_p, ctypes.c_void_p
libc.malloc.restype = ctypes.c_void_p
together = threading.Barrier(12)

def work():
    libc.malloc(100)
    together.wait()

threads = [threading.Thread(target=work) for _ in range(12)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
reader, writer = os.pipe()
file = libc.fdopen(writer, b"w")
libc.malloc_info(0, ctypes.c_void_p(file))
libc.fclose(ctypes.c_void_p(file))
print(len(re.findall(rb"<heap nr=", os.read(reader, 2**16))))
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_info"), reason="another libc than glibc")
def test_threads_share_a_few_arenas():
    def arenas(how, **variables):
        environment = {k: v for k, v in os.environ.items() if k != "MALLOC_ARENA_MAX"} | variables
        command = [sys.executable, "-c", ARENAS_OF, how]
        return int(subprocess.run(command, env=environment, capture_output=True, check=True).stdout)

    assert arenas("all") > host_memory.arenas()
    assert arenas("few") == host_memory.arenas()
    assert arenas("few", MALLOC_ARENA_MAX="5") == 5  # what the user says


MOST_ALIVE = """
import collections, gc, json
from nrdm_jax import host_memory

class Cycle:
    alive = 0

    def __init__(self):
        self.itself = self
        Cycle.alive += 1

    def __del__(self):
        Cycle.alive -= 1

def most_alive(made, used=5_000):
    # Of so many cycles, of which the last `used` are in use: they have grown old when they are
    # not, unlike what else a program makes.
    in_use, most = collections.deque(maxlen=used), 0
    for _ in range(made):
        in_use.append(Cycle())
        for _ in range(10):
            young = []
            young.append(young)
        most = max(most, Cycle.alive)
    return most

stays = [[] for _ in range(400_000)]
made = len(gc.get_objects()) // 4
gc.collect()
without = most_alive(made)
gc.collect()
with host_memory.settled():
    within = most_alive(made)
print(json.dumps([made, without, within, gc.get_freeze_count()]))
"""


def test_garbage_goes_early_however_much_there_is_that_stays():
    found = subprocess.run([sys.executable, "-c", MOST_ALIVE], capture_output=True, check=True)
    made, without, within, frozen = json.loads(found.stdout)
    assert without > made / 2 > 2 * within
    assert frozen == 0
