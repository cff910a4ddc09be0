import numpy as np
import pytest

from nrdm_jax import config as configuration
from nrdm_jax import frozen_autoencoders
from nrdm_jax.evaluation import reconstructions
from nrdm_jax.models import tiny_autoencoder


def layer(outputs, inputs, bias=True):
    draw = np.random.default_rng(outputs)
    found = {"weight": draw.standard_normal((outputs, inputs, 3, 3)) / inputs}
    return found | ({"bias": np.full(outputs, 0.1)} if bias else {})


def named(**layers):
    return {f"{name[1:]}.{part}": v for name, found in layers.items() for part, v in found.items()}


def test_layers_follow_from_names_and_shapes():
    encoder = tiny_autoencoder.params_of(named(_0=layer(4, 3), _2=layer(4, 4, bias=False),
                                               _10=layer(2, 4)))  # fmt: skip
    assert list(encoder) == ["layer_00", "layer_02", "layer_10"]
    assert tiny_autoencoder.factor_of(encoder) == 2
    assert tiny_autoencoder.latent_channels_of(encoder) == 2
    x = np.random.default_rng(0).uniform(size=(1, 8, 8, 3)).astype(np.float32)
    assert tiny_autoencoder.encode(encoder, x).shape == (1, 4, 4, 2)
    decoder = tiny_autoencoder.params_of(named(_1=layer(4, 2), _7=layer(4, 4, bias=False),
                                               _19=layer(3, 4)))  # fmt: skip
    z = np.full((1, 4, 4, 2), 300.0, np.float32)
    y = tiny_autoencoder.decode(decoder, z)
    assert y.shape == (1, 8, 8, 3)
    # Latents are held within 3.
    np.testing.assert_allclose(y, tiny_autoencoder.decode(decoder, 2 * z), atol=1e-5)


def test_a_convolution_of_stride_two_is_padded_on_both_sides():
    kernel = np.zeros((1, 1, 3, 3))
    kernel[0, 0, 1, 1] = 1.0  # takes what is in its middle: places 0, 2, 4, ...
    encoder = tiny_autoencoder.params_of({"0.weight": kernel})
    x = np.arange(36, dtype=np.float32).reshape(1, 6, 6, 1)
    np.testing.assert_array_equal(tiny_autoencoder.encode(encoder, x), x[:, ::2, ::2])


@pytest.mark.parametrize("name", ["0.norm.weight", "x.weight", "3.conv.1.weight"])
def test_other_tensors_are_refused_by_name(name):
    with pytest.raises(ValueError, match=name):
        tiny_autoencoder.params_of({name: np.zeros((1, 1, 3, 3))})


def test_drawings_through_the_released_weights_come_back():
    home = frozen_autoencoders._taef2_home(None)
    if not (home / frozen_autoencoders.TAEF2_FILES[0]).exists():
        pytest.skip(f"no TAEF2 weights in {home}")
    from nrdm_jax.data.builders import openmoji

    c = configuration.default()
    c.autoencoder.name = "taef2"
    frozen = frozen_autoencoders.open_frozen(c)
    assert (frozen.factor, frozen.latent_channels) == (8, 32)
    assert frozen.pixel_shape((8, 8, 32)) == (64, 64, 3)
    with pytest.raises(ValueError, match=r"have 32 channels; give \(..., 32\)"):
        frozen.pixel_shape((8, 8, 4))
    some = openmoji.drawings()[::1200]
    x = np.stack([np.asarray(openmoji.render(path, 64)) for path in some]) / np.float32(127.5) - 1
    z, std = frozen.encode(frozen.params, x)
    assert z.shape == (len(some), 8, 8, 32) and not np.any(std)
    y = np.clip(frozen.decode(frozen.params, z), -1, 1)
    assert reconstructions.psnr(float(np.mean((x - y) ** 2))) > 20


def test_weights_that_are_not_there_are_told_with_the_fix(tmp_path):
    c = configuration.default()
    c.autoencoder.name, c.autoencoder.weights = "taef2", str(tmp_path)
    with pytest.raises(ValueError, match="autoencoder.weights, or as NRDM_TAEF2"):
        frozen_autoencoders.open_frozen(c)
    c.autoencoder.name, c.autoencoder.weights = "sd", str(tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="autoencoder.weights: .*give where they are"):
        frozen_autoencoders.open_frozen(c)
