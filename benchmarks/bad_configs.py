"""Configs that no run begins with: each is refused by `python -m nrdm_jax.train` with exit code 2,
the field by its full path and the fix, before jax is imported and a directory made."""

import functools
import pathlib
from unittest import mock

from benchmarks.fault_rows import ROOT, Answer, Row, entry, process
from nrdm_jax import command_line
from nrdm_jax.processes import exit_codes

GROUP = "bad config"
CONFIG = f"--config={ROOT}/configs/openmoji32.py"

# (fields, a part of the message); of the config of 6 blocks of width 128 with 2 heads, patches of
# 4 x 4, batches of 32, 2500 steps with cosine, guidance 2.
FIELDS = (
    # Names and types
    ("model.depht=3", "model.depht"),
    ("optm.name=adamw", "optm"),
    ("model.depth=x", "model.depth=x"),
    ("model.depth=2.5", "model.depth=2.5"),
    ("model.beta=maybe", "model.beta=maybe"),
    ("data.shape=32", "data.shape is (32,); give the axes of one example"),
    ("optim.learning_rate=fast", "optim.learning_rate=fast"),
    # The run
    ("seed=-1", "seed is -1; give a number of at least 0"),
    ("seed=4294967296", "seed is 4294967296; give a number below 2^32"),
    ("task=difusion", "task is 'difusion'; choose one of diffusion, autoencoder (did you mean"),
    ("train.steps=0", "train.steps is 0; give a number of at least 1"),
    ("train.micro_batches=7", "train.micro_batches is 7, which does not divide train.batch_size"),
    ("train.ema_widths=(0.1,0.3)", "train.ema_widths is (0.1, 0.3); give ()"),
    ("train.ema_snapshots=-1", "train.ema_snapshots is -1"),
    # Data
    ("data.shape=(32,)", "data.shape is (32,); give the axes of one example"),
    ("data.num_classes=0", "data.num_classes is 0; give a number of at least 1"),
    ("data.corrupt=keep", "data.corrupt is 'keep'; choose one of skip, fail"),
    ("data.scale=0", "data.scale is 0.0; give a positive number"),
    ("data.in_memory_gib=nan", "data.in_memory_gib is nan"),
    ("data.seen=segmentation", "data.seen_classes is 0 with data.seen=segmentation"),
    ("data.flip=True data.name=moving_emoji", "data.flip is True with data.name=moving_emoji"),
    ("data.buckets=((24,40,3),)", "data.shape is (32, 32, 3), which is none of data.buckets"),
    # The model
    ("model.heads=5", "model.heads is 5, which does not divide model.width=128; the nearest"),
    ("model.patch=(5,)", "model.patch is (5,), which does not divide the axis of 32"),
    ("model.variant=gatd", "model.variant is 'gatd'; choose one of"),
    ("model.size=XXL", "model.size is 'XXL'; choose one of S, B, L, XL"),
    ("model.alpha_start=zeros", "model.alpha_start is 'zeros'; choose one of auto, zero"),
    ("model.label_dropout=1.0", "model.label_dropout is 1.0; give a number in [0, 1)"),
    ("model.mlp_ratio=0.001", "model.mlp_ratio is 0.001, which leaves no hidden channel"),
    ("model.memory=reversible", "model.memory is reversible, but a unit of one stream"),
    ("model.attention_kernel=ring", "set mesh.context, or choose xla"),
    ("model.name=uvit model.depth=1", "model.depth is 1, and model.name=uvit has two halves"),
    ("model.modulation=none model.variant=resnet", "model.modulation is none, and nothing else"),
    ("model.name=continuous model.tolerance=0.0", "model.tolerance is 0.0; give a positive"),
    # Captions and latents
    ("text.encoder=t5", "text.weights is not set, and text.encoder=t5 comes in no package"),
    ("text.encoder=bytes text.heads=3", "text.heads is 3, which does not divide text.width=128"),
    ("text.length=0", "text.length is 0; give a number of at least 1"),
    ("task=autoencoder", "autoencoder.name is none with task=autoencoder"),
    ("autoencoder.name=sd", "autoencoder.weights is not set with autoencoder.name=sd"),
    ("autoencoder.groups=0", "autoencoder.groups is 0"),
    # Diffusion
    ("diffusion.prediction=eps", "diffusion.prediction is eps, which divides by alpha = 0"),
    ("diffusion.sigma_min=100", "diffusion.sigma_min is 100.0, not below diffusion.sigma_max=80"),
    ("diffusion.importance_bins=1", "diffusion.importance_bins is 1"),
    ("diffusion.mode_scale=3", "diffusion.mode_scale is 3.0; give a number from 0"),
    ("diffusion.times=importance diffusion.uncertainty=True", "diffusion.times is importance"),
    ("diffusion.shift=-1", "diffusion.shift is -1.0; give a positive number"),
    # The optimizer and the guard
    ("optim.learning_rate=nan", "optim.learning_rate is nan; give a positive number"),
    ("optim.warmup_steps=99999", "optim.warmup_steps is 99999, more than train.steps=2500"),
    ("optim.b2=1.0", "optim.b2 is 1.0; give a number in [0, 1)"),
    ("optim.name=schedule_free", "optim.schedule is cosine, and optim.name=schedule_free"),
    ("optim.rates=(('(',2.0),)", "optim.rates has ('(', 2.0)"),
    ("optim.no_decay=('a{9999999999}',)", "optim.no_decay has 'a{9999999999}'"),
    ("optim.sensitivity_penalty=0.1 model.memory=sqrt", "optim.sensitivity_penalty needs"),
    ("guard.action=stop", "guard.action is 'stop'; choose one of halt, rollback"),
    ("guard.spike_window=4", "guard.spike_window is 4; give a number of at least 8"),
    (
        "guard.action=rollback guard.most_in_a_row=4 checkpoint.every=1",
        "checkpoint.keep is 3, and guard.action=rollback",
    ),
    # Devices
    ("mesh.data=0", "mesh.data is 0; give a positive number or -1"),
    ("mesh.fsdp=-1", "mesh has more than one -1"),
    ("mesh.stage=4", "mesh.stage is 4, and 6 scanned blocks are not divisible"),
    ("mesh.tensor=4", "model.heads is 2, not divisible by mesh.tensor=4"),
    ("mesh.slices.data=0", "mesh.slices.data is 0"),
    ("pipeline.repeats=0", "pipeline.repeats is 0"),
    # What is kept, scored, drawn and watched
    ("checkpoint.every=0", "checkpoint.every is 0"),
    (f"checkpoint.every={2**63 + 1}", "checkpoint.every has a whole number beyond 2^63"),
    ("checkpoint.host_gib=0", "checkpoint.host_gib is 0.0; give a positive number"),
    ("checkpoint.best_metric=loss", "checkpoint.best_metric is 'loss'; choose one of heldout_loss"),
    ("evaluate.log_snr=()", "evaluate.log_snr is (); give a tuple of numbers"),
    ("evaluate.metrics=('fid',)", "evaluate.metrics is ('fid',); give a tuple of fd, kid"),
    (
        "evaluate.net=inception evaluate.metrics_every=1000",
        "evaluate.weights is not set, and evaluate.net=inception",
    ),
    ("sample.sampler=eular", "sample.sampler is 'eular'; choose one of euler"),
    ("sample.guidance_interval=(2.0,0.2)", "sample.guidance_interval is (2.0, 0.2)"),
    ("sample.order=4", "sample.order is 4; choose 1, 2 or 3"),
    ("sample.write=scans", "sample.write is scans with data.shape=(32, 32, 3)"),
    ("model.label_dropout=0.0", "sample.guidance is 2.0, away from a null class"),
    ("watchdog.step=-1", "watchdog.step is -1.0; give a number of at least 0"),
    ("log.every=0", "log.every is 0"),
)
# (text of a config file, a part of the message)
FILES = {
    "a config file that raises": ("raise RuntimeError('no such machine')\n", "no such machine"),
    "a config file without get_config": ("x = 1\n", "get_config"),
    "a config file that is no Python": ("def get_config(:\n", "invalid syntax"),
    "a config file that adds a field": (
        "from nrdm_jax import config\n\n\ndef get_config(arg=''):\n    c = config.default()\n"
        "    c.model.depht = 3\n    return c\n",
        'model.depht is not a config field (did you mean "depth"?)',
    ),
}


def _train(arguments: list[str], scratch: pathlib.Path, *, alone: bool = False) -> Answer:
    workdir = scratch / "run"
    flags = (*arguments, f"--workdir={workdir}")
    if alone:
        code, message = process("nrdm_jax.train", *flags)
    else:  # what is let through is not trained
        begun = AssertionError("the config is let through")
        with mock.patch.object(command_line, "start_processes", side_effect=begun):
            code, message = entry("train", *flags)
    return (-1, f"{workdir} was made") if workdir.exists() else (code, message)


def _of_fields(fields: str, scratch: pathlib.Path, *, alone: bool = False) -> Answer:
    flags = [f"--config.{field}" for field in fields.split()]
    return _train([CONFIG, *flags], scratch, alone=alone)


def _of_file(text: str, scratch: pathlib.Path) -> Answer:
    file = scratch / "configs" / "bad.py"
    file.parent.mkdir()
    file.write_text(text)
    return _train([f"--config={file}"], scratch)


def rows() -> list[Row]:
    found = [
        Row(fields, GROUP, exit_codes.USAGE, says, functools.partial(_of_fields, fields))
        for fields, says in FIELDS
    ]
    found += [
        Row(name, GROUP, exit_codes.USAGE, says, functools.partial(_of_file, text))
        for name, (text, says) in FILES.items()
    ]
    fields, says = "model.heads=7", "model.heads is 7, which does not divide model.width=128"
    alone = functools.partial(_of_fields, fields, alone=True)
    return [
        *found,
        Row("no such config file", GROUP, exit_codes.USAGE, "configs/none.py",
            functools.partial(_train, [f"--config={ROOT}/configs/none.py"])),
        Row("no such argument of a config file", GROUP, exit_codes.USAGE,
            "openmoji32 has no argument 'tiny'; give none, or smoke",
            functools.partial(_train, [f"{CONFIG}:tiny"])),
        Row("no config", GROUP, exit_codes.USAGE, "--config", functools.partial(_train, [])),
        Row(f"{fields}, in a process of its own", GROUP, exit_codes.USAGE, says, alone),
    ]  # fmt: skip
