"""Fashion-MNIST, padded to 32 x 32 grey: a second small data set, far from emoji.

Purpose: class-conditional pictures from 60,000 examples on a laptop.
Expected result: not measured at full length.
Needs: apt-get install dataset-fashion-mnist
Command: python -m nrdm_jax.train --config=configs/fashion_mnist.py --workdir=runs/fashion_mnist
"""

from nrdm_jax import config as configuration


def get_config(arg: str = ""):
    if arg:
        raise ValueError(f"fashion_mnist has no argument {arg!r}; give none")
    c = configuration.default()
    c.data.name = "fashion_mnist"
    c.data.shape = (32, 32, 1)
    c.data.num_classes = 10
    c.data.flip = True
    c.model.depth, c.model.width, c.model.heads, c.model.patch = 6, 128, 2, (4,)
    c.optim.learning_rate = 1e-3
    c.optim.warmup_steps = 200
    c.optim.schedule = "cosine"
    c.optim.b2 = 0.99
    c.train.steps = 10_000
    c.train.batch_size = 64
    c.train.ema_halflife_images = 20_000.0
    c.evaluate.every = 2_000
    c.evaluate.examples = 1_000
    c.sample.every = 2_000
    return c
