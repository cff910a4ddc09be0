"""The account of a run's time: nothing twice, nothing forgotten."""

import json

import pytest

from nrdm_jax.training.goodput import Goodput
from nrdm_jax.training.metrics import Ledger


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def process(workdir, restored, spend, start):
    """One process: (section or "step", seconds) in order; its account, written."""
    clock = Clock()
    clock.now = start
    ledger = Ledger(clock)
    goodput = Goodput(workdir, ledger, restored)
    for name, seconds in spend:
        if name == "step":
            clock.now += seconds
        elif name == "lost":
            ledger.charge(name, seconds)
        else:
            with ledger.account(name):
                clock.now += seconds
    ledger.data_wait += 1.0
    goodput.write()
    return goodput


def test_what_is_done_again_was_lost(tmp_path):
    first = process(tmp_path, 0.0, [("init", 5), ("compile", 10), ("step", 20), ("save", 2),
                                    ("step", 13)], start=100.0)  # fmt: skip
    assert first.seconds() == {"init": 5, "compile": 10, "save": 2, "step": 33}
    assert first.share() == 33 / 50
    # Killed; the checkpoint is of the first 20 seconds of steps. Another machine's clock.
    second = process(tmp_path, 20.0, [("init", 5), ("compile", 10), ("step", 30)], start=7.0)
    assert second.seconds() == {"init": 10, "compile": 20, "save": 2, "lost": 13, "step": 50}
    assert second.share() == 50 / 95 and second.data_wait() == 2.0
    assert "lost=13.00" in second.in_words() and "2 processes" in second.in_words()
    # A rollback within a process: 8 of its seconds of steps are lost as well.
    third = process(tmp_path, 50.0, [("step", 10), ("lost", 8), ("step", 1)], start=0.0)
    assert third.seconds()["step"] == 53 and third.seconds()["lost"] == 21
    told = json.loads((tmp_path / "goodput.json").read_text())
    assert told["seconds"] == third.seconds() and told["processes"] == 3
    assert told["goodput"] == pytest.approx(53 / 106, abs=1e-4)
    assert sum(told["seconds"].values()) == 50 + 45 + 11


def test_an_account_that_is_lost_or_broken_ends_no_run(tmp_path):
    for text in ("", "[]", '{"seconds": 3}'):
        (tmp_path / "goodput.json").write_text(text)
        assert process(tmp_path, 9.0, [("step", 1)], 0.0).seconds() == {"step": 10}
    # A checkpoint that does not say its seconds: what the account has is kept.
    assert process(tmp_path, None, [("step", 1)], 0.0).seconds() == {"step": 11}
    (tmp_path / "goodput.tmp").mkdir()  # cannot be written
    process(tmp_path, None, [("step", 1)], 0.0)
