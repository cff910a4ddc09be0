"""Where a run goes back to, and what of its data it then leaves out.

After a rollback the state's step and the place in the data are no longer in step: a checkpoint's
meta says both, `records_seen`, on which the state was trained, and `position`, the number of the
next record in the order of the run. `left_out` are the ranges [first, end) of numbers that no state
was trained on.
"""

from collections.abc import Sequence
from typing import Any

from nrdm_jax.training.guard import Trouble


def nothing_yet() -> dict[str, Any]:
    """What a fresh state's meta would say of data and policy."""
    return {"records_seen": 0, "position": 0, "left_out": [], "guard": {}}


def whole(meta: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint's meta, with what older versions did not say: they never went back."""
    defaults = nothing_yet() | {"position": meta["records_seen"]}
    return defaults | meta


def good_ones(steps: Sequence[int], since: int, every: int = 1) -> list[int]:
    """Checkpoints from before step `since`, in the order in which they are to be tried: the newest
    of those at multiples of `every` first. Others are where a process was stopped, and a run must
    not depend on that."""
    before = (step for step in steps if step < since)
    return sorted(before, key=lambda step: (step % every > 0, -step))


def begun_again(meta: dict[str, Any], trouble: Trouble, position: int) -> dict[str, Any]:
    """What to go on with after a rollback.

    Args:
      meta: `whole`, of the checkpoint that was restored.
      trouble: for which it was.
      position: after the trouble's step. The data go on from there: the run does not meet the same
        batches in the same state again, which would end as it did (Chowdhery et al., PaLM,
        arXiv 2204.02311, section 5.1: "re-started training from a checkpoint roughly 100 steps
        before the spike started, and skipped roughly 200-500 data batches").
    """
    counts = trouble.counts | {"rollbacks": trouble.counts["rollbacks"] + 1}
    return meta | {
        "position": position,
        "left_out": [*meta["left_out"], [meta["position"], position]],
        "guard": meta["guard"] | counts,
    }
