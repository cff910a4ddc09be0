"""A step that several processes write is committed if each has written its part, and else by
none: two processes as threads, which come to orbax's barriers as orbax does."""

import threading

import pytest

from nrdm_jax.checkpointing.together import Alone
from nrdm_jax.checkpointing.votes import COMMITTED, ENDED, WRITTEN, Votes

SECONDS = 20.0


class Two(Alone):
    """Of two processes, one; a question is answered when both have asked it."""

    def __init__(self, index, both):
        self.index, self._both = index, both

    def active(self):
        return True

    def agree(self, name, value, limit):
        both = self._both
        with both["changed"]:
            answers = both.setdefault(name, {})
            answers[self.index] = value
            both["changed"].notify_all()
            assert both["changed"].wait_for(lambda: len(answers) == 2, limit), name
            return [answers[0], answers[1]]

    def meet(self, name, limit_ms):
        self.agree(name, "", limit_ms / 1000)


def saved(votes, fails):
    """As orbax's thread: its part, the commit, and the end, in whatever way. What it ends with."""
    ms = int(SECONDS * 1000)
    try:
        try:
            if fails == "part":
                raise ValueError("the disk is full\nat 0x7f")
            votes(key=f"1_{WRITTEN}.0", timeout_ms=ms)
            if fails == "commit":
                raise ValueError("no such bucket")
            votes(key=f"1_{COMMITTED}.0", timeout_ms=ms)
        except Exception:
            votes(key=f"{ENDED}.7", timeout_ms=ms)
            raise
        votes(key=f"{ENDED}.7", timeout_ms=ms)
    except Exception as error:
        return error
    return None


@pytest.mark.parametrize(
    ("fails", "process"), [("", 0), ("part", 0), ("part", 1), ("commit", 0)]
)  # fmt: skip
def test_all_know_how_each_one_s_part_went(fails, process):
    both = {"changed": threading.Condition()}
    each, ended = [Votes(Two(i, both)) for i in (0, 1)], {}
    for votes in each:
        votes._save, votes._open = 1, [WRITTEN, COMMITTED]  # `begin`, of two processes

    def save(i):
        ended[i] = saved(each[i], fails if i == process else "")

    threads = [threading.Thread(target=save, args=(i,)) for i in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert set(ended) == {0, 1}
    if not fails:
        assert ended == {0: None, 1: None}
        return
    assert isinstance(ended[process], ValueError)  # its own
    other = ended[1 - process]
    assert isinstance(other, OSError) and f"process {process} could not write its part" in str(
        other
    )
    assert str(other).endswith("the disk is full" if fails == "part" else "no such bucket")
    # The next save is another question.
    assert all(not votes._open for votes in each)
