import math

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nrdm_jax import config as configuration
from nrdm_jax import frozen_autoencoders
from nrdm_jax.models import autoencoder_weights
from nrdm_jax.models.autoencoder import Gaussian, KLAutoencoder
from nrdm_jax.models.discriminator import PatchDiscriminator

SMALL = KLAutoencoder(
    channels=3,
    latent_channels=2,
    width=4,
    channel_factors=(1, 2, 3),
    blocks=1,
    attention=True,
    groups=4,
)


@pytest.mark.parametrize("shape", [(8, 12, 3), (4, 8, 8, 1)])
def test_every_axis_shrinks_and_comes_back(shape):
    net = SMALL.clone(channels=shape[-1])
    x = jnp.zeros((2, *shape))
    params = jax.eval_shape(net.init, jax.random.key(0), x)
    latents = jax.eval_shape(lambda p, x: net.apply(p, x, method="encode"), params, x)
    assert latents.mean.shape == (2, *(n // 4 for n in shape[:-1]), 2)
    back, _ = jax.eval_shape(net.apply, params, x)
    assert back.shape == x.shape
    judge = PatchDiscriminator(4)
    verdict = jax.eval_shape(judge.init_with_output, jax.random.key(0), x)[0]
    assert verdict.shape == (2, *(n // 4 for n in shape[:-1]))


def test_divergence_of_gaussians_in_closed_form():
    mean = jnp.asarray([[[0.0], [1.0]], [[3.0], [0.0]]])
    log_variance = jnp.asarray([[[0.0], [0.0]], [[math.log(4.0)], [1.0]]])
    found = Gaussian(mean, log_variance).divergence()
    # KL(N(m, s^2) || N(0, 1)) = (m^2 + s^2 - 1) / 2 - log s
    wanted = [0.5, (9 + 4 - 1) / 2 - math.log(2.0) + (math.e - 1) / 2 - 0.5]
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    # And by its definition: the mean of log q - log p over draws from q.
    one = Gaussian(jnp.full((1, 1), 0.7), jnp.full((1, 1), -1.0))
    z = one.drawn(jax.random.normal(jax.random.key(0), (200_000, 1)))
    log_ratio = -0.5 * ((z - 0.7) / one.std) ** 2 + 0.5 + 0.5 * z**2
    np.testing.assert_allclose(jnp.mean(log_ratio), one.divergence()[0], atol=0.01)


def tensors_of(params):
    """In diffusers' layout, written out from ours."""
    found = {}
    for path, leaf in flax.traverse_util.flatten_dict(params).items():
        *modules, name = path
        text = ".".join(modules).replace("to_out", "to_out.0")
        for prefix in ("down_blocks", "up_blocks"):
            for i in range(4):
                text = text.replace(f"{prefix}_{i}_", f"{prefix}.{i}.")
        for part in ("resnets", "attentions", "downsamplers", "upsamplers"):
            for i in range(4):
                text = text.replace(f"{part}_{i}", f"{part}.{i}")
        text = text.replace("samplers.0_conv", "samplers.0.conv")
        value = np.asarray(leaf)
        if name == "kernel":
            if value.ndim == 2 and ".to_" not in text:
                value = value[None, None]
            value = np.moveaxis(value, (-1, -2), (0, 1))
        found[f"{text}.{'bias' if name == 'bias' else 'weight'}"] = value
    return found


@pytest.fixture(scope="module")
def weights():
    params = jax.jit(SMALL.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]
    return params, tensors_of(params)


def test_weights_in_the_layout_of_others_tell_their_network_and_come_back(weights):
    params, tensors = weights
    assert "encoder.down_blocks.0.downsamplers.0.conv.weight" in tensors
    assert "decoder.mid_block.attentions.0.to_out.0.weight" in tensors
    assert tensors["encoder.down_blocks.1.resnets.0.conv_shortcut.weight"].shape == (8, 4, 1, 1)
    net = autoencoder_weights.network_of(tensors, groups=4)
    assert net == SMALL.clone(name=net.name, parent=net.parent)
    found = autoencoder_weights.params_of(tensors, net)
    jax.tree.map(np.testing.assert_array_equal, found, params)
    former = {name.replace("to_q", "query").replace("to_out.0", "proj_attn"): value
              for name, value in tensors.items()}  # fmt: skip
    assert former.keys() != tensors.keys()
    jax.tree.map(np.testing.assert_array_equal, autoencoder_weights.params_of(former, net), params)


def test_a_file_of_them_is_an_autoencoder_for_a_diffusion(weights, tmp_path):
    params, tensors = weights
    np.savez(tmp_path / "vae.npz", **tensors)
    c = configuration.default()
    c.autoencoder.name, c.autoencoder.weights = "sd", str(tmp_path / "vae.npz")
    c.autoencoder.groups = 4
    frozen = frozen_autoencoders.open_frozen(c)
    assert frozen.pixel_shape((2, 2, 2)) == (8, 8, 3)
    x = jax.random.uniform(jax.random.key(1), (2, 8, 8, 3)) * 2 - 1
    mean, std = frozen.encode(frozen.params, x)
    y, wanted = SMALL.apply({"params": params}, x)
    for found, ours in ((mean, wanted.mean), (std, wanted.std)):
        np.testing.assert_allclose(found, ours, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(frozen.decode(frozen.params, mean), y, rtol=1e-5, atol=1e-5)
    c.autoencoder.groups = 2  # which no tensor tells
    assert frozen_autoencoders.open_frozen(c).fingerprint != frozen.fingerprint


def test_wrong_weights_are_refused_by_name(weights):
    _, tensors = weights
    net = autoencoder_weights.network_of(tensors, groups=4)
    name = "decoder.up_blocks.0.resnets.0.norm1.weight"
    with pytest.raises(ValueError, match="lack decoder/up_blocks_0_resnets_0/norm1/scale"):
        autoencoder_weights.params_of({n: t for n, t in tensors.items() if n != name}, net)
    with pytest.raises(ValueError, match="norm1.weight has the shape"):
        autoencoder_weights.params_of(tensors | {name: np.zeros(5)}, net)
    with pytest.raises(ValueError, match="loss.weight too"):
        autoencoder_weights.params_of(tensors | {"loss.weight": np.zeros(5)}, net)
    with pytest.raises(ValueError, match="conv_in.weight is missing"):
        autoencoder_weights.network_of({"x": np.zeros(3)})
