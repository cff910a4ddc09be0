"""AdamW with the exceptions that gated stacks need."""

import re

import optax

from nrdm_jax import trees
from nrdm_jax.signatures import Params

# What is multiplied by an input and has no scale of its own to keep: not gates, norms, biases,
# embeddings, or the projections that gates and norms of a stack share.
_DECAYED = re.compile(r"kernel$")
_NOT_DECAYED = re.compile(r"(^|/)(alpha|beta|norm|final_norm|shared)/")
_BETA = re.compile(r"(^|/)beta/")
BETA_RATE = 0.1


def schedule(name: str, learning_rate: float, warmup_steps: int, steps: int) -> optax.Schedule:
    """Linear warm-up from 0, then `constant`, or `cosine` to 0 at the last step."""
    if name == "cosine":
        after = optax.cosine_decay_schedule(learning_rate, max(1, steps - warmup_steps))
    else:
        after = optax.constant_schedule(learning_rate)
    if not warmup_steps:
        return after
    # Step k of the warm-up uses (k + 1) / warmup of the rate: a first step of rate 0 is wasted.
    warmup = optax.linear_schedule(learning_rate / warmup_steps, learning_rate, warmup_steps - 1)
    return optax.join_schedules([warmup, after], [warmup_steps])


def decay_mask(params: Params) -> Params:
    """True where weight decay applies."""
    return trees.map_with_path(
        lambda path, _: bool(_DECAYED.search(path)) and not _NOT_DECAYED.search(path), params
    )


def adamw(
    learning_rate: optax.Schedule,
    *,
    b1: float,
    b2: float,
    eps: float,
    weight_decay: float,
    clip_norm: float,
    slow_beta: bool,
) -> optax.GradientTransformation:
    """AdamW (Loshchilov & Hutter, arXiv 1711.05101) after clipping by the global norm.

    A multiplier of the rate acts on the whole update of a leaf, as its own learning rate would.
    `slow_beta`: the gates beta are bounded ones (`unit.Gates.beta_bound`) and move at a tenth.
    """
    scale_beta = optax.stateless(
        lambda updates, params: trees.map_with_path(
            lambda path, u: u * BETA_RATE if slow_beta and _BETA.search(path) else u, updates
        )
    )
    return optax.chain(
        optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity(),
        optax.scale_by_adam(b1, b2, eps),
        optax.add_decayed_weights(weight_decay, decay_mask) if weight_decay else optax.identity(),
        scale_beta,
        optax.scale_by_learning_rate(learning_rate),
    )
