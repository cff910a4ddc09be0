"""Figures on a disk that is full."""

import os
import resource

import pytest

from nrdm_jax.training.metrics import Ledger, MetricsWriter, Progress, read_metrics


def writer(workdir):
    return MetricsWriter(workdir, 0, ledger=Ledger(), images=int, before={})


def test_a_row_for_which_there_is_no_room_is_left_out_whole(tmp_path, capsys):
    rows = writer(tmp_path)
    rows.write(1, {"loss": 1.0})
    size = (tmp_path / "metrics.jsonl").stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, hard))
    try:
        rows.write(2, {"loss": 2.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "metrics.jsonl").stat().st_size == size
    assert "step 2 is not in " in capsys.readouterr().err
    rows.write(3, {"loss": 3.0})
    rows.close()
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 3]


def test_a_line_that_cannot_be_printed_ends_nothing(monkeypatch):
    with open("/dev/full", "w", buffering=1) as full:
        monkeypatch.setattr("sys.stdout", full)
        with pytest.raises(OSError):
            print("step=1/10 loss=1", flush=True)
        Progress(0, 10).line("step=1/10 loss=1")
        assert full.writable()
        monkeypatch.undo()
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())  # what is buffered goes there
