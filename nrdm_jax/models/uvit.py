"""U-ViT: DiT's embedding and head around a U-shaped stack (Bao et al., arXiv 2209.12152).

The blocks of the second half are mirrored: each reads what its partner of the first half gave. Both
halves are scans.
"""

from typing import cast

import jax
import jax.numpy as jnp

from nrdm_jax.models.conditioning import Condition
from nrdm_jax.models.dit import DiT
from nrdm_jax.models.probe import Streams
from nrdm_jax.models.stack import Block, Passed, Stack
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

    def backwards(self, stack: str) -> bool:
        return stack == "up"

    @property
    def layout(self) -> tuple[tuple[str, int, tuple[str, ...]], ...]:
        half, middle = self.depth // 2, self.depth % 2
        stacks = (("down", half), ("middle", middle), ("up", half))
        return tuple((name, blocks, self.unit_names) for name, blocks in stacks if blocks)

    def _trunk(
        self,
        streams: Streams,
        grid: tuple[int, ...],
        condition: Condition,
        taps: Array | None,
        keep: bool,
    ) -> Passed:
        plain, mirrored = self._block(grid), self._block(grid, self.skip)
        half, middle = self.depth // 2, self.depth % 2

        def stack(block: Block, depth: int, name: str, keep: bool = keep) -> Stack:
            return Stack(block, depth, self.memory, self.remat_policy, keep, name=name)

        def part(first: int, last: int) -> Array | None:
            return None if taps is None else taps[1:].reshape(self.depth, -1)[first:last]

        down = stack(plain, half, "down", keep=True)(streams, condition, part(0, half))
        parts = [down]
        if middle:
            between = stack(plain, 1, "middle")
            parts.append(between(down.streams, condition, part(half, half + 1)))
        assert down.kept is not None
        up = stack(mirrored, half, "up")
        parts.append(up(
            parts[-1].streams, condition, part(half + middle, self.depth), down.kept
        ))  # fmt: skip
        health = jax.tree.map(
            lambda *rows: jnp.concatenate([r.reshape(-1, 2) for r in rows]),
            *(p.health for p in parts),
        )
        kept = jnp.concatenate([cast(Array, p.kept) for p in parts]) if keep else None
        return Passed(parts[-1].streams, health, kept)
