"""Names of what the parts hand each other.

Shape suffixes used in the package: B examples, N tokens, D trunk width, H heads, K width of a head,
C channels, L blocks; the axes of an example are `*S C` (image H,W,C; video T,H,W,C; volume
D,H,W,C).
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax

Array = jax.Array
Shape = tuple[int, ...]  # of an example, (*S, C)
Params = Mapping[str, Any]
Metrics = dict[str, Any]  # arrays, or trees of them

# What a network is told of each example beside x_t and t, by name:
#   "label" (B,) int32, its class, always;
#   "text" (B, T, E) float, the states of an encoder, "text_mask" (B, T) bool, False behind the
#     text, and "text_pooled" (B, E) float, what stands for all of it, at the size of vectors of
#     variance 1, whatever where there is no text; or "tokens" (B, T) int32, numbers of a vocabulary
#     plus one, 0 behind the text, for the network's own encoder;
#   "seen" (B, *S, K) float32, what is known at each place.
# Whatever the diffusion does with it, it does to all leaves alike.
Given = Mapping[str, Array]

# What a data loader yields: "x" (B, *S, C), uint8 pixels or float latents; what is given with it.
Batch = Mapping[str, Array]

# (x_t (B, *S, C) float32, t (B,) in [0, 1], given) -> the network's output (B, *S, C), of which the
# first channels are its prediction where it has more.
DenoiseFn = Callable[[Array, Array, Any], Array]

# (x_t (B, *S, C), t (B,)) -> (x0, eps): what a sampler asks of a guided network.
PredictFn = Callable[[Array, Array], tuple[Array, Array]]

# Number of a step -> standard normal (B, *S, C): what a sampler adds of its own.
NoiseFn = Callable[[Array], Array]

# (params, batch, keys (B,), one an example, taps (units + 1,) or None) -> (per-example loss (B,),
# metrics, each a mean over the examples). All that training sees of a model and its diffusion. With
# taps, whose gradient is the sensitivity of the units, the metrics have the units' `health`. One
# whose times are drawn by its own losses takes the `history` of these as well, see `training.step`.
ObjectiveFn = Callable[..., tuple[Array, Metrics]]
