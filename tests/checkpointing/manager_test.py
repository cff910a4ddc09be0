import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nrdm_jax import build
from nrdm_jax.checkpointing.manager import Checkpoints
from nrdm_jax.training.state import save_items, state_of


@pytest.fixture
def saved(tiny_config, tmp_path):
    tiny_config.mesh.data, tiny_config.mesh.fsdp = 1, 8
    parts = build.run(tiny_config)
    state = parts.fresh_state().replace(step=jnp.int32(5))
    checkpoints = Checkpoints(str(tmp_path / "checkpoints"), keep=2)
    for step in (3, 4, 5):
        checkpoints.save(step, save_items(state), {"records_seen": 16 * step})
    checkpoints.wait()
    yield tiny_config, state, checkpoints
    checkpoints.close()


def test_a_state_comes_back_bit_for_bit_on_another_mesh(saved):
    config, state, checkpoints = saved
    assert checkpoints.latest_step() == 5 and checkpoints.meta(5) == {"records_seen": 80}
    config.mesh.data, config.mesh.fsdp = 4, 2
    wanted = build.run(config).abstract_state
    restored = state_of(checkpoints.restore(5, save_items(wanted)))
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    for a, b, w in zip(*map(jax.tree.leaves, (state, restored, wanted)), strict=True):
        np.testing.assert_array_equal(a, b)
        assert b.sharding == w.sharding and a.dtype == b.dtype


def test_only_the_newest_are_kept(saved):
    _, state, checkpoints = saved
    with pytest.raises((FileNotFoundError, KeyError, ValueError)):
        checkpoints.restore(3, save_items(state))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: c.model.update(width=64),
         r"final/kernel: stored float32\[32, 48\], wanted .*\[64, 48\]"),
        (lambda c: c.data.update(num_classes=5),
         r"embedding: stored float32\[5, 32\], wanted .*\[6, 32\]"),
        (lambda c: c.model.update(beta=False), r"attention/beta/bias: stored .*, wanted absent"),
    ],
    ids=["width", "classes", "gates"],
)  # fmt: skip
def test_another_config_is_refused_with_a_table(saved, change, says):
    config, _, checkpoints = saved
    change(config)
    with pytest.raises(ValueError, match=says):
        checkpoints.restore(5, {"ema": build.run(config).abstract_state.ema})


def test_another_type_is_refused(saved):
    _, state, checkpoints = saved
    half = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), state.ema)
    with pytest.raises(ValueError, match=r"stored float32\[48\], wanted bfloat16\[48\]"):
        checkpoints.restore(5, {"ema": half})
