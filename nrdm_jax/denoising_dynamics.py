"""What happens within a trained network, over its depth: the gates at every time of the diffusion,
beside the path's own coefficients, and what its head makes of the trunk after each block."""

import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nrdm_jax import build, measures, networks, records, run_weights
from nrdm_jax.diffusion.schedules import Path, drift_and_diffusion
from nrdm_jax.models.gate_values import gate_values
from nrdm_jax.processes import lifecycle
from nrdm_jax.training import charts

QUALITATIVE = (
    "qualitative: a gate is no coefficient of the ODE, and a beta that does not see z can be no "
    "linear drift; only where they grow and shrink may be compared"
)
# t at which the gates are shown, as shares of the training times; f has a pole where alpha is 0.
SHARES = np.linspace(0.02, 0.98, 25)
READOUTS = 51  # numbers of blocks after which the trunk is read, at most
HELD = 2**30  # bytes of a device for the trunks of all blocks
NO_READOUT = {
    "unet": "the trunk of unet changes its width and size between levels, and its head reads the "
    "last one only: the gates alone are shown",
}


def view(config, workdir: str, out: pathlib.Path, *, examples: int, signals: lifecycle.Signals):
    """Writes dynamics.png and dynamics.json into `out`; returns what is in the latter.

    `examples` of the held-out data are denoised; 0, or a network of `NO_READOUT`: the gates only.

    Raises:
      ValueError: there is no checkpoint, or it does not fit the config; or the weights give no
        finite numbers.
      DataError: the data are absent.
    """
    parts = build.run(config)
    ema = run_weights.find(workdir).read(parts.abstract_state.ema)
    found = gates(config, ema, parts.path)
    signals.check()
    if config.model.name in NO_READOUT:
        found["note"] += f"; {NO_READOUT[config.model.name]}"
    elif examples:
        found |= denoising(parts, ema, examples, signals)
        if not np.all(np.isfinite(found["x0_error"])):
            raise ValueError(
                f"the weights in {workdir} give outputs that are not finite; with "
                "model.name=continuous, raise model.tolerance, or use --examples=0"
            )
    out.mkdir(parents=True, exist_ok=True)
    (out / "dynamics.json").write_text(json.dumps(found, allow_nan=False) + "\n")
    charts.dynamics_chart(out / "dynamics.png", found)
    return found


def gates(config, params: Any, path: Path) -> dict:
    """alpha_i(t) and beta_i(t), mean and RMS over channels, (units, times), without a class; and
    the path's +g(t)^2 / 2 and -f(t), the direction in which depth runs."""
    t = path.t_min + (path.t_max - path.t_min) * jnp.asarray(SHARES, jnp.float32)
    shapes = networks.given(config, len(t))
    given = jax.tree.map(lambda part: jnp.zeros(part.shape, part.dtype), shapes)
    given = networks.nothing(config)(given)
    net = networks.network(config)
    values = jax.jit(lambda params: gate_values(net, params, t, given))(params)
    f, g2 = drift_and_diffusion(path, t)
    found: dict[str, Any] = {
        "note": QUALITATIVE,
        "path": path.name,
        "variant": config.model.variant,
        "units": net.scanned_units,
        "t": np.asarray(t).tolist(),
        "half_g_squared": np.asarray(g2 / 2).tolist(),
        "minus_f": np.asarray(-f).tolist(),
    }
    for name, value in values.items():
        found[name] = {k: np.asarray(v).tolist() for k, v in value._asdict().items()}
    return found


def denoising(parts: build.Run, params: Any, examples: int, signals: lifecycle.Signals) -> dict:
    """Mean squared error of the x0 that the head reads from the trunk after some numbers of blocks,
    at each of `evaluate.log_snr`, (levels, readouts), over held-out examples."""
    config = parts.config.copy_and_resolve_references()
    net = networks.network(config)
    blocks, devices = net.blocks, parts.mesh.size
    held = blocks * net.trunk_size * 4
    per_device = max(1, min(config.evaluate.batch_size // devices, HELD // held))
    config.evaluate.batch_size = devices * per_device
    after = tuple(sorted({round(i) for i in np.linspace(0, blocks, min(READOUTS, blocks + 1))}))
    apply = networks.readouts(config, parts.mesh, parts.path, after)
    sums = measures.level_sums(config, apply, parts.path, parts.mesh)
    heldout = records.source(config, "heldout", str(lifecycle.data_dir()), signals.check)
    total, count = np.zeros(()), 0
    for batch in measures.heldout_batches(config, heldout, parts.mesh, examples)():
        size = len(batch["label"])
        seeds = np.arange(count, count + size, dtype=np.uint32)
        _, error = sums(params, batch, seeds)
        total = total + np.asarray(error, np.float64)
        count += int(np.sum(batch["mask"]))
        signals.check()
    return {
        "after_blocks": list(after),
        "log_snr": list(config.evaluate.log_snr),
        "examples": count,
        "x0_error": (total / count).tolist(),
    }
