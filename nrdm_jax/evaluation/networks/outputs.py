"""What a feature network says of its images or clips."""

from typing import NamedTuple

from nrdm_jax.signatures import Array


class Outputs(NamedTuple):
    """Float32, one row an example.

    Attributes:
      pooled: (B, F), the features of Fréchet and kernel distances, precision and recall.
      spatial: (B, G), features that still know where they are (sFID), if the network has them.
      logits: (B, K), of its classes (inception score), if it has any.
    """

    pooled: Array
    spatial: Array | None = None
    logits: Array | None = None
