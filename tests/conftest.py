"""Every test runs on 8 simulated CPU devices, and implicit broadcasting of ranks is an error."""

import contextlib
import os
import pathlib

# Compiling is most of what tests take, and machine code need not be fast: half the time.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
ROOT = pathlib.Path(__file__).resolve().parents[1]
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax-tests"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import pytest  # noqa: E402

from nrdm_jax import config as configuration  # noqa: E402
from nrdm_jax import trees  # noqa: E402
from nrdm_jax.config import default  # noqa: E402
from nrdm_jax.models import probe, stack  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def root() -> pathlib.Path:
    return ROOT


@pytest.fixture
def data_dir() -> str:
    """Prepared sets, shared by all tests and by the clone's own runs."""
    return os.environ.get("TFDS_DATA_DIR", str(ROOT / ".cache" / "data"))


@pytest.fixture
def tiny_config():
    """The main job's config, shrunk: synthetic pictures of 8 x 8, 2 blocks of width 32."""
    c = default()
    c.data.name, c.data.shape, c.data.num_classes = "synthetic", (8, 8, 3), 4
    c.model.depth, c.model.width, c.model.heads, c.model.patch = 2, 32, 2, (4,)
    c.train.steps, c.train.batch_size = 20, 16
    c.optim.learning_rate = 1e-3
    c.evaluate.batch_size = 16
    configuration.validate(c)
    return c


@pytest.fixture(scope="session")
def fill_zeros():
    return jax.jit(trees.drawn_zeros)  # leaf by leaf it would compile for seconds


def _unrolled(body, carry, xs, reverse=False):
    ys, places = [], range(jax.tree.leaves(xs)[0].shape[0])
    for i in reversed(places) if reverse else places:
        carry, y = body(carry, jax.tree.map(lambda x, i=i: x[i], xs))
        ys.append(y)
    ys = ys[::-1] if reverse else ys
    return carry, jax.tree.map(lambda *y: jnp.stack(y), *ys)


@pytest.fixture(scope="session")
def unrolled_scan():
    """`jax.lax.scan` as a plain loop."""
    return _unrolled


@contextlib.contextmanager
def _explicit_inputs(zeros):
    """Within it, a network called with taps is a plain loop over its units, to whose inputs (and
    the last one's output) the zeros are added, one (streams, B, *S, D) each: their gradient is
    dL/dz by plain autodiff."""
    inputs = iter(zeros)

    def tap(streams, dummy):
        here = next(inputs)
        return tuple(z + here[i] for i, z in enumerate(streams))

    with pytest.MonkeyPatch.context() as patch:
        for module in (stack, probe):
            patch.setattr(module, "tap", tap)
        patch.setattr(jax.lax, "scan", _unrolled)
        yield


@pytest.fixture(scope="session")
def explicit_inputs():
    return _explicit_inputs
