"""OpenMoji at 32 x 32: the main job, on a laptop."""

from nrdm_jax import config as configuration


def get_config(arg: str = ""):
    c = configuration.default()
    c.data.name = "openmoji"
    c.data.shape = (32, 32, 3)
    c.data.num_classes = 10
    c.model.depth = 6
    c.model.width = 128
    c.model.heads = 4
    c.model.patch = 4
    if arg == "smoke":
        c.model.depth, c.model.width, c.model.heads = 2, 32, 2
        c.train.steps, c.train.batch_size = 20, 16
        c.log.every, c.checkpoint.every, c.evaluate.every = 5, 5, 10
        c.evaluate.batch_size, c.evaluate.examples = 32, 64
        c.sample.examples, c.sample.batch_size, c.sample.steps = 8, 8, 4
    elif arg:
        raise ValueError(f"openmoji32 has no argument {arg!r}; give none, or smoke")
    return c
