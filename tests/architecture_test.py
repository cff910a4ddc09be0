"""The layers of the package, and that everything in it can be imported and is named well."""

import ast
import pathlib
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(__file__).resolve().parents[1] / "nrdm_jax"
FILES = sorted(PACKAGE.rglob("*.py"))

# part of the package -> the parts of it that it may import
ENTRIES = ("train", "sample", "evaluate", "ema", "dynamics", "compare", "compile_ahead", "job",
           "encode_dataset", "data_sets", "checkpoint")  # fmt: skip
# Where models meet diffusion and data.
FROM_CONFIG = ("networks", "texts", "drawing", "build", "measures", "tasks", "autoencoding")
ASSEMBLY = (
    *FROM_CONFIG,
    "frozen_autoencoders",
    "encoding",
    "records",
    "programs",
    "sample_quality",
    "reports",
    "restoring",
    "rollbacks",
    "stretch",
    "training_run",
    "run_weights",
    "post_hoc",
    "scoring",
    "likeness",
    "denoising_dynamics",
    "comparison",
    "comparison_report",
    "dry_run",
    "ahead",
    "data_reports",
    "checkpoint_report",
)
BOUNDED = ("bounded_files", "bounded_archives")  # what reads files that others wrote
LOWER = (
    "config",
    "command_line",
    "durability",
    "host_memory",
    "processes",
    "sharding",
    "signatures",
    "trees",
    "weight_files",
    "torch_files",
    "torch_pickles",
    "named_tensors",
    *BOUNDED,
    "__version__",
)
FILES_OF_WEIGHTS = ("weight_files", "named_tensors", *BOUNDED)
ALLOWED = {
    "signatures": (),
    "trees": (),
    "host_memory": (),
    "durability": (),
    "bounded_files": (),
    "bounded_archives": ("bounded_files",),
    "torch_pickles": (),
    "torch_files": ("torch_pickles", *BOUNDED),
    "weight_files": ("torch_files", *BOUNDED),
    "named_tensors": (),
    "config": (),
    "sharding": ("signatures", "trees"),
    "models": ("sharding.axes", "sharding.pipeline", "signatures", "trees"),
    "data": ("durability", "sharding", "signatures", "trees", *BOUNDED),
    "diffusion": ("signatures", "trees"),
    "checkpointing": ("signatures", "trees", "durability", "host_memory", "bounded_files"),
    "evaluation": ("signatures", "trees", *FILES_OF_WEIGHTS),
    "text": ("signatures", "trees", *FILES_OF_WEIGHTS),
    "processes": ("config", "signatures", "trees", "bounded_files", "durability", "host_memory"),
    "training": ("diffusion", "sharding", "checkpointing", "processes", "signatures", "trees",
                 "bounded_files", "durability"),
    "sampling": ("diffusion", "sharding", "processes", "signatures", "trees"),
    **dict.fromkeys(FROM_CONFIG, ("config", "data", "diffusion", "evaluation", "models", "sampling",
                                  "sharding", "signatures", "text", "trees", "training",
                                  *FILES_OF_WEIGHTS, *FROM_CONFIG)),
    "command_line": ("config", "processes"),
    **{name: (*LOWER, "data", "diffusion", "evaluation", "models", "sampling", "training",
              "checkpointing", *ASSEMBLY) for name in ASSEMBLY if name not in FROM_CONFIG},
    **dict.fromkeys(ENTRIES, (*LOWER, *ASSEMBLY, "data.latents", "training")),
    "cli": ENTRIES,
    "__init__": (),
}  # fmt: skip
FORBIDDEN = ("torch", "tensorflow", "pickle", "clu", "cloudpickle")


def imports_of(path: pathlib.Path) -> list[str]:
    """Full names of all modules a file imports, inside functions included."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def is_allowed(name: str, allowed: tuple[str, ...]) -> bool:
    return any(name == a or name.startswith(a + ".") for a in allowed)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_follow_the_layers(path):
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for name in imports_of(path):
        assert name.split(".")[0] not in FORBIDDEN, f"{path} imports {name}"
        if name.startswith("nrdm_jax."):
            inner = name.removeprefix("nrdm_jax.")
            assert inner.split(".")[0] == part or is_allowed(inner, ALLOWED[part]), (
                f"{path.relative_to(PACKAGE)} may not import {inner}"
            )


def test_layers_catch_a_wrong_import(tmp_path):
    wrong = tmp_path / "wrong.py"
    wrong.write_text("def f():\n    from nrdm_jax.models import dit\n")
    (name,) = imports_of(wrong)
    assert not is_allowed(name.removeprefix("nrdm_jax."), ALLOWED["diffusion"])


def test_names_say_something():
    vague = {"utils", "util", "misc", "common", "helpers", "helper", "base", "core"}
    clashing = {"jax", "flax", "optax", "orbax", "grain", "numpy", "flags", "logging"}
    assert not [p for p in FILES if p.stem in vague | clashing]


def test_init_files_are_empty():
    # config's gathers its parts under one name; nothing else hides where things come from.
    inner = [p for p in FILES if p.name == "__init__.py" and p.parent.name != "config"]
    inner.remove(PACKAGE / "__init__.py")
    assert len(inner) > 5
    assert not [p for p in inner if p.read_text().strip()]


def test_every_module_imports_and_none_brings_torch_or_tensorflow():
    modules = [
        ".".join(p.relative_to(PACKAGE.parent).with_suffix("").parts)
        for p in FILES
        if p.name != "__init__.py"
    ]
    script = f"""
import importlib, sys
for name in {modules!r}:
    importlib.import_module(name)
print([m for m in ("torch", "tensorflow", "clu") if m in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] == "[]"


def test_flags_and_validation_import_no_jax():
    script = """
import sys
from nrdm_jax import train, sample, evaluate, ema, compare, job, compile_ahead, data_sets
from nrdm_jax import cli, config
config.validate(config.default())
print([m for m in ("jax", "flax", "orbax", "grain", "numpy") if m in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"
