"""GGUF files: a tiny Llama written as one, read back weight for weight, and what can't be read."""

import json

import checkpoints as small
import gguf
import pytest
import torch

import rcprobe
from rcprobe.errors import AdapterError, MissingExtraError, UsageError
from rcprobe.inspection import inspect

HEADS = {"q_proj": small.SIZES["heads"], "k_proj": small.SIZES["key_heads"]}


def written(path):
    """The weights, and a file of them: llama.cpp keeps a head's two halves interleaved in query and key."""
    path.parent.mkdir(parents=True, exist_ok=True)
    spec = json.loads(small.byte_level().to_str())["model"]
    tokens = sorted(spec["vocab"], key=spec["vocab"].get)
    weights = small.random_weights(small.decoder_shapes(len(tokens), bias=False))
    file = gguf.GGUFWriter(path, "llama")
    file.add_name("tiny")
    file.add_context_length(64)
    file.add_embedding_length(small.SIZES["width"])
    file.add_block_count(small.SIZES["layers"])
    file.add_feed_forward_length(small.SIZES["inner"])
    file.add_head_count(small.SIZES["heads"])
    file.add_head_count_kv(small.SIZES["key_heads"])
    file.add_layer_norm_rms_eps(1e-5)
    file.add_rope_freq_base(1e4)
    file.add_rope_dimension_count(4)
    file.add_vocab_size(len(tokens))
    file.add_tokenizer_model("gpt2")
    file.add_token_list(tokens)
    file.add_token_merges([" ".join(merge) for merge in spec["merges"]])
    file.add_token_types([gguf.TokenType.NORMAL] * len(tokens))
    for special in (file.add_bos_token_id, file.add_eos_token_id, file.add_pad_token_id):
        special(0)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, small.SIZES["layers"])
    for name, weight in weights.items():
        heads = next((count for part, count in HEADS.items() if part in name), None)
        if heads is not None:
            weight = weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).reshape(weight.shape)
        file.add_tensor(names.get_name(name, (".weight",)), weight.contiguous().numpy())
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()
    return weights


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    written(path)
    return path


def test_the_weights_are_those_of_the_file(file):
    weights = small.random_weights(small.decoder_shapes(len(small.byte_level().get_vocab()), bias=False))
    for source in (file, file.parent):
        m = rcprobe.load(source)
        assert m.adapter.name == "llama"
        assert all(torch.equal(value, weights[name]) for name, value in m.model.state_dict().items())
        assert m.tokenizer("Tom Cruise is")["input_ids"] == small.byte_level().encode("Tom Cruise is").ids


def test_what_was_read_is_saved_and_cast_like_any_other(file, tmp_path):
    m = rcprobe.load(file, dtype="float64")
    m.model.save_pretrained(tmp_path)
    m.tokenizer.save_pretrained(tmp_path)
    again = rcprobe.load(tmp_path, dtype="float64")
    ids = torch.tensor([[5, 9, 30]])
    assert torch.equal(again.model(ids).logits, m.model(ids).logits)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())


def test_inspection_reads_a_file_too(file):
    found = inspect(str(file))
    assert (found.adapter, found.layers, found.heads) == ("llama", 2, 4)


def test_two_files_in_a_folder_are_too_many(file, tmp_path):
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).symlink_to(file)
    with pytest.raises(UsageError, match=r"several models \(a\.gguf, b\.gguf\); name one file"):
        rcprobe.load(tmp_path)
    assert rcprobe.load(tmp_path / "b.gguf").adapter.name == "llama"


@pytest.mark.parametrize("how", ["cut", "garbled"])
def test_a_broken_file_is_named(how, file, tmp_path):
    whole, broken = file.read_bytes(), tmp_path / "broken.gguf"
    broken.write_bytes(whole[:-200] if how == "cut" else b"\xff" * 300)
    with pytest.raises(AdapterError, match=r"broken\.gguf: .*"):
        rcprobe.load(broken)


def test_without_gguf_the_extra_is_named(file, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(MissingExtraError, match=r"needs gguf.*rcprobe\[gguf\]"):
        rcprobe.load(file)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UsageError, match=r"none\.gguf: no such folder"):
        rcprobe.load(tmp_path / "none.gguf")
