"""The one table of sharding rules: what each parameter's axes are, and which mesh axes they take.

`AXES` is read from the top, the first pattern found in a leaf's path decides; the same rows serve
the optimizer's moments and the EMA, whose paths end alike. A leaf that no row matches is an error.
"""

from typing import Any

from nrdm_jax.sharding.axes import Rules

# Pattern searched in the leaf's path -> logical names of its last axes. A stacked leaf
# (…/blocks/…) has one more axis, `layers`, in front. `...` stands for any number of axes that are
# not sharded: the window of a convolution.
AXES: tuple[tuple[str, tuple[Any, ...]], ...] = (
    # Adafactor's row and column sums, and what optimizers count.
    (r"/(v_row|v_col|v|count|ns_coeffs|schedule_free)$", (...,)),
    # What the state remembers of the losses.
    (r"^importance/", (...,)),
    # Small beside what they are trained on: each device has them whole.
    (r"(^|/)(autoencoder|discriminator)/", (...,)),
    (r"(alpha|beta)/kernel$", ("embed", None)),
    (r"(alpha|beta)/bias$", (None,)),
    (r"gamma$", (None,)),
    (r"shared/(shift|scale)/kernel$", ("embed", None)),
    (r"text/norm/(scale|bias)$", (None,)),
    (r"text/start$", (None,)),
    (r"text/pooled/kernel$", (None, "embed")),
    (r"text_encoder/embedding$", (None, "embed")),
    (r"text_encoder/mlp_\d+/hidden/kernel$", ("embed", "mlp")),
    (r"text_encoder/mlp_\d+/hidden/bias$", ("mlp",)),
    (r"text_encoder/mlp_\d+/out/kernel$", ("mlp", "embed")),
    (r"text_encoder/mlp_\d+/out/bias$", (None,)),
    (r"norm/kernel$", ("embed", None, None)),
    (r"norm/bias$", (None, None)),
    (r"(query|key)_scale$", (None,)),
    (r"project/kernel$", ("embed", None)),
    (r"project/bias$", (None,)),
    (r"convolution/branch/hidden/kernel$", (..., "embed", "mlp")),
    (r"convolution/branch/hidden/bias$", ("mlp",)),
    (r"convolution/branch/out/kernel$", (..., "mlp", "embed")),
    (r"convolution/branch/out/bias$", (None,)),
    (r"(shrink|grow)_\d+/kernel$", (..., "embed", None)),
    (r"(shrink|grow)_\d+/bias$", (None,)),
    (r"(query|key|value)_kernel$", ("embed", "heads", "kv")),
    (r"(query|key|value)_bias$", ("heads", "kv")),
    (r"out_kernel$", ("heads", "kv", "embed")),
    (r"out_bias$", (None,)),
    (r"mlp/branch/(hidden|linear)/kernel$", ("embed", "mlp")),
    (r"mlp/branch/(hidden|linear)/bias$", ("mlp",)),
    (r"mlp/branch/out/kernel$", ("mlp", "embed")),
    (r"mlp/branch/out/bias$", (None,)),
    (r"patch_embed/kernel$", (..., None, "embed")),
    (r"time/hidden/kernel$", (None, "embed")),
    (r"time/out/kernel$", ("embed", None)),
    (r"label/Embed_0/embedding$", (None, "embed")),
    (r"final/kernel$", (..., "embed", None)),
    (r"(patch_embed|time/hidden|time/out|final)/bias$", (None,)),
    (r"uncertainty/linear/kernel$", (None, None)),
    (r"uncertainty/linear/bias$", (None,)),
)

RULES: Rules = {
    "activation_batch": ("data", "fsdp"),
    "activation_length": ("context",),
    "activation_heads": ("tensor",),
    "activation_mlp": ("tensor",),
    "layers": ("stage",),
    "embed": ("fsdp",),
    "mlp": ("tensor",),
    "heads": ("tensor",),
    "kv": (),
}

# Of the optimizer's state and the EMA under ZeRO-1 (Rajbhandari et al., arXiv 1910.02054): replicas
# of the weights each keep and update a part. The part is cut from the shard that fsdp leaves.
ZERO1: Rules = {**RULES, "embed": ("fsdp", "data")}
