"""Figures on a disk that is full."""

import contextlib
import os
import resource
import struct

import pytest

from nrdm_jax.training.metrics import Ledger, MetricsWriter, Progress, read_metrics


def writer(workdir):
    return MetricsWriter(workdir, 0, ledger=Ledger(), images=int, before={})


@contextlib.contextmanager
def no_file_grows_beyond(size):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def scalars(workdir):
    """{(step, name)} of whole records of all event files."""
    from tensorboardX.proto import event_pb2

    found = set()
    for file in workdir.glob("events.out.tfevents.*"):
        data, at = file.read_bytes(), 0
        while at + 12 <= len(data):
            size = struct.unpack_from("Q", data, at)[0]
            if at + 16 + size > len(data):
                break
            event = event_pb2.Event.FromString(data[at + 12 : at + 12 + size])
            found |= {(event.step, value.tag) for value in event.summary.value}
            at += 16 + size
    return found


def test_a_row_for_which_there_is_no_room_is_left_out_whole(tmp_path, capsys):
    rows = writer(tmp_path)
    rows.write(1, {"loss": 1.0})
    size = (tmp_path / "metrics.jsonl").stat().st_size
    with no_file_grows_beyond(size + 10):
        rows.write(2, {"loss": 2.0})
    assert (tmp_path / "metrics.jsonl").stat().st_size == size
    assert "step 2 is not in " in capsys.readouterr().err
    rows.write(3, {"loss": 3.0})
    rows.close()
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 3]


def test_events_for_which_there_is_no_room_stop_nothing(tmp_path, capsys):
    """However many: those of later steps are in another file."""
    rows = writer(tmp_path)
    many = {f"value_{i}": float(i) for i in range(200)}
    rows.write(1, {"loss": 1.0})
    with no_file_grows_beyond(8000):  # less than those of a step, more than their row
        for step in (2, 3, 4):
            rows.write(step, many)
    warnings = capsys.readouterr().err
    assert all(f"step {step} is not in TensorBoard's" in warnings for step in (2, 3, 4))
    rows.write(5, many)
    rows.close()
    found = scalars(tmp_path)
    assert (1, "loss") in found
    assert {(5, name) for name in many} <= found
    assert {row["step"] for row in read_metrics(tmp_path)} >= {1, 2, 5}


def test_a_line_that_cannot_be_printed_ends_nothing(monkeypatch):
    with open("/dev/full", "w", buffering=1) as full:
        monkeypatch.setattr("sys.stdout", full)
        with pytest.raises(OSError):
            print("step=1/10 loss=1", flush=True)
        Progress(0, 10).line("step=1/10 loss=1")
        assert full.writable()
        monkeypatch.undo()
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())  # what is buffered goes there
