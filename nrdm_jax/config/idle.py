"""Fields that were set and that nothing reads, because of another field: told, not refused."""

from collections.abc import Callable
from typing import Any

from nrdm_jax.config.conditions import get
from nrdm_jax.config.tree import GATED_VARIANTS, default


def _gated(c) -> bool:
    return c.model.variant in GATED_VARIANTS


def _named(*names: str) -> Callable[[Any], bool]:
    return lambda c: c.model.name in names


def _by_tokens(c) -> bool:
    return bool(c.data.buckets and c.data.bucket_tokens)


def _drawn(*names: str) -> Callable[[Any], bool]:
    return lambda c: c.diffusion.times in names


def _sampled(*names: str) -> Callable[[Any], bool]:
    return lambda c: c.sample.sampler in names


def _reads(*encoders: str) -> Callable[[Any], bool]:
    return lambda c: c.text.encoder in encoders


def _latents(*names: str) -> Callable[[Any], bool]:
    """Of a diffusion in the latents of such an autoencoder."""
    return lambda c: c.task == "diffusion" and c.autoencoder.name in names


def _trained(c) -> bool:
    return c.task == "autoencoder"


# Groups that the training of an autoencoder does not look at.
_OF_DIFFUSION = ("model", "diffusion", "pipeline", "text")

# field -> (whether it is read, what decides that)
READ: dict[str, tuple[Callable[[Any], bool], str]] = {
    "model.gate_shape": (_gated, "model.variant"),
    "model.gate_condition": (_gated, "model.variant"),
    "model.alpha_start": (lambda c: c.model.variant in ("gated", "adaln"), "model.variant"),
    "model.alpha_bound": (lambda c: c.model.variant == "gated", "model.variant"),
    "model.beta": (_gated, "model.variant"),
    "model.beta_bound": (lambda c: _gated(c) and c.model.beta, "model.variant"),
    "model.beta_start": (
        lambda c: (_gated(c) and c.model.beta) or c.model.variant == "mv_split",
        "model.variant",
    ),
    "data.bucket_tokens": (lambda c: bool(c.data.buckets), "data.buckets"),
    "data.bucket_multiple": (_by_tokens, "data.bucket_tokens"),
    "train.batch_size": (lambda c: not _by_tokens(c), "data.bucket_tokens"),
    "data.corrupt": (
        lambda c: c.data.name != "synthetic" and not c.data.name.startswith("tfds:"),
        "data.name",
    ),
    "data.frame_stride": (
        lambda c: c.data.name.partition(":")[0] in ("weizmann", "video_folder"),
        "data.name",
    ),
    "data.with_class": (
        lambda c: c.task == "diffusion" and c.text.encoder == "none",
        "text.encoder",
    ),
    "data.seen_classes": (lambda c: c.data.seen == "segmentation", "data.seen"),
    "data.seen_frames": (lambda c: c.data.seen == "frames", "data.seen"),
    "text.length": (_reads("bytes", "minilm", "t5", "clip"), "text.encoder"),
    "text.weights": (_reads("minilm", "t5", "clip"), "text.encoder"),
    "text.width": (
        lambda c: c.text.encoder != "none" and (c.text.encoder != "minilm" or bool(c.text.weights)),
        "text.encoder",
    ),
    "text.depth": (_reads("bytes"), "text.encoder"),
    "text.heads": (_reads("bytes"), "text.encoder"),
    "text.where": (_reads("minilm", "t5", "clip"), "text.encoder"),
    "text.with_class": (_reads("bytes", "minilm", "t5", "clip"), "text.encoder"),
    "autoencoder.weights": (_latents("kl", "taef2", "sd"), "task"),
    "autoencoder.encoded": (_latents("kl", "taef2", "sd"), "task"),
    "autoencoder.width": (_trained, "task"),
    "autoencoder.channel_factors": (_trained, "task"),
    "autoencoder.blocks": (_trained, "task"),
    "autoencoder.latent_channels": (_trained, "task"),
    "autoencoder.attention": (_trained, "task"),
    "autoencoder.groups": (lambda c: _trained(c) or c.autoencoder.name == "sd", "task"),
    "autoencoder.reconstruction": (_trained, "task"),
    "autoencoder.kl_weight": (_trained, "task"),
    "autoencoder.perceptual_weight": (_trained, "task"),
    "autoencoder.discriminator_weight": (_trained, "task"),
    "autoencoder.discriminator_width": (
        lambda c: _trained(c) and c.autoencoder.discriminator_weight > 0,
        "autoencoder.discriminator_weight",
    ),
    "autoencoder.discriminator_start": (
        lambda c: _trained(c) and c.autoencoder.discriminator_weight > 0,
        "autoencoder.discriminator_weight",
    ),
    "model.label_dropout": (
        lambda c: c.data.with_class or c.text.encoder != "none",
        "data.with_class",
    ),
    "model.skip": (_named("uvit", "unet"), "model.name"),
    "model.channel_factors": (_named("unet"), "model.name"),
    "model.attention_at": (_named("unet"), "model.name"),
    "model.mlp_ratio": (lambda c: c.model.name != "unet", "model.name"),
    "model.knots": (_named("continuous"), "model.name"),
    "model.solver": (_named("continuous"), "model.name"),
    "model.adjoint": (_named("continuous"), "model.name"),
    "model.tolerance": (
        lambda c: c.model.name == "continuous" and c.model.solver != "euler",
        "model.solver",
    ),
    "model.depth": (lambda c: c.model.size is None, "model.size"),
    "model.width": (lambda c: c.model.size is None, "model.size"),
    "model.heads": (lambda c: c.model.size is None, "model.size"),
    "pipeline.micro_batches": (lambda c: c.mesh.stage != 1, "mesh.stage"),
    "pipeline.repeats": (lambda c: c.mesh.stage != 1, "mesh.stage"),
    "optim.sensitivity_examples": (
        lambda c: c.optim.sensitivity_penalty > 0,
        "optim.sensitivity_penalty",
    ),
    "train.ema_halflife_images": (lambda c: c.optim.name != "schedule_free", "optim.name"),
    "train.ema_snapshots": (lambda c: bool(c.train.ema_widths), "train.ema_widths"),
    "checkpoint.keep_best": (lambda c: c.evaluate.every > 0, "evaluate.every"),
    "checkpoint.best_metric": (lambda c: c.checkpoint.keep_best > 0, "checkpoint.keep_best"),
    "guard.most_rollbacks": (lambda c: c.guard.action == "rollback", "guard.action"),
    "guard.spike_window": (lambda c: c.guard.spike_factor > 0, "guard.spike_factor"),
    "diffusion.logit_mean": (_drawn("logit_normal", "log_normal"), "diffusion.times"),
    "diffusion.logit_std": (_drawn("logit_normal", "log_normal"), "diffusion.times"),
    "diffusion.mode_scale": (_drawn("mode"), "diffusion.times"),
    "diffusion.importance_bins": (_drawn("importance"), "diffusion.times"),
    "diffusion.importance_history": (_drawn("importance"), "diffusion.times"),
    "diffusion.snr_gamma": (lambda c: c.diffusion.weight == "min_snr", "diffusion.weight"),
    "diffusion.sigmoid_bias": (lambda c: c.diffusion.weight == "sigmoid", "diffusion.weight"),
    "diffusion.variance_weight": (lambda c: c.model.learn_variance, "model.learn_variance"),
    "diffusion.sigma_min": (lambda c: c.diffusion.path == "ve", "diffusion.path"),
    "diffusion.sigma_max": (lambda c: c.diffusion.path == "ve", "diffusion.path"),
    "diffusion.sigma_data": (
        lambda c: "edm" in (c.diffusion.prediction, c.diffusion.weight) or c.diffusion.path == "ve",
        "diffusion.prediction",
    ),
    "sample.guidance_interval": (lambda c: c.sample.guidance != 1, "sample.guidance"),
    "sample.guidance_rescale": (lambda c: c.sample.guidance != 1, "sample.guidance"),
    "sample.rho": (lambda c: c.sample.grid == "karras", "sample.grid"),
    "sample.grid": (lambda c: c.sample.sampler != "dopri5", "sample.sampler"),
    "sample.steps": (lambda c: c.sample.sampler != "dopri5", "sample.sampler"),
    "sample.eta": (_sampled("ddim"), "sample.sampler"),
    "sample.churn": (_sampled("edm"), "sample.sampler"),
    "sample.order": (_sampled("unipc"), "sample.sampler"),
    "sample.diffusion": (_sampled("sde"), "sample.sampler"),
    "sample.voxel_mm": (lambda c: c.sample.write in ("auto", "scans"), "sample.write"),
    "sample.tolerance": (_sampled("dopri5"), "sample.sampler"),
    "evaluate.samples": (lambda c: c.evaluate.metrics_every > 0, "evaluate.metrics_every"),
    "evaluate.metrics": (lambda c: c.evaluate.metrics_every > 0, "evaluate.metrics_every"),
    "evaluate.examples": (lambda c: c.evaluate.every > 0, "evaluate.every"),
    "evaluate.weights": (lambda c: c.evaluate.net != "efflite0", "evaluate.net"),
    "log.profile_steps": (lambda c: c.log.profile_start > 0, "log.profile_start"),
}


def idle_fields(config) -> list[str]:
    """`FIELD=VALUE is not read with OTHER=VALUE`, for each that is not at its default."""
    reference = default()
    rows = dict(READ)
    if _trained(config):
        rows |= {
            f"{group}.{name}": (lambda c: False, "task")
            for group in _OF_DIFFUSION
            for name in reference[group]
        }
    return [
        f"{field}={get(config, field)!r} is not read with {other}={get(config, other)!r}"
        for field, (read, other) in rows.items()
        if get(config, field) != get(reference, field) and not read(config)
    ]
