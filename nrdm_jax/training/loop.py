"""The order of events of a training run; what happens at each is in the hooks."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import jax

from nrdm_jax.signatures import Batch, Metrics
from nrdm_jax.training.state import TrainState
from nrdm_jax.training.step import TrainStep


class Hook(Protocol):
    """Called after every step; acts when the step is one of its own."""

    def __call__(self, step: int, state: TrainState, metrics: Metrics, data_wait: float) -> None:
        """Args:
        step: steps done, from 1.
        state: after the step; must not be kept, the next step donates it.
        metrics: of the step, still on the device.
        data_wait: seconds the step waited for its batch.
        """


def run(
    state: TrainState,
    train_step: TrainStep,
    batches: Iterator[Batch],
    hooks: Sequence[Hook],
    *,
    first_step: int,
    last_step: int,
    stop_requested: Callable[[], bool],
    enter: Callable[[str], None] = lambda section: None,
) -> tuple[TrainState, int]:
    """Trains from `first_step` steps done to `last_step`, or until a stop is requested.

    Returns the state and the number of steps done. Hooks run in the order given; `enter` is told
    when the loop waits for `data` and when for a `step`.
    """
    step = first_step
    while step < last_step and not stop_requested():
        enter("data")
        before = time.perf_counter()
        batch = next(batches)
        data_wait = time.perf_counter() - before
        enter("step")
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            state, metrics = train_step(state, batch)
        step += 1
        for hook in hooks:
            hook(step, state, metrics, data_wait)
    return state, step
