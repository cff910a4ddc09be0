"""`nrdm train|sample|evaluate|…`: the entries under one name."""

import importlib
import sys

ENTRIES = {
    "train": "train a model, or go on with a run",
    "sample": "draw samples from a run",
    "evaluate": "score a run on held-out data",
    "ema": "make the average of any width from a run's snapshots",
    "dynamics": "show a run's gates over depth and time, and what each block denoises",
    "compare": "table and charts of runs: losses, distances, where their configs differ",
    "checkpoint": "list the checkpoints of a run, verify them, show what is in one",
    "compile_ahead": "compile a job for machines that need not be there: memory, collectives, time",
    "job": "train, sample and score in one command",
    "data": "prepare a data set, show what is in it, check its files",
    "encode": "turn a data set of pixels into one of latents",
}
# Entries whose module has another name.
MODULES = {"data": "data_sets", "encode": "encode_dataset"}


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ENTRIES:
        sys.argv = [f"nrdm {name}", *sys.argv[2:]]
        importlib.import_module(f"nrdm_jax.{MODULES.get(name, name)}").main()
    wanted_help = name in ("--help", "-h", "help")
    lines = "\n".join(f"  {entry:13} {what}" for entry, what in ENTRIES.items())
    text = f"usage: nrdm ENTRY [FLAGS]; nrdm ENTRY --help for its flags\n{lines}"
    if not wanted_help:
        text = f"error: {name!r} is no entry\n{text}"
    print(text, file=sys.stdout if wanted_help else sys.stderr)
    sys.exit(0 if wanted_help else 2)


if __name__ == "__main__":
    main()
