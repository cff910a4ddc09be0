"""The end of a process: stuck, told to stop, or slow to leave."""

import contextlib
import errno
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from nrdm_jax import config as configuration
from nrdm_jax.processes import faults, lifecycle, peers, signals, workdir
from nrdm_jax.processes.exit_codes import Stop
from nrdm_jax.processes.watchdog import LONGEST, Watchdog

ROOT = pathlib.Path(__file__).resolve().parents[1]
LIMITS = {"compile": 100.0, "step": 10.0, "data": 20.0, "save": 0.0}


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def watched(section="step", rounds=2, limits=LIMITS):
    clock = Clock()
    dog = Watchdog(limits, section, clock)
    for _ in range(rounds):
        dog.beat()
    return dog, clock


def seconds_until_it_barks(dog, clock, tick=1.0, most=1000):
    """Of looks `tick` seconds apart; None: not within `most` of them."""
    dog.hang()
    for looks in range(1, most + 1):
        clock.now += tick
        if dog.hang():
            return looks * tick
    return None


def test_a_section_may_take_its_limit_and_no_more():
    for section, limit in (("step", 10), ("data", 20), ("no_limit_of_its_own", 10)):
        dog, clock = watched(section)
        assert seconds_until_it_barks(dog, clock) == limit + 1
    dog, clock = watched("save")
    assert seconds_until_it_barks(dog, clock) is None
    assert seconds_until_it_barks(*watched(limits={})) is None


def test_each_beat_and_each_section_begins_anew():
    dog, clock = watched()
    for _ in range(50):
        assert dog.hang() is None
        clock.now += 4
        dog.beat()
        clock.now += 4
        dog.enter("data")
        clock.now += 4
        dog.enter("step")
    clock.now += 4
    assert seconds_until_it_barks(dog, clock) == 11
    assert "section step for 11 s (watchdog.step=10)" in dog.hang()


def test_the_first_rounds_may_take_what_a_compilation_may():
    for rounds, seconds in ((0, 101), (1, 101), (2, 11)):
        assert seconds_until_it_barks(*watched(rounds=rounds)) == seconds
    # Where one of both is without a limit, so are they.
    assert seconds_until_it_barks(*watched(rounds=0, limits=LIMITS | {"compile": 0.0})) is None
    assert seconds_until_it_barks(*watched("save", rounds=0)) is None


def test_names_of_the_account_are_those_of_the_watchdog():
    sections = set(configuration.default().watchdog) - {"exit"}
    dog, _ = watched()
    for name in ("init", "restore", "compile", "evaluate", "sample", "score", "save", "report"):
        dog.enter(name)
        assert dog.section in sections


def test_a_process_that_was_stopped_is_not_stuck():
    dog, clock = watched()
    dog.hang()
    clock.now += 1e6  # SIGSTOP, a laptop that was closed
    assert dog.hang() is None
    # Of that time as much counts as may lie between two looks.
    assert seconds_until_it_barks(dog, clock) == 11 - LONGEST


def test_a_clock_that_goes_back_changes_nothing():
    dog, clock = watched()
    dog.hang()
    clock.now -= 1e6
    assert seconds_until_it_barks(dog, clock) == 11


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        ("kill", "'kill' is no fault; give KIND@step=N"),
        ("kill@step=", "'kill@step=' is no fault"),
        ("kill@step=-3", "is no fault"),
        ("kill@step=7,", "'' is no fault"),
        ("drown@step=7", "'drown' is none; give one of kill, term"),
        ("kill@save=7", "'kill@save=7' counts saves; give kill@step=N"),
        ("enospc@step=2", "counts steps; give enospc@save=N"),
        ("nan@step=0", "steps are counted from 1"),
        ("nan@step=2:rank=1", "a batch is of all processes; leave out :rank"),
    ],
)
def test_plans_that_are_none(plan, says):
    with pytest.raises(ValueError, match=says):
        faults.parse(plan)


def test_plans():
    assert faults.parse("") == ()
    plan = faults.parse("kill@step=7, nan@step=5,hang@step=5:rank=1,enospc@save=2,flip@step=9")
    assert [str(fault) for fault in plan] == [
        "kill@step=7", "nan@step=5", "hang@step=5:rank=1", "enospc@save=2", "flip@step=9:rank=0",
    ]  # fmt: skip
    assert [fault.kind for fault in plan if fault.befalls(1)] == ["kill", "nan", "hang", "enospc"]


def test_a_plan_that_is_none_is_told_before_anything_begins(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "nrdm_jax.train", "--config=configs/openmoji32.py:smoke",
         f"--workdir={tmp_path / 'run'}", "--fault=kill@tuesday"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and "'kill@tuesday' is no fault" in done.stderr
    assert not (tmp_path / "run").exists()


def start(body, *arguments, stderr=subprocess.PIPE):
    """A process of the launcher, whose main is `body`."""
    script = """
        import ctypes, pathlib, sys, threading, time
        from nrdm_jax.processes import exit_codes, lifecycle, signals, watchdog
        from nrdm_jax.processes.exit_codes import Stop

        def ready():
            print("ready", flush=True)

    """
    script = textwrap.dedent(script) + textwrap.dedent(body)
    script += "\narguments, sys.argv = sys.argv[1:], sys.argv[:1]\nlifecycle.launch(main, '')\n"
    process = subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=stderr, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    return process


HANGS = """
    def the_deadlock():
        threading.Lock().acquire() and threading.Event().wait()

    def main():
        limits = {"compile": 1.0, "step": 1.0}
        life = lifecycle.Signals(limits, "step", workdir=pathlib.Path(arguments[0]))
        with life.installed():
            threading.Thread(target=the_deadlock, name="loader", daemon=True).start()
            ready()
            the_deadlock()
"""


def test_a_hang_is_71_with_the_stacks_of_all_threads(tmp_path):
    process = start(HANGS, str(tmp_path))
    _, err = process.communicate(timeout=120)
    assert process.returncode == 71, err
    kept = (tmp_path / "stacks.txt").read_text()
    for text in (err, kept):
        assert "section step for" in text and "(watchdog.step=1)" in text
        for name in ("MainThread", "loader"):
            of_thread = text.split(f"thread {name} (most recent call last):")[1]
            assert "in the_deadlock" in of_thread.split("\nthread ")[0]


@pytest.mark.slow
def test_a_hang_is_71_on_disks_that_are_full_or_hang(tmp_path):
    """Of the log, and of the workdir: nobody reads the pipe that is there in its place."""
    with pathlib.Path("/dev/full").open("w") as file:
        full = start(HANGS, str(tmp_path), stderr=file)
    (hung := tmp_path / "hung").mkdir()
    os.mkfifo(hung / "stacks.txt")
    fifo = start(HANGS, str(hung))
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while os.write(writer, bytes(4096)):
            pass
    os.set_blocking(writer, True)
    (unread := tmp_path / "unread").mkdir()
    stuck = start(HANGS, str(unread), stderr=writer)
    for process in (full, fifo, stuck):
        process.communicate(timeout=60)
        assert process.returncode == 71
    for directory in (tmp_path, unread):
        assert "in the_deadlock" in (directory / "stacks.txt").read_text()
    os.close(reader)
    os.close(writer)


LOCKS = """
    def the_deadlock():
        libc, mutex = ctypes.PyDLL(None), ctypes.create_string_buffer(64)
        libc.pthread_mutex_lock(mutex)
        libc.pthread_mutex_lock(mutex)

    def main():
        signals.LOCKED = 3.0
        limit = float(arguments[0])
        outer = lifecycle.Signals({"compile": 99.0, "step": 99.0}, "step")
        inner = lifecycle.Signals({"compile": limit, "step": limit, "save": 0.0}, "step")
        with outer.installed(), inner.installed():
            ready()
            begun = time.monotonic()
            while time.monotonic() < begun + 4:  # slow, and it beats
                sum(n for n in range(100_000))
                inner.stop_requested()
            if arguments[1] == "locked":
                the_deadlock()
            inner.enter("save")
            time.sleep(2 * watchdog.TICK)
            ctypes.PyDLL(None).usleep(6_000_000)
        ctypes.PyDLL(None).usleep(6_000_000)
"""


def test_a_hang_with_the_lock_of_python_is_1_with_the_stacks():
    locked = start(LOCKS, "1", "locked")
    ends = start(LOCKS, "1", "ends")  # without a limit, and behind the block, it may be held
    _, err = locked.communicate(timeout=60)
    assert locked.returncode == 1, err
    assert "Timeout (0:00:04)" in err and "in the_deadlock" in err, err
    _, err = ends.communicate(timeout=60)
    assert ends.returncode == 0 and "Timeout" not in err, err


PAUSES = """
    def main():
        signals.LOCKED = 1.0
        with lifecycle.Signals({"compile": 2.0, "step": 2.0}, "step").installed() as life:
            ready()
            while not life.stop_requested():
                time.sleep(0.1)
            raise Stop(exit_codes.PREEMPTED, "saved")
"""


def test_ctrl_z_is_no_hang():
    process = start(PAUSES)
    process.send_signal(signal.SIGTSTP)
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    time.sleep(4)
    process.send_signal(signal.SIGCONT)
    time.sleep(1)
    assert stopped(process, signal.SIGTERM)[0] == 75


LOOPS = """
    def main():
        with lifecycle.Signals(patience=float(arguments[0])).installed() as life:
            life.unsaved = arguments[1] == "unsaved"
            ready()
            if arguments[2] == "polls":
                while not life.stop_requested():
                    time.sleep(0.01)
                print("saved", flush=True)
                raise Stop(exit_codes.PREEMPTED, f"{life.received}: saved")
            time.sleep(600)
"""


def stopped(process, *numbers):
    for number in numbers:
        process.send_signal(number)
        time.sleep(0.3)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_who_polls_saves_and_leaves(number):
    code, out, err = stopped(start(LOOPS, "60", "unsaved", "polls"), number)
    assert code == 75 and "saved" in out and f"{signal.Signals(number).name}: saved" in err


def test_signals_are_taken_where_nothing_can_be_said():
    with pathlib.Path("/dev/full").open("w") as full:
        saves = start(LOOPS, "60", "unsaved", "polls", stderr=full)
        code, out, _ = stopped(saves, signal.SIGTERM)
        assert code == 75 and "saved" in out
        sleeps = start(LOOPS, "60", "unsaved", "sleeps", stderr=full)
        assert stopped(sleeps, signal.SIGTERM, signal.SIGTERM)[0] == 128 + signal.SIGTERM


def test_who_comes_to_no_poll_and_has_nothing_to_save_leaves():
    # The main thread sleeps, as in a compilation: it is not asked.
    code, _, err = stopped(start(LOOPS, "1", "idle", "sleeps"), signal.SIGTERM)
    assert code == 75 and "SIGTERM received; nothing was left to save" in err


def test_a_second_signal_leaves_at_once_whatever_the_process_does():
    process = start(LOOPS, "0", "unsaved", "sleeps")
    process.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=1.5)  # what is not saved is waited for
    code, _, err = stopped(process, signal.SIGTERM)
    assert code == 128 + signal.SIGTERM and "received again" in err


def test_sigterm_before_there_is_a_loop_is_75():
    code, _, _ = stopped(start("def main():\n    ready()\n    time.sleep(600)"), signal.SIGTERM)
    assert code == 75


def test_no_thread_holds_the_exit():
    body = """
        def main():
            lifecycle.AT_EXIT = 1.0
            threading.Thread(target=time.sleep, args=(600,), name="prefetch").start()
            ready()
            return 3
    """
    code, _, err = stopped(start(body))
    assert code == 3 and "['prefetch']" in err


def test_what_is_closed_is_waited_for_so_long():
    closed = []
    lifecycle.bounded("a", lambda: closed.append("a"), 60.0)
    lifecycle.bounded("b", lambda: time.sleep(60), 0.1)
    assert closed == ["a"]
    with pytest.raises(OSError, match="full"):
        lifecycle.bounded("c", lambda: (_ for _ in ()).throw(OSError("full")), 60.0)


class Service:
    """The coordination service, of which `peers` uses three calls."""

    def __init__(self):
        self.values, self.answers = {}, True

    def key_value_set(self, key, value, allow_overwrite=False):
        assert self.answers, "unreachable"
        self.values[key] = value

    def key_value_dir_get(self, prefix):
        return [(k, v) for k, v in self.values.items() if k.startswith(prefix)]

    def key_value_try_get(self, key):
        assert self.answers, "unreachable"
        return self.values[key]


@pytest.fixture
def three():
    clock, service = Clock(), Service()
    ended = []
    found = [peers.Peers(service, i, 3, "127.0.0.1:1", lambda *what: ended.append(what))
             for i in range(3)]  # fmt: skip
    for one in found:
        one._awake = clock
    return found, clock, service, ended


def beat(clock, seconds, *those):
    for _ in range(int(seconds / peers.BEAT)):
        clock.now += peers.BEAT
        for one in those:
            one.beat()


def test_the_others_hear_who_is_silent(three):
    (a, b, c), clock, _, ended = three
    beat(clock, 6, a, b, c)
    assert a.lost() is b.lost() is c.lost() is None
    beat(clock, 14, a, b)
    for one in (a, b):
        assert one.lost().startswith("process 2 has not been heard of for 1")
        assert one.code_of_abort()[0] == 71
    assert not ended
    beat(clock, peers.LOST, a, b)
    assert {code for code, _ in ended} == {71} and "process 2" in ended[0][1]


def test_a_coordinator_that_does_not_answer_is_silent(three):
    (a, b, _), clock, service, _ = three
    beat(clock, 6, a, b)
    service.answers = False
    beat(clock, 14, b)
    assert b.lost().startswith("process 0, the coordinator, has not been heard of for 1")


def test_a_coordinator_that_is_stuck_is_silent_while_a_beat_waits_for_it(three):
    (a, b, _), clock, _, _ = three
    beat(clock, 6, a, b)
    clock.now += 14
    assert a.lost() is None
    assert b.lost().startswith("process 0, the coordinator, has not been heard of for 14 s")
    assert b.code_of_abort()[0] == 71


def test_who_leaves_says_why(three):
    (a, b, c), clock, _, _ = three
    beat(clock, 6, a, b, c)
    c.note("left 65")
    beat(clock, 4, a, b)
    assert a.lost() == b.lost() == "process 2 has left with exit code 65; see what it says"


def test_who_is_told_to_stop_tells_the_others(three):
    (a, b, c), clock, _, _ = three
    beat(clock, 6, a, b, c)
    c.note("stopping")
    beat(clock, 4, a, b)
    assert a.stop_is_near() and b.stop_is_near()
    assert b.code_of_abort()[0] == 75
    b.nothing_to_save = lambda: False
    assert b.code_of_abort()[0] == 71
    c.note("left 75")
    beat(clock, 40, a, b)
    assert b.stop_is_near() and b.lost() is None


def test_a_coordinator_that_was_told_to_stop_is_not_lost(three, monkeypatch):
    """What the others see of it is that it does not answer."""
    (a, b, c), clock, _, _ = three
    monkeypatch.setattr(peers.Peers, "_coordinator_answers", lambda self: False)
    beat(clock, 6, a, b, c)
    assert b.await_loss(5.0) == "process 0, the coordinator, has ended; see what it says"
    a.note("stopping")
    beat(clock, 4, a, b)
    assert b.await_loss(5.0) is None and b.code_of_abort()[0] == 75


def test_who_has_nothing_to_save_does_not_leave_while_another_within_has(monkeypatch):
    left = []
    monkeypatch.setattr(signals, "leave_at_once", lambda code, message: left.append(code))
    monkeypatch.setattr(signals.distributed, "stop_is_near", lambda: True)
    outer, inner = lifecycle.Signals(patience=0.0), lifecycle.Signals(patience=0.0)
    inner.unsaved = True
    monkeypatch.setattr(signals.watchdog, "TICK", 1000.0)  # the threads do not look
    with outer.installed(()), inner.installed(()):
        outer._leave_if_idle()
        inner._leave_if_idle()
        assert not left
        inner.unsaved = False
        inner._leave_if_idle()
        outer._leave_if_idle()
        assert left == [75]


@pytest.mark.parametrize("call", ["rename", "fsync"])
def test_a_place_that_no_save_can_use_is_refused(tmp_path, monkeypatch, call):
    """As a mounted bucket, which renames no directory, or a disk that cannot flush."""

    def refused(*arguments):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as bucket:
        bucket.setattr(workdir.os, call, refused)
        with pytest.raises(Stop, match="cannot be written: .*Input/output error") as stopped:
            workdir.Workdir(str(tmp_path / "run"), {}, allow_change=False)
    assert stopped.value.exit_code == 74
    workdir.Workdir(str(tmp_path / "run"), {}, allow_change=False).release()
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [".lock"]


def test_a_lock_that_outlives_its_host_is_waited_for(tmp_path, monkeypatch, capsys):
    path = str(tmp_path / "run")
    before = workdir.Workdir(path, {}, allow_change=False)
    with pytest.raises(Stop, match="is in use by another run"):  # at once, of one process
        workdir.Workdir(path, {}, allow_change=False)
    monkeypatch.setattr(workdir.distributed, "active", lambda: True)
    monkeypatch.setattr(workdir, "LEASE", 0.0)
    with pytest.raises(Stop, match="is in use by another run"):
        workdir.Workdir(path, {}, allow_change=False)
    monkeypatch.setattr(workdir, "LEASE", 60.0)
    ends = threading.Timer(0.5, before.release)
    ends.start()
    workdir.Workdir(path, {}, allow_change=False).release()
    ends.join()
    assert f"is held (process {os.getpid()} on " in capsys.readouterr().out
    # Of one process too, where the lock is another host's.
    before = workdir.Workdir(path, {}, allow_change=False)
    monkeypatch.undo()
    monkeypatch.setattr(workdir.socket, "gethostname", lambda: "another")
    ends = threading.Timer(0.5, before.release)
    ends.start()
    workdir.Workdir(path, {}, allow_change=False).release()
    ends.join()
    assert "; waiting up to 180 s" in capsys.readouterr().out


@pytest.mark.parametrize("shared", [True, False])
def test_processes_that_see_other_directories_are_refused(tmp_path, monkeypatch, shared):
    """Of two the second, whose --workdir is a disk of its own, or not."""
    name = f"{workdir.SEEN}0"
    answers = iter([[name, ""], [True, True], [True, shared]])
    monkeypatch.setattr(workdir, "SEEN_IN", 0.0)
    monkeypatch.setattr(workdir.distributed, "active", lambda: True)
    monkeypatch.setattr(workdir.distributed, "is_writer", lambda: False)
    monkeypatch.setattr(workdir.distributed, "meet", lambda name: None)
    seen = []
    monkeypatch.setattr(
        workdir.distributed, "told", lambda value: seen.append(value) or next(answers)
    )
    if shared:
        (tmp_path / name).touch()  # by the writer
        workdir.Workdir(str(tmp_path), {}, allow_change=False).release()
    else:
        with pytest.raises(Stop, match=r"not one directory to all processes: \[1\]") as stopped:
            workdir.Workdir(str(tmp_path), {}, allow_change=False)
        assert stopped.value.exit_code == 74
    assert seen[1:] == [True, shared]


def test_a_file_system_without_locks_is_said_to_be_one(tmp_path, monkeypatch, capsys):
    def flock(file, how):
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(workdir.fcntl, "flock", flock)
    workdir.Workdir(str(tmp_path / "run"), {}, allow_change=False).release()
    assert "whose file system has no locks" in capsys.readouterr().err
