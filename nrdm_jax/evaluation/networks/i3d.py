"""I3D (Carreira and Zisserman, arXiv 1705.07750), RGB, 400 classes of Kinetics, with which FVD is
defined (Unterthiner et al., arXiv 1812.01717), in the layout of pytorch-i3d's files."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from nrdm_jax.evaluation.networks import layers
from nrdm_jax.evaluation.networks.layers import Convolution, Fork, Pool, Step
from nrdm_jax.evaluation.networks.outputs import Outputs
from nrdm_jax.signatures import Array, Params

SIZE, CHANNELS, CLASSES = 224, 1024, 400
# FVDs are of 10 frames at least; the last pool needs 9.
FRAMES = 10
OF = "I3D, RGB (pytorch-i3d's rgb_imagenet.pt, or i3d_pretrained_400.pt)"
LAST_POOL = Pool("average", (2, 7, 7), (1, 1, 1), "VALID")

PREPROCESSING = (
    "I3D on whole clips: frames bilinear to 224 x 224 (half-pixel centres, no antialiasing, no "
    "crop), scaled to [-1, 1]; pooled the 400 logits, averaged over time"
)


def _mixed(name: str, *features: int) -> Fork:
    one, three = (1, 1, 1), (3, 3, 3)
    b0, b1a, b1b, b2a, b2b, b3b = features
    return Fork((
        (Convolution("b0", b0, one),),
        (Convolution("b1a", b1a, one), Convolution("b1b", b1b, three)),
        (Convolution("b2a", b2a, one), Convolution("b2b", b2b, three)),
        (Pool("max", three, one), Convolution("b3b", b3b, one)),
    ), name)  # fmt: skip


STEPS: tuple[Step, ...] = (
    Convolution("Conv3d_1a_7x7", 64, (7, 7, 7), 2),
    Pool("max", (1, 3, 3), (1, 2, 2)),
    Convolution("Conv3d_2b_1x1", 64, (1, 1, 1)),
    Convolution("Conv3d_2c_3x3", 192, (3, 3, 3)),
    Pool("max", (1, 3, 3), (1, 2, 2)),
    _mixed("Mixed_3b.", 64, 96, 128, 16, 32, 32),
    _mixed("Mixed_3c.", 128, 128, 192, 32, 96, 64),
    Pool("max", (3, 3, 3), (2, 2, 2)),
    _mixed("Mixed_4b.", 192, 96, 208, 16, 48, 64),
    _mixed("Mixed_4c.", 160, 112, 224, 24, 64, 64),
    _mixed("Mixed_4d.", 128, 128, 256, 24, 64, 64),
    _mixed("Mixed_4e.", 112, 144, 288, 32, 64, 64),
    _mixed("Mixed_4f.", 256, 160, 320, 32, 128, 128),
    Pool("max", (2, 2, 2), (2, 2, 2)),
    _mixed("Mixed_5b.", 256, 160, 320, 32, 128, 128),
    _mixed("Mixed_5c.", 384, 192, 384, 48, 128, 128),
)
KERNELS, _ = layers.convolutions(STEPS, 3)


def load(tensors: Mapping[str, np.ndarray], epsilon: float = 1e-3) -> Params:
    """Params of a file's tensors; others of it are left (num_batches_tracked).

    Two files have these names: pytorch-i3d's rgb_imagenet.pt (weights of DeepMind's kinetics-i3d)
    and VideoGPT's i3d_pretrained_400.pt (weights of tf.hub's i3d-kinetics-400, with which FVD's own
    code computes), which are other weights: distances by the one are not those by the other.

    Args:
      tensors: by name.
      epsilon: of the batch norms, which no file has: 1e-3 in pytorch-i3d's code (and DeepMind's),
        1e-5 in VideoGPT's.

    Raises:
      ValueError: a tensor is missing or of another shape; each is named.
    """
    units, others = layers.load_convolutions(
        tensors,
        KERNELS,
        weight="conv3d.weight",
        others={
            "logits.conv3d.weight": (CLASSES, CHANNELS, 1, 1, 1),
            "logits.conv3d.bias": (CLASSES,),
        },
        epsilon=epsilon,
        of=OF,
    )
    classes = others["logits.conv3d.weight"].reshape(CLASSES, CHANNELS).T
    bias = others["logits.conv3d.bias"]
    return {"units": units, "classes": jnp.asarray(classes), "bias": jnp.asarray(bias)}


def apply(params: Params, pixels: Array) -> Outputs:
    """pooled (B, 400): the logits, averaged over time, which VideoGPT's, TATS' and StyleGAN-V's FVD
    take, as does the first (`RGB/inception_i3d/Mean`).

    Args:
      params: of `load`.
      pixels: clips (B, T, H, W, 3), float32 in [0, 255].

    Raises:
      ValueError: these are no clips, or they have fewer than 10 frames.
    """
    if pixels.ndim != 5 or pixels.shape[1] < FRAMES:
        raise ValueError(
            f"I3D takes clips (B, T, H, W, 3) of at least {FRAMES} frames, got {pixels.shape}; "
            "generate longer clips, or choose a network of images"
        )
    shape = (*pixels.shape[:2], SIZE, SIZE, 3)
    x = jax.image.resize(pixels.astype(jnp.float32), shape, "linear", antialias=False) / 127.5 - 1.0
    x = layers.run(params["units"], STEPS, x)
    # Averages commute with the last, linear layer.
    x = layers.pool(x, LAST_POOL).mean(axis=(1, 2, 3))
    logits = jnp.matmul(x, params["classes"], precision=layers.PRECISION)
    return Outputs(logits + params["bias"][None, :], spatial=None, logits=None)
