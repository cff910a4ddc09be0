"""The paper's comparison of residual units (arXiv 2406.13215), on OpenMoji at 32 x 32.

Purpose: one field, five structures, all else equal: `gated` (z + alpha F(z) + beta, the default;
`published`: the same without our bounds on alpha and beta), `adaln` (z + F(alpha z + beta)),
`input_scale` (alpha z + F(z) + beta), `resnet` (z + F(z)) and `rezero` (z + alpha F(z), one alpha a
unit). `adaln` and `input_scale` are our reading.
Command: bash launch/local.sh configs/paper_variants.py:adaln
"""

from nrdm_jax import config as configuration

ARGUMENTS = ("gated", "published", "adaln", "input_scale", "resnet", "rezero")


def get_config(arg: str = ""):
    if arg not in ("", *ARGUMENTS):
        raise ValueError(
            f"paper_variants has no argument {arg!r}; give one of {', '.join(ARGUMENTS)}"
        )
    c = configuration.of_file(__file__, "openmoji32")
    c.model.variant = arg or "gated"
    if arg == "published":
        c.model.variant, c.model.alpha_bound, c.model.beta_bound = "gated", False, False
    c.model.depth = 12
    c.train.steps = 1_000
    return c
