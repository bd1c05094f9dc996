"""Each check of `verify` meets a model or an adapter that is wrong in the way it looks for."""

import copy
import itertools
from contextlib import suppress

import pytest
import torch
from torch import nn
from transformers.modeling_outputs import CausalLMOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import rcprobe
from rcprobe.errors import AdapterError, VerificationError
from rcprobe.loaded import LoadedModel
from rcprobe.probing.engine import observe
from rcprobe.probing.verify import verify, verify_shift
from rcprobe.queries import encode
from rcprobe.training import TrainConfig, train
from rcprobe_plugins.datasets.letters import letters
from rcprobe_plugins.models.blocks import Attention, eager_attention_forward
from rcprobe_plugins.models.gpt2_mini import Gpt2Mini
from rcprobe_plugins.models.llama import Llama
from rcprobe_plugins.models.radd import Radd, RaddForMaskedLM

CHECKS = ("mask", "attention", "padding", "scores")


def perturbed(model):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model.eval()


def loaded(family, adapter=None, model=None, **options):
    options = {**family.tiny, **options}
    model = perturbed(family.build(options)) if model is None else model
    return LoadedModel(model, (adapter or family)(), family.default_tokenizer(options), "a test")


def refused(m, check):
    with pytest.raises(VerificationError) as caught:
        verify(m)
    assert str(caught.value).startswith(f"a test ({m.adapter.name}): {check}: ")
    return str(caught.value)


def like_radd(cls, **options):
    """A RADD of another class, with RADD's own weights."""
    whole = perturbed(Radd.build({**Radd.tiny, **options}))
    model = cls(whole.config)
    model.load_state_dict(whole.state_dict())
    return model.eval()


# --- the right ones pass ---

TINY = itertools.product((Radd, Gpt2Mini), ("rope", "alibi", "absolute", "turned-values"), (1, 2))
RIGHT = [
    *((family, {"encoding": encoding, "depth": depth}) for family, encoding, depth in TINY),
    (Llama, {}),
    (Llama, {"num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2}),
    (Llama, {"num_attention_heads": 4, "num_key_value_heads": 4}),
]


@pytest.mark.parametrize(("family", "options"), RIGHT)
def test_bundled_models_pass_every_check(family, options):
    for dtype in (torch.float32, torch.float64):
        m = loaded(family, **options)
        m.model.to(dtype)
        checks = {check.name: check for check in verify(m)}
        wanted = CHECKS if family is Llama else (*CHECKS, "encoding")
        assert tuple(checks) == wanted
        assert checks["mask"].passed is (True if family is Radd else None)
        assert all(checks[name].passed for name in wanted[1:])
        assert all(check.seen for check in checks.values())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", ["radd", "gpt2-mini", "llama"])
def test_fresh_weights_pass_in_every_precision(name, dtype):
    """RADD's head starts at zero: what it is blind to must be seen before it."""
    m = rcprobe.load(name, dtype=dtype)
    assert [check.passed for check in verify(m)][1:] == [True] * (3 if name == "llama" else 4)


@pytest.mark.parametrize("length", [4, 6, 8, 10])
@pytest.mark.parametrize(("name", "encoding"), [("radd", "rope"), ("radd", "absolute"), ("gpt2-mini", "absolute")])
def test_models_of_short_prompts_pass(name, encoding, length):
    """The letters task of a few characters needs no more room than it takes."""
    m = rcprobe.load(name, options={"encoding": encoding, "max_length": length})
    assert m.max_length == length


def test_verification_leaves_the_module_as_it_was():
    m = loaded(Radd)
    m.model.train()
    m.model.blocks[1].eval()
    modes = [module.training for module in m.model.modules()]
    before = copy.deepcopy(m.model.state_dict())
    verify(m)
    assert [module.training for module in m.model.modules()] == modes
    assert m.model.config._attn_implementation == "sdpa"
    assert all(torch.equal(value, before[key]) for key, value in m.model.state_dict().items())
    assert not m.model.get_output_embeddings()._forward_pre_hooks
    m.model.set_attn_implementation("eager")
    verify(m)
    assert m.model.config._attn_implementation == "eager"


def test_dropout_is_off_while_verifying():
    m = loaded(Radd, dropout=0.9)
    m.model.train()
    assert all(check.passed for check in verify(m))


# --- the mask ---


def with_mask(token):
    class Wrong(Radd):
        def mask_id(self, model, tokenizer):
            return token

    return loaded(Radd, Wrong)


@pytest.mark.parametrize("token", [54, 1000, -1])
def test_a_mask_outside_the_embedding(token):
    assert f"the mask id {token} is outside the embedding, which holds ids 0–53" in refused(with_mask(token), "mask")


def test_a_mask_that_is_the_padding():
    assert "the mask id 0 is also the padding id" in refused(with_mask(0), "mask")
    assert verify(with_mask(53))[0].passed
    assert verify(with_mask(1))[0].passed


# --- finiteness ---


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("family", [Radd, Gpt2Mini, Llama])
def test_weights_that_are_not_finite(family, value):
    m = loaded(family)
    with torch.no_grad():
        next(p for name, p in m.model.named_parameters() if "mlp" in name)[0, 0] = value
    assert "NaN or infinite" in refused(m, "finite")


# --- attention ---


@pytest.mark.parametrize("family", [Gpt2Mini, Llama])
def test_a_causal_model_declared_full(family):
    class Wrong(family):
        attention = "full"

    seen = refused(loaded(family, Wrong), "attention")
    assert "it declares full attention, but changing the last token leaves the first position's output" in seen


@pytest.mark.parametrize("encoding", ["rope", "alibi", "absolute"])
def test_a_full_model_declared_causal(encoding):
    class Wrong(Radd):
        attention = "causal"

    seen = refused(loaded(Radd, Wrong, encoding=encoding), "attention")
    assert "it declares causal attention, but changing the last token moves the first position's output" in seen
    assert "quantiser" not in seen
    quantised = loaded(Radd, Wrong, encoding=encoding)
    quantised.model.hf_quantizer = object()
    assert "(bitsandbytes: llm_int8_threshold=0.0)" in refused(quantised, "attention")


def test_a_hybrid_declares_neither():
    class Hybrid(Gpt2Mini):
        attention = "hybrid"

    checks = {check.name: check for check in verify(loaded(Gpt2Mini, Hybrid))}
    assert checks["attention"].passed is None
    assert "leaves" in checks["attention"].seen


# --- padding ---


class Deaf(RaddForMaskedLM):
    """It ignores the attention mask."""

    def forward(self, input_ids, attention_mask=None, output_attentions=None):
        return super().forward(input_ids, output_attentions=output_attentions)


class FromTheEnd(RaddForMaskedLM):
    """It counts positions from the right end, so that padding moves them."""

    def forward(self, input_ids, attention_mask=None, output_attentions=None):
        length = input_ids.shape[1]
        handle = self.encoding.position.register_forward_pre_hook(lambda _, ids: (length - 1 - ids[0],))
        out = super().forward(input_ids, attention_mask, output_attentions)
        handle.remove()
        return out


@pytest.mark.parametrize("kind", [Deaf, FromTheEnd])
def test_padding_that_leaks(kind):
    seen = refused(loaded(Radd, model=like_radd(kind, encoding="absolute")), "padding")
    assert "right padding moves the output by" in seen
    assert verify(loaded(Radd, model=like_radd(RaddForMaskedLM, encoding="absolute")))[2].passed


# --- scores ---


class Tempered(Attention):
    """What the interface is handed isn't what it uses: a temperature hides behind the call."""

    def forward(self, x, encoding, attention_mask, bias):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.config.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = encoding.rotate(q, k)

        def attention_interface(module, query, key, value, mask, scaling, **others):
            real = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
            return real(module, query, key, value, mask, scaling=1.3 * scaling, **others)

        out, weights = attention_interface(self, q, k, v, attention_mask, scaling=self.scaling, position_bias=bias)
        return self.out(out.flatten(-2)), weights


class Rewritten(Attention):
    """Its own spelling of the same attention, with nothing hidden."""

    def forward(self, x, encoding, attention_mask, bias):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.config.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = encoding.rotate(q, k)
        attention_interface = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        out, weights = attention_interface(self, q, k, v, attention_mask, scaling=self.scaling, position_bias=bias)
        return self.out(out.flatten(-2)), weights


class Concealed(Attention):
    """It calls the function by another name, off the interface."""

    def forward(self, x, encoding, attention_mask, bias):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.config.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = encoding.rotate(q, k)
        out, weights = eager_attention_forward(self, q, k, v, attention_mask, scaling=self.scaling, position_bias=bias)
        return self.out(out.flatten(-2)), weights


def with_attention(kind, *layers):
    model = perturbed(Radd.build({**Radd.tiny, "encoding": "alibi"}))
    for layer in layers:
        new = kind(model.config, layer, causal=False, bias=False, dropout=0.0)
        new.load_state_dict(model.blocks[layer].attention.state_dict())
        model.blocks[layer].attention = new
    return loaded(Radd, model=model.eval())


@pytest.mark.parametrize("layers", [(0,), (1,), (0, 1)])
def test_scores_that_are_not_the_models(layers):
    seen = refused(with_attention(Tempered, *layers), "scores")
    assert "away from the model's own attention weights" in seen
    assert verify(with_attention(Rewritten, *layers))[3].passed


class Homemade(Concealed):
    """Attention by no function that anybody watches."""

    def forward(self, x, encoding, attention_mask, bias):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.config.heads, -1)).permute(2, 0, 3, 1, 4)
        scores = (q @ k.transpose(-1, -2) * self.scaling + bias).exp()
        if attention_mask is not None:
            scores = scores * attention_mask
        return self.out(((scores / scores.sum(-1, keepdim=True)) @ v).transpose(1, 2).flatten(-2)), None


def test_a_layer_whose_score_is_not_found_is_missed():
    assert "1 layers were captured, the model shows 2" in refused(with_attention(Concealed, 1), "scores")


def test_models_off_the_interface_are_read_where_they_call_a_softmax():
    check = verify(with_attention(Concealed, 0, 1))[3]
    assert (check.name, check.passed) == ("scores", True)


def test_layers_whose_scores_are_not_found():
    m = with_attention(Homemade, 0, 1)
    check = verify(m)[3]
    assert (check.name, check.passed) == ("scores", None)
    assert "unsupported" in check.seen
    # and then there are none, rather than wrong ones
    pairs = encode(m, letters(length=3).facts[:2])
    found = observe(m, pairs, read={"scores", "log_probs"})
    assert found.scores.shape == (len(pairs), 2, 0, 0)
    assert found.log_probs.isfinite().all()


# --- shift ---

FACTS = letters(length=4).facts


@pytest.fixture(scope="module")
def trained():
    """A small RADD that knows the letters of four places."""
    m = rcprobe.load("radd", options={"encoding": "absolute", "width": 32, "depth": 2, "max_length": 16})
    for _ in train(m, FACTS, TrainConfig(steps=400, lr=3e-3, ema=0.98, warmup=20), seed=0):
        pass
    seen = observe(m, encode(m, FACTS), read={"log_probs"}).log_probs
    assert seen[:, 0].mean() > -1.5
    return m


def declared(m, family, wrong):
    class Shifted(family):
        shift = wrong

    return LoadedModel(m.model, Shifted(), m.tokenizer, "a test")


def forward(m, facts=FACTS, pairing="same_target"):
    return [pair.forward for pair in encode(m, facts, pairing)]


def test_a_wrong_shift_is_refused_on_a_trained_model(trained):
    right = verify_shift(trained, forward(trained))
    assert right.passed is True
    assert "mean log p" in right.seen
    wrong = declared(trained, Radd, 1)
    complaint = r"shift: it declares 1, but logits read at shift \d predict the targets \d+\.\d\d nats better"
    with pytest.raises(VerificationError, match=complaint):
        verify_shift(wrong, forward(wrong))


class Oracle(nn.Module):
    """Reads the letter off its capital, and says it as loudly as it is told to, by distance to the mask's right."""

    def __init__(self, *loudness):
        super().__init__()
        self.config, self.embed, self.loudness = Radd.build(Radd.tiny).config, nn.Embedding(54, 1), loudness

    def get_input_embeddings(self):
        return self.embed

    def forward(self, input_ids, attention_mask=None):
        logits = torch.zeros(*input_ids.shape, 54)
        letter = input_ids.where((input_ids > 26) & (input_ids < 53), 0).amax(1) - 26
        mask = (input_ids == 53).int().argmax(1)
        for b, at in enumerate(mask.tolist()):
            for distance, loud in enumerate(self.loudness):
                if at >= distance:
                    logits[b, at - distance, letter[b]] = loud
        return CausalLMOutput(logits=logits)


def oracle(*loudness):
    return LoadedModel(Oracle(*loudness), Radd(), Radd.default_tokenizer({}), "a test")


def test_the_complaint_names_the_shift_that_reads_best():
    m = oracle(20.0, 0.0, 10.0)
    assert verify_shift(m, forward(m)).passed is True
    wrong = declared(m, Radd, 1)
    with pytest.raises(VerificationError, match="logits read at shift 0 predict"):
        verify_shift(wrong, forward(wrong))


def test_a_wrong_shift_that_reads_as_well_is_not_confirmed():
    """No loss falls on unmasked rows, so a one-layer model gives the target there as well (measured)."""
    m = oracle(20.0, 20.0, 20.0)
    wrong = declared(m, Radd, 1)
    with suppress(VerificationError):
        assert verify_shift(wrong, forward(wrong)).passed is None


def test_an_untrained_model_decides_nothing():
    m = rcprobe.load("radd", options={"width": 32, "max_length": 16})
    for shift in (0, 1):
        other = declared(m, Radd, shift)
        assert verify_shift(other, forward(other)).passed is None
    m = LoadedModel(perturbed(m.model), m.adapter, m.tokenizer, "a test")
    assert verify_shift(m, forward(m)).passed is None


def test_nothing_to_ask_decides_nothing():
    m = loaded(Radd)
    check = verify_shift(m, forward(m, [rcprobe.Fact("é", "B", "{a}{b}", "{b}{a}")]))
    assert (check.passed, check.seen) == (None, "no query could be asked")


class Parrot(nn.Module):
    """Says at each position, almost surely, the capital of the letter there."""

    def __init__(self):
        super().__init__()
        self.config, self.embed = Gpt2Mini.build(Gpt2Mini.tiny).config, nn.Embedding(53, 53)
        with torch.no_grad():
            self.embed.weight[:] = 10 * torch.eye(53).roll(26, dims=1)

    def get_input_embeddings(self):
        return self.embed

    def forward(self, input_ids, attention_mask=None):
        return CausalLMOutput(logits=self.embed(input_ids))


def test_a_wrong_shift_of_a_causal_model():
    """B follows a, so its row is a's."""
    facts = [rcprobe.Fact(fact.a, fact.b, "0{a}{b}0", "0{b}{a}") for fact in FACTS]
    m = LoadedModel(Parrot(), Gpt2Mini(), Gpt2Mini.default_tokenizer({}), "a test")
    assert verify_shift(m, forward(m, facts, "swapped")).passed is True
    wrong = declared(m, Gpt2Mini, 2)
    with pytest.raises(VerificationError, match="it declares 2, but logits read at shift 1"):
        verify_shift(wrong, forward(wrong, facts, "swapped"))


def test_a_causal_adapter_that_forgot_its_shift():
    """A causal model's logits at i predict i + 1; 0, the attribute's default, would read past the prompt."""
    with pytest.raises(AdapterError, match="shift"):
        verify(declared(loaded(Gpt2Mini), Gpt2Mini, 0))
