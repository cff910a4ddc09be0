"""From weights, seeds and what is given to samples."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from nrdm_jax.diffusion.noise import noise_of_seeds, noise_of_steps
from nrdm_jax.diffusion.predictions import to_x0_eps
from nrdm_jax.diffusion.samplers.previews import Recorded
from nrdm_jax.diffusion.samplers.table import Solver
from nrdm_jax.diffusion.schedules import Path
from nrdm_jax.processes import distributed
from nrdm_jax.sharding.mesh import batch_devices, batch_sharding, replicated
from nrdm_jax.signatures import Array, DenoiseFn, Params

# (params, or a pair of them, seeds (B,), given) -> samples (B, *S, C); where previews were
# asked for, (samples, previews (B, k, *S, C)).
SampleFn = Callable[[Any, Array, Any], Any]


def make_sample_fn(
    apply: Callable[[Params, Array, Array, Any], Array],
    path: Path,
    prediction: str,
    *,
    shape: tuple[int, ...],
    solve: Solver,
    times: Array,
    guide: Callable[..., DenoiseFn] = lambda denoise: denoise,
    weaker: Callable[[Params, Array, Array, Any], Array] | None = None,
    learned_variance: bool = False,
    preview_times: Array | None = None,
    finish: Callable[[Array, Any], Array] = lambda x, given: x,
) -> SampleFn:
    """A pure sampler: the whole trajectory in one scan, so one program whatever the steps.

    Each sample's noise is a function of its seed alone, so neither the batch nor the mesh changes
    it. The sample is the estimate of x0 at the last of the times.

    Args:
      apply: (params, x_t, t, given) -> output.
      path, prediction: of the network.
      shape: of a sample.
      solve: see `samplers.table.make_sampler`.
      times: see `grids.make_times`.
      guide: wraps the network, see `diffusion.guidance`; with `weaker` it gets that one
        as well.
      weaker: another network with the same prediction; the sampler's params are then a pair.
      learned_variance: the network has twice the channels, and the solver takes what the second
        half says, as `ddpm.sample` does.
      preview_times: (k,), decreasing to the last of the times: the estimates of x0 there come out
         as well, the last being the sample. Of any solver but dopri5, whose times are its own, they
         are some of the times.
      finish: (samples, given) -> samples, at the end; previews stay as they are.
    """

    channels = shape[-1]
    read = 2 * channels if learned_variance else channels

    def sample(params: Any, seeds: Array, given: Any) -> Any:
        def denoiser(apply, params) -> DenoiseFn:
            return lambda x_t, t, given: apply(params, x_t, t, given)[..., :read]

        if weaker is None:
            guided = guide(denoiser(apply, params))
        else:
            own, others = params
            guided = guide(denoiser(apply, own), denoiser(weaker, others))

        def predict_variance(x_t, t):
            output = guided(x_t, t, given)
            x0, eps = to_x0_eps(path, prediction, output[..., :channels], x_t, t)
            return x0, eps, output[..., channels:]

        def predict(x_t, t):
            return predict_variance(x_t, t)[:2]

        start = path.sigma(jnp.float32(path.t_max)) * noise_of_seeds(seeds, shape)
        estimate: Any = predict_variance if learned_variance else predict
        if preview_times is not None:
            estimate = Recorded(estimate, preview_times, start.shape)
        more = {"predict_variance": estimate} if learned_variance else {}
        x = solve(estimate, path, start, times, noise_of_steps(seeds, shape), **more)
        x0, *_ = estimate(x, jnp.full(x.shape[:1], times[-1]))
        x0 = finish(x0, given)
        return (x0, estimate.kept[0].swapaxes(0, 1)) if isinstance(estimate, Recorded) else x0

    return sample


class Generator:
    """Runs a sample function in batches of one size, each compiled once.

    Args:
      sample: see `make_sample_fn`.
      mesh: samples are divided over its batch axes.
      batch_size: rounded up to a multiple of the devices.

    Attributes:
      sample: as given.
      jitted: the same, the samples replicated.
      batch_size: as rounded.
    """

    def __init__(self, sample: SampleFn, mesh: Mesh, batch_size: int):
        devices = batch_devices(mesh)
        self.batch_size = -(-batch_size // devices) * devices
        self._sharding = batch_sharding(mesh)
        self.sample = sample
        self.jitted = jax.jit(sample, out_shardings=replicated(mesh))

    def __call__(
        self,
        params: Any,
        seeds: np.ndarray,
        given: Mapping[str, np.ndarray] | Callable[[np.ndarray], Mapping[str, np.ndarray]],
        poll: Callable[[], None] = lambda: None,
    ) -> Any:
        """(n,) seeds and what is given, n of each -> (n, *S, C) float32, any n, or the pair of that
        and previews (n, k, *S, C); `poll` is called before each batch. What is given may be a
        function of rows (m,), some of 0 to n - 1, which is asked for a batch at a time. Of several
        processes all must call it, and what the writer gives is what counts."""
        parts = []
        for start in range(0, len(seeds), self.batch_size):
            rows = np.arange(start, min(start + self.batch_size, len(seeds)))
            poll()
            if callable(given):
                told = dict(given(rows))
            else:
                told = {name: values[rows] for name, values in given.items()}
            # Each process holds rows that others' devices may have computed with other last bits.
            batch = np.asarray(seeds, np.uint32)[rows], distributed.of_writer(told)
            drawn = self.jitted(params, *jax.tree.map(self._padded, batch))
            parts.append(jax.tree.map(lambda x, rows=rows: np.asarray(x)[: len(rows)], drawn))
        return jax.tree.map(lambda *x: np.concatenate(x), *parts)

    def _padded(self, values: np.ndarray) -> Array:
        whole = np.resize(values, (self.batch_size, *values.shape[1:]))
        return jax.device_put(whole, self._sharding)


def to_pixels(x: np.ndarray) -> np.ndarray:
    """[-1, 1] float -> uint8, clipped and rounded."""
    return np.rint(np.clip((x + 1.0) * 127.5, 0.0, 255.0)).astype(np.uint8)
