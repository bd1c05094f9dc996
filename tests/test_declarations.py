"""Which adapter reads a checkpoint, and what an adapter declares that no model can be."""

import re
from dataclasses import replace

import checkpoints as small
import pytest
from test_families import qwen3
from transformers import AutoConfig

import rcprobe
from rcprobe.errors import AdapterError, RcprobeError, UsageError, VerificationError
from rcprobe.inspection import inspect
from rcprobe.loaded import LoadedModel
from rcprobe.model_files import save_model
from rcprobe_plugins.models.a2d import ShiftedA2d, convert
from rcprobe_plugins.models.llada import Llada

AS_IT_IS = {"resolve": classmethod(lambda cls, raw: cls), "mask_token": 335}


def test_kept_weights_are_read_as_they_were_or_not_at_all(tmp_path):
    """Nothing in a configuration tells Shifted from a2d, which claims it: what was declared lies beside the weights."""

    class Shifted(ShiftedA2d):
        name = "shifted"

    causal = rcprobe.load(qwen3(tmp_path / "causal"))
    made = convert(causal)
    del made.model.config.logits_shift  # what a run trained by other hands doesn't write either
    m = LoadedModel(made.model, Shifted.variant({"mask_token": made.mask_id})(), made.tokenizer, "a test")
    save_model(m, tmp_path / "kept")
    with pytest.raises(AdapterError, match="kept these weights under the adapter 'shifted', which no plugin registers"):
        rcprobe.load(tmp_path / "kept")
    with pytest.raises(AdapterError, match="'shifted'"):
        inspect(str(tmp_path / "kept"))
    again = rcprobe.load(tmp_path / "kept", adapter=type(m.adapter))
    assert (again.adapter.name, again.adapter.shift) == ("shifted", 1)
    save_model(replace(m, adapter=type(m.adapter).variant({"name": "a2d"})()), tmp_path / "other")
    with pytest.raises(AdapterError, match="kept these weights with shift 1, and a2d would read them with 0"):
        rcprobe.load(tmp_path / "other")
    with pytest.raises(AdapterError, match="kept these weights with shift 1"):
        rcprobe.load(tmp_path / "other", adapter="a2d")  # a name is no reason to read them otherwise
    save_model(made, tmp_path / "right")
    assert rcprobe.load(tmp_path / "right").adapter.shift == 0
    (tmp_path / "right" / "rcprobe.json").write_text("[]")
    with pytest.raises(RcprobeError, match=r"rcprobe\.json: can't be read"):
        rcprobe.load(tmp_path / "right")


def test_an_adapter_is_taken_by_its_registered_name(tmp_path):
    folder = qwen3(tmp_path)
    m = rcprobe.load(folder, adapter="auto")
    assert (m.adapter.name, m.told) == ("auto", {"adapter": "auto"})
    assert inspect(str(folder), adapter="auto").why == "it is the one named"
    with pytest.raises(UsageError, match="no model is called 'qwne'; did you mean 'qwen'"):
        rcprobe.load(folder, adapter="qwne")
    with pytest.raises(UsageError, match="radd is a family itself"):
        rcprobe.load("radd", adapter="llada")
    for other in ("gpt2", "llama", "radd"):
        with pytest.raises(AdapterError, match="--adapter"):
            inspect(str(folder), adapter=other)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"objective": "mask"}, "objective is 'mask'; use 'masked' or 'causal'"),
        ({"attention": "both"}, "attention is 'both'; use 'full' or 'causal' or 'hybrid'"),
        ({"shift": True}, "shift is True; use a whole number"),
        ({"ov_circuit": replace(Llada.ov_circuit, norm="ln1")}, "this model has no norm 'ln1'"),
    ],
)
def test_a_declaration_that_no_model_can_be_is_refused(wrong, told, tmp_path):
    with pytest.raises(VerificationError, match=re.escape(told)):
        rcprobe.load(small.llada(tmp_path), adapter=Llada.variant({**AS_IT_IS, **wrong}))


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"architecture": "Qwen33ForCausalLM"}, "architecture 'Qwen33ForCausalLM' can't be found"),
        (
            {"config": classmethod(lambda cls, raw: AutoConfig.for_model("vireo"))},
            "no configuration could be made of its config.json",
        ),
    ],
)
def test_a_family_that_names_what_transformers_lacks_is_told_which(wrong, told, tmp_path):
    with pytest.raises(AdapterError, match=told) as caught:
        rcprobe.load(small.llada(tmp_path), adapter=Llada.variant(wrong))
    assert len(str(caught.value)) < 700
