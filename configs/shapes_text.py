"""Furniture by name: text -> 3-D shape, 32^3 voxels, from 820 meshes of Sweet Home 3D.

Purpose: shapes from words in minutes on two CPU cores; MiniLM reads the names, samples are written
as OBJ and PLY meshes with rendered views. The meshes are not in the clone: apt-get download
sweethome3d-furniture and dpkg -x, NRDM_SWEETHOME3D says where to. `:smoke` is 20 steps, for tests.
Command: bash launch/local.sh configs/shapes_text.py
"""

# extras: text
# debian: sweethome3d-furniture NRDM_SWEETHOME3D
from nrdm_jax import config as configuration

ARGUMENTS = ("smoke",)


def get_config(arg: str = ""):
    c = configuration.default()
    c.data.name, c.data.shape, c.data.num_classes = "sweethome3d", (32, 32, 32, 1), 12
    c.text.encoder, c.text.length = "minilm", 16
    c.model.depth, c.model.width, c.model.heads, c.model.patch = 6, 192, 6, (4, 4, 4)
    c.diffusion.logit_mean, c.diffusion.logit_std = 0.7, 1.6
    c.optim.learning_rate, c.optim.b2 = 3e-3, 0.99
    c.optim.warmup_steps, c.optim.schedule = 40, "cosine"
    c.train.steps, c.train.batch_size = 500, 8
    c.train.ema_halflife_images = 320.0
    c.checkpoint.every, c.evaluate.every = 100, 100
    c.evaluate.batch_size = 8
    c.sample.examples = c.sample.batch_size = 16
    c.sample.guidance, c.sample.write = 2.0, "shapes"
    c.log.every, c.log.sensitivity_every = 20, 20
    if arg == "smoke":
        c.model.depth, c.model.width = 2, 48
        c.train.steps, c.train.batch_size, c.optim.warmup_steps = 20, 8, 1
        c.evaluate.examples = 16
        c.sample.examples, c.sample.batch_size, c.sample.steps = 4, 4, 4
    elif arg:
        raise ValueError(f"shapes_text has no argument {arg!r}; give none, or smoke")
    return c
