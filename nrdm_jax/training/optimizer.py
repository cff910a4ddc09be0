"""Optimizers by name, with the exceptions that gated stacks need."""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import optax
from optax import contrib

from nrdm_jax import trees
from nrdm_jax.sharding.partition import logical_axes
from nrdm_jax.signatures import Params

# What is multiplied by an input and has no scale of its own to keep: not gates, norms, biases,
# embeddings, the projections that gates and norms of a stack share, or the uncertainty's weights,
# whose scale is the loss's.
_DECAYED = re.compile(r"kernel$")
_NOT_DECAYED = re.compile(r"(^|/)(alpha|beta|norm|first_norm|final_norm|shared|uncertainty)/")
_GATE = re.compile(r"(^|/)(alpha|beta)/|(^|/)gamma$")
_BETA = re.compile(r"(^|/)beta/")
BETA_RATE = 0.1
_MATRIX = re.compile(r"/blocks/.*kernel$")

Rates = Sequence[tuple[str, float]]
# (the optimizer's state, params) -> the weights to evaluate
Averaged = Callable[[Any, Params], Params]


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


def decay_mask(params: Params, exempt: Sequence[str] = ()) -> Params:
    """True where weight decay applies; nowhere where one of the patterns is found in the path."""

    def decays(path: str, _) -> bool:
        return (
            bool(_DECAYED.search(path))
            and not _NOT_DECAYED.search(path)
            and not any(re.search(pattern, path) for pattern in exempt)
        )

    return trees.map_with_path(decays, params)


def rate_factors(params: Params, rates: Rates, gate_rate: float, slow_beta: bool) -> Params:
    """Of each leaf, the factor on the learning rate: that of the first of `rates` whose pattern is
    found in its path, and for gates `gate_rate`, and for bounded betas a tenth, on top."""

    def factor(path: str, _) -> float:
        found = next((f for pattern, f in rates if re.search(pattern, path)), 1.0)
        if _GATE.search(path):
            found *= gate_rate
        return found * BETA_RATE if slow_beta and _BETA.search(path) else found

    return trees.map_with_path(factor, params)


class Matrix(NamedTuple):
    """Which axes of a leaf are the input and the output of a product; others are matrices apart."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def matrix_of(path: str, leaf) -> Matrix | None:
    """Of a kernel of a stack, None for all else, by its logical axes in `sharding.rules`: the first
    name is the input, the last the output; heads and their channels are one, and so are the window
    of a convolution and its channels."""
    if not _MATRIX.search(path) or _NOT_DECAYED.search(path):
        return None
    names = logical_axes(path, leaf.ndim)
    axes = range(names.count("layers"), leaf.ndim)
    named = next(i for i, axis in enumerate(axes) if names[axis] is not None)
    first = 2 if names[axes[0]] == "heads" else named + 1
    last = 2 if names[axes[-1]] == "kv" else 1
    return Matrix(tuple(axes[:first]), tuple(axes[-last:]))


def muon_dimensions(params: Params) -> Params:
    """optax's form of `matrix_of`."""

    def of(path: str, leaf):
        matrix = matrix_of(path, leaf)
        return None if matrix is None else contrib.MuonDimensionNumbers(*matrix)

    return trees.map_with_path(of, params)


def by_block(one: optax.GradientTransformation) -> optax.GradientTransformation:
    """A transformation of single leaves, made to see each block of a stack apart, and its kernels
    as matrices: Adafactor would otherwise factor (L, in, out) over the depth, and (in, heads, K)
    not at all where K is small."""

    def view(path: str, leaf):
        """The leaf as the transformation sees it, and whether it has the blocks in front."""
        stacked = "/blocks/" in path
        matrix = matrix_of(path, leaf)
        if matrix is None:
            return leaf, stacked
        inputs = math.prod(leaf.shape[axis] for axis in matrix.inputs)
        return leaf.reshape(*leaf.shape[:1], inputs, -1), stacked

    def init(params):
        def of(path, leaf):
            seen, stacked = view(path, leaf)
            return (jax.vmap(one.init) if stacked else one.init)(seen)

        return trees.map_with_path(of, params)

    def update(updates, state, params):
        structure: Any = jax.tree.structure(updates)
        done = []
        for (path, leaf), own, weights in zip(
            trees.leaves_with_path(updates),
            structure.flatten_up_to(state),
            jax.tree.leaves(params),
            strict=True,
        ):
            seen, stacked = view(path, leaf)
            change = jax.vmap(one.update) if stacked else one.update
            new, own = change(seen, own, view(path, weights)[0])
            done.append((new.reshape(leaf.shape), own))
        news, states = zip(*done, strict=True)
        return structure.unflatten(news), structure.unflatten(states)

    return optax.GradientTransformation(init, update)


def _adam(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """Kingma & Ba, arXiv 1412.6980; with decay apart from it AdamW (arXiv 1711.05101)."""
    return optax.scale_by_adam(b1, b2, eps)


def _lion(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """Chen et al., arXiv 2302.06675: the sign of a momentum."""
    return optax.scale_by_lion(b1, b2)


def _adafactor(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """Shazeer & Stern, arXiv 1804.04235: factored second moments, updates of a block's kernel
    clipped at an RMS of 1; with b1, a first moment as well (as for ViTs, arXiv 2106.04560)."""
    one = optax.chain(
        optax.scale_by_factored_rms(decay_rate=0.8, epsilon=1e-30), optax.clip_by_block_rms(1.0)
    )
    return optax.chain(by_block(one), optax.ema(b1, debias=False) if b1 else optax.identity())


def _muon(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """Muon (Jordan et al. 2024) for the kernels of the stacks, each of each block orthogonalised by
    itself, its updates of Adam's size, 0.2 sqrt(max(in, out)) (Liu et al., arXiv 2502.16982); Adam
    for the rest. `b1`, `b2`, `eps` are Adam's; Muon's momentum is 0.95."""

    def of_adam_s_size(updates, params):
        def scaled(path: str, update):
            matrix = matrix_of(path, update)
            assert matrix is not None
            sides = (math.prod(update.shape[axis] for axis in side) for side in matrix)
            return 0.2 * max(sides) ** 0.5 * update

        return trees.map_with_path(scaled, updates)

    muon = optax.chain(
        contrib.scale_by_muon(weight_dimension_numbers=muon_dimensions),
        optax.stateless(of_adam_s_size),
    )

    def labels(params):
        return trees.map_with_path(
            lambda path, leaf: "adam" if matrix_of(path, leaf) is None else "muon", params
        )

    return optax.partition({"muon": muon, "adam": _adam(b1, b2, eps)}, labels)


SCALES = {"adamw": _adam, "lion": _lion, "adafactor": _adafactor, "muon": _muon}


class Optimizer(NamedTuple):
    """Attributes:
    transform: sees the gradient of the mean loss.
    averaged: where the optimizer has a mean of its own in the place of the EMA; else None.
    """

    transform: optax.GradientTransformation
    averaged: Averaged | None = None


def make_optimizer(
    name: str,
    learning_rate: optax.Schedule,
    *,
    b1: float,
    b2: float,
    eps: float,
    weight_decay: float,
    clip_norm: float,
    slow_beta: bool,
    gate_rate: float = 1.0,
    rates: Rates = (),
    no_decay: Sequence[str] = (),
) -> Optimizer:
    """The optimizer after clipping by the global norm, with decoupled weight decay.

    A factor of the rate acts on the whole update of a leaf, decay included, as its own learning
    rate would.

    Args:
      name: a key of `SCALES`, or `schedule_free`: AdamW whose weights are a mean of their own
        (Defazio et al., arXiv 2405.15682), evaluated instead of the EMA.
      gate_rate: factor of the rate of all gates.
      slow_beta: the gates beta are bounded ones (`unit.Gates.beta_bound`) and move at a tenth.
      rates: (pattern, factor): a leaf takes the factor of the first pattern found in its path.
      no_decay: patterns of leaves that are not decayed, beside gates, norms and biases.
    """
    free = name == "schedule_free"

    def scaled(updates, params):
        factors = rate_factors(updates, rates, gate_rate, slow_beta)
        return jax.tree.map(lambda u, f: u if f == 1.0 else u * f, updates, factors)

    steps = [
        # The mean of its weights is the momentum of the schedule-free form.
        SCALES["adamw"](0.0, b2, eps) if free else SCALES[name](b1, b2, eps),
        optax.add_decayed_weights(weight_decay, lambda params: decay_mask(params, no_decay))
        if weight_decay
        else optax.identity(),
        optax.stateless(scaled),
        optax.scale_by_learning_rate(learning_rate),
    ]
    clip = optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity()
    if not free:
        return Optimizer(optax.chain(clip, *steps))
    return Optimizer(
        optax.chain(clip, contrib.schedule_free(optax.chain(*steps), learning_rate, b1)),
        lambda state, params: contrib.schedule_free_eval_params(state[1], params),
    )
