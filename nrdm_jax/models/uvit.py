"""U-ViT: DiT's embedding and head around a U-shaped stack (Bao et al., arXiv 2209.12152).

The blocks of the second half are mirrored: each reads what its partner of the first half gave. Both
halves are scans.
"""

import jax.numpy as jnp

from nrdm_jax.models.conditioning import Condition
from nrdm_jax.models.dit import DiT
from nrdm_jax.models.probe import Streams
from nrdm_jax.models.stack import Block, Stack
from nrdm_jax.signatures import Array


class UViT(DiT):
    """As `DiT`, with one stream and joint attention. `gated` with prefix tokens and without
    modulation (`none`) is U-ViT as published, up to its gates.

    Attributes:
      depth: blocks; an odd one is in the middle.
      skip: `inside`, the first unit of a mirrored block is z + alpha * F([z, gamma * skip]) + beta;
        `project`, z <- W [z, skip] in front of it.
    """

    skip: str = "inside"

    def _trunk(
        self, streams: Streams, grid: tuple[int, ...], condition: Condition, taps: Array | None
    ) -> tuple[Streams, Array | None]:
        plain, mirrored = self._block(grid), self._block(grid, self.skip)
        half, middle = self.depth // 2, self.depth % 2

        def stack(block: Block, depth: int, name: str, keep: bool = False) -> Stack:
            return Stack(block, depth, self.memory, self.remat_policy, keep, name=name)

        def part(first: int, last: int) -> Array | None:
            return None if taps is None else taps[:-1].reshape(self.depth, -1)[first:last]

        down = stack(plain, half, "down", keep=True)(streams, condition, part(0, half))
        streams, seen = down.streams, [down.health]
        if middle:
            passed = stack(plain, 1, "middle")(streams, condition, part(half, half + 1))
            streams, seen = passed.streams, [*seen, passed.health]
        assert down.kept is not None
        up = stack(mirrored, half, "up")(
            streams, condition, part(half + middle, self.depth), down.kept[::-1]
        )
        if taps is None:
            return up.streams, None
        rows = [health.reshape(-1, 2) for health in (*seen, up.health) if health is not None]
        return up.streams, jnp.concatenate(rows)
