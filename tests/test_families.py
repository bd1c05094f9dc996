"""Released families: their checkpoints read with stock classes, checked, probed, and refused where they don't fit."""

import importlib.util
import json
import socket
import sys
import time
from pathlib import Path

import checkpoints as small
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertLMHeadModel,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3_5ForCausalLM,
    Qwen3_5TextConfig,
    Qwen3Config,
    Qwen3ForCausalLM,
)

import rcprobe
from rcprobe import cli, loading
from rcprobe.config import read_config
from rcprobe.conformance import check_adapter
from rcprobe.errors import AdapterError, UsageError, VerificationError
from rcprobe.inspection import inspect
from rcprobe.loaded import LoadedModel
from rcprobe.probing.plain_gradients import query_gradients
from rcprobe.probing.verify import verify, verify_shift
from rcprobe.training import train
from rcprobe.training.objectives import Statements, objective_of, training_loss
from rcprobe.training.statements import forward_statements
from rcprobe.weights import check_weights
from rcprobe_plugins.models.a2d import ShiftedA2d, convert
from rcprobe_plugins.models.dream import Dream
from rcprobe_plugins.models.llada import Llada
from rcprobe_plugins.models.masked_lm import MaskedLm
from rcprobe_plugins.models.qwen import Qwen

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

IDS = [5, 9, 300, 17, 7, 20, 21, 44]
LONG = ("{a} is the mother of {b}.", "{b} is the son of {a}.")
FACTS = [
    rcprobe.Fact("Mary Lee", "Tom", *LONG),
    rcprobe.Fact("Uriah", "Cruise", *LONG),
    rcprobe.Fact("Lee", "Mary", *LONG),
    rcprobe.Fact("Hawthorne", "Melodies", *LONG),
]
CHECKS = ["mask", "attention", "padding", "scores"]


def logits(m, ids=IDS):
    with torch.no_grad():
        return m.model(torch.tensor([ids])).logits[0]


def read(folder):
    return json.loads((folder / "config.json").read_text())


# --- LLaDA and Dream, in the layouts they were released in ---


@pytest.fixture(scope="module")
def llada(tmp_path_factory):
    return small.llada(tmp_path_factory.mktemp("llada"))


@pytest.fixture(scope="module")
def dream(tmp_path_factory):
    return small.dream(tmp_path_factory.mktemp("dream"))


@pytest.fixture(scope="module")
def released(llada, dream):
    return {"llada": rcprobe.load(llada), "dream": rcprobe.load(dream)}


def test_llada_is_a_llama_with_full_attention(released):
    m, weights = released["llada"], small.stock_names(small.llada_weights())
    assert isinstance(m.adapter, Llada)
    assert type(m.model) is LlamaForCausalLM
    assert set(m.model.state_dict()) == set(weights)
    assert all(torch.equal(value, weights[name]) for name, value in m.model.state_dict().items())
    want = small.reference_logits(weights, IDS, theta=5e5, eps=1e-5)
    torch.testing.assert_close(logits(m).double(), want, rtol=0, atol=1e-5)
    assert (m.mask_id, m.pad_id, m.adapter.shift) == (335, 0, 0)


def test_dream_is_a_qwen2_with_full_attention_one_ahead(released):
    m, weights = released["dream"], small.random_weights(small.decoder_shapes())
    assert isinstance(m.adapter, Dream)
    assert type(m.model) is Qwen2ForCausalLM
    assert all(torch.equal(value, weights[name]) for name, value in m.model.state_dict().items())
    want = small.reference_logits(weights, IDS, theta=1e6, eps=1e-6)
    torch.testing.assert_close(logits(m).double(), want, rtol=0, atol=1e-5)
    assert (m.mask_id, m.adapter.shift) == (332, 1)


def test_dream_is_trained_by_its_own_weighting_of_what_is_masked(released):
    """The loss of its released fine-tuning, token by token in float64: shifted, weighed by context, padding unseen."""
    m, weights = released["dream"], small.random_weights(small.decoder_shapes())
    ids, real = forward_statements(m, FACTS)
    assert not real.all()
    objective = objective_of(m, rcprobe.TrainConfig(steps=1))
    batch = Statements(ids, real, real)
    found = training_loss(m, objective, batch, torch.Generator().manual_seed(4))
    shown, _ = objective.draw(m, batch, torch.Generator().manual_seed(4))
    total, masked = 0.0, (shown == m.mask_id) & (torch.arange(ids.shape[1]) > 0)  # the bos is predicted by no row
    for text, of_text, length in zip(ids.tolist(), shown.tolist(), real.sum(dim=1).tolist(), strict=True):
        rows = small.reference_logits(weights, of_text[:length], theta=1e6, eps=1e-6).log_softmax(-1)
        context = [i for i in range(length) if of_text[i] != m.mask_id]
        for n in range(1, length):
            if of_text[n] == m.mask_id:
                weight = sum(0.05 * 0.9 ** (abs(n - i) - 1) for i in context)
                total -= weight * float(rows[n - 1][text[n]])
    assert total > 0
    assert float(found.detach()) == pytest.approx(total / int(masked.sum()), rel=1e-5)


def test_dream_reads_every_token_with_a_bos_before(released):
    """The tokenizer's bos, not the configuration's: a target that starts a statement can be asked."""
    m = released["dream"]
    assert m.config.bos_token_id != m.tokenizer.bos_token_id == 331
    encoded = m.tokenizer("Tom Cruise is", return_offsets_mapping=True)
    assert encoded["input_ids"][0] == 331
    assert encoded["offset_mapping"][0] == (0, 0)
    assert m.tokenizer.decode(encoded["input_ids"][1:]) == "Tom Cruise is"
    pairs = rcprobe.encode(m, FACTS)
    assert not any(pair.unsupported for pair in pairs)
    query = pairs[0].forward
    assert (query.rows[0], query.input_ids[1]) == (0, m.mask_id)


@pytest.mark.parametrize("name", ["llada", "dream"])
def test_every_check_passes_and_padding_changes_nothing(released, name):
    m = released[name]
    checks = verify(m)
    assert [check.name for check in checks] == CHECKS
    assert all(check.passed for check in checks)
    padded = torch.tensor([[*IDS, 0, 0, 0]])
    real = torch.tensor([[1] * len(IDS) + [0] * 3])
    with torch.no_grad():
        for implementation in ("sdpa", "eager"):
            m.model.set_attn_implementation(implementation)
            found = m.model(padded, attention_mask=real).logits[0, : len(IDS)]
            torch.testing.assert_close(found, logits(m), rtol=0, atol=1e-5)
    m.model.set_attn_implementation("sdpa")


@pytest.mark.parametrize("original", [True, False])
@pytest.mark.parametrize("name", ["llada", "dream"])
def test_saving_and_loading_keeps_every_logit(released, name, original, tmp_path):
    m = released[name]
    m.model.save_pretrained(tmp_path, save_original_format=original)
    m.tokenizer.save_pretrained(tmp_path)
    again = rcprobe.load(tmp_path)
    assert torch.equal(logits(again), logits(m))
    assert (again.mask_id, again.adapter.shift, again.adapter.attention) == (m.mask_id, m.adapter.shift, "full")
    assert again.tokenizer("Tom is")["input_ids"] == m.tokenizer("Tom is")["input_ids"]
    assert set(load_file(tmp_path / "model.safetensors")) == set(m.model.state_dict())


@pytest.mark.parametrize("name", ["llada", "dream"])
def test_a_saved_copy_keeps_its_family(name):
    family, raw = (
        (Llada, small.llada_config(mask_token_id=126336))
        if name == "llada"
        else (Dream, small.dream_config(mask_token_id=151666))
    )
    saved = {**family.config(raw).to_dict(), "architectures": [family.architecture]}
    assert loading.adapter_for(saved, "a copy") is family
    assert family.resolve(saved).mask_token == family.mask_token


def test_what_a_llama_cannot_do_is_refused(tmp_path):
    for option, value in [("alibi", True), ("layer_norm_type", "low_precision"), ("include_qkv_bias", True)]:
        with pytest.raises(AdapterError, match=f"llada: {option} is .* which a Llama can't do"):
            Llada.resolve(small.llada_config(**{option: value}))
    with pytest.raises(AdapterError, match="use_mrope"):
        Dream.resolve(small.dream_config(use_mrope=True))


# --- other families, with real kinds of tokenizer ---


def saved(folder, model, tokenizer, **changes):
    """A checkpoint as save_pretrained writes it, its weights moved off zero and one."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.15 * torch.randn_like(parameter)
        model.get_output_embeddings().weight *= 0.1  # nobody is sure of anything by chance
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    raw = {**read(folder), **changes}
    (folder / "config.json").write_text(json.dumps(raw))
    return folder


SPECIAL = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": None}
DECODER = {
    "vocab_size": 340,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    **SPECIAL,
}
ENCODER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 32,
}
LINEAR = {
    "layer_types": ["linear_attention", "full_attention"],
    "head_dim": 8,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}


def bytes_(**special):
    return small.fast(small.byte_level(), **special)


def llama3(folder):
    config = LlamaConfig(**DECODER, rope_parameters=LLAMA3, tie_word_embeddings=True)
    return saved(folder, LlamaForCausalLM(config), bytes_())


def qwen2(folder):
    return saved(folder, Qwen2ForCausalLM(Qwen2Config(**DECODER)), bytes_())


def qwen3(folder):
    return saved(folder, Qwen3ForCausalLM(Qwen3Config(**DECODER, head_dim=8)), bytes_())


def qwen3_5(folder):
    return saved(folder, Qwen3_5ForCausalLM(Qwen3_5TextConfig(**DECODER, **LINEAR)), bytes_())


def gpt2(folder):
    config = GPT2Config(vocab_size=340, n_embd=32, n_layer=2, n_head=4, n_positions=64, **SPECIAL)
    return saved(folder, GPT2LMHeadModel(config), bytes_())


def bert(folder):
    tokenizer = small.word_piece()
    return saved(folder, BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), **ENCODER)), tokenizer)


def modernbert(folder):
    tokenizer = small.word_piece()
    kinds = {"layer_types": ["full_attention", "sliding_attention"], "local_attention": 32}
    special = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": None, "cls_token_id": 2, "sep_token_id": 3}
    config = ModernBertConfig(vocab_size=len(tokenizer), **ENCODER, **kinds, **special)
    return saved(folder, ModernBertForMaskedLM(config), tokenizer)


def neox(folder):
    return saved(folder, GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=340, **ENCODER, **SPECIAL)), bytes_())


def conversion(folder):
    """A Qwen3 made bidirectional here, as it is saved."""
    m = convert(rcprobe.load(qwen3(folder / "causal")))
    m.model.save_pretrained(folder / "converted")
    m.tokenizer.save_pretrained(folder / "converted")
    return folder / "converted"


STOCK = [
    (llama3, "llama", "causal", 1),
    (qwen2, "qwen", "causal", 1),
    (qwen3, "qwen", "causal", 1),
    (qwen3_5, "qwen", "hybrid", 1),
    (gpt2, "gpt2", "causal", 1),
    (bert, "masked_lm", "full", 0),
    (modernbert, "masked_lm", "full", 0),
    (neox, "auto", "causal", 1),
    (conversion, "a2d", "full", 0),
]


@pytest.mark.parametrize(("make", "adapter", "attention", "shift"), STOCK)
def test_stock_checkpoints_find_their_family(make, adapter, attention, shift, tmp_path):
    folder = make(tmp_path)
    m = rcprobe.load(folder)
    assert (m.adapter.name, m.adapter.attention, m.adapter.shift) == (adapter, attention, shift)
    checks = {check.name: check.passed for check in verify(m)}
    assert checks["padding"] is checks["scores"] is True
    assert checks["attention"] is (None if attention == "hybrid" else True)
    again = type(m.model).from_pretrained(folder)
    assert torch.equal(again(torch.tensor([[7, 8, 9, 10]])).logits, m.model(torch.tensor([[7, 8, 9, 10]])).logits)
    pairing = "same_target" if m.adapter.objective == "masked" else "swapped"
    asked = [pair for pair in rcprobe.encode(m, FACTS, pairing) if pair.unsupported is None]
    assert asked
    for query in (query for pair in asked for query in (pair.forward, pair.reverse)):
        assert m.tokenizer.decode(list(query.target_ids)).strip().lower() == query.target.lower()


def test_the_text_model_inside_a_released_qwen3_5(tmp_path):
    """Released ones hold a model of images and a second head beside the text model, under longer names."""
    plain = rcprobe.load(qwen3_5(tmp_path / "plain"))
    weights = {
        name.replace("model.", "model.language_model.", 1): value for name, value in plain.model.state_dict().items()
    }
    weights |= {"model.visual.patch.weight": torch.ones(2, 2), "mtp.fc.weight": torch.ones(2, 2)}
    inside = {**read(tmp_path / "plain"), "model_type": "qwen3_5_text"}
    raw = {"architectures": ["Qwen3_5ForConditionalGeneration"], "model_type": "qwen3_5", "text_config": inside}
    m = rcprobe.load(small.write(tmp_path / "released", raw, weights, plain.tokenizer))
    assert isinstance(m.adapter, Qwen)
    assert m.adapter.attention == "hybrid"
    assert torch.equal(logits(m), logits(plain))


def test_a_released_gpt2_has_shorter_names(tmp_path):
    plain = rcprobe.load(gpt2(tmp_path / "plain"))
    weights = {
        name.removeprefix("transformer."): value
        for name, value in plain.model.state_dict().items()
        if name != "lm_head.weight"
    }
    weights["h.0.attn.bias"] = torch.ones(1, 1, 64, 64).tril()
    m = rcprobe.load(small.write(tmp_path / "released", read(tmp_path / "plain"), weights, plain.tokenizer))
    assert m.adapter.name == "gpt2"
    assert torch.equal(logits(m), logits(plain))


def test_the_fused_weight_of_gpt2_is_read_in_parts(tmp_path):
    """Each part's products are those of its columns, which lie side by side along what comes out."""
    m = rcprobe.load(gpt2(tmp_path))
    pairs = [pair for pair in rcprobe.encode(m, FACTS, "swapped") if pair.unsupported is None]
    found = rcprobe.observe(m, pairs, read={"gradients", "storage"}, controls=0)
    weight = m.model.transformer.h[0].attn.c_attn.weight
    gradients = [query_gradients(m, query, [weight])[0] for query in (pairs[0].forward, pairs[0].reverse)]
    for k, group in enumerate(("query", "key", "value")):
        at = [part.name for part in found.gradients.parts].index(f"transformer.h.0.attn.c_attn.weight[{group}]")
        assert found.gradients.parts[at].group == group
        f, r = (gradient[:, 32 * k : 32 * (k + 1)] for gradient in gradients)
        assert abs(found.gradients.inner[0, at] - (f * r).sum()) < 1e-4 * f.norm() * r.norm()
    assert found.storage.isfinite().all()


def test_a_released_bert_has_another_head_beside_and_older_names(tmp_path):
    plain = rcprobe.load(bert(tmp_path / "plain"))
    weights = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for name, value in plain.model.state_dict().items()
        if "decoder" not in name
    }
    weights |= {"bert.pooler.dense.weight": torch.ones(32, 32), "cls.seq_relationship.weight": torch.ones(2, 32)}
    folder = small.write(tmp_path / "released", read(tmp_path / "plain"), weights, plain.tokenizer)
    m = rcprobe.load(folder)
    assert torch.equal(logits(m, [7, 8, 9, 10]), logits(plain, [7, 8, 9, 10]))
    weights["cls.stranger.weight"] = torch.ones(2)
    with pytest.raises(AdapterError, match=r"1 not of this architecture \(cls.stranger.weight\)"):
        rcprobe.load(small.write(tmp_path / "strange", read(folder), weights, plain.tokenizer))


def test_a_released_a2d_declares_a_type_of_its_own(tmp_path):
    folder = qwen3(tmp_path / "plain")
    raw = read(folder)
    raw |= {"architectures": ["A2DQwen3LMHeadModel"], "model_type": "a2d-qwen3", "auto_map": {"AutoModel": "a2d.Own"}}
    m = rcprobe.load(
        small.write(
            tmp_path / "a2d", raw, load_file(folder / "model.safetensors"), bytes_(mask_token=small.MASK), shards=1
        )
    )
    assert (m.adapter.name, m.adapter.shift, m.adapter.attention) == ("a2d", 0, "full")
    assert type(m.model) is Qwen3ForCausalLM
    assert m.mask_id == m.tokenizer.mask_token_id


RAW = [
    ({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}, "llama"),
    ({"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}, "qwen"),
    ({"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "is_causal": False}, "a2d"),
    ({"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "mask_token_id": 5}, "a2d"),
    ({"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}, "gpt2"),
    ({"architectures": ["MistralForCausalLM"], "model_type": "mistral"}, "auto"),
    ({"architectures": ["RobertaForMaskedLM"], "model_type": "roberta"}, "masked_lm"),
    ({"architectures": ["XLMWithLMHeadModel"], "model_type": "xlm"}, "auto"),
    ({"architectures": ["XLMWithLMHeadModel"], "model_type": "xlm", "mask_token_id": 0}, "auto"),
]
NOBODYS = [
    {"architectures": ["StableDiffcoderForCausalLM"], "model_type": "llama", "auto_map": {"AutoModel": "a.B"}},
    {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "auto_map": {"AutoModelForCausalLM": "a.Qwen3"}},
    {"architectures": ["LLaDAMoEModelLM"], "model_type": "llada", "auto_map": {"AutoModel": "a.B"}},
    {"architectures": ["LlamaForSequenceClassification"], "model_type": "llama"},
    {"architectures": ["T5ForConditionalGeneration"], "model_type": "t5", "is_encoder_decoder": True},
    {"model_type": "llama"},
]


@pytest.mark.parametrize(("raw", "name"), RAW)
def test_the_raw_configuration_decides(raw, name):
    assert loading.adapter_for(raw, "a checkpoint").name == name


@pytest.mark.parametrize("raw", NOBODYS)
def test_what_no_adapter_takes_is_refused_with_the_way_out(raw):
    with pytest.raises(AdapterError, match=r"no installed adapter takes it.*--adapter\), or write one") as caught:
        loading.adapter_for(raw, "a checkpoint")
    assert ("its own code (auto_map) is never run" in str(caught.value)) == ("auto_map" in raw)


def test_two_adapters_that_claim_one_checkpoint(monkeypatch, llada):
    class Twin(Llada):
        name = "twin"

    found = loading.registry()

    class WithTwin:
        def names(self, kind):
            return [*found.names(kind), "twin"]

        def checked(self, kind, name, wanted):
            return Twin if name == "twin" else found.checked(kind, name, wanted)

    monkeypatch.setattr(loading, "registry", WithTwin)
    with pytest.raises(AdapterError, match=r"several adapters claim it \(llada, twin\); name one \(adapter="):
        rcprobe.load(llada)
    assert rcprobe.load(llada, adapter=Twin).adapter.name == "twin"


def test_a_llama_3_2_as_it_was_released(tmp_path):
    """Its rotary scaling, dtype and several ends of text, in the words of an older transformers."""
    folder = llama3(tmp_path)
    raw, m = read(folder), rcprobe.load(folder)
    for name in ("rope_parameters", "dtype", "is_causal"):
        raw.pop(name, None)
    scaling = {name: value for name, value in LLAMA3.items() if name != "rope_theta"}
    raw |= {"rope_scaling": scaling, "rope_theta": 500000.0, "torch_dtype": "float32", "eos_token_id": [1, 2]}
    (folder / "config.json").write_text(json.dumps(raw))
    again = rcprobe.load(folder)
    assert again.adapter.name == "llama"
    assert torch.equal(logits(again), logits(m))


# --- declarations that are wrong ---


def test_what_the_checks_do_not_confirm_is_not_taken_by_inspection(tmp_path):
    """BERT's head for generation is causal in a decoder only; nothing in the architecture's name says so."""
    tokenizer = small.word_piece()
    folder = saved(tmp_path, BertLMHeadModel(BertConfig(vocab_size=len(tokenizer), **ENCODER)), tokenizer)
    with pytest.raises(VerificationError, match=r"\(auto\): attention: it declares causal attention, but changing"):
        rcprobe.load(folder)


def test_causal_declared_bidirectional(tmp_path):
    class Wrong(Llada):
        @classmethod
        def config(cls, raw):
            config = Llada.config(raw)
            config.is_causal = True
            return config

    with pytest.raises(VerificationError, match="it declares full attention, but changing the last token leaves"):
        rcprobe.load(small.llada(tmp_path), adapter=Wrong)


def test_a_hybrid_called_full(tmp_path):
    folder = qwen3_5(tmp_path)
    raw = {**read(folder), "is_causal": False, "mask_token_id": 5}
    (folder / "config.json").write_text(json.dumps(raw))
    with pytest.raises(VerificationError, match="declares full attention, but 1 of 2 layers attend by softmax"):
        rcprobe.load(folder)
    with pytest.raises(AdapterError, match="only a causal model whose layers all attend by softmax"):
        convert(rcprobe.load(qwen3_5(tmp_path / "again")))


@pytest.mark.parametrize(
    ("mask", "complaint"), [(336, "outside the embedding"), (0, "also the padding id"), (-1, "outside the embedding")]
)
def test_a_mask_that_is_no_mask(mask, complaint, tmp_path):
    with pytest.raises(VerificationError, match=complaint):
        rcprobe.load(small.llada(tmp_path, mask_token_id=mask))


def test_a_mask_on_which_model_and_tokenizer_differ(dream):
    with pytest.raises(AdapterError, match="the mask is 333 by the model's side and 332 by the tokenizer's"):
        rcprobe.load(dream, adapter=Dream.variant({"resolve": classmethod(lambda c, raw: c), "mask_token": 333}))


def test_a_wrong_shift_shows_once_the_model_knows(tmp_path):
    """Trained for some seconds as Dream is, it predicts one ahead, and a shift of none is refused."""
    m = convert(rcprobe.load(qwen3(tmp_path)), shift=1)
    facts = [rcprobe.Fact(a, b, "of {a} and {b}.", "of {b} and {a}.") for a, b in (("Tom", "Lee"), ("Mary", "Uriah"))]
    for _ in train(m, facts, rcprobe.TrainConfig(steps=250, lr=3e-3, ema=0.9, warmup=10), seed=0):
        pass
    asked = [pair.forward for pair in rcprobe.encode(m, facts)]
    assert verify_shift(m, asked).passed is True
    wrong = LoadedModel(m.model, type(m.adapter).variant({"shift": 0})(), m.tokenizer, "a test")
    with pytest.raises(VerificationError, match="it declares 0, but logits read at shift 1 predict"):
        verify_shift(wrong, [pair.forward for pair in rcprobe.encode(wrong, facts)])


# --- weights that don't fit ---


def test_weights_missing_left_over_and_of_another_shape_are_listed(tmp_path):
    weights = small.llada_weights()
    del weights["model.transformer.blocks.1.attn_out.weight"]
    weights["model.transformer.stranger.weight"] = torch.ones(3)
    weights["model.transformer.ln_f.weight"] = torch.ones(7)
    with pytest.raises(AdapterError) as caught:
        rcprobe.load(small.llada(tmp_path, weights))
    for part in (
        "1 missing from the checkpoint (model.layers.1.self_attn.o_proj.weight)",
        "1 not of this architecture (model.transformer.stranger.weight)",
        "1 of another shape (model.norm.weight [7], where the configuration says [16])",
        "nothing was loaded in their place",
    ):
        assert part in str(caught.value)


def test_pickled_weights_are_not_read_unasked(tmp_path):
    folder = small.llada(tmp_path)
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(AdapterError, match=r"only pytorch_model\.bin: pickled weights can run code.*--allow-pickle"):
        rcprobe.load(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(AdapterError, match=r"no model\.safetensors and no model\.safetensors\.index\.json\. "):
        rcprobe.load(folder)


class Trap:
    """What a pickle may do as it is read."""

    def __reduce__(self):
        return (Path.touch, (Path("ran"),))


def test_pickled_weights_are_read_where_allowed_and_run_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    m = rcprobe.load(qwen2(tmp_path / "plain"))
    folder = tmp_path / "plain"
    (folder / "model.safetensors").unlink()
    torch.save(m.model.state_dict(), folder / "pytorch_model.bin")
    again = rcprobe.load(folder, allow_pickle=True)
    assert torch.equal(logits(again), logits(m))
    assert again.told == {"allow_pickle": True}
    torch.save({**m.model.state_dict(), "trap": Trap()}, folder / "pytorch_model.bin")
    with pytest.raises(AdapterError, match=r"the weights can't be loaded"):
        rcprobe.load(folder, allow_pickle=True)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("how", ["cut", "garbled", "gone"])
def test_the_shard_at_fault_is_named(how, tmp_path):
    folder = small.llada(tmp_path, shards=3)
    shard = folder / "model-00002-of-00003.safetensors"
    if how == "gone":
        shard.unlink()
    else:
        whole = shard.read_bytes()
        shard.write_bytes(whole[:-40] if how == "cut" else b"\xff" * len(whole))
    with pytest.raises(AdapterError, match=r"model-00002-of-00003\.safetensors: .*download"):
        rcprobe.load(folder)


def test_an_index_that_is_none(tmp_path):
    folder = small.llada(tmp_path)
    (folder / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(AdapterError, match="no index of weights"):
        rcprobe.load(folder)


def test_a_folder_without_a_tokenizer(tmp_path):
    folder = small.write(tmp_path, small.llada_config(), small.llada_weights())
    with pytest.raises(UsageError, match=r"no tokenizer could be read.*pass tokenizer="):
        rcprobe.load(folder)
    assert rcprobe.load(folder, tokenizer=bytes_()).mask_id == 335


# --- the hub ---


@pytest.mark.parametrize("how", ["offline", "refused", "silent"])
def test_a_hub_that_is_out_of_reach_fails_in_seconds(how, monkeypatch):
    """The hub's own client asks a silent one five times, for minutes."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if how == "silent":
            server.listen()
        monkeypatch.setattr("rcprobe.hub.PATIENCE", 0.5)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", how == "offline")
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        began = time.monotonic()
        with pytest.raises(UsageError, match=r"nobody/nothing: no such folder.*Give the path of a local copy"):
            rcprobe.load("nobody/nothing")
        assert time.monotonic() - began < 5


def test_what_is_for_checkpoints_alone():
    for where in ("revision", "device_map"):
        with pytest.raises(UsageError, match="for checkpoints"):
            rcprobe.load("radd", **{where: "main"})


def test_a_folder_has_no_revisions(llada):
    with pytest.raises(UsageError, match="a folder has no revisions"):
        rcprobe.load(llada, revision="main")


def test_the_revision_is_pinned_and_recorded(llada, monkeypatch, tmp_path):
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "snapshots" / commit
    snapshot.parent.mkdir()
    snapshot.symlink_to(llada)
    asked = []

    def one_file(source, name, *, revision, local_files_only):
        asked.append(revision)
        return str(snapshot / name)

    def all_files(source, *, revision, allow_patterns, ignore_patterns, local_files_only):
        asked.append(revision)
        assert "*.bin" not in allow_patterns
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", one_file)
    monkeypatch.setattr("huggingface_hub.snapshot_download", all_files)
    m = rcprobe.load("somebody/llada", revision="v1")
    assert asked == ["v1", "v1"]
    assert (m.source, m.config._commit_hash) == ("somebody/llada", commit)


# --- dtype, device map, low-rank adapters ---


def test_half_precision_leaves_the_rotary_frequencies(llada):
    for m in (rcprobe.load(llada, dtype="bfloat16"), rcprobe.load("llama", dtype="bfloat16")):
        assert m.dtype == torch.bfloat16
        buffers = dict(m.model.named_buffers())
        assert buffers["model.rotary_emb.inv_freq"].dtype == torch.float32
    assert rcprobe.load("llama", dtype="bfloat16").replica(1).model.model.rotary_emb.inv_freq.dtype == torch.float32


def test_a_device_map_is_handed_on(llada):
    m = rcprobe.load(llada, device_map="cpu")
    assert torch.equal(logits(m), logits(rcprobe.load(llada)))


def low_rank(model, folder, targets):
    torch.manual_seed(0)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=list(targets), init_lora_weights=False))
    adapted.save_pretrained(folder)
    return adapted


def test_low_rank_adapters_go_on_every_module_or_none(llada, tmp_path):
    m = rcprobe.load(llada)
    names = m.adapter.lora_modules(m.model)
    assert len(names) == 2 * 7
    assert "lm_head" not in names
    low_rank(m.model, tmp_path / "lora", names)
    plain, adapted = rcprobe.load(llada), rcprobe.load(llada, peft=tmp_path / "lora")
    assert sum(name.endswith("lora_A") for name, _ in adapted.model.named_modules()) == 14
    assert not torch.equal(logits(adapted), logits(plain))
    assert all("lora_" in name for name, p in adapted.model.named_parameters() if p.requires_grad)
    file = tmp_path / "lora" / "adapter_model.safetensors"
    weights = load_file(file)
    save_file({name.replace("self_attn.o_proj", "attn_out"): value for name, value in weights.items()}, file)
    with pytest.warns(UserWarning, match="missing adapter keys"), pytest.raises(AdapterError, match="another layout"):
        rcprobe.load(llada, peft=tmp_path / "lora")
    with pytest.raises(UsageError, match="no such file"):
        rcprobe.load(llada, peft=tmp_path)


def test_a_target_that_names_nothing_is_an_error(released):
    wrong = Llada.variant({"lora_targets": (r"\.attn_out$",)})
    with pytest.raises(AdapterError, match=r"lora_targets: .*attn_out.* names no linear module"):
        wrong().lora_modules(released["llada"].model)


# --- quantised ---


@pytest.mark.parametrize(
    ("config", "package"),
    [({"load_in_8bit": True}, "bitsandbytes"), ({"quant_method": "torchao", "quant_type": {}}, "torchao")],
)
def test_what_quantised_loading_lacks_is_named(config, package, llada, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(f"transformers.utils.import_utils.is_{package}_available", lambda *_: False)
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *at: None if name == package else found(name, *at))
    with pytest.raises(
        UsageError, match=rf"needs {package}, which isn't installed: pip install 'rcprobe\[quantized\]'"
    ):
        rcprobe.load(llada, quantization_config=config)


def test_a_way_to_quantise_that_nobody_knows(llada):
    with pytest.raises(AdapterError, match="Unknown quantization type, got nothing"):
        rcprobe.load(llada, quantization_config={"quant_method": "nothing"})


class Whole(torch.nn.Linear):
    """A linear module that keeps whole numbers and a scale, as bitsandbytes does."""

    def __init__(self, plain):
        torch.nn.Module.__init__(self)
        self.in_features, self.out_features, self.bias = plain.in_features, plain.out_features, plain.bias
        self.scale = plain.weight.detach().abs().max() / 127
        whole = (plain.weight.detach() / self.scale).round().to(torch.int8)
        self.weight = torch.nn.Parameter(whole, requires_grad=False)

    def forward(self, x):
        return torch.nn.functional.linear(x, self.weight.to(x.dtype) * self.scale, self.bias)


def test_quantised_weights_are_read_for_all_but_their_gradients(tmp_path):
    m = rcprobe.load(small.llada(tmp_path))
    for n in range(2):
        attention = m.model.model.layers[n].self_attn
        attention.v_proj = Whole(attention.v_proj)
    plain = rcprobe.load(tmp_path)
    pairs = rcprobe.encode(m, FACTS)
    read = {"scores", "log_probs", "gradients", "storage"}
    found, want = rcprobe.observe(m, pairs, read=read), rcprobe.observe(plain, pairs, read=read)
    left = {f"model.layers.{n}.self_attn.v_proj.weight": "it is quantised" for n in range(2)}
    assert found.gradients.left_out == left
    assert len(found.gradients.parts) == len(want.gradients.parts) - 2
    rough = {"rtol": 0, "atol": 0.02 * float(want.storage.abs().max())}
    torch.testing.assert_close(found.storage, want.storage, equal_nan=True, **rough)
    assert m.fingerprint() != plain.fingerprint()


# --- what runs out, or isn't there ---


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_memory_that_runs_out_on_loading(error, llada, monkeypatch):
    def fail(*_, **__):
        raise error

    for where in ("rcprobe.loading.cast", "transformers.LlamaForCausalLM.from_pretrained"):
        with monkeypatch.context() as patch:
            patch.setattr(where, fail)
            with pytest.raises(AdapterError, match="memory ran out while its weights were loaded; use dtype bfloat16"):
                rcprobe.load(llada)


@pytest.mark.parametrize("source", ["/no/such/folder", "./nothing", "a/b/c"])
def test_a_path_that_is_not_there_is_no_hub_id(source):
    for ask in (rcprobe.load, inspect):
        with pytest.raises(UsageError, match=rf"{source}: no such folder; give the folder that holds config\.json"):
            ask(source)


def test_a_file_in_the_place_of_a_folder(tmp_path):
    (tmp_path / "model.bin").touch()
    with pytest.raises(UsageError, match=r"a file, where a folder or a \.gguf file was expected"):
        rcprobe.load(tmp_path / "model.bin")


def test_what_loading_was_told_stands_in_the_manifest_and_is_told_again(llada, tmp_path, monkeypatch, capsys):
    m = rcprobe.load(llada)
    low_rank(m.model, tmp_path / "lora", m.adapter.lora_modules(m.model))
    monkeypatch.chdir(tmp_path)
    facts = [",".join((f.a, f.b, f.forward[0], f.reverse[0])) for f in FACTS]
    (tmp_path / "facts.csv").write_text("\n".join(["a,b,forward,reverse", *facts]))
    words = ["rcprobe", "run", str(llada), "facts.csv", "--quiet", "--peft", "lora", "--out", "kept"]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code, capsys.readouterr().err
    manifest = json.loads((tmp_path / "kept" / "manifest.json").read_text())
    assert manifest["settings"]["loading"] == {"peft": "lora"}
    again = read_config(tmp_path / "kept" / "manifest.json")
    assert (again.peft, again.dataset) == ("lora", "facts.csv")


# --- from a path to a report ---


@pytest.mark.parametrize("make", [small.llada, small.dream, conversion, modernbert, qwen3_5])
def test_from_a_path_to_a_report(make, tmp_path):
    folder = make(tmp_path)
    report = rcprobe.run(str(folder), FACTS, progress=False)
    assert report.signatures
    m = rcprobe.load(folder)
    masked = m.adapter.objective == "masked"
    pairs = rcprobe.encode(m, FACTS, "same_target" if masked else "swapped")
    asked = [i for i, pair in enumerate(pairs) if pair.unsupported is None]
    assert asked
    found = rcprobe.observe(m, pairs, read={"scores", "log_probs", "gradients"}, controls=1)
    inside = inspect(str(folder))
    hybrid = m.adapter.attention == "hybrid"
    assert inside.score_layers == ((1,) if hybrid else (0, 1))
    assert found.scores.shape == (len(pairs), 2, len(inside.score_layers), 4)
    assert found.log_probs[asked].isfinite().all()
    attendable = found.attendable[asked]
    assert attendable.all() if masked else attendable.any()
    for layer in range(len(inside.score_layers)):
        assert found.scores[asked][:, :, layer].isfinite().all()
    parts = found.gradients.parts
    assert {part.layer for part in parts} == {None, 0, 1}
    assert {part.parameter for part in parts} == {name for name, _ in m.model.named_parameters()}
    for layer in (None, 0, 1):
        at = [i for i, part in enumerate(parts) if part.layer == layer]
        assert (found.gradients.forward_norm2[asked][:, at].sum(dim=1) > 0).all()


# --- conversions made here ---


def test_a_conversion_leaves_the_causal_model_as_it_was(tmp_path):
    m = rcprobe.load(qwen3(tmp_path))
    before, size = logits(m), m.vocabulary
    made = convert(m)
    assert torch.equal(logits(m), before)
    assert m.tokenizer.mask_token_id is None
    assert (m.config.is_causal if hasattr(m.config, "is_causal") else True) is True
    assert (made.mask_id, made.vocabulary) == (len(m.tokenizer), size)  # the embedding had room
    assert made.adapter.attention == "full"
    assert made.tokenizer.convert_tokens_to_ids("<|mask|>") == made.mask_id
    assert torch.equal(made.model.lm_head.weight, m.model.lm_head.weight)


def test_a_conversion_without_room_gets_a_row(tmp_path):
    tokenizer = bytes_()
    size = len(tokenizer)
    config = GPT2Config(vocab_size=size, n_embd=32, n_layer=2, n_head=4, n_positions=64, **SPECIAL)
    m = rcprobe.load(saved(tmp_path, GPT2LMHeadModel(config), tokenizer))
    made = convert(m, shift=1)
    assert (made.mask_id, made.vocabulary, made.adapter.shift) == (size, size + 1, 1)
    rows = made.model.transformer.wte.weight
    torch.testing.assert_close(rows[size], rows[:size].mean(dim=0))
    with pytest.raises(AdapterError, match="only a causal model"):
        convert(made)


def test_a_shifted_conversion_puts_a_bos_before_every_text(tmp_path):
    """So that a statement's first word can be asked for; and it stays so in the checkpoint."""
    m = rcprobe.load(saved(tmp_path / "causal", Qwen3ForCausalLM(Qwen3Config(**DECODER, head_dim=8)),
                           bytes_(bos_token=small.END)))  # fmt: skip
    fact = rcprobe.Fact("Tom", "Lee", "{a} is of {b}.", "{b} is of {a}.")
    assert m.encoding("Tom").ids == convert(m).encoding("Tom").ids  # as they were
    made = convert(m, shift=1)
    made.model.save_pretrained(tmp_path / "made")
    made.tokenizer.save_pretrained(tmp_path / "made")
    for each in (made, rcprobe.load(tmp_path / "made")):
        assert each.encoding("Tom").ids == [each.tokenizer.bos_token_id, *m.encoding("Tom").ids]
        (pair,) = rcprobe.encode(each, [fact], pairing="same_target")
        assert pair.unsupported is None
        assert pair.forward.row == 0


def test_a_shift_that_no_file_tells_is_named_by_the_user(tmp_path):
    folder = qwen2(tmp_path)
    m = rcprobe.load(folder, adapter=ShiftedA2d.variant({"mask_token": 339}))
    assert (m.adapter.shift, m.adapter.attention, m.adapter.name) == (1, "full", "a2d")
    assert not ShiftedA2d.matches(read(folder))


# --- the page on adding a family ---

FERN_NAMES = (
    ("model.embed_tokens", "fern.tokens"),
    ("model.norm", "fern.last_norm"),
    ("lm_head", "fern.out"),
    ("model.layers", "fern.layer"),
    ("input_layernorm", "norm1"),
    ("post_attention_layernorm", "norm2"),
    ("self_attn.", "attn."),
    ("_proj", ""),
)


def test_the_pages_family_reads_a_checkpoint_of_its_layout(tmp_path):
    page = (Path(__file__).parent.parent / "docs" / "add-a-model.md").read_text()
    block = page.split("<!-- the tests run this block -->\n```python\n")[1].split("```")[0]
    assert block.count("\n") < 60
    space = {}
    exec(compile(block, "docs/add-a-model.md", "exec"), space)
    stock = small.random_weights(small.decoder_shapes(bias=False))
    weights = {}
    for name, value in stock.items():
        for theirs, ours in FERN_NAMES:
            name = name.replace(theirs, ours)
        weights[name] = value
    sizes = {"fern_width": 16, "fern_inner": 32, "heads": 4, "kv_heads": 2, "vocab": 336, "depth": 2, "eps": 1e-6}
    raw = {"architectures": ["FernLM"], "model_type": "fern", "mask_token_id": 333, **sizes}
    folder = small.write(tmp_path, raw, weights, bytes_())
    assert space["Fern"].matches(raw)
    assert [found.seen for found in check_adapter(space["Fern"]) if found.passed is False] == []
    m = rcprobe.load(folder, adapter=space["Fern"])
    want = small.reference_logits(stock, IDS, theta=1e4, eps=1e-6)
    torch.testing.assert_close(logits(m).double(), want, rtol=0, atol=1e-5)
    assert (m.mask_id, len(m.adapter.lora_modules(m.model))) == (333, 14)
    assert rcprobe.observe(m, rcprobe.encode(m, FACTS), read={"gradients"}).gradients.parts
    with pytest.raises(AdapterError, match="no installed adapter takes it"):
        rcprobe.load(folder)


# --- inspection ---


def test_inspection_reads_the_configuration_alone(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(small.llada_config()))
    found = inspect(str(tmp_path))
    assert (found.adapter, found.architecture, found.mask_id, found.shift) == ("llada", "LlamaForCausalLM", 335, 0)
    assert found.parameters == sum(weight.numel() for weight in small.llada_weights().values())
    assert (found.layers, found.score_layers, found.heads, found.lora_modules) == (2, (0, 1), 4, 14)
    assert any("auto_map" in line for line in found.against)
    assert json.loads(json.dumps(found.to_dict()))["score_layers"] == [0, 1]
    assert "masked, full attention, shift 0, mask 335" in str(found)


def test_inspection_says_which_layers_have_no_scores(tmp_path):
    found = inspect(str(qwen3_5(tmp_path)))
    assert (found.attention, found.score_layers) == ("hybrid", (1,))
    assert any(line.startswith("layers 0 have no pair scores") for line in found.against)
    assert "before auto" in found.why
    assert found.mask_id is None
    assert found.lora_modules == 3 + 3 + 4 + 5


def test_groups_of_words_cover_bert(tmp_path):
    m = rcprobe.load(bert(tmp_path))
    parts = {part.group for part in rcprobe.observe(m, rcprobe.encode(m, FACTS), read={"gradients"}).gradients.parts}
    assert parts == {"embedding", "position", "query", "key", "value", "output", "mlp", "norm", "head"}
    assert MaskedLm.ov_circuit is None


def test_no_code_of_a_checkpoint_is_run(tmp_path, llada):
    """Not even where the adapter takes it: a file that would leave a trace lies beside the weights."""
    folder = small.llada(tmp_path)
    trace = tmp_path / "ran"
    (folder / "modeling_llada.py").write_text(f"open({str(trace)!r}, 'w')\n")
    rcprobe.load(folder)
    assert not trace.exists()
    assert check_weights(folder)


def test_nothing_is_asked_of_the_network(llada, monkeypatch):
    def refuse(*_):
        raise AssertionError("a local folder needs no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    rcprobe.load(llada)


@pytest.mark.parametrize("as_json", [True, False])
def test_the_command_prints_what_inspection_found(as_json, llada, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["rcprobe", "models", "inspect", str(llada), *(["--json"] if as_json else [])])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, found = capsys.readouterr().out, inspect(str(llada))
    assert not ended.value.code
    assert json.loads(out) == found.to_dict() if as_json else out == f"{found}\n"


def test_the_command_refuses_what_loading_would(tmp_path, capsys, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps(NOBODYS[0]))
    monkeypatch.setattr("sys.argv", ["rcprobe", "models", "inspect", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    assert "no installed adapter takes it" in capsys.readouterr().err
