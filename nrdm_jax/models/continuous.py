"""Depth as the time of an ODE: dz/ds = alpha(s) F(z, s) + beta(s), the limit of infinitely many
gated units (Neural-RDM, arXiv 2406.13215; Chen et al., arXiv 1806.07366), solved by diffrax.

One step of Euler of length 1 is one block whose branches read the same z.
"""

import dataclasses
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from nrdm_jax.models.conditioning import Condition
from nrdm_jax.models.dit import DiT
from nrdm_jax.models.probe import Streams, tapped
from nrdm_jax.models.stack import Block, Passed, stacked
from nrdm_jax.models.unit import Gates
from nrdm_jax.signatures import Array

SOLVERS = {"euler": "Euler", "heun": "Heun", "dopri5": "Dopri5", "tsit5": "Tsit5"}
FIXED = ("euler",)  # has no estimate of its error: steps of length 1
ADJOINTS = ("backpropagation", "ode")
MAX_STEPS = 4096


class ContinuousDiT(DiT):
    """As `DiT`, with one stream and joint attention; the whole integral is one residual unit to the
    probe.

    Attributes:
      depth: length of the integral, in blocks.
      knots: blocks of weights, evenly over the depth and interpolated linearly between; 1: the same
        everywhere.
      solver: a key of `SOLVERS`; euler takes `depth` steps, the others choose theirs, by the error
        of the whole batch, so that what else is in it changes a result within the tolerance.
      tolerance: of a step, relative and absolute.
      adjoint: `backpropagation` through the solver, exact for the steps that were taken, by
        recursive checkpoints, sqrt(2 * steps) trunks of the most steps that it may take (euler:
        `depth`; others: 4,096, so 90 trunks); or `ode`, the adjoint equation solved backwards,
        memory O(1), exact in the limit of small tolerances (arXiv 1806.07366, section 2).
    """

    knots: int = 1
    solver: str = "tsit5"
    tolerance: float = 1e-3
    adjoint: str = "backpropagation"

    @property
    def layout(self) -> tuple[tuple[str, int, tuple[str, ...]], ...]:
        return (("stack", self.knots, self.unit_names),)

    @property
    def units(self) -> int:
        return 1

    @property
    def blocks(self) -> int:
        return self.depth

    @property
    def gates(self) -> Gates:
        return dataclasses.replace(super().gates, units=self.depth * len(self.unit_names))

    def _trunk(
        self,
        streams: Streams,
        grid: tuple[int, ...],
        condition: Condition,
        taps: Array | None,
        keep: bool,
    ) -> Passed:
        flow = Flow(
            self._block(grid), self.knots, self.depth, self.solver, self.tolerance, self.adjoint,
            name="stack",
        )  # fmt: skip
        z_SBND = flow(streams[0], condition, keep)
        streams, seen = tapped((z_SBND[-1],), None if taps is None else taps[1:], self.prefix)
        return Passed(streams, seen, z_SBND if keep else None)


class Flow(nn.Module):
    """(z (B, N, D), condition, keep) -> z at the end, (1, B, N, D); with `keep` at every whole
    number of blocks, (depth, B, N, D). NaN where the solver needs more than 4,096 steps.

    Attributes:
      block: unbound; its units must be additive.
      others: see `ContinuousDiT`.
    """

    block: Block
    knots: int
    depth: int
    solver: str
    tolerance: float
    adjoint: str

    @nn.compact
    def __call__(self, z: Array, condition: Condition, keep: bool = False) -> Array:
        import diffrax

        block = self.block.clone(parent=None, name=None)
        knots = self.param("blocks", stacked(block, self.knots, (z,), condition))

        def velocity(s: Any, z: Any, arguments: Any) -> Any:
            knots, condition = arguments
            params = interpolated(knots, s / self.depth)
            total = zero = jnp.zeros_like(z)  # an additive unit writes what it adds into it
            for name, unit in block.units:
                variables = {"params": params[name]}
                written = unit(parent=None).apply(variables, zero, z, condition)
                total = total + cast(Array, written)
            return total

        fixed = self.solver in FIXED
        steps = diffrax.ConstantStepSize() if fixed else diffrax.PIDController(
            rtol=self.tolerance, atol=self.tolerance
        )  # fmt: skip
        solver = getattr(diffrax, SOLVERS[self.solver])()
        adjoint = (
            diffrax.BacksolveAdjoint(solver=solver, stepsize_controller=steps)
            if self.adjoint == "ode"
            else diffrax.RecursiveCheckpointAdjoint()
        )
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(velocity),
            solver,
            t0=0.0,
            t1=float(self.depth),
            dt0=1.0 if fixed else None,
            y0=z,
            args=(knots, condition),
            saveat=diffrax.SaveAt(
                t1=not keep, ts=jnp.arange(1.0, self.depth + 1) if keep else None
            ),
            stepsize_controller=steps,
            adjoint=adjoint,
            max_steps=self.depth if fixed else MAX_STEPS,
            throw=False,
        )
        solved = solution.result == diffrax.RESULTS.successful
        return jnp.where(solved, solution.ys, jnp.nan)


def interpolated(knots: Any, share: Array) -> Any:
    """The weights (...) at a share in [0, 1] of the depth, linear between knots (K, ...) that lie
    evenly from 0 to 1."""
    count = jax.tree.leaves(knots)[0].shape[0]
    if count == 1:
        return jax.tree.map(lambda w: w[0], knots)
    place = jnp.clip(share, 0.0, 1.0) * (count - 1)
    left = jnp.minimum(place.astype(jnp.int32), count - 2)
    weight = place - left

    def between(w):
        return (1.0 - weight) * w[left] + weight * w[left + 1]

    return jax.tree.map(between, knots)
