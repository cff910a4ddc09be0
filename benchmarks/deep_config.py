"""The configs of the depth benchmarks: width of DiT-S/2, 64 tokens, batch 8."""

from nrdm_jax import config as configuration


def deep_config(depth: int, **model):
    """DiT-S/2 width on 16 x 16 x 4 latents, gates and norms of one kernel for the stack; `model`
    overrides fields of config.model."""
    c = configuration.default()
    c.data.name, c.data.shape, c.data.num_classes = "synthetic", (16, 16, 4), 10
    c.model.depth, c.model.width, c.model.heads, c.model.patch = depth, 384, 6, (2,)
    c.model.gate_condition, c.model.modulation = "cond_shared", "shared"
    c.train.batch_size = c.evaluate.batch_size = 8
    for name, value in model.items():
        c.model[name] = value
    configuration.validate(c)
    return c
