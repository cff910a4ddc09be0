"""Whether our text encoders are those of the field: beside transformers' classes, random weights.

  bash launch/local.sh --setup-only --extras=torch,text
  python -m benchmarks.text_parity

BERT, T5 of v1.0 and of v1.1 (gated), CLIP with both forms of GELU, a few layers each, written by
their `save_pretrained` and read from there; four texts, one as long as can be, one of one token,
padded and masked. `differences`: the largest absolute one of any state of a token that is no
padding, and of the sentence where the class has one, which here is at mean 0 and variance 1;
states are of size 1; `worst` of them.
Exits 1 if worst is above 1e-4.
"""

import json
import os
import pathlib
import tempfile

import numpy as np

from benchmarks import measuring
from nrdm_jax.processes import lifecycle

BAR = 1e-4
WORDS, LONGEST, LENGTHS = 99, 24, (24, 13, 6, 1)

_BERT = dict(
    vocab_size=WORDS, hidden_size=48, num_hidden_layers=3, num_attention_heads=4,
    intermediate_size=96, max_position_embeddings=LONGEST, initializer_range=0.2,
)  # fmt: skip
_T5 = dict(
    vocab_size=WORDS, d_model=48, d_kv=8, d_ff=96, num_layers=3, num_heads=4,
    relative_attention_num_buckets=8, relative_attention_max_distance=20,
)  # fmt: skip
_CLIP = _BERT | dict(bos_token_id=1, eos_token_id=WORDS - 1, pad_token_id=0)

# name -> (our module, class of transformers, its config's class, settings, has a sentence)
CASES = {
    "bert": ("minilm", "BertModel", "BertConfig", _BERT, False),
    "t5": ("t5", "T5EncoderModel", "T5Config", _T5, False),
    "t5_gated": ("t5", "T5EncoderModel", "T5Config",
                 _T5 | {"feed_forward_proj": "gated-gelu"}, False),
    "clip": ("clip_text", "CLIPTextModel", "CLIPTextConfig", _CLIP, True),
    "clip_gelu": ("clip_text", "CLIPTextModel", "CLIPTextConfig",
                  _CLIP | {"hidden_act": "gelu"}, True),
}  # fmt: skip


def texts() -> tuple[np.ndarray, np.ndarray]:
    """(words (4, T), mask (4, T)); the last word of a text ends it."""
    draw = np.random.default_rng(0)
    mask = np.arange(LONGEST)[None, :] < np.asarray(LENGTHS)[:, None]
    words = draw.integers(2, WORDS - 1, mask.shape)
    words[np.arange(len(LENGTHS)), np.asarray(LENGTHS) - 1] = WORDS - 1
    return np.where(mask, words, 0), mask


def theirs(name: str, folder: pathlib.Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Their states, and sentences where there are any; leaves the files in the folder."""
    import torch
    import transformers

    _, kind, settings_kind, settings, has_sentence = CASES[name]
    torch.manual_seed(0)
    model = getattr(transformers, kind)(getattr(transformers, settings_kind)(**settings)).eval()
    with torch.no_grad():
        # As drawn by the class, norms are ones and biases zeros: nothing of them would be seen.
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
        words, mask = (torch.from_numpy(x.astype(np.int64)) for x in texts())
        found = model(input_ids=words, attention_mask=mask)
    model.save_pretrained(folder)
    sentence = found.pooler_output.numpy() if has_sentence else None
    return found.last_hidden_state.numpy(), sentence


def ours(name: str, folder: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    import importlib

    import jax

    from nrdm_jax.weight_files import read_weights

    module = importlib.import_module(f"nrdm_jax.text.{CASES[name][0]}")
    settings = json.loads((folder / "config.json").read_text())
    network = module.build(read_weights(folder / "model.safetensors"), settings)
    words, mask = texts()
    tokens = np.where(mask, words + 1, 0).astype(np.int32)
    states, pooled = jax.jit(network.encode)(network.params, tokens)
    return np.asarray(states), np.asarray(pooled)


def run() -> int:
    os.environ["JAX_PLATFORMS"] = "cpu"
    measuring.require("torch", "transformers", extra="torch")
    from nrdm_jax.text import transformer

    _, mask = texts()
    differences = {}
    for name in CASES:
        with tempfile.TemporaryDirectory() as folder:
            wanted, sentence = theirs(name, pathlib.Path(folder))
            states, pooled = ours(name, pathlib.Path(folder))
        differences[name] = float(np.abs(states - wanted)[mask].max())
        size = float(np.sqrt(np.mean(wanted[mask] ** 2)))
        if sentence is not None:
            sentence = np.asarray(transformer.normal(sentence))
            differences[f"{name}_sentence"] = float(np.abs(pooled - sentence).max())
        print(f"{name:14} {differences[name]:.1e}, states of {size:.2f} (RMS)", flush=True)
    worst = max(differences.values())
    measuring.print_result({
        "worst": float(f"{worst:.2e}"),
        "differences": {name: float(f"{value:.2e}") for name, value in differences.items()},
    })  # fmt: skip
    return 0 if worst <= BAR else 1


def main() -> None:
    lifecycle.launch(run, __doc__)


if __name__ == "__main__":
    main()
