"""Files of tiny encoders with drawn weights, as Hugging Face lays them out."""

import json

import numpy as np
import pytest

WORDS, WIDTH, HIDDEN, HEADS, LAYERS, PLACES = 11, 8, 12, 2, 2, 16


def _linear(name, inputs, outputs, bias=True):
    return {f"{name}.weight": (outputs, inputs), **({f"{name}.bias": (outputs,)} if bias else {})}


def _norm(name):
    return {f"{name}.weight": (WIDTH,), f"{name}.bias": (WIDTH,)}


def _bert():
    shapes = {
        "embeddings.word_embeddings.weight": (WORDS, WIDTH),
        "embeddings.position_embeddings.weight": (PLACES, WIDTH),
        "embeddings.token_type_embeddings.weight": (2, WIDTH),
        **_norm("embeddings.LayerNorm"),
    }
    for i in range(LAYERS):
        at = f"encoder.layer.{i}."
        for name in ("query", "key", "value"):
            shapes |= _linear(f"{at}attention.self.{name}", WIDTH, WIDTH)
        shapes |= _linear(f"{at}attention.output.dense", WIDTH, WIDTH)
        shapes |= _norm(f"{at}attention.output.LayerNorm")
        shapes |= _linear(f"{at}intermediate.dense", WIDTH, HIDDEN)
        shapes |= _linear(f"{at}output.dense", HIDDEN, WIDTH) | _norm(f"{at}output.LayerNorm")
    settings = {"num_attention_heads": HEADS, "layer_norm_eps": 1e-12, "hidden_act": "gelu"}
    return shapes, settings


def _t5():
    shapes = {"shared.weight": (WORDS, WIDTH), "encoder.final_layer_norm.weight": (WIDTH,)}
    for i in range(LAYERS):
        at = f"encoder.block.{i}.layer."
        for name in "qkv":
            shapes |= _linear(f"{at}0.SelfAttention.{name}", WIDTH, 6, bias=False)
        shapes |= _linear(f"{at}0.SelfAttention.o", 6, WIDTH, bias=False)
        for name in ("wi_0", "wi_1"):
            shapes |= _linear(f"{at}1.DenseReluDense.{name}", WIDTH, HIDDEN, bias=False)
        shapes |= _linear(f"{at}1.DenseReluDense.wo", HIDDEN, WIDTH, bias=False)
        shapes |= {f"{at}{j}.layer_norm.weight": (WIDTH,) for j in (0, 1)}
    shapes["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] = (8, HEADS)
    return shapes, {"relative_attention_max_distance": 10}


def _clip():
    shapes = {
        "text_model.embeddings.token_embedding.weight": (WORDS, WIDTH),
        "text_model.embeddings.position_embedding.weight": (PLACES, WIDTH),
        **_norm("text_model.final_layer_norm"),
    }
    for i in range(LAYERS):
        at = f"text_model.encoder.layers.{i}."
        for name in ("q", "k", "v", "out"):
            shapes |= _linear(f"{at}self_attn.{name}_proj", WIDTH, WIDTH)
        shapes |= _norm(f"{at}layer_norm1") | _norm(f"{at}layer_norm2")
        shapes |= _linear(f"{at}mlp.fc1", WIDTH, HIDDEN) | _linear(f"{at}mlp.fc2", HIDDEN, WIDTH)
    settings = {"num_attention_heads": HEADS, "layer_norm_eps": 1e-5, "hidden_act": "quick_gelu"}
    return shapes, {"text_config": settings}


MADE = {"minilm": _bert, "t5": _t5, "clip": _clip}


@pytest.fixture(scope="session")
def drawn():
    """name -> (tensors, settings) of a tiny encoder."""

    def of(name):
        shapes, settings = MADE[name]()
        draw = np.random.default_rng(0)
        tensors = {
            key: draw.normal(0, 0.5, shape).astype(np.float32) for key, shape in shapes.items()
        }
        for key, values in tensors.items():
            if values.ndim == 1 and key.endswith("weight"):
                values += 1.0  # scales of norms
        return tensors, settings

    return of


@pytest.fixture(scope="session")
def write_safetensors():
    return _write_safetensors


@pytest.fixture
def files(drawn, tmp_path):
    """name -> folder of a tiny encoder with a vocabulary of words."""
    library = pytest.importorskip("tokenizers", reason="the extra text is not installed")
    from tokenizers import models, pre_tokenizers

    def of(name):
        tensors, settings = drawn(name)
        folder = tmp_path / name
        folder.mkdir()
        _write_safetensors(folder / "model.safetensors", tensors)
        (folder / "config.json").write_text(json.dumps(settings))
        words = ["!", "w1", "w2", "w3", "pattern", "number", "0", "1", "2", "3", "other"]
        numbers = {word: i for i, word in enumerate(words)}
        found = library.Tokenizer(models.WordLevel(numbers, unk_token="other"))
        found.pre_tokenizer = pre_tokenizers.Whitespace()
        found.save(str(folder / "tokenizer.json"))
        return folder

    return of


def _write_safetensors(path, tensors):
    header, data = {}, b""
    for name, values in tensors.items():
        part = np.ascontiguousarray(values, np.float32).tobytes()
        header[name] = {
            "dtype": "F32",
            "shape": list(values.shape),
            "data_offsets": [len(data), len(data) + len(part)],
        }
        data += part
    head = json.dumps(header).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head + data)
