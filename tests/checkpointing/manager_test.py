import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from nrdm_jax import build
from nrdm_jax.checkpointing.errors import RemovedCheckpoint
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


def test_only_the_newest_are_kept_and_later_ones_can_be_removed(saved):
    _, state, checkpoints = saved
    assert checkpoints.steps() == [4, 5]
    checkpoints.remove_after(4)
    assert checkpoints.steps() == [4] and checkpoints.latest_step() == 4
    with pytest.raises(RemovedCheckpoint, match="was removed"):
        checkpoints.restore(3, save_items(state))


def test_averages_are_an_item_of_runs_that_have_them(saved):
    config, state, checkpoints = saved
    config.train.ema_widths = (0.1, 0.25)
    parts = build.run(config)
    with pytest.raises(ValueError, match=r"averages/0.1/final/bias: stored absent, wanted"):
        checkpoints.restore(5, save_items(parts.abstract_state))
    averages = {name: jax.tree.map(lambda x, n=n: x + n, state.params)
                for n, name in enumerate(parts.abstract_state.averages)}  # fmt: skip
    checkpoints.save(6, save_items(state.replace(averages=averages)), {})
    checkpoints.wait()
    one = {"0.25": parts.abstract_state.averages["0.25"]}
    found = checkpoints.restore_part(6, "averages", one)
    assert list(found) == ["0.25"]
    for a, b, w in zip(*map(jax.tree.leaves, (found["0.25"], averages["0.25"], one)), strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.sharding == w.sharding
    # Who does not want them need not know of them.
    assert state_of(checkpoints.restore(6, save_items(state))).averages == {}


@pytest.mark.parametrize(
    ("problem", "kind"),
    [("RESOURCE_EXHAUSTED: Failed to write 9 bytes to file 3: No space left on device "
      "[os_error_code='28']", OSError),
     ("item is of no known type", ValueError)],
)  # fmt: skip
def test_a_full_disk_is_told_from_a_defect(tmp_path, monkeypatch, problem, kind):
    checkpoints = Checkpoints(str(tmp_path))

    def fails(*arguments, **options):
        raise ValueError(problem)

    with monkeypatch.context() as patch:
        patch.setattr(ocp.CheckpointManager, "save", fails)
        with pytest.raises(kind, match="step 1 was not saved: .* No space left" if kind is OSError
                           else "no known type"):  # fmt: skip
            checkpoints.save(1, {"ema": {"w": jnp.ones(3)}}, {})
            checkpoints.wait()
    checkpoints.close()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: c.model.update(width=64),
         r"final/kernel: stored float32\[32, 48\], wanted .*\[64, 48\]"),
        (lambda c: c.data.update(num_classes=5),
         r"data.num_classes: stored 4, wanted 5\n"
         r".*embedding: stored float32\[5, 32\], wanted .*\[6, 32\]"),
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
