"""Training times drawn more often where the loss is large: the loss-second-moment resampling of
Nichol & Dhariwal (arXiv 2102.09672, section 3.3), which lowers the variance of a loss whose terms
differ by orders of magnitude, as those of the variational bound do, and leaves its mean as it is.

With p_b the chance of bin b of the times, of B, the gradient's variance is least where p_b is in
proportion to sqrt(E[l^2]) within it; each example's loss l is multiplied by 1 / (B p_b).
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nrdm_jax.signatures import Array

# Share of the draws that is uniform, so that no p is 0 (the authors' code: uniform_prob).
UNIFORM = 1e-3


class History(NamedTuple):
    """What is remembered of each bin, (bins,) float32.

    Attributes:
      squares: mean of l^2 over about the last examples.
      counts: of how many, at most as many as are remembered.
    """

    squares: Array
    counts: Array


@dataclasses.dataclass(frozen=True)
class Importance:
    """Attributes:
    t_min, t_max: training times, cut into `bins` of one width.
    bins: a thousand in the paper, of one time each.
    remembered: examples of each bin that its mean is of; times are uniform until every bin has had
      as many (10 in the paper, where the mean is of exactly these; here the older ones fade).
    """

    t_min: float
    t_max: float
    bins: int
    remembered: int

    def start(self) -> History:
        return History(jnp.zeros(self.bins), jnp.zeros(self.bins))

    def chances(self, history: History) -> Array:
        """p (bins,), of sum 1."""
        roots = jnp.sqrt(history.squares)
        total = jnp.sum(roots)
        # Counts are sums of rounded shares of batches.
        warm = jnp.all(history.counts > self.remembered - 0.5) & (total > 0)
        even = jnp.full(self.bins, 1.0 / self.bins)
        p = (1.0 - UNIFORM) * roots / jnp.where(total > 0, total, 1.0) + UNIFORM * even
        return jnp.where(warm, p, even)

    def draw(self, p: Array, keys_B: Array) -> Array:
        """Times (B,): a bin by its chance, even within it."""

        def one(key: Array) -> Array:
            which, where = jax.random.uniform(key, (2,), jnp.float32)
            ends = jnp.cumsum(p)
            place = jnp.sum((which * ends[-1] >= ends[:-1]).astype(jnp.float32))
            return self.t_min + (self.t_max - self.t_min) * (place + where) / self.bins

        return jnp.clip(jax.vmap(one)(keys_B), self.t_min, self.t_max)

    def ratio(self, p: Array, t_B: Array) -> Array:
        """1 / (bins p), (B,): with it, a mean over the draws is one over uniform times."""
        return 1.0 / (self.bins * p[self._bin(t_B)])

    def observed(self, t_B: Array, loss_B: Array) -> History:
        """Means over the examples, not over those of a bin, so that they average over the parts of
        a batch."""
        here = jax.nn.one_hot(self._bin(t_B), self.bins)  # a sum that devices share, no scatter
        loss_B = jax.lax.stop_gradient(loss_B)
        return History(jnp.mean(here * jnp.square(loss_B)[:, None], axis=0), jnp.mean(here, axis=0))

    def updated(self, history: History, seen: History, examples: int) -> History:
        """The history after a batch of so many examples with the means `seen`."""
        new = seen.counts * examples
        counts = jnp.minimum(history.counts + new, self.remembered)
        some = new > 0
        mean = seen.squares / jnp.where(some, seen.counts, 1.0)
        # The plain mean until there are enough, and no more than the new ones where these are.
        share = new / jnp.where(some, jnp.maximum(counts, new), 1.0)
        return History(history.squares + share * (mean - history.squares), counts)

    def _bin(self, t_B: Array) -> Array:
        place = (t_B - self.t_min) / (self.t_max - self.t_min) * self.bins
        return jnp.clip(place.astype(jnp.int32), 0, self.bins - 1)
