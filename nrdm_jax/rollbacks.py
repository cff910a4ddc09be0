"""A run goes back to its last good checkpoint, or ends."""

from nrdm_jax import build, restoring
from nrdm_jax.checkpointing.manager import Checkpoints
from nrdm_jax.data.buckets import BucketLoader
from nrdm_jax.data.loader import Loader
from nrdm_jax.processes import exit_codes
from nrdm_jax.processes.exit_codes import Stop
from nrdm_jax.training import recovery
from nrdm_jax.training.guard import Trouble
from nrdm_jax.training.metrics import Ledger
from nrdm_jax.training.state import TrainState, save_items, state_of


def gone_back(
    parts: build.Run,
    batches: Loader | BucketLoader,
    checkpoints: Checkpoints,
    ledger: Ledger,
    begun: dict,
    trouble: Trouble,
) -> tuple[TrainState, dict]:
    """The newest good state that is whole, and what to go on with.

    Args:
      parts, batches, checkpoints, ledger: of the run.
      begun: what the stretch that came to the trouble began with, as this gives it.
      trouble: to be left behind.

    Raises:
      Stop: there is no good state, or the config asks for an end here (exit code 70).
      DamagedCheckpoint: there are such, and none is whole.
    """
    config = parts.config
    with ledger.account("save"):
        checkpoints.settle()
    rollback = config.guard.action == "rollback"
    every = config.checkpoint.every if rollback else 1
    steps = checkpoints.agreed_steps() if rollback else checkpoints.steps()
    before = recovery.good_ones(steps, trouble.since, every)
    done = trouble.counts["rollbacks"]
    if not rollback or not before or done >= config.guard.most_rollbacks:
        raise Stop(exit_codes.NON_FINITE, _farewell(trouble, before, rollback))
    with ledger.account("restore"):
        # The first: what became of the disk since it was written nobody knows.
        good = restoring.first_whole(checkpoints, before, f" from before step {trouble.since}")
        state = state_of(checkpoints.restore(good, save_items(parts.abstract_state)))
        meta = recovery.whole(checkpoints.meta(good))
        # They lead to the same trouble: wherever a kill leaves this, the run comes to it again.
        checkpoints.remove_after(good)
    position = batches.position_after(begun["position"], trouble.step - begun["step"])
    again = recovery.begun_again(meta, trouble, position)
    if "step_seconds" in begun and "step_seconds" in meta:
        ledger.charge("lost", begun["step_seconds"] + ledger.productive() - meta["step_seconds"])
        # As of a process that began when this ledger did.
        again["seconds"] = meta["seconds"] - ledger.elapsed()
        again["step_seconds"] = meta["step_seconds"] - ledger.productive()
    print(
        f"step={trouble.step} WARNING: rollback {done + 1} of {config.guard.most_rollbacks}: "
        f"restored step {good}; records {meta['position']} to {position - 1} of the order are left "
        "out",
        flush=True,
    )
    return state, again


def _farewell(trouble: Trouble, good: list[int], rollback: bool) -> str:
    last = f"last good checkpoint: step {good[0]}" if good else "no checkpoint from before it"
    again = f", after {trouble.counts['rollbacks']} rollbacks" if rollback else ""
    advice = "" if rollback else ", or set guard.action=rollback"
    return (
        f"step {trouble.step}: {trouble.reason}{again}; {last}. Lower optim.learning_rate, or "
        f"raise optim.warmup_steps{advice}"
    )
