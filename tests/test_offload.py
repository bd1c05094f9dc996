"""Models that accelerate spreads over devices and disk."""

import pytest
import torch
from transformers import LlamaForCausalLM

import rcprobe

FACTS = rcprobe.load_dataset("letters", {"length": 4}).facts[:6]
ON_DISK = {
    "model.embed_tokens": "cpu",
    "model.rotary_emb": "cpu",
    "model.layers.0": "cpu",
    "model.layers.1": "disk",
    "model.layers.2": "cpu",
    "model.norm": "cpu",
    "lm_head": "cpu",
}


@pytest.mark.parametrize("device_map", ["auto", ON_DISK], ids=["auto", "a layer on disk"])
def test_readings_do_not_depend_on_where_layers_lie(device_map, tmp_path):
    whole = rcprobe.load("llama", options={"num_hidden_layers": 3})
    whole.model.save_pretrained(tmp_path / "model")
    model = LlamaForCausalLM.from_pretrained(
        tmp_path / "model", device_map=device_map, offload_folder=tmp_path / "offloaded"
    )
    spread = rcprobe.load(model.eval(), adapter=type(whole.adapter), tokenizer=whole.tokenizer)
    pairs = [pair for pair in rcprobe.encode(whole, FACTS, "swapped") if pair.unsupported is None]
    read = {"scores", "log_probs", "gradients"}
    want, got = (rcprobe.observe(m, pairs, read=read, controls=2) for m in (whole, spread))
    torch.testing.assert_close(got.scores, want.scores)
    torch.testing.assert_close(got.log_probs, want.log_probs)
    names = [part.name for part in want.gradients.parts]
    kept = [names.index(part.name) for part in got.gradients.parts]
    torch.testing.assert_close(got.gradients.inner, want.gradients.inner[:, kept])
    # a layer without gradients is named, never zero
    offloaded = {name for name in names if ".layers.1." in name} if device_map == ON_DISK else set()
    assert set(names) - {part.name for part in got.gradients.parts} == offloaded
    assert got.gradients.left_out == dict.fromkeys(offloaded, "its values are offloaded")
