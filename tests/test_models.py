import json
import re

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

from rcprobe.errors import AdapterError, DataError, UnknownNameError
from rcprobe.facts import Dataset, Fact
from rcprobe.loading import load
from rcprobe.probing.engine import observe
from rcprobe.queries import encode
from rcprobe.runner import load_dataset, run
from rcprobe_plugins.models.blocks import eager_attention_forward
from rcprobe_plugins.models.gpt2_mini import Gpt2Mini, Gpt2MiniForCausalLM
from rcprobe_plugins.models.llama import Llama
from rcprobe_plugins.models.radd import Radd, RaddForMaskedLM

ENCODINGS = ("rope", "alibi", "absolute")
TINY = [(family, encoding) for family in (Radd, Gpt2Mini) for encoding in ENCODINGS]
ALL = [*TINY, (Llama, None)]


def build(family, encoding=None, **options):
    """A tiny model in float64 whose every weight is moved, so that no zero or one hides a mistake."""
    torch.manual_seed(0)
    model = family.build({**family.tiny, **({"encoding": encoding} if encoding else {}), **options}).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model.eval()


def prompts(model, batch=3, length=9) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, model.config.vocab_size, (batch, length), generator=generator)


# --- an independent re-computation: one prompt, one head, one position at a time ---


def norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * weight + bias


def turn(x: Tensor, position: int) -> Tensor:
    half = len(x) // 2
    theta = 10_000.0 ** (-2 * torch.arange(half, dtype=torch.float64) / len(x)) * position
    z = torch.complex(x[:half], x[half:]) * torch.polar(torch.ones_like(theta), theta)
    return torch.cat((z.real, z.imag))


def attend(q: Tensor, k: Tensor, v: Tensor, causal: bool, rope: bool, slope: float) -> Tensor:
    """One head: [L, D] each."""
    length, width = q.shape
    rows = []
    for i in range(length):
        seen = range(i + 1) if causal else range(length)
        query = turn(q[i], i) if rope else q[i]
        scores = torch.stack(
            [query @ (turn(k[j], j) if rope else k[j]) / width**0.5 - slope * abs(i - j) for j in seen]
        )
        weights = scores.exp() / scores.exp().sum()
        rows.append(sum(weights[n] * v[j] for n, j in enumerate(seen)))
    return torch.stack(rows)


def recompute_tiny(model, ids: Tensor, causal: bool) -> Tensor:
    s, c = model.state_dict(), model.config
    out = []
    for prompt in ids:
        x = s["embed_tokens.weight"][prompt]
        if c.encoding == "absolute":
            x = x + s["encoding.position.weight"][: len(prompt)]
        for n in range(c.depth):
            b = {name.removeprefix(f"blocks.{n}."): t for name, t in s.items() if name.startswith(f"blocks.{n}.")}
            h = norm(x, b["norm1.weight"], b["norm1.bias"])
            fused = h @ b["attention.qkv.weight"].T + b.get("attention.qkv.bias", 0.0)
            q, k, v = (fused[:, i * c.width : (i + 1) * c.width] for i in range(3))
            d = c.width // c.heads
            heads = []
            for head in range(c.heads):
                slope = 2.0 ** (-8 * (head + 1) / c.heads) if c.encoding == "alibi" else 0.0
                part = slice(head * d, (head + 1) * d)
                heads.append(attend(q[:, part], k[:, part], v[:, part], causal, c.encoding == "rope", slope))
            x = x + torch.cat(heads, -1) @ b["attention.out.weight"].T + b.get("attention.out.bias", 0.0)
            h = norm(x, b["norm2.weight"], b["norm2.bias"]) @ b["mlp.0.weight"].T + b["mlp.0.bias"]
            h = 0.5 * h * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (h + 0.044715 * h**3)))
            x = x + h @ b["mlp.2.weight"].T + b["mlp.2.bias"]
        x = norm(x, s["norm.weight"], s["norm.bias"])
        out.append(x @ s["lm_head.weight"].T + s.get("lm_head.bias", 0.0))
    return torch.stack(out)


def recompute_llama(model, ids: Tensor) -> Tensor:
    s, c = model.state_dict(), model.config
    shared, d = c.num_attention_heads // c.num_key_value_heads, c.head_dim

    def rms(x, weight):
        return x / (x.pow(2).mean(-1, keepdim=True) + c.rms_norm_eps).sqrt() * weight

    out = []
    for prompt in ids:
        x = s["model.embed_tokens.weight"][prompt]
        for n in range(c.num_hidden_layers):
            at = f"model.layers.{n}."
            h = rms(x, s[at + "input_layernorm.weight"])
            q, k, v = (h @ s[f"{at}self_attn.{name}_proj.weight"].T for name in "qkv")
            heads = []
            for head in range(c.num_attention_heads):
                mine, theirs = (slice(i * d, (i + 1) * d) for i in (head, head // shared))
                heads.append(attend(q[:, mine], k[:, theirs], v[:, theirs], True, True, 0.0))
            x = x + torch.cat(heads, -1) @ s[at + "self_attn.o_proj.weight"].T
            h = rms(x, s[at + "post_attention_layernorm.weight"])
            gate = h @ s[at + "mlp.gate_proj.weight"].T
            up = h @ s[at + "mlp.up_proj.weight"].T
            x = x + (gate * gate.sigmoid() * up) @ s[at + "mlp.down_proj.weight"].T
        out.append(rms(x, s["model.norm.weight"]) @ s["lm_head.weight"].T)
    return torch.stack(out)


@pytest.mark.parametrize(("family", "encoding"), TINY)
def test_logits_equal_an_independent_computation(family, encoding):
    model = build(family, encoding)
    ids = prompts(model)
    expected = recompute_tiny(model, ids, causal=family is Gpt2Mini)
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, expected, rtol=0, atol=1e-12)


def test_llama_equals_an_independent_computation():
    model = build(Llama, num_attention_heads=4, num_key_value_heads=2)
    ids = prompts(model)
    with torch.no_grad():  # transformers' norms and angles stay in float32
        torch.testing.assert_close(model(ids).logits, recompute_llama(model, ids), rtol=0, atol=2e-5)


# --- attention: implementations, masks, what is seen ---


@torch.no_grad()
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("family", "encoding"), TINY)
def test_eager_equals_sdpa_and_right_padding_changes_nothing(family, encoding, padded):
    model = build(family, encoding)
    ids = prompts(model)
    lengths = [9, 6, 4] if padded else [9, 9, 9]
    mask = torch.tensor([[i < n for i in range(9)] for n in lengths]).long()
    assert model.config._attn_implementation == "sdpa"
    fast = model(ids, attention_mask=mask)
    assert fast.attentions is None
    model.set_attn_implementation("eager")
    slow = model(ids, attention_mask=mask, output_attentions=True)
    torch.testing.assert_close(fast.logits, slow.logits, rtol=0, atol=1e-12)
    for n, prompt, logits in zip(lengths, ids, fast.logits, strict=True):
        torch.testing.assert_close(model(prompt[None, :n]).logits[0], logits[:n], rtol=0, atol=1e-12)
    assert len(slow.attentions) == model.config.depth
    for weights in slow.attentions:
        assert weights.dtype == torch.float64
        torch.testing.assert_close(weights.sum(-1), torch.ones(3, 2, 9, dtype=torch.float64))
        for n, prompt in zip(lengths, weights, strict=True):
            assert not prompt[..., n:].any()
            assert (family is Gpt2Mini) is not bool(prompt.triu(1).any())


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_a_boolean_mask_of_every_pair_is_a_mask(implementation):
    for family in (Radd, Gpt2Mini):
        model = build(family, "alibi")
        model.set_attn_implementation(implementation)
        ids = prompts(model)
        two = torch.tensor([[1] * 9, [1] * 5 + [0] * 4, [1] * 7 + [0] * 2])
        four = two.bool()[:, None, None, :].expand(3, 1, 9, 9)
        if family is Gpt2Mini:
            four = four.tril()
        expected = model(ids, attention_mask=two).logits
        torch.testing.assert_close(model(ids, attention_mask=four).logits, expected, rtol=0, atol=1e-12)


def test_eager_attention_without_a_mask_obeys_is_causal():
    model = build(Gpt2Mini, "rope")
    q, k, v = torch.randn(3, 1, 2, 5, 8)
    output, weights = eager_attention_forward(model.blocks[0].attention, q, k, v, None, scaling=0.5)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.5)
    torch.testing.assert_close(output, expected.transpose(1, 2))
    assert not weights.triu(1).any()


def test_attention_weights_need_the_eager_implementation():
    model = build(Radd, "rope")
    with pytest.raises(AdapterError, match=r"sdpa attention gives no weights; call .*eager"):
        model(prompts(model), output_attentions=True)


@torch.no_grad()
@pytest.mark.parametrize(("family", "encoding"), ALL)
def test_each_position_sees_what_the_adapter_says(family, encoding):
    model = build(family, encoding)
    ids = prompts(model, batch=1, length=6)
    before = model(ids).logits[0]
    for j in range(6):
        changed = ids.clone()
        changed[0, j] = (ids[0, j] + 1) % model.config.vocab_size
        moved = (model(changed).logits[0] - before).abs().amax(-1)
        for i in range(6):
            assert (moved[i] > 1e-6).item() is (family.attention == "full" or j <= i)


@pytest.mark.parametrize(("family", "encoding"), ALL)
def test_every_parameter_has_a_gradient(family, encoding):
    model = build(family, encoding)
    model(prompts(model)).logits.pow(2).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("name", ["labels", "position_ids", "inputs_embeds", "output_hidden_states"])
def test_arguments_that_would_change_the_output_are_refused(name):
    model = build(Radd, "rope")
    ids = prompts(model)
    model(ids, use_cache=True, return_dict=True, **{name: None})
    with pytest.raises(TypeError, match=name):
        model(ids, **{name: True if name == "output_hidden_states" else ids})


# --- initial weights, saving, the released layout ---


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_radd_starts_as_radd(encoding):
    torch.manual_seed(0)
    model = RaddForMaskedLM(Radd.build({"encoding": encoding}).config)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert (parameter == 1).all(), name
        elif "lm_head" in name:
            assert (parameter == 0).all(), name
        elif "position" in name:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.1)
        elif parameter.ndim == 2:  # kaiming-uniform with a = √5: bounded by 1/√(fan in)
            bound = parameter.shape[1] ** -0.5
            assert parameter.abs().max() <= bound
            assert parameter.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)
    assert [name for name, _ in model.named_parameters() if "bias" in name and "attention" in name] == []


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_gpt2_mini_starts_as_gpt2_and_ties_its_head(encoding):
    torch.manual_seed(0)
    model = Gpt2Mini.build({"encoding": encoding})
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.1), name
        else:
            assert (parameter == (1 if "norm" in name and "weight" in name else 0)).all(), name
    assert model.lm_head.weight is model.embed_tokens.weight
    assert "lm_head.weight" not in dict(model.named_parameters())
    assert model.lm_head.bias is None


@torch.no_grad()
@pytest.mark.parametrize(("family", "encoding"), ALL)
def test_saving_and_loading_keeps_every_logit(family, encoding, tmp_path):
    model = build(family, encoding).float()
    model.save_pretrained(tmp_path)
    auto = AutoModelForMaskedLM if family is Radd else AutoModelForCausalLM
    raw = json.loads((tmp_path / "config.json").read_text())
    assert family.matches(raw)
    assert [f.name for f in (Radd, Gpt2Mini, Llama) if f.matches(raw)] == [family.name]
    config = family.config(raw)
    loaded, info = auto.from_pretrained(
        tmp_path, config=config, key_mapping=dict(family.keys), output_loading_info=True
    )
    assert not any(info.values())
    assert type(loaded) is type(model)
    ids = prompts(model)
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    if encoding:
        assert type(loaded.encoding) is type(model.encoding)
    if family is Gpt2Mini:
        assert loaded.lm_head.weight is loaded.embed_tokens.weight


RELEASED = {
    "tokens": 53,
    "training": {"loss_type": "t_DCE"},
    "model": {
        "type": "ddit_wot",
        "hidden_size": 16,
        "n_heads": 2,
        "n_blocks": 2,
        "length": 32,
        "dropout": 0.02,
    },
}


def released_name(name: str) -> str:
    name = name.replace("attention.qkv", "attn_qkv").replace("attention.out", "attn_out")
    name = name.replace("lm_head.", "output_layer.linear.").replace("embed_tokens.weight", "vocab_embed.embedding")
    return re.sub(r"^norm\.", "output_layer.norm_final.", name)


@torch.no_grad()
def test_the_released_layout_loads(tmp_path):
    model = build(Radd, "rope").float()
    weights = {released_name(name): weight for name, weight in model.state_dict().items()}
    save_file({**weights, "rotary_emb.inv_freq": torch.ones(4)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(RELEASED))
    assert Radd.matches(RELEASED)
    assert not {name for name in weights if re.search("embed_tokens|attention|lm_head|^norm", name)}
    loaded, info = RaddForMaskedLM.from_pretrained(
        tmp_path, config=Radd.config(RELEASED), key_mapping=dict(Radd.keys), output_loading_info=True
    )
    assert not any(info.values())
    assert loaded.config.dropout == 0.02
    assert not loaded.training
    ids = prompts(model)
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    loaded.save_pretrained(tmp_path / "again")  # transformers writes the names that it read
    again, info = RaddForMaskedLM.from_pretrained(
        tmp_path / "again", key_mapping=dict(Radd.keys), output_loading_info=True
    )
    assert not any(info.values())
    assert torch.equal(again(ids).logits, model(ids).logits)


def test_sedd_is_not_radd():
    assert not Radd.matches({**RELEASED, "model": {**RELEASED["model"], "type": "ddit"}})
    assert not Radd.matches({"model_type": "bert"})


def test_llama_takes_causal_stock_llamas_only():
    stock = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    assert Llama.matches(stock)
    assert Llama.matches({**stock, "is_causal": True})
    assert not Llama.matches({**stock, "is_causal": False})
    assert not Llama.matches({**stock, "architectures": ["StableDiffcoderForCausalLM"]})
    assert not Llama.matches({**stock, "model_type": "llada"})
    assert not Llama.matches({**stock, "auto_map": {"AutoModelForCausalLM": "modeling.Own"}})


# --- adapters ---


@pytest.mark.parametrize(("family", "encoding"), ALL)
def test_every_parameter_is_in_one_group(family, encoding):
    for name, parameter in build(family, encoding).named_parameters():
        groups = [group for pattern, group in family.groups.items() if re.search(pattern, name)]
        assert len(groups) == 1, name
        if not isinstance(groups[0], str):
            assert parameter.shape[0] % len(groups[0]) == 0


@pytest.mark.parametrize(("family", "encoding"), ALL)
def test_the_ov_circuit_names_the_values_and_the_head(family, encoding):
    model, ov = build(family, encoding), family.ov_circuit
    assert model.get_submodule(ov.embedding) is model.get_input_embeddings()
    assert model.get_submodule(ov.head) is model.get_output_embeddings()
    model.get_submodule(ov.final_norm)
    layer = model.get_submodule(ov.layers)[0]
    layer.get_submodule(ov.norm)
    value, (part, of) = layer.get_submodule(ov.value), ov.value_part
    rows = value.weight.shape[0] // of
    with torch.no_grad():
        for parameter in value.parameters():
            parameter[part * rows : (part + 1) * rows] = 0
    seen = []
    layer.get_submodule(ov.output).register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    model(prompts(model))
    assert not seen[0].any()


@pytest.mark.parametrize("family", [Radd, Gpt2Mini, Llama])
def test_options_are_checked(family):
    with pytest.raises(AdapterError, match="unknown option 'colour'; known: alphabet"):
        family.build({"colour": 1})
    width, heads = ("hidden_size", "num_attention_heads") if family is Llama else ("width", "heads")
    with pytest.raises(AdapterError, match=f"{width} must be a whole number from 1 up; got '64'"):
        family.build({width: "64"})
    with pytest.raises(AdapterError, match=f"{heads} must be a whole number from 1 up; got 0"):
        family.build({heads: 0})
    with pytest.raises(AdapterError, match="heads"):
        family.build({width: 64, heads: 3})
    with pytest.raises(DataError, match="more than once"):
        family.build({"alphabet": "00"})
    model = family.build({**family.tiny, "alphabet": "0xX"})
    assert model.config.vocab_size == len(family.default_tokenizer({"alphabet": "0xX"}))
    assert model.config.vocab_size == 3 + (family is Radd)


def test_options_of_the_tiny_models():
    model = Radd.build({"encoding": "alibi", "depth": 2, "width": 8, "heads": 2, "max_length": 12, "dropout": 0})
    c = model.config
    sizes = (c.encoding, c.depth, c.width, c.heads, c.max_length, c.dropout, c.vocab_size)
    assert sizes == ("alibi", 2, 8, 2, 12, 0, 54)
    assert (c.num_hidden_layers, c.hidden_size, c.num_attention_heads, c.max_position_embeddings) == (
        2,
        8,
        2,
        12,
    )
    assert Gpt2Mini.build({}).config.encoding == "absolute"
    with pytest.raises(UnknownNameError, match="did you mean 'alibi'"):
        Radd.build({"encoding": "alibl"})
    with pytest.raises(AdapterError, match="even"):
        Radd.build({"width": 9, "heads": 3, "encoding": "rope"})
    model = Radd.build({"encoding": "absolute", "max_length": 12})
    with pytest.raises(AdapterError, match="max_length=13"):
        model(torch.zeros(1, 13, dtype=torch.long))


def test_models_of_one_family_share_no_configuration():
    for family in (Radd, Gpt2Mini, Llama):
        first, second = family.build(family.tiny), family.build(family.tiny)
        first.set_attn_implementation("eager")
        assert second.config._attn_implementation == "sdpa"


def test_dropout_falls_in_training_only():
    for family in (Radd, Gpt2Mini):
        model = build(family, "rope", dropout=0.5)
        ids = prompts(model)
        assert torch.equal(model(ids).logits, model(ids).logits)
        model.train()
        assert not torch.equal(model(ids).logits, model(ids).logits)


def test_radd_masks_with_its_last_id_and_never_predicts_it():
    model, adapter = build(Radd, "rope"), Radd()
    tokenizer = Radd.default_tokenizer({})
    assert adapter.mask_id(model, tokenizer) == tokenizer.mask_token_id == 53
    assert adapter.mask_id(model, None) == 53
    logits = adapter.logits(model(prompts(model)).logits, 53)
    assert (logits.softmax(-1)[..., 53] == 0).all()
    assert Gpt2Mini().mask_id(build(Gpt2Mini, "rope"), None) is None


def test_identities_hold_where_they_are_claimed():
    claimed = {"attention_correlation", "gradient_alignment", "reverse_probability", "accuracy"}
    for encoding, depth in [("alibi", 1), ("alibi", 2), ("nope", 2), ("rope", 1), ("t5", 1), ("turned-values", 1)]:
        model = build(Radd, encoding, depth=depth)
        identities = Radd().identities(model)
        scores = {"attention_correlation"} if encoding == "turned-values" else set()
        assert set(identities) == (claimed if encoding in ("alibi", "nope") else scores)
        assert all("Prop. 4.5" in why for why in identities.values()) or scores
        assert Gpt2Mini().identities(build(Gpt2Mini, encoding, depth=depth)) == {}
    assert Radd().identities(build(Radd, "turned-values", depth=2)) == {}  # the second layer reads what values carry


def test_no_encoding_is_asked_for_more_places_than_the_model_has():
    model = build(Radd, "turned-values", depth=1, max_length=8)
    table = model.encoding.bias(8)
    model.encoding.bias = lambda length: table[..., range(length), :][
        ..., range(length)
    ]  # a table, as a plugin's may be
    assert set(Radd().identities(model)) == {"attention_correlation"}


@pytest.mark.parametrize(("encoding", "mirrors"), [("turned-values", True), ("nope", True), ("t5", False)])
def test_scores_and_weights_mirror_in_one_layer_where_it_is_claimed(encoding, mirrors):
    m = load("radd", options={"encoding": encoding, "width": 16}, seed=0)
    with torch.no_grad():
        for weight in m.model.double().parameters():
            weight += torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    pairs = encode(m, load_dataset("letters", {"length": 5}).facts)
    seen = observe(m, pairs, read={"scores"})
    for values in (seen.scores, seen.log_weights):
        assert torch.allclose(values[:, 0], values[:, 1], rtol=0, atol=1e-10) == mirrors


@pytest.mark.parametrize("depth", [1, 3])
def test_mirrored_queries_have_one_gradient(depth):
    model = build(Radd, "alibi", depth=depth)
    query = torch.tensor([[0, 53, 0, 0, 30, 0, 0]])  # a at 1 from b at 4; the mirror image asks it from the left
    gradients = []
    for ids, row in ((query, 1), (query.flip(1), 5)):
        model.zero_grad()
        model(ids).logits[0, row].log_softmax(-1)[4].backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-12)
    assert gradients[0].norm() > 0


def test_architectures_are_the_classes_that_run():
    assert Radd.architecture == f"{RaddForMaskedLM.__module__}:{RaddForMaskedLM.__name__}"
    assert Gpt2Mini.architecture == f"{Gpt2MiniForCausalLM.__module__}:{Gpt2MiniForCausalLM.__name__}"
    for family in (Radd, Gpt2Mini, Llama):
        assert type(family.build(family.tiny)).__name__ == family.architecture.rpartition(":")[2]


def test_what_is_no_mirror_image_is_no_identity():
    """Forward asks next to the evidence, reverse farther away; or an entity's tokens stay in order."""
    letters = load_dataset("letters", {"length": 4})
    apart = tuple(Fact(f.a, f.b, ("{a}{b}00", "0{a}{b}0"), ("{b}0{a}0", "{b}00{a}")) for f in letters.facts[:6])
    long = tuple(Fact(f.a + "z", f.b, "{a}0{b}", "{b}0{a}") for f in letters.facts[:6])
    m = load("radd", options={"encoding": "alibi", "slope": 0.5, "width": 8})
    signatures = {"attention_correlation", "gradient_alignment", "reverse_probability"}
    for facts, named in ((letters.facts[:6], signatures), (apart, set()), (long, set())):
        found = run(m, Dataset("mine", facts, {}, "seed")).signatures
        assert {name for name, signature in found.items() if signature.verdict == "identity"} == named
