import jax.numpy as jnp
import numpy as np
import pytest

from nrdm_jax.evaluation import linear_denoiser, reconstructions


def test_psnr_of_a_known_error():
    assert reconstructions.psnr(4.0) == 0.0
    assert reconstructions.psnr(0.04) == pytest.approx(20.0)
    assert reconstructions.psnr(0.0) == float("inf")


@pytest.mark.parametrize("examples", [500, 40])
def test_the_error_of_a_projection_is_the_variance_that_it_leaves_out(examples):
    # 64 numbers of variances 1, 1/2, 1/4, ...: more examples than numbers, and fewer.
    draw = np.random.default_rng(0)
    rotation, _ = np.linalg.qr(draw.standard_normal((64, 64)))
    spread = 0.5 ** (np.arange(64) / 2)
    x = (draw.standard_normal((examples, 64)) * spread) @ rotation.T + 0.3
    x = x.reshape(examples, 4, 4, 4).astype(np.float32)
    linear = linear_denoiser.fit([x], examples)
    variances = np.sort(np.linalg.eigvalsh(np.cov(x.reshape(examples, -1).T, bias=True)))[::-1]
    for count in (1, 5, 20):
        y = reconstructions.project(linear, jnp.asarray(x), count)
        error = float(jnp.mean(jnp.sum((x - y) ** 2, axis=(1, 2, 3))))
        np.testing.assert_allclose(error, variances[count:].sum(), rtol=1e-3, atol=1e-6)
        # A projection changes nothing the second time.
        np.testing.assert_allclose(reconstructions.project(linear, y, count), y, atol=1e-5)


def test_scores_are_means_over_the_masked_examples():
    batches = [
        {"x": np.asarray([1.0, 2.0]), "mask": np.asarray([True, True])},
        {"x": np.asarray([6.0, 6.0]), "mask": np.asarray([True, False])},
    ]

    def sums(params, batch):
        x = np.where(batch["mask"], batch["x"], 0.0) * params
        return {"error": x.sum(), "square_error": (x**2).sum(), "divergence": x.sum()}

    polls = []
    found = reconstructions.reconstruction_scores(
        sums, 0.1, lambda: batches, lambda: polls.append(1)
    )
    assert found["heldout_loss"] == pytest.approx(0.3) and found["heldout_examples"] == 3
    assert found["psnr"] == pytest.approx(reconstructions.psnr(0.41 / 3))
    assert found["heldout_divergence"] == pytest.approx(0.3) and len(polls) == 2
