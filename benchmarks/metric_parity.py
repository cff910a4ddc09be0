"""Whether our metrics are those of the papers: their feature networks and their formulas.

  bash launch/local.sh --setup-only --extras=torch
  python -m benchmarks.metric_parity

`features`, `i3d` and `dinov2`: random weights in the published layout, written by torch.save and
read by the package's reader; our InceptionV3, I3D and DINOv2 beside statements of the same layers
in torch.nn.functional, written here from pytorch-fid's, pytorch-i3d's and dinov2's code; the
largest absolute difference over the largest absolute value, at worst over the pooled features (and
InceptionV3's logits and spatial ones). Images and clips are of another size than the networks'
(larger along one axis, smaller along the other), so that the resize is compared too; InceptionV3
and I3D are of full size, DINOv2 of 3 blocks, 128 wide, with the 37 x 37 places of its file.

`metrics`: worst relative error of the Fréchet distance beside its closed form and scipy's matrix
root, of the kernel distance beside a sum over all pairs, of the inception score beside its
definition, and of precision and recall beside scipy's distances of all pairs.

Exits 1 if a network is above 1e-3, or metrics above 1e-4.
"""

import math
import os
import pathlib
import tempfile
import time

import numpy as np
import scipy.linalg
import scipy.spatial

from benchmarks import measuring
from nrdm_jax.processes import lifecycle

BARS = {"features": 1e-3, "metrics": 1e-4, "i3d": 1e-3, "dinov2": 1e-3}


class Drawn(dict):
    """A torch state dict that draws a tensor when a layer first asks for it, at a scale that keeps
    activations near one: its names and shapes are those of the statement that asks."""

    def __init__(self):
        import torch

        super().__init__()
        self.draw = torch.Generator().manual_seed(0)

    def normal(self, name: str, *shape: int, scale: float = 1.0, mean: float = 0.0):
        import torch

        if name not in self:
            self[name] = mean + scale * torch.randn(shape, generator=self.draw)
        assert self[name].shape == shape
        return self[name]

    def linear(self, name: str, outputs: int, inputs: int, scale: float = 1.0):
        weight = self.normal(f"{name}.weight", outputs, inputs, scale=scale / math.sqrt(inputs))
        return weight, self.normal(f"{name}.bias", outputs, scale=0.1)

    def normalized(self, name: str, x):
        """Batch norm at rest, then ReLU."""
        import torch
        import torch.nn.functional as F

        width = x.shape[1]
        if f"{name}.running_var" not in self:
            self[f"{name}.running_var"] = 0.5 + 1.5 * torch.rand(width, generator=self.draw)
            self[f"{name}.num_batches_tracked"] = torch.tensor(1)
        mean = self.normal(f"{name}.running_mean", width, scale=0.3)
        weight = self.normal(f"{name}.weight", width, scale=0.15, mean=1.0)
        bias = self.normal(f"{name}.bias", width, scale=0.2)
        variance = self[f"{name}.running_var"]
        return F.relu(F.batch_norm(x, mean, variance, weight, bias, eps=1e-3))


def inception(weights: Drawn, pixels):
    """pytorch-fid's network on (B, 3, H, W) in [0, 255]: (pooled, spatial, logits)."""
    import torch
    import torch.nn.functional as F

    def conv(name, x, features, size, stride=1, padding=0):
        height, width = (size, size) if isinstance(size, int) else size
        scale = math.sqrt(2 / (x.shape[1] * height * width))
        kernel = weights.normal(
            f"{name}.conv.weight", features, x.shape[1], height, width, scale=scale
        )
        x = F.conv2d(x, kernel, stride=stride, padding=padding)
        return weights.normalized(f"{name}.bn", x)

    def averaged(x):
        return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)

    def a(at, x, pooled):
        b1 = conv(f"{at}.branch1x1", x, 64, 1)
        b5 = conv(f"{at}.branch5x5_1", x, 48, 1)
        b5 = conv(f"{at}.branch5x5_2", b5, 64, 5, padding=2)
        b3 = conv(f"{at}.branch3x3dbl_1", x, 64, 1)
        b3 = conv(f"{at}.branch3x3dbl_2", b3, 96, 3, padding=1)
        b3 = conv(f"{at}.branch3x3dbl_3", b3, 96, 3, padding=1)
        return torch.cat([b1, b5, b3, conv(f"{at}.branch_pool", averaged(x), pooled, 1)], 1)

    def b(at, x):
        b3 = conv(f"{at}.branch3x3dbl_1", x, 64, 1)
        b3 = conv(f"{at}.branch3x3dbl_2", b3, 96, 3, padding=1)
        b3 = conv(f"{at}.branch3x3dbl_3", b3, 96, 3, stride=2)
        first = conv(f"{at}.branch3x3", x, 384, 3, stride=2)
        return torch.cat([first, b3, F.max_pool2d(x, 3, stride=2)], 1)

    wide, tall = {"size": (1, 7), "padding": (0, 3)}, {"size": (7, 1), "padding": (3, 0)}

    def c(at, x, c7):
        b1 = conv(f"{at}.branch1x1", x, 192, 1)
        b7 = conv(f"{at}.branch7x7_1", x, c7, 1)
        b7 = conv(f"{at}.branch7x7_2", b7, c7, **wide)
        b7 = conv(f"{at}.branch7x7_3", b7, 192, **tall)
        b77 = conv(f"{at}.branch7x7dbl_1", x, c7, 1)
        for i, shape in ((2, tall), (3, wide), (4, tall)):
            b77 = conv(f"{at}.branch7x7dbl_{i}", b77, c7, **shape)
        b77 = conv(f"{at}.branch7x7dbl_5", b77, 192, **wide)
        return torch.cat([b1, b7, b77, conv(f"{at}.branch_pool", averaged(x), 192, 1)], 1)

    def d(at, x):
        b3 = conv(f"{at}.branch3x3_1", x, 192, 1)
        b3 = conv(f"{at}.branch3x3_2", b3, 320, 3, stride=2)
        b7 = conv(f"{at}.branch7x7x3_1", x, 192, 1)
        b7 = conv(f"{at}.branch7x7x3_2", b7, 192, **wide)
        b7 = conv(f"{at}.branch7x7x3_3", b7, 192, **tall)
        b7 = conv(f"{at}.branch7x7x3_4", b7, 192, 3, stride=2)
        return torch.cat([b3, b7, F.max_pool2d(x, 3, stride=2)], 1)

    def e(at, x, pooled):
        def split(name, x):
            row = conv(f"{name}a", x, 384, (1, 3), padding=(0, 1))
            return torch.cat([row, conv(f"{name}b", x, 384, (3, 1), padding=(1, 0))], 1)

        b1 = conv(f"{at}.branch1x1", x, 320, 1)
        b3 = split(f"{at}.branch3x3_2", conv(f"{at}.branch3x3_1", x, 384, 1))
        b33 = conv(f"{at}.branch3x3dbl_1", x, 448, 1)
        b33 = split(f"{at}.branch3x3dbl_3", conv(f"{at}.branch3x3dbl_2", b33, 384, 3, padding=1))
        return torch.cat([b1, b3, b33, conv(f"{at}.branch_pool", pooled, 192, 1)], 1)

    x = F.interpolate(pixels / 255, size=(299, 299), mode="bilinear", align_corners=False)
    x = conv("Conv2d_1a_3x3", 2 * x - 1, 32, 3, stride=2)
    x = conv("Conv2d_2a_3x3", x, 32, 3)
    x = F.max_pool2d(conv("Conv2d_2b_3x3", x, 64, 3, padding=1), 3, stride=2)
    x = conv("Conv2d_3b_1x1", x, 80, 1)
    x = F.max_pool2d(conv("Conv2d_4a_3x3", x, 192, 3), 3, stride=2)
    x = a("Mixed_5c", a("Mixed_5b", x, 32), 64)
    x = b("Mixed_6a", a("Mixed_5d", x, 64))
    x = c("Mixed_6c", c("Mixed_6b", x, 128), 160)
    spatial = conv("Mixed_6d.branch1x1", x, 192, 1)[:, :7].permute(0, 2, 3, 1).flatten(1)
    x = d("Mixed_7a", c("Mixed_6e", c("Mixed_6d", x, 160), 192))
    x = e("Mixed_7b", x, averaged(x))
    x = e("Mixed_7c", x, F.max_pool2d(x, 3, stride=1, padding=1))
    pooled = x.mean((2, 3))
    return pooled, spatial, pooled @ weights.linear("fc", 1008, 2048)[0].T


def i3d(weights: Drawn, pixels):
    """pytorch-i3d's network on clips (B, T, 3, H, W) in [0, 255]: its logits' mean over time."""
    import torch
    import torch.nn.functional as F

    def padded(x, sizes, strides):
        """Zeros as pytorch-i3d pads, the last axis first."""
        pads = []
        for length, size, stride in reversed(list(zip(x.shape[2:], sizes, strides, strict=True))):
            total = max(size - (length % stride or stride), 0)
            pads += [total // 2, total - total // 2]
        return F.pad(x, pads)

    def conv(name, x, features, size, stride=1):
        scale = math.sqrt(2 / (x.shape[1] * size**3))
        kernel = weights.normal(
            f"{name}.conv3d.weight", features, x.shape[1], size, size, size, scale=scale
        )
        x = F.conv3d(padded(x, (size,) * 3, (stride,) * 3), kernel, stride=stride)
        return weights.normalized(f"{name}.bn", x)

    def most(x, sizes, strides):
        return F.max_pool3d(padded(x, sizes, strides), sizes, strides)

    def mixed(at, x, *features):
        b1 = conv(f"{at}.b1b", conv(f"{at}.b1a", x, features[1], 1), features[2], 3)
        b2 = conv(f"{at}.b2b", conv(f"{at}.b2a", x, features[3], 1), features[4], 3)
        b3 = conv(f"{at}.b3b", most(x, (3, 3, 3), (1, 1, 1)), features[5], 1)
        return torch.cat([conv(f"{at}.b0", x, features[0], 1), b1, b2, b3], 1)

    count, frames = pixels.shape[:2]
    x = F.interpolate(pixels.flatten(0, 1), (224, 224), mode="bilinear", align_corners=False)
    x = x.reshape(count, frames, 3, 224, 224).transpose(1, 2) / 255 * 2 - 1
    x = most(conv("Conv3d_1a_7x7", x, 64, 7, stride=2), (1, 3, 3), (1, 2, 2))
    x = conv("Conv3d_2c_3x3", conv("Conv3d_2b_1x1", x, 64, 1), 192, 3)
    x = most(x, (1, 3, 3), (1, 2, 2))
    x = mixed("Mixed_3b", x, 64, 96, 128, 16, 32, 32)
    x = most(mixed("Mixed_3c", x, 128, 128, 192, 32, 96, 64), (3, 3, 3), (2, 2, 2))
    x = mixed("Mixed_4b", x, 192, 96, 208, 16, 48, 64)
    x = mixed("Mixed_4c", x, 160, 112, 224, 24, 64, 64)
    x = mixed("Mixed_4d", x, 128, 128, 256, 24, 64, 64)
    x = mixed("Mixed_4e", x, 112, 144, 288, 32, 64, 64)
    x = most(mixed("Mixed_4f", x, 256, 160, 320, 32, 128, 128), (2, 2, 2), (2, 2, 2))
    x = mixed("Mixed_5b", x, 256, 160, 320, 32, 128, 128)
    x = F.avg_pool3d(mixed("Mixed_5c", x, 384, 192, 384, 48, 128, 128), (2, 7, 7), 1)
    kernel = weights.normal("logits.conv3d.weight", 400, 1024, 1, 1, 1, scale=1 / 32)
    bias = weights.normal("logits.conv3d.bias", 400, scale=0.1)
    return (F.conv3d(x, kernel, bias).flatten(3)[..., 0].mean(2),)


def dinov2(weights: Drawn, pixels, width=128, depth=3, places=37):
    """dinov2's transformer on (B, 3, H, W) in [0, 255]: the normed class token."""
    import torch
    import torch.nn.functional as F

    def norm(name, x):
        weight = weights.normal(f"{name}.weight", width, scale=0.15, mean=1.0)
        bias = weights.normal(f"{name}.bias", width, scale=0.2)
        return F.layer_norm(x, (width,), weight, bias, eps=1e-6)

    x = F.interpolate(pixels, (224, 224), mode="bicubic", antialias=True) / 255
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    x = (x - torch.tensor(mean).reshape(3, 1, 1)) / torch.tensor(std).reshape(3, 1, 1)
    kernel = weights.normal("patch_embed.proj.weight", width, 3, 14, 14, scale=1 / 24)
    x = F.conv2d(x, kernel, weights.normal("patch_embed.proj.bias", width), stride=14)
    x = x.flatten(2).transpose(1, 2)
    position = weights.normal("pos_embed", 1, 1 + places**2, width)
    grid = position[:, 1:].reshape(1, places, places, width).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, scale_factor=16.1 / places, mode="bicubic")
    x = x + grid.flatten(2).transpose(1, 2)
    first = (weights.normal("cls_token", 1, 1, width) + position[:, :1]).expand(len(x), -1, -1)
    x = torch.cat([first, x], 1)
    weights.normal("mask_token", 1, width)
    for i in range(depth):
        at = f"blocks.{i}"
        qkv = F.linear(norm(f"{at}.norm1", x), *weights.linear(f"{at}.attn.qkv", 3 * width, width))
        q, k, v = qkv.reshape(*x.shape[:2], 3, width // 64, 64).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        y = F.linear(y, *weights.linear(f"{at}.attn.proj", width, width))
        x = x + y * weights.normal(f"{at}.ls1.gamma", width, mean=1.0, scale=0.3)
        y = F.linear(norm(f"{at}.norm2", x), *weights.linear(f"{at}.mlp.fc1", 4 * width, width))
        y = F.linear(F.gelu(y), *weights.linear(f"{at}.mlp.fc2", width, 4 * width, scale=2.0))
        x = x + y * weights.normal(f"{at}.ls2.gamma", width, mean=1.0, scale=0.3)
    return (norm("norm", x)[:, 0],)


def network(statement, ours, shape: tuple[int, ...], folder: pathlib.Path) -> float:
    """Worst relative difference of a network's outputs for random pixels (B, [T,] H, W, 3)."""
    import jax
    import torch

    from nrdm_jax.weight_files import read_weights

    pixels = np.random.default_rng(0).integers(0, 256, shape).astype(np.float32)
    weights = Drawn()
    with torch.no_grad():
        expected = statement(weights, torch.from_numpy(np.moveaxis(pixels, -1, -3)))
    path = folder / f"{statement.__name__}.pth"
    torch.save(dict(weights), path)
    found = jax.jit(ours.apply)(ours.load(read_weights(str(path))), pixels)
    worst = 0.0
    for name, x, y in zip(("pooled", "spatial", "logits"), expected, found, strict=False):
        x, y = x.numpy(), np.asarray(y)
        assert x.shape == y.shape, (name, x.shape, y.shape)
        # Else the largest value could hide differences of the others, and a fault many layers down.
        assert 0.1 < x.std() < 10, (name, x.std())
        error = np.abs(x - y).max() / np.abs(x).max()
        print(f"{statement.__name__:10} {name:8} {x.shape} of {x.std():.2f}: {error:.1e}")
        worst = max(worst, float(error))
    return worst


def moments(*batches):
    from nrdm_jax.evaluation.frechet import Moments

    found = Moments()
    for batch in batches:
        found.add(batch)
    return found


def frechet_closed_form() -> tuple[float, float]:
    """Sets with exactly the means and covariances of Gaussians with the same axes: |m - m'|^2
    + |C^(1/2) - C'^(1/2)|_F^2."""
    from nrdm_jax.evaluation import frechet

    draw, width = np.random.default_rng(1), 128
    axes, _ = np.linalg.qr(draw.normal(size=(width, width)))
    means, scales = draw.normal(size=(2, width)), draw.uniform(0.1, 3.0, (2, width))
    sets = []
    for mean, scale in zip(means, scales, strict=True):
        x = draw.normal(size=(1000, width))
        x = x - x.mean(0)
        white = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T))).T
        sets.append((white * scale) @ axes.T + mean)
    found = frechet.distance(*(moments(s[:300], s[300:]) for s in sets))
    return found, np.sum((means[0] - means[1]) ** 2) + np.sum((scales[0] - scales[1]) ** 2)


def features(count: int, width: int, seed: int) -> np.ndarray:
    """Positive, correlated, float32, their mean far from zero: as a network's."""
    draw = np.random.default_rng(seed)
    mixed = draw.normal(size=(count, width)) @ np.random.default_rng(0).normal(size=(width, width))
    return (5 + np.maximum(mixed + 0.3 * seed, 0) / math.sqrt(width)).astype(np.float32)


def frechet_root() -> tuple[float, float]:
    from nrdm_jax.evaluation import frechet

    a, b = features(900, 96, 1), features(700, 96, 2)
    x, y = (s.astype(np.float64) for s in (a, b))
    c, d = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(c @ d)
    expected = np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(c) + np.trace(d)
    return frechet.distance(moments(a), moments(b)), expected - 2 * np.trace(root.real)


def kernel_of_all_pairs() -> tuple[float, float]:
    from nrdm_jax.evaluation.kernel_distance import kernel_distance

    a, b = features(80, 48, 1), features(80, 48, 3)

    def mean(x, y, same):
        total, pairs = 0.0, 0
        for i, u in enumerate(x.astype(np.float64)):
            for j, v in enumerate(y.astype(np.float64)):
                if not (same and i == j):
                    total, pairs = total + (sum(u * v) / len(u) + 1) ** 3, pairs + 1
        return total / pairs

    return kernel_distance(a, b)[0], mean(a, a, True) + mean(b, b, True) - 2 * mean(a, b, False)


def score_by_definition() -> tuple[float, float]:
    from nrdm_jax.evaluation.inception_score import inception_score

    logits = 3 * np.random.default_rng(0).normal(size=(500, 1008)).astype(np.float32)
    scores = []
    for part in logits.astype(np.float64).reshape(10, 50, 1008):
        p = np.exp(part) / np.exp(part).sum(1, keepdims=True)
        marginal = p.sum(0) / 50
        divergences = [sum(q * np.log(q / marginal)) for q in p]
        scores.append(math.exp(sum(divergences) / 50))
    return inception_score(logits, splits=10)[0], sum(scores) / 10


def coverage_of_all_pairs() -> list[tuple[float, float]]:
    """Of precision, then of recall."""
    from nrdm_jax.evaluation.precision_recall import precision_recall

    a, b = features(400, 24, 1), features(300, 24, 2)

    def covered(queries, centres):
        apart = scipy.spatial.distance.cdist(*(centres.astype(np.float64),) * 2)
        radii = np.sort(apart, axis=1)[:, 3]
        distances = scipy.spatial.distance.cdist(
            queries.astype(np.float64), centres.astype(np.float64)
        )
        return float(np.mean([any(row <= radii) for row in distances]))

    expected = covered(a, b), covered(b, a)
    assert all(0.05 < share < 0.95 for share in expected)
    found = precision_recall(a, b, neighbours=3, block=128)
    return list(zip(found, expected, strict=True))


def metrics() -> float:
    """Worst relative error."""
    precision, recall = coverage_of_all_pairs()
    pairs = {
        "Fréchet, closed form": frechet_closed_form(),
        "Fréchet, matrix root": frechet_root(),
        "kernel distance": kernel_of_all_pairs(),
        "inception score": score_by_definition(),
        "precision": precision,
        "recall": recall,
    }
    worst = 0.0
    for name, (found, expected) in pairs.items():
        error = abs(found - expected) / abs(expected)
        print(f"{name:21} {expected:.6g}: {error:.1e}")
        worst = max(worst, error)
    return worst


def run() -> int:
    os.environ["JAX_PLATFORMS"] = "cpu"
    measuring.require("torch", extra="torch")
    from nrdm_jax.evaluation.networks import dinov2 as our_dinov2
    from nrdm_jax.evaluation.networks import i3d as our_i3d
    from nrdm_jax.evaluation.networks import inception as our_inception

    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        at = pathlib.Path(folder)
        errors = {
            "features": network(inception, our_inception, (2, 96, 400, 3), at),
            "metrics": metrics(),
            "i3d": network(i3d, our_i3d, (1, 16, 112, 256, 3), at),
            "dinov2": network(dinov2, our_dinov2, (2, 96, 300, 3), at),
        }
    measuring.print_result({
        **{name: float(f"{error:.2e}") for name, error in errors.items()},
        "seconds": round(time.perf_counter() - start, 1),
    })  # fmt: skip
    return 0 if all(error <= BARS[name] for name, error in errors.items()) else 1


def main() -> None:
    lifecycle.launch(run, __doc__)


if __name__ == "__main__":
    main()
