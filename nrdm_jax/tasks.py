"""What a run trains for: a task is the parts that differ between a diffusion and an autoencoder, so
that one step, one loop, one sampler and one job serve both."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from jax.sharding import Mesh

from nrdm_jax.data.sources import Source
from nrdm_jax.diffusion.importance import Importance
from nrdm_jax.diffusion.schedules import Path
from nrdm_jax.sampling.generate import Generator
from nrdm_jax.signatures import Array, ObjectiveFn, Params

Poll = Callable[[], None]  # called before each batch, by all processes; may raise to stop
# (weights, poll) -> figures by name, `heldout_loss` among them
Losses = Callable[[Any, Poll], dict[str, float]]
# (held-out records, the mesh, how many of them, 0: all) -> their losses
HeldoutFn = Callable[[Source, Mesh, int], Losses]
# (training records, held-out ones, the mesh, poll) -> figures of what needs no training
YardstickFn = Callable[[Source, Source, Mesh, Poll], dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Task:
    """Attributes:
    init: key -> the weights.
    apply: of a diffusion (params, x_t, t, given) -> output; of an autoencoder (params, x) ->
      reconstruction.
    objective: what is minimised.
    in_words: the network, for a person.
    forward: (config, of the shape at hand) -> (a plain function of params and of one example, on no
      mesh, and the shapes of that example), to count its FLOPs.
    sampler: (mesh, and options of `drawing.generator`, or another `apply`) -> what makes the run's
      pictures.
    prompts: (seeds, held-out records, labels, captions, rows) -> what the sampler is given, see
      `drawing.prompts`.
    heldout: the losses of a run on what it has not seen.
    yardstick: the same of the best linear map, for `scoring`.
    result: (held-out losses in the run, scores) -> what the job reports; its `ratio` is that to the
      yardstick, less is better, None where there is none.
    path: of a diffusion.
    units: residual units that the train step probes; 0: none.
    scanned_units: those of the network.
    importance: by which the times are drawn.
    by_step: the objective is told the number of the step.
    original: the name among what samples are given of what they are to be compared with, side by
      side; without it they are held against their nearest training examples.
    """

    init: Callable[[Array], Params]
    apply: Callable[..., Any]
    objective: ObjectiveFn
    in_words: str
    forward: Callable[[Any], tuple[Callable[..., Any], tuple]]
    sampler: Callable[..., Generator]
    prompts: Callable[..., dict[str, np.ndarray]]
    heldout: HeldoutFn
    yardstick: YardstickFn
    result: Callable[[list[float], dict], dict]
    path: Path | None = None
    units: int = 0
    scanned_units: int = 0
    importance: Importance | None = None
    by_step: bool = False
    original: str = ""
