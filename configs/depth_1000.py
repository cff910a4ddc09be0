"""A thousand blocks on a laptop: OpenMoji at 16 x 16, width 64, 16 tokens.

Purpose: depth as one number. 2,000 residual units train on real pictures in minutes on two CPU
cores; the depth study (docs/depth) is this config at other depths, variants and learning rates.
`:smoke` is 20 steps of 8 blocks, for tests.
Command: python -m nrdm_jax.train --config=configs/depth_1000.py --workdir=runs/depth_1000
"""

from nrdm_jax import config as configuration

ARGUMENTS = ("smoke",)


def get_config(arg: str = ""):
    c = configuration.default()
    # A token is 4 * 4 * 3 = 48 numbers: of more than the width has, the noise could not be told.
    c.data.name, c.data.shape, c.data.num_classes = "openmoji", (16, 16, 3), 10
    c.model.depth, c.model.width, c.model.heads, c.model.patch = 1_000, 64, 2, (4,)
    # One kernel for all gates and one for all norms: per unit they would outweigh the branches.
    c.model.gate_condition, c.model.modulation = "cond_shared", "shared"
    c.optim.learning_rate = 1e-3
    c.optim.warmup_steps = 50
    c.optim.b2 = 0.99
    c.train.steps, c.train.batch_size = 1_000, 8
    c.train.ema_halflife_images = 800.0
    c.checkpoint.every, c.checkpoint.keep = 200, 1
    c.evaluate.every, c.evaluate.examples = 200, 128
    c.log.sensitivity_every = 50
    if arg == "smoke":
        c.model.depth = 8
        c.optim.warmup_steps = 2
        c.train.steps, c.log.every, c.log.sensitivity_every = 20, 5, 5
        c.checkpoint.every, c.evaluate.every = 10, 10
    elif arg:
        raise ValueError(f"depth_1000 has no argument {arg!r}; give none, or smoke")
    return c
