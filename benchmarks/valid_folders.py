"""Small valid folders of what is several files: pictures with captions, a text encoder, a run, and
sets that the package has prepared."""

import json
import os
import pathlib

import numpy as np

from benchmarks.valid_files import noise, picture, safetensors
from nrdm_jax import config
from nrdm_jax.data import latent_shards
from nrdm_jax.data.builders import table
from nrdm_jax.data.sources import ArraySource

SHAPE = (8, 8, 3)  # of the pictures of a prepared set


def image_folder(path: pathlib.Path) -> None:
    """What is fuzzed is the file beside three pictures."""
    for i in range(3):
        picture(path.with_name(f"{i}.png"))
    rows = [{"file_name": f"{i}.png", "text": f"picture {i}"} for i in range(3)]
    path.write_text("\n".join(map(json.dumps, rows)) if path.suffix == ".jsonl" else "a picture")


TOKENIZER = {
    "version": "1.0", "truncation": None, "padding": None, "added_tokens": [],
    "normalizer": {"type": "Lowercase"}, "pre_tokenizer": {"type": "Whitespace"},
    "post_processor": None, "decoder": None,
    "model": {"type": "WordLevel", "vocab": {"[UNK]": 0, "a": 1, "cat": 2}, "unk_token": "[UNK]"},
}  # fmt: skip


def text_encoder(path: pathlib.Path) -> None:
    """The folder of a tiny MiniLM in two files."""
    folder, draw = path.parent, np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {
        f"embeddings.{name}_embeddings.weight": (rows, 4)
        for name, rows in (("word", 3), ("position", 8), ("token_type", 2))
    }
    norms = ["embeddings.LayerNorm"]
    for name in ("attention.self.query", "attention.self.key", "attention.self.value",
                 "attention.output.dense", "intermediate.dense", "output.dense"):  # fmt: skip
        shapes |= {f"encoder.layer.0.{name}.weight": (4, 4), f"encoder.layer.0.{name}.bias": (4,)}
    norms += [f"encoder.layer.0.{name}.LayerNorm" for name in ("attention.output", "output")]
    shapes |= {f"{name}.{part}": (4,) for name in norms for part in ("weight", "bias")}
    tensors = {name: draw.normal(size=shape).astype("f4") for name, shape in shapes.items()}
    names = list(tensors)
    files = {"one.safetensors": names[::2], "other.safetensors": names[1::2]}
    for file, chosen in files.items():
        safetensors(folder / file, **{name: tensors[name] for name in chosen})
    index = {name: file for file, chosen in files.items() for name in chosen}
    settings = {"num_attention_heads": 2, "layer_norm_eps": 1e-12, "hidden_act": "gelu"}
    for name, values in (
        ("model.safetensors.index.json", {"weight_map": index}),
        ("config.json", settings),
        ("tokenizer.json", TOKENIZER),
    ):
        (folder / name).write_text(json.dumps(values))


def run(path: pathlib.Path) -> None:
    """What a run says of itself, without its checkpoints."""
    rows = ({"step": 0, "heldout_loss": 1.5}, {"step": 10, "images": 640, "loss": 0.5})
    for name, text in (
        ("config.json", json.dumps(config.to_dict(config.default()))),
        ("metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows)),
        ("env.json", json.dumps({"devices": 1, "parameters": 10, "data": "a"}) + "\n"),
    ):
        path.with_name(name).write_text(text)


def prepared_set(path: pathlib.Path) -> None:
    """A set of an image folder, with captions."""
    pixels = path.parent / "pictures"
    for i in range(4):
        (pixels / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        picture(pixels / "ab"[i % 2] / f"{i}.png")
        (pixels / "ab"[i % 2] / f"{i}.txt").write_text(f"picture {i}")
    builder = table.prepared(f"image_folder:{pixels}", SHAPE, str(path.parent / "sets"))
    for file in pathlib.Path(builder.data_dir).iterdir():
        os.replace(file, path.with_name(file.name))


def latent_set(path: pathlib.Path) -> None:
    """The set of latents of a few records."""
    count = 6
    pixels = ArraySource(
        noise(count, 4, 4, 1), np.arange(count) % 2, num_classes=2, fingerprint="f"
    )

    def encode(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        half = x[:, ::2, ::2].astype(np.float32)
        return half, half / 100

    latent_shards.bind(path.parent, "f", "synthetic")
    writer = latent_shards.Writer(path.parent, (2, 2, 1), pixels)
    sources = {"train": pixels, "heldout": pixels}
    for split in sources:
        writer.write(pixels, split, 0, encode, lambda indices: {})
    writer.finish(sources, fingerprint="f", weights="w")
