"""Several processes as one job: how they find each other, who writes, and how they leave.

Imports jax only when there are several: a process alone never pays for it.
"""

import contextlib
import itertools
import json
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator

from nrdm_jax.processes import exit_codes, peers
from nrdm_jax.processes.exit_codes import Stop
from nrdm_jax.processes.watchdog import say

HOUR_MS = 3_600_000

_STATUS = re.compile("(UNKNOWN|UNAVAILABLE|ABORTED|CANCELLED|INTERNAL|DEADLINE_EXCEEDED): ")
_questions = itertools.count(1)
# Seconds after which a process that jax hears nothing of is dead to it, and all others end.
HEARTBEAT = 30
FAREWELL = 60  # seconds that processes wait for each other at the end
ARRIVAL = 300  # and at the start

_active = False
_polls = itertools.count(1)
_peers: peers.Peers | None = None
_sigterm_of_jax: Callable[[int], None] | None = None


def cluster() -> str | None:
    """The name of the cluster whose environment says that this process is one of several: jax finds
    the others there by itself."""
    environment = os.environ
    hosts = environment.get("TPU_WORKER_HOSTNAMES", "").split(",")
    for name, several in (
        # Of the step that srun makes: a script of sbatch by itself is no step, and alone.
        ("slurm", int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1),
        ("ompi", int(environment.get("OMPI_COMM_WORLD_SIZE", 1)) > 1),
        ("cloud_tpu", len(hosts) > 1 or int(environment.get("MEGASCALE_NUM_SLICES", 1)) > 1),
    ):
        if several:
            return name
    return None


def start(
    coordinator: str = "", num_processes: int = 0, process_id: int = -1, arrival: int = ARRIVAL
) -> None:
    """Joins the other processes, named by the arguments or found by the cluster; alone does
    nothing. From then on only process 0 prints.

    Args:
      coordinator: HOST:PORT at which process 0 listens.
      num_processes, process_id: how many there are, and which this one is.
      arrival: seconds that they may take to be there.

    Raises:
      ValueError: only some of the arguments are given, or they contradict each other.
      Stop: the others cannot be reached (exit code 71).
    """
    global _active
    given = (bool(coordinator), num_processes > 0, process_id >= 0)
    if any(given) and not all(given):
        raise ValueError("--coordinator, --num_processes and --process_id go together; give all")
    if all(given) and process_id >= num_processes:
        raise ValueError(f"--process_id is {process_id}; give 0 to {num_processes - 1}")
    if num_processes == 1 or not (any(given) or cluster()):
        return
    import jax

    settings: dict = {
        "initialization_timeout": arrival,
        "heartbeat_timeout_seconds": HEARTBEAT,
        "shutdown_timeout_seconds": FAREWELL,
    }
    if any(given):
        # No detection: it would give each process one GPU of the host.
        settings |= {
            "coordinator_address": coordinator,
            "num_processes": num_processes,
            "process_id": process_id,
            "cluster_detection_method": "deactivate",
        }
        host = coordinator.rsplit(":", 1)[0]
        if host in ("127.0.0.1", "localhost"):
            settings["coordinator_bind_address"] = coordinator
    elif cluster() == "slurm" and os.environ.get("SLURM_NTASKS_PER_NODE") == "1":
        settings["local_device_ids"] = _gpus_of_node()
    handlers = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
    unreached = f"the other processes cannot be reached within {arrival} s"
    peers.on_abort(lambda: (exit_codes.PEER_LOST, unreached))  # as which jax ends its waiting
    try:
        jax.distributed.initialize(**settings)
    except RuntimeError as error:
        raise Stop(
            exit_codes.PEER_LOST, f"the other processes cannot be reached: {error}"
        ) from error
    _active = True
    _know_the_others(handlers)
    if num_processes and jax.process_count() != num_processes:
        raise ValueError(
            f"--num_processes is {num_processes}, but jax counts {jax.process_count()}"
        )
    if jax.process_index():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # until the process's end


def _know_the_others(handlers: dict) -> None:
    """Takes SIGTERM back from jax, which `tell_stop` tells of it, and listens to the others."""
    global _peers, _sigterm_of_jax
    import jax
    from jax._src.distributed import global_state

    # Two signals count, and jax would see one; and it would see none if it were only replaced.
    _sigterm_of_jax = peers.handler_of(signal.SIGTERM)
    for number, handler in handlers.items():
        if callable(handler):
            signal.signal(number, handler)
    _peers = peers.Peers(
        global_state.client,
        jax.process_index(),
        jax.process_count(),
        global_state.coordinator_address or "",
        _leave_at_once,
    )
    peers.on_abort(_peers.code_of_abort)
    _peers.start()


def _leave_at_once(code: int, message: str) -> None:
    say(f"error: {message}")
    os._exit(code)


def index() -> int:
    """The number of this process."""
    if not _active:
        return 0
    import jax

    return jax.process_index()


def tell_stop() -> None:
    """Tells the others that this process was told to stop: jax, whose `preempted` then agrees with
    them, and those that do not poll."""
    if _active and _sigterm_of_jax is not None:
        _sigterm_of_jax(signal.SIGTERM)
    if _peers is not None:
        _peers.note("stopping")


def tell_leaving(code: int) -> None:
    """Tells the others that this process leaves, and why."""
    if _peers is not None:
        _peers.leaving = code
        _peers.note(f"left {code}")


def peers_ask(nothing_to_save: Callable[[], bool]) -> None:
    """What decides whether this process, ended by another one's preemption, was preempted too."""
    if _peers is not None:
        _peers.nothing_to_save = nothing_to_save


def stop_is_near() -> bool:
    """Whether any process was told to stop."""
    return _peers is not None and _peers.stop_is_near()


def loss(error: Exception) -> tuple[int, str] | None:
    """Whether an error of jax is another process's end: (exit code, message). It comes before it is
    known that the other is dead: returns within a heartbeat."""
    of_jax = isinstance(error, RuntimeError) or (
        # As some collectives' errors come through `jit`.
        isinstance(error, ValueError) and _STATUS.match(str(error))
    )
    if _peers is None or not of_jax:
        return None
    lost = _peers.await_loss(HEARTBEAT + 5)
    first = str(error).strip().splitlines()[0][:200]
    if lost is not None:
        return exit_codes.PEER_LOST, f"{lost}: {first}"
    return _peers.code_of_abort()


def _gpus_of_node() -> list[int] | None:
    """All GPUs of a node that has one process: jax would take the first one only."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or os.environ.get("SLURM_STEP_GPUS", "")
    count = len(visible.split(",")) if visible else int(os.environ.get("SLURM_GPUS_ON_NODE", 0))
    return list(range(count)) or None


def active() -> bool:
    """Whether this process is one of several."""
    return _active


def is_writer() -> bool:
    """Whether files are this process's to write. All must compute what is written."""
    if not _active:
        return True
    import jax

    return jax.process_index() == 0


def meet(name: str, limit_ms: int = HOUR_MS) -> None:
    """Returns when every process has come here, once a name; however slow one is, up to an hour.

    Through the coordinator, and no collective of devices: some give up after half a minute.
    """
    if _active:
        _client().wait_at_barrier(name, timeout_in_ms=limit_ms)


def _client():
    """Of the coordinator."""
    from jax._src.distributed import global_state

    assert global_state.client is not None
    return global_state.client


def told(value, limit: float = 1800.0) -> list:
    """`agree` under a name of its own; all processes must ask equally often."""
    number = next(_questions)
    found = agree(f"question/{number}", value, limit)
    if _active and is_writer():
        # Who has answered this one has read what came of the one before: runs ask for weeks.
        _client().key_value_delete(f"nrdm_jax/question/{number - 1}/all")
    return found


def agree(name: str, value, limit: float = 1800.0) -> list:
    """The values of all processes, plain JSON, by their numbers; once a name.

    Through the coordinator: a process that fails in what it has to tell tells that, and none waits
    in a collective for it. The writer reads them and tells all, so that of N processes there are N
    messages and not N^2.

    Raises:
      Stop: one has told nothing within `limit` seconds (exit code 71).
    """
    if not _active:
        return [value]
    import jax

    client = _client()

    def asked(key: str, process: int) -> str:
        try:
            return client.blocking_key_value_get(key, int(limit * 1000))
        except Exception as error:  # jaxlib's own type, not exported
            raise Stop(
                exit_codes.PEER_LOST, f"process {process} told nothing for {limit:.0f} s: {error}"
            ) from error

    if not is_writer():
        client.key_value_set(f"nrdm_jax/{name}/{jax.process_index()}", json.dumps(value))
        return json.loads(asked(f"nrdm_jax/{name}/all", 0))
    found = [json.loads(json.dumps(value))]
    for process in range(1, jax.process_count()):
        found.append(json.loads(asked(f"nrdm_jax/{name}/{process}", process)))
        client.key_value_delete(f"nrdm_jax/{name}/{process}")
    client.key_value_set(f"nrdm_jax/{name}/all", json.dumps(found))
    return found


def of_writer(value):
    """The writer's value, an array, or a tree of arrays, of one shape and type on all
    processes."""
    if not _active:
        return value
    from jax.experimental import multihost_utils

    return multihost_utils.broadcast_one_to_all(value)


@contextlib.contextmanager
def writer_first(name: str) -> Iterator[dict]:
    """What is within is done by the writer, and then by the others: it finds what others need, and
    tells them what it has put into the dictionary that it is given: JSON values."""
    if is_writer():
        found: dict = {}
        yield found
        if _active:
            _client().key_value_set(f"found/{name}", json.dumps(found))
        meet(name)
    else:
        meet(name)
        yield json.loads(_client().blocking_key_value_get(f"found/{name}", HOUR_MS))


def preempted() -> bool:
    """Whether a process got SIGTERM, and this call is the one at which all agreed to stop: the
    processes' calls are counted."""
    from jax.experimental import multihost_utils

    return bool(multihost_utils.reached_preemption_sync_point(next(_polls)))


def leave(code: int) -> None:
    """Ends the process, where it is one of several: without this, some hang at exit. Whoever ends
    with an error does not wait for the others, who may be waiting for it."""
    if not _active:
        return
    tell_leaving(code)
    if code in (exit_codes.DONE, exit_codes.PREEMPTED):
        assert _peers is not None
        _peers.stop()
        farewell = threading.Thread(target=_shut_down, name="farewell", daemon=True)
        farewell.start()
        farewell.join(timeout=FAREWELL + 5)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _shut_down() -> None:
    import jax

    try:
        jax.distributed.shutdown()
    except Exception as error:
        # What had to be saved is saved; only the farewell failed.
        print(f"warning: leaving the other processes: {error}", file=sys.stderr)
