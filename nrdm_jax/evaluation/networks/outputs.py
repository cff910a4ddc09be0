"""What every feature network gives."""

from typing import NamedTuple

from nrdm_jax.signatures import Array


class Outputs(NamedTuple):
    """Of B pictures or clips, in float32.

    Attributes:
      pooled: (B, F), what the Fréchet and kernel distances and precision and recall compare.
      spatial: (B, G), a flattened part of a map in mid-network, where places still tell, for a
        spatial Fréchet distance; None where a network has none.
      logits: (B, K), of the classes it was trained on, for the Inception Score; None where it has
        no classes.
    """

    pooled: Array
    spatial: Array | None
    logits: Array | None
