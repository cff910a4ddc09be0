"""Damage on disk is found before anything is trained on."""

import errno
import gc
import json
import math
import os
import pathlib
import re
import resource
import shutil
import sys
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from orbax.checkpoint._src.serialization import replica_slices

from nrdm_jax import checkpoint_report, restoring
from nrdm_jax.checkpointing import errors, notes, stored, verification
from nrdm_jax.checkpointing import kept as kept_steps
from nrdm_jax.checkpointing.errors import CannotBegin, DamagedCheckpoint, RemovedCheckpoint
from nrdm_jax.checkpointing.manager import Checkpoints
from nrdm_jax.checkpointing.retention import Retention
from nrdm_jax.checkpointing.stored import StoredCheckpoints
from nrdm_jax.checkpointing.together import Alone
from nrdm_jax.processes import lifecycle
from nrdm_jax.processes.exit_codes import Stop
from nrdm_jax.processes.workdir import Workdir
from nrdm_jax.training import hooks
from nrdm_jax.training.metrics import Ledger, Progress


def tree(step):
    draw = np.random.default_rng(step)
    return {
        "params": {"a": jnp.asarray(draw.standard_normal((64, 33), np.float32)),
                   "b": {"c": jnp.full(7, step, jnp.bfloat16)}},
        "loop": {"step": jnp.int32(step)},
    }  # fmt: skip


@pytest.fixture
def kept(tmp_path):
    """Steps 1 to 3 under `checkpoints`."""
    checkpoints = Checkpoints(str(tmp_path / "checkpoints"), keep=None)
    for step in (1, 2, 3):
        checkpoints.save(step, tree(step), {"records_seen": 10 * step})
    checkpoints.wait()
    yield tmp_path / "checkpoints", checkpoints
    checkpoints.close()


def largest(directory):
    """The file that holds most of the values."""
    files = [path for path in directory.rglob("*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


DAMAGES = {"flip": flip, "cut": cut, "delete": lambda path: path.unlink()}


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_newest_whole_step_is_gone_on_from_and_a_bad_one_is_set_aside(kept, damage, capsys):
    home, checkpoints = kept
    DAMAGES[damage](largest(home / "3" / "params"))
    assert checkpoints.faults(2) == [] and checkpoints.faults(3)
    with pytest.raises(DamagedCheckpoint, match=f"{home}/3"):
        checkpoints.restore(3, tree(0))
    assert restoring.newest_good(checkpoints) == 2
    said = capsys.readouterr().err
    assert "checkpoint 3 is damaged, set aside" in said and "params/a" in said
    assert checkpoints.steps() == [1, 2] and (home.parent / "checkpoints_bad" / "3").is_dir()
    found = checkpoints.restore(2, tree(0))
    np.testing.assert_array_equal(found["params"]["a"], tree(2)["params"]["a"])
    # The same step can be saved, be damaged and be set aside again.
    checkpoints.save(3, tree(3), {})
    checkpoints.wait()
    DAMAGES[damage](largest(home / "3" / "params"))
    assert restoring.newest_good(checkpoints) == 2
    assert sorted(p.name for p in (home.parent / "checkpoints_bad").iterdir()) == ["3", "3.1"]


def test_where_none_is_whole_nothing_is_moved_and_nothing_begins_anew(kept):
    home, checkpoints = kept
    for step in (1, 2, 3):
        flip(largest(home / str(step) / "params"))
    with pytest.raises(DamagedCheckpoint, match="no checkpoint in .* is whole") as caught:
        restoring.newest_good(checkpoints)
    assert caught.value.exit_code == 65
    assert all(f"step {step}: params/a" in str(caught.value) for step in (1, 2, 3))
    assert checkpoints.steps() == [1, 2, 3] and not (home.parent / "checkpoints_bad").exists()


def test_where_there_was_never_a_step_a_run_begins(tmp_path):
    checkpoints = Checkpoints(str(tmp_path / "checkpoints"))
    assert restoring.newest_good(checkpoints) is None
    checkpoints.close()


@pytest.mark.parametrize("changed", ["records_seen", "fingerprints", "checksum"])
def test_what_a_checkpoint_says_of_itself_is_checked_too(kept, changed):
    home, checkpoints = kept
    file = home / "3" / "meta" / "metadata"
    meta = json.loads(file.read_text())
    assert checkpoints.meta(3) == {"records_seen": 30}
    for other in ({**meta, changed: 31}, {k: v for k, v in meta.items() if k != changed}):
        file.write_text(json.dumps(other))
        assert len(checkpoints.faults(3)) == 1
        with pytest.raises(DamagedCheckpoint, match="says of itself"):
            checkpoints.meta(3)
    # Whoever wrote them with the right checksum: these are no notes.
    no_numbers = notes.signed({}, {}) | {"fingerprints": [1]}
    no_numbers["checksum"] = notes._checksum({"fingerprints": [1]})
    for text in ("[1]", "7", "[" * 10_000 + "]" * 10_000, json.dumps(no_numbers)):
        file.write_text(text)
        with pytest.raises(DamagedCheckpoint, match="says of itself"):
            checkpoints.meta(3)
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(DamagedCheckpoint, match="says of itself"):
        checkpoints.meta(3)
    assert restoring.newest_good(checkpoints) == 2


def test_whatever_file_of_the_newest_is_damaged_a_whole_step_is_gone_on_from(kept):
    """What is taken for whole can be restored: no restart ends where the one before did."""
    home, checkpoints = kept
    shutil.copytree(home / "3", home.parent / "whole")
    names = [path.relative_to(home / "3") for path in (home / "3").rglob("*") if path.is_file()]
    ends = set()
    for name in sorted(names):
        cut(home / "3" / name)
        step = restoring.newest_good(checkpoints)
        found = checkpoints.restore(step, tree(0))
        np.testing.assert_array_equal(found["params"]["a"], tree(step)["params"]["a"])
        ends.add(step)
        shutil.rmtree(home / "3", ignore_errors=True)
        shutil.copytree(home.parent / "whole", home / "3")
        checkpoints.reload()
    assert ends == {2, 3}  # orbax has files that no restore needs


def test_what_only_one_reader_cannot_read_is_no_damage(kept, monkeypatch, capsys):
    _, checkpoints = kept
    faults, ill = checkpoints.faults, ["params/a: cannot be read: Stale file handle"]
    answers = iter([ill, []])
    monkeypatch.setattr(checkpoints, "faults", lambda *_: next(answers))
    assert restoring.newest_good(checkpoints) == 3
    assert "could be when it was read again: params/a" in capsys.readouterr().err
    # Of three processes, of which this is the first: the third's share, which the second reads.
    read = []
    monkeypatch.setattr(checkpoints, "faults", lambda *share: read.append(share) or [])
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    for again, confirmed in (([[], [], []], []), ([[], ill, []], ill)):
        told = iter([[[], [], ill], again])
        monkeypatch.setattr(restoring.distributed, "told", lambda _, told=told: next(told))
        assert restoring._confirmed(checkpoints, 3) == confirmed
    # Who had nothing to find in the share of the next one does not read it again.
    assert read == [(3, 0, 3), (3, 0, 3)] and faults(3) == []


@pytest.mark.parametrize(
    ("number", "times", "comes_to"),
    [(errno.EIO, 3, []), (errno.EIO, 99, "params/a: cannot be read: .*Input/output error"),
     (errno.ESTALE, 3, []), (errno.ESTALE, 99, OSError), (errno.EMFILE, 99, OSError)],
)  # fmt: skip
def test_what_the_machine_could_not_read_is_read_again(kept, monkeypatch, number, times, comes_to):
    """A disk that never can is damage; a network or too many open files say nothing of a file."""
    home, checkpoints = kept
    pauses, real = [], verification._read
    left = [times]

    def fails(directory, stored, paths, process):
        if "params/a" in paths and left[0]:
            left[0] -= 1
            # As tensorstore says it.
            raise ValueError(f"UNKNOWN: {os.strerror(number)} [os_error_code='{number}']")
        return real(directory, stored, paths, process)

    monkeypatch.setattr(verification, "_read", fails)
    monkeypatch.setattr(errors.time, "sleep", pauses.append)
    if comes_to is OSError:
        with pytest.raises(OSError, match="cannot be read now"):
            restoring.newest_good(checkpoints)
        assert checkpoints.steps() == [1, 2, 3] and not home.with_name("checkpoints_bad").exists()
    else:
        found = checkpoints.faults(3)
        assert len(found) == len(comes_to[:1])
        assert not found or re.fullmatch(comes_to, found[0])
    assert pauses == list(errors.PAUSES)


@pytest.mark.parametrize("what", ["note", "names"])
def test_a_server_that_is_away_has_removed_and_damaged_nothing(kept, monkeypatch, what):
    home, checkpoints = kept
    away = OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
    monkeypatch.setattr(errors.time, "sleep", lambda seconds: None)

    def of_step(real):
        def call(path, *arguments, **options):
            if str(path).startswith(f"{home}/"):
                raise away
            return real(path, *arguments, **options)

        return call

    with monkeypatch.context() as server:
        server.setattr(stored.os, "stat", of_step(os.stat))
        if what == "note":
            server.setattr(stored, "read_bytes", of_step(stored.read_bytes))
        else:
            server.setattr(stored.os, "listdir", of_step(os.listdir))
        with pytest.raises(OSError, match="timed out") as raised:
            restoring.newest_good(checkpoints)
        assert not isinstance(raised.value, DamagedCheckpoint)
    assert restoring.newest_good(checkpoints) == 3


def test_where_there_must_have_been_checkpoints_nothing_begins_anew(tmp_path):
    def told(*steps):
        lines = [json.dumps({"step": step, "loss": 1.0}) + "\n" for step in steps]
        (tmp_path / "metrics.jsonl").write_text("".join(lines))

    restoring.check_none_lost(tmp_path, 10)
    told(5, 10, 20)  # it may have been killed within the first save
    restoring.check_none_lost(tmp_path, 10)
    told(5, 10, 21)
    with pytest.raises(DamagedCheckpoint, match=r"metrics.jsonl tells of step 21: restore"):
        restoring.check_none_lost(tmp_path, 10)
    told(5)
    (tmp_path / "checkpoints_bad" / "3").mkdir(parents=True)
    with pytest.raises(DamagedCheckpoint, match="to begin anew"):
        restoring.check_none_lost(tmp_path, 10)


def test_a_step_that_a_run_removes_while_it_is_read_is_not_damaged(kept, monkeypatch, capsys):
    home, checkpoints = kept
    shutil.rmtree(home / "3")
    for ask in (checkpoints.meta, lambda step: checkpoints.restore(step, tree(0))):
        with pytest.raises(RemovedCheckpoint, match="was removed while it was read") as caught:
            ask(3)
        assert caught.value.exit_code == 74
    faults = StoredCheckpoints.faults

    def slow(self, step):
        if step == 1:
            shutil.rmtree(home / "1")
        return faults(self, step)

    monkeypatch.setattr(StoredCheckpoints, "faults", slow)
    assert checkpoint_report.verify_steps(str(home)) == {"steps": [2], "bad": []}
    assert "removed meanwhile" in capsys.readouterr().out


def test_a_save_asks_nothing_of_the_counter_of_preemptions(tmp_path, monkeypatch):
    asked = []
    library = ocp.checkpoint_manager.utils
    monkeypatch.setattr(library, "reached_preemption", lambda step: asked.append(step) or False)
    checkpoints = Checkpoints(str(tmp_path / "checkpoints"))
    checkpoints.save(1, tree(1), {})
    checkpoints.wait()
    checkpoints.close()
    assert checkpoints.steps() == [1] and asked == []


def test_processes_share_the_leaves_among_them(kept):
    home, checkpoints = kept
    flip(largest(home / "3" / "params"))
    parts = [checkpoints.faults(3, process, 3) for process in range(3)]
    assert [line for part in parts for line in part] == checkpoints.faults(3)
    assert max(map(len, parts)) == 1


def test_a_checkpoint_of_before_there_were_fingerprints_is_restored_with_a_warning(kept, capsys):
    home, checkpoints = kept
    (home / "3" / "meta" / "metadata").write_text(json.dumps({"records_seen": 30}))
    assert checkpoints.faults(3) == []
    found = checkpoints.restore(3, tree(0))
    np.testing.assert_array_equal(found["params"]["a"], tree(3)["params"]["a"])
    assert "without fingerprints" in capsys.readouterr().err


def test_what_there_is_is_listed_verified_and_shown(kept, capsys):
    home, _ = kept
    assert checkpoint_report.list_steps(str(home.parent)) == {"steps": [1, 2, 3]}
    assert capsys.readouterr().out.count("records seen") == 3
    assert checkpoint_report.verify_steps(str(home)) == {"steps": [1, 2, 3], "bad": []}
    shown = checkpoint_report.show_steps(str(home), 2)
    assert (shown["step"], shown["records_seen"], shown["leaves"]) == (2, 20, 3)
    assert shown["bytes"] == 64 * 33 * 4 + 7 * 2 + 4
    assert "params/b/c" in capsys.readouterr().out
    flip(largest(home / "2" / "params"))
    found = checkpoint_report.verify_steps(str(home.parent))
    assert found == {"steps": [1, 2, 3], "bad": [f"{home}/2"]}
    assert "params/a: " in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"--step=7: .* has 1, 2, 3"):
        checkpoint_report.show_steps(str(home), 7)
    with pytest.raises(ValueError, match="has no checkpoint"):
        checkpoint_report.list_steps(str(home / "2"))


def test_a_save_that_fails_is_told_of_once_and_leaves_the_others(tmp_path):
    """Files may grow no longer than a few kilobytes, which a leaf exceeds: the system refuses the
    write in the background, as it does where a disk is full."""

    def large(step):
        values = np.random.default_rng(step).standard_normal((300, 300))
        return {"params": {"a": jnp.asarray(values, jnp.float32)}}

    def until_ended():
        while checkpoints._manager.is_saving_in_progress():
            time.sleep(0.01)
        return checkpoints.failed()

    home = tmp_path / "checkpoints"
    checkpoints = Checkpoints(str(home), keep=None)
    checkpoints.save(1, large(1), {})
    assert until_ended() is None and checkpoints.failed() is None
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        checkpoints.save(2, large(2), {})
        said = until_ended()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert said is not None and "step 2 was not saved" in said and "File too large" in said
    assert checkpoints.failed() is None
    assert checkpoints.steps() == [1] and checkpoints.latest_step() == 1
    assert sorted(path.name for path in home.iterdir()) == ["1"]
    checkpoints.save(2, large(2), {})
    assert until_ended() is None and checkpoints.faults(2) == []
    # Of the last one, whoever waits is told, and the end says nothing else.
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        checkpoints.save(3, large(3), {})
        with pytest.raises(OSError, match="step 3 was not saved: .*File too large"):
            checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    checkpoints.close()
    assert checkpoints.steps() == [1, 2]


def test_the_newest_the_regular_and_the_best_are_kept(tmp_path):
    keep = Retention(newest=2, every=4, best=1)
    losses = {1: 0.9, 2: 0.2, 3: 0.5, 4: 0.6, 5: 0.2, 6: 0.4, 7: 0.7, 8: 0.8, 9: 0.5}
    assert keep.kept(range(1, 10), losses) == {4, 5, 8, 9}
    assert keep.kept([3], {}) == {3} and keep.kept([1, 2, 3], {}) == {2, 3}
    assert Retention(newest=None).kept([1, 2, 3], {}) == {1, 2, 3}
    odd = {1: math.nan, 2: 0.5, 3: 0.2, 4: math.inf, 5: 0.9}
    assert Retention(newest=1, best=1).kept([1, 2, 3, 4, 5], odd) == {3, 5}
    assert keep.most(range(1, 10)) == 2 + 1 + 2 + 1 and keep.most([3, 5]) == 2
    assert Retention(newest=None).most([1, 2, 3]) == 3
    home = str(tmp_path / "checkpoints")
    for first, last in ((1, 6), (7, 9)):  # the second time by a process that has saved none of them
        checkpoints = Checkpoints(home, keep=keep)
        for step in range(first, last + 1):
            checkpoints.save(step, tree(step), {"metrics": {"heldout_loss": losses[step]}})
        checkpoints.wait()
        found = checkpoints.steps()
        checkpoints.close()
    assert found == [4, 5, 8, 9]


def test_a_committed_step_is_flushed_with_all_directories_above_it(tmp_path, monkeypatch):
    flushed = []
    real = os.fsync

    def fsync(number):
        flushed.append(os.readlink(f"/proc/self/fd/{number}"))
        return real(number)

    monkeypatch.setattr(os, "fsync", fsync)
    home = tmp_path / "checkpoints"
    checkpoints = Checkpoints(str(home))
    checkpoints.save(1, tree(1), {})
    checkpoints.wait()
    checkpoints.close()
    partial = f"{home}/1.orbax-checkpoint-tmp"  # what it is called until it is committed
    names = {str(path.relative_to(home / "1")) for path in (home / "1").rglob("*")}
    marks = {path.name for path in (home / "1").iterdir() if path.is_file()}
    assert {partial, *(f"{partial}/{name}" for name in names - marks)} <= set(flushed)
    assert {*(f"{home}/1/{name}" for name in marks), str(home), str(tmp_path)} <= set(flushed)
    assert flushed.index(partial) < flushed.index(str(home))


def test_a_disk_without_room_for_a_checkpoint_is_refused_at_the_start(tmp_path, monkeypatch):
    home = Workdir(str(tmp_path / "run"), {}, allow_change=False)
    home.require_space(1000, "a checkpoint")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2**30))
    with pytest.raises(
        Stop, match=r"1.00 GiB free, and 3.00 GiB are needed for a checkpoint"
    ) as caught:
        home.require_space(3 * 2**30, "a checkpoint")
    assert caught.value.exit_code == 74
    home.release()


def test_a_state_larger_than_the_host_may_hold_is_copied_in_parts(tmp_path, monkeypatch):
    copied = []
    real = replica_slices.transfer_arrays_to_host

    def transfer(arrays, *rest, **options):
        copied.append(sum(array.nbytes for array in arrays))
        return real(arrays, *rest, **options)

    monkeypatch.setattr(replica_slices, "transfer_arrays_to_host", transfer)
    parts = {f"{i}": jnp.full((100, 10), i, jnp.float32) for i in range(12)}  # 4,000 bytes each
    wanted = {"ema": parts}
    for limit, largest in ((2**20, 48_000), (40_000, 8_000), (4_000, 4_000)):
        copied.clear()
        home = tmp_path / str(limit)
        checkpoints = Checkpoints(str(home), host_bytes=limit)
        state = jax.tree.map(jnp.copy, wanted)
        checkpoints.save(1, state, {})
        jax.tree.map(lambda leaf: leaf.delete(), state)  # as a step does, to which it is given
        checkpoints.wait()
        assert max(copied) == largest and sum(copied) == 48_000
        assert checkpoints.faults(1) == []
        for a, b in zip(
            *map(jax.tree.leaves, (checkpoints.restore(1, wanted), wanted)), strict=True
        ):
            np.testing.assert_array_equal(a, b)
        checkpoints.close()


LEAVES = 8


def test_saves_leave_no_objects_behind(tmp_path):
    checkpoints = Checkpoints(str(tmp_path / "checkpoints"))

    def blocks(steps):
        for step in steps:
            leaves = {str(i): jnp.full(3, step) for i in range(LEAVES)}
            checkpoints.save(step, {"params": leaves}, {})
            checkpoints.wait()
        gc.collect()
        return sys.getallocatedblocks()  # strings as well, which the collector does not know

    before = blocks(range(1, 41))  # what is made once, and caches of a few paths
    assert blocks(range(41, 61)) - before < 20 * 2 * LEAVES  # less than two a leaf and save
    checkpoints.close()


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_the_best_is_kept_though_what_it_says_cannot_be_read_once(
    tmp_path, monkeypatch, capsys, number
):
    home, whole = tmp_path / "checkpoints", stored.read_bytes
    monkeypatch.setattr(errors, "time", None)  # no save waits for a disk

    def unread(path):
        if path == notes.place(home, 1):
            raise OSError(number, os.strerror(number))

    def saved(*steps):
        checkpoints = Checkpoints(str(home), keep=Retention(newest=1, best=1))
        for step in steps:
            checkpoints.save(step, tree(step), {"metrics": {"heldout_loss": float(step)}})
        checkpoints.wait()
        found = checkpoints.steps()
        checkpoints.close()
        return found

    assert saved(1, 2, 3) == [1, 3]
    note = home / "1" / "meta" / "metadata"
    with monkeypatch.context() as disk:
        disk.setattr(stored, "read_bytes", lambda path, most: unread(path) or whole(path, most))
        assert saved(4) == [1, 3, 4]  # by a process that knows of none: 3 is the best of the others
    assert "1: what it says of itself cannot be read" in capsys.readouterr().err
    assert saved(5) == [1, 5]
    # Of one that was half removed when its process was killed nothing else is.
    note.unlink()
    assert saved(6) == [5, 6]
    assert sorted(path.name for path in home.iterdir()) == ["5", "6"]


def test_a_step_is_saved_though_an_older_one_cannot_be_removed(tmp_path, monkeypatch, capsys):
    home = tmp_path / "checkpoints"
    checkpoints = Checkpoints(str(home), keep=1)
    checkpoints.save(1, tree(1), {})
    checkpoints.wait()
    rmtree = shutil.rmtree

    def busy(path, *arguments, **options):
        if pathlib.Path(path).name == "1":
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), str(path))
        rmtree(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", busy)
        checkpoints.save(2, tree(2), {})
        checkpoints.wait()
        assert checkpoints.failed() is None
    said = capsys.readouterr().err
    assert "step 2 is saved" in said and "could not be removed" in said
    assert checkpoints.latest_step() == 2 and checkpoints.faults(2) == []
    checkpoints.save(3, tree(3), {})
    checkpoints.wait()
    assert checkpoints.steps() == [3]
    # A run closes its checkpoints in another thread, to which orbax raises it once more.
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda path, **_: busy(home / "1"))
        checkpoints.save(4, tree(4), {})
        checkpoints.wait()
        lifecycle.bounded("checkpoints", checkpoints.close, 60.0)
    assert "step 4 is saved" in capsys.readouterr().err


def test_so_many_saves_in_a_row_may_fail(tmp_path, monkeypatch):
    checkpoints = Checkpoints(str(tmp_path / "checkpoints"), most_failed=2)
    monkeypatch.setattr(Checkpoints, "_obstacle", lambda self, items: full.pop(0))
    full = ["No space left", "", "No space left", "No space left"]
    for step in (1, 2, 3):  # there is room again at the last try
        checkpoints.save(step, tree(step), {})
        assert (checkpoints.failed() is None) == (step == 2)
    with pytest.raises(OSError, match="step 4 was not saved: No space left, the last of 2 in a"):
        checkpoints.save(4, tree(4), {})
    checkpoints.close()
    assert checkpoints.steps() == [2] and full == []


def test_nothing_of_a_failed_save_is_left_whoever_was_still_writing(tmp_path):
    """Items are written beside each other: one fails, and the others go on for a while."""
    home = tmp_path / "checkpoints"
    values = np.random.default_rng(0).standard_normal((400, 400))
    items = {name: {"a": jnp.asarray(values + n, jnp.float32)}
             for n, name in enumerate(("params", "ema", "opt"))}  # fmt: skip
    checkpoints = Checkpoints(str(home), keep=None)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, hard))
    try:
        for step in (1, 2, 3):
            checkpoints.save(step, items, {})
            with pytest.raises(OSError, match="File too large"):
                checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    step, deadline = 4, time.monotonic() + 60
    while time.monotonic() < deadline:
        checkpoints.save(step, items, {})
        checkpoints.wait()
        if all(path.name.isdigit() for path in home.iterdir()):
            break
        step += 1
    checkpoints.close()
    assert sorted(int(path.name) for path in home.iterdir()) == list(range(4, step + 1))


def test_the_last_of_failed_saves_is_known_when_it_has_ended(tmp_path):
    """One that fails in the background."""
    values = np.random.default_rng(0).standard_normal((300, 300))
    large = {"params": {"a": jnp.asarray(values, jnp.float32)}}
    checkpoints = Checkpoints(str(tmp_path / "checkpoints"), most_failed=1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, hard))
    try:
        with pytest.raises(OSError, match="File too large, the last of 1 in a row"):
            checkpoints.save(1, large, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    checkpoints.save(1, large, {})
    checkpoints.close()


class Reader(Alone):
    """One that does not write, and what the writer tells."""

    def __init__(self, steps):
        self.steps = steps

    def is_writer(self):
        return False

    def told(self, value):
        return [self.steps, value]


def test_all_go_by_the_list_of_the_one_that_writes(tmp_path, monkeypatch):
    home = tmp_path / "checkpoints"
    writer = Checkpoints(str(home), keep=None)
    for step in (1, 2, 3):
        writer.save(step, tree(step), {})
    writer.wait()
    reader = Checkpoints(str(home), keep=None, together=Reader([1, 2]))
    assert reader.steps() == [1, 2, 3]  # as of a listing that is old
    writer.remove_after(2)
    assert writer.steps() == [1, 2] and sorted(path.name for path in home.iterdir()) == ["1", "2"]
    assert reader.agreed_steps() == [1, 2]
    monkeypatch.setattr(kept_steps, "LISTING_TIMEOUT", -1.0)
    reader._together.steps = [1, 2, 3]
    with pytest.raises(OSError, match=r"has steps \[1, 2\] to this process and \[1, 2, 3\] to"):
        reader.agreed_steps()
    for each in (writer, reader):
        each.close()


class OneOfTwo(Alone):
    def active(self):
        return True


def test_who_alone_cannot_begin_a_snapshot_ends(tmp_path, monkeypatch, capsys):
    """The other is in the library, and would wait in it for one that trains on."""
    snapshots = Checkpoints(str(tmp_path), together=OneOfTwo())
    state = SimpleNamespace(step=jnp.int32(1), averages={"0.1": jnp.ones(3)})
    hook = hooks.Snapshots(
        snapshots, lambda step: {}, Ledger(), Progress(0, 2), count=2, last_step=2
    )

    def refused(*arguments, **options):
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    with monkeypatch.context() as patch:
        patch.setattr(ocp.CheckpointManager, "save", refused)
        with pytest.raises(CannotBegin, match="step 1 cannot be begun: .*quota"):
            hook(1, state, {}, 0.0)
    monkeypatch.setattr(Checkpoints, "_obstacle", lambda self, items: "No space left")
    hook(1, state, {}, 0.0)  # which all see alike
    assert "WARNING: no snapshot of the averages" in capsys.readouterr().out
    snapshots._together = Alone()
    snapshots.close()


class Others(Alone):
    """As one of two, of which the other holds too much to be copied at once."""

    def told(self, value):
        return [value, ["", True]]


def test_all_wait_for_a_state_that_one_has_to_copy_in_parts(tmp_path):
    for together, waits in ((Alone(), False), (Others(), True)):
        checkpoints = Checkpoints(str(tmp_path / str(waits)), together=together)
        checkpoints.save(1, tree(1), {})
        assert checkpoints._copies._in_parts == waits
        if waits:
            assert not checkpoints.is_saving()
        checkpoints.wait()
        assert checkpoints.faults(1) == []
        checkpoints.close()
