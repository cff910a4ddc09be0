"""The config tree, its checks and its form on disk.

Neither jax nor anything else of ours is imported here, so that a wrong config is refused in well
under two seconds.
"""

from nrdm_jax.config.buckets import (
    at_shape,
    batch_size,
    batch_sizes,
    check_shape,
    other_batch_size,
    shapes,
    sizes_differ,
)
from nrdm_jax.config.checks import validate
from nrdm_jax.config.idle import idle_fields
from nrdm_jax.config.mesh_checks import check_parallel
from nrdm_jax.config.tree import (
    ADDITIVE_VARIANTS,
    CHOICES,
    GATED_VARIANTS,
    MESH_AXES,
    METRICS,
    default,
    difference,
    from_dict,
    of_file,
    patch_of,
    to_dict,
    with_class,
)

__all__ = [
    "ADDITIVE_VARIANTS",
    "CHOICES",
    "GATED_VARIANTS",
    "MESH_AXES",
    "METRICS",
    "at_shape",
    "batch_size",
    "batch_sizes",
    "check_parallel",
    "check_shape",
    "default",
    "difference",
    "from_dict",
    "idle_fields",
    "of_file",
    "other_batch_size",
    "patch_of",
    "shapes",
    "sizes_differ",
    "to_dict",
    "validate",
    "with_class",
]
