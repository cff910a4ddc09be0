"""Hostile runs and text encoders: files that describe a network, and name other files."""

import base64
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks import valid_folders
from benchmarks.fault_rows import Answer, Row, entry, process
from benchmarks.hostile_reading import (
    BAD_DATA,
    CONFIG,
    USAGE,
    Change,
    edited,
    out_of,
    reading,
    row,
    sample,
    written,
)
from nrdm_jax.data.latents import Statistics
from nrdm_jax.text import encoders


def _run(text: str | bytes | dict) -> Callable[[pathlib.Path], pathlib.Path]:
    """-> a run with that config.json."""
    return lambda inside: written("config.json", text)(inside).parent


def _large(inside: pathlib.Path) -> pathlib.Path:
    with open(inside / "config.json", "wb") as file:
        file.truncate(2**27 + 1)
    return inside


def _pipe(inside: pathlib.Path) -> pathlib.Path:
    os.mkfifo(inside / "config.json")
    return inside


def _runs() -> Iterator[Row]:
    digits = "1" + "0" * 400 + "}}"
    for name, make, says in (
        ("has NaN", _run('{"seed": NaN}'), "seed"),
        ("has an infinite rate", _run('{"optim": {"learning_rate": 1e999}}'),
         "optim.learning_rate"),
        ("has a number of 10^4 digits", _run('{"seed": ' + "9" * 10**4 + "}"), "cannot be read"),
        ("has a rate of 400 digits", _run('{"optim": {"learning_rate": ' + digits),
         "optim.learning_rate: int too large"),
        ("has a count of 400 digits", _run('{"checkpoint": {"every": ' + digits),
         "checkpoint.every has a whole number beyond 2^63"),
        ("has a pattern of 10^14 letters", _run({"optim": {"no_decay": ["a{99999999999999}"]}}),
         "optim.no_decay has 'a{"),
        ("has a pattern nested without end",
         _run({"optim": {"no_decay": ["(" * 3000 + ")" * 3000]}}), "optim.no_decay has '((("),
        ("has lists in lists", _run('{"optim": {"rates": ' + "[" * 700 + "]" * 700 + "}}"),
         "optim.rates: lists are nested too deeply"),
        ("has a batch of 10^18 + 1",  # of which the nearest divisor is looked for
         _run({"train": {"batch_size": 10**18 + 1, "micro_batches": 2}}),
         "the nearest that does is 1"),
        ("is nested without end", _run('{"a":' * 10**5), "is nested too deeply"),
        ("has an unknown field", _run({"model": {"depht": 3}}), 'did you mean "depth"'),
        ("has a number for a group", _run({"model": 3}), "config field model is '3'"),
        ("has a group for a number", _run({"seed": {"a": 1}}), "config field seed is"),
        ("has a text for a number", _run({"model": {"depth": "8"}}), "model.depth is '8'"),
        ("is a list", _run("[]"), "it is not an object"),
        ("is no JSON", _run("{"), "cannot be read"),
        ("is no UTF-8", _run(b"\xff\xfe\xfd"), "cannot be read"),
        ("has 128 MiB", _large, "more than 134,217,728"),
        ("is a pipe", _pipe, "is no regular file"),
    ):  # fmt: skip
        yield row(f"a run whose config.json {name}", USAGE, says, make, sample)
    compared = lambda home: entry("compare", str(home), f"--out={out_of(home)}")  # noqa: E731
    yield row("a compared run with a list for a group", USAGE, "train is '[]'",
              _run({"train": []}), compared)  # fmt: skip

    def alone(home: pathlib.Path) -> Answer:
        return process("nrdm_jax.sample", f"--workdir={home}")

    yield row("a run whose config.json has an unknown field, in a process of its own", USAGE,
              'did you mean "depth"', _run({"model": {"depht": 3}}), alone)  # fmt: skip
    prompts = written("prompts.txt", b"\xff\xfe")
    yield row("prompts that are no UTF-8", USAGE, "prompts.txt cannot be read", prompts, _drawn)
    for name, text in (
        ("NaN", '"shift": [NaN], "scale": [1]'),
        ("0", '"shift": [0], "scale": [0]'),
    ):
        make = written("statistics.json", "{" + text + ', "fingerprint": "", "weights": ""}')
        yield row(f"latents with statistics of {name}", BAD_DATA, "a scale is not above 0",
                  make, reading(Statistics.read))  # fmt: skip


def _drawn(file: pathlib.Path) -> Answer:
    return entry("sample", CONFIG, f"--workdir={file.parent}", f"--captions={file}")


def encoder(change: Change) -> Callable[[pathlib.Path], pathlib.Path]:
    def make(inside: pathlib.Path) -> pathlib.Path:
        valid_folders.text_encoder(inside / "any")
        change(inside)
        return inside

    return make


def _read_encoder(folder: pathlib.Path) -> Any:
    found = encoders.open_encoder("minilm", str(folder))
    return found.tokenize(["a dog", "d" * 40 + "-"], 4), found.network


def _encoders() -> Iterator[Row]:
    index, tokenizer = "model.safetensors.index.json", "tokenizer.json"

    def names(file: str) -> Change:
        return edited(index, lambda v: v["weight_map"].update(x=file))

    def settings(**values: Any) -> Change:
        return edited("config.json", lambda v: v.update(values))

    def outside(home: pathlib.Path) -> None:
        os.rename(home / "one.safetensors", home.parent / "outside")
        (home / "one.safetensors").symlink_to(home.parent / "outside")

    grows = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 1000}
    bomb = {"type": "Sequence", "normalizers": [grows] * 4}
    doubled = {"type": "Sequence", "normalizers": [{"type": "ByteLevel"}] * 12}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
             "use_regex": False}  # fmt: skip
    split = {"type": "Sequence", "pretokenizers": [level] * 12}
    word = {"id": 3, "content": "\u00e9", "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": True, "special": False}  # fmt: skip
    # Of "a", by a trie of nothing: the table is what counts.
    table = base64.b64encode((4).to_bytes(4, "little") + bytes(4) + b"a" * 2**17).decode()
    endless = {"type": "Split", "pattern": {"Regex": "(\\w+)+$"}, "behavior": "Isolated",
               "invert": False}  # fmt: skip
    unknown = edited(tokenizer, lambda v: v["model"].update(unk_token="[NONE]"))
    for name, change, says in (
        ("in ../../x", names("../../x"), "points out of the folder"),
        ("in /etc/passwd", names("/etc/passwd"), "points out of the folder"),
        ("in a link out of its folder", outside, "is a link out of"),
        ("that is not there", names("x.safetensors"), "missing files: x.safetensors"),
        ("with a tokenizer nested without end",
         lambda home: (home / tokenizer).write_text("[" * 10**6), "is no tokenizer"),
        ("with a tokenizer of another kind", edited(tokenizer, lambda v: v.update(model="pickle")),
         "is no tokenizer"),
        ("with a tokenizer that makes texts longer", edited(tokenizer, lambda v: v.update(
            normalizer=bomb)), "makes a text up to 1,000,000,000,000 times as long"),
        ("with a tokenizer that doubles texts", edited(tokenizer, lambda v: v.update(
            normalizer=doubled)), f"makes a text up to {4**12:,}"),
        ("with a tokenizer that doubles what it splits", edited(tokenizer, lambda v: v.update(
            pre_tokenizer=split)), f"makes a text up to {2 * 4**12:,}"),
        ("with a tokenizer that doubles its own words", edited(tokenizer, lambda v: v.update(
            normalizer=doubled, added_tokens=[word])), f"makes a text up to {4**12:,}"),
        ("with a tokenizer of a table of long texts", edited(tokenizer, lambda v: v.update(
            normalizer={"type": "Precompiled", "precompiled_charsmap": table})),
         "makes a text up to 131,072 times as long"),
        ("with a tokenizer of an unknown part", edited(tokenizer, lambda v: v.update(
            normalizer={"type": "Sequence", "normalizers": [{"normalizers": []}]})),
         "is not known of 'None'"),
        ("with a tokenizer that never ends", edited(tokenizer, lambda v: v.update(
            pre_tokenizer=endless)), "cannot read texts"),
        ("with a tokenizer without a word for others", unknown, "cannot read texts"),
        ("of 10^9 heads", settings(num_attention_heads=10**9),
         "num_attention_heads=1000000000"),
        ("of 0 heads", settings(num_attention_heads=0),
         "num_attention_heads"),
        ("with an activation of a list", settings(hidden_act=[]),
         "hidden_act"),
        ("with an epsilon of NaN", settings(layer_norm_eps=float("nan")),
         "layer_norm_eps"),
    ):  # fmt: skip
        yield row(f"text encoder {name}", USAGE, says, encoder(change), reading(_read_encoder))


def rows() -> Iterator[Row]:
    yield from _runs()
    yield from _encoders()
