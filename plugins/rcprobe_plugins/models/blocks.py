"""What the tiny models share: attention through transformers' interface, a block, and their adapter's data.

Shapes: B prompts, L length, H heads, D head width, W model width, V vocabulary.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from rcprobe.adapter import Adapter, Options, OvCircuit, unknown_options
from rcprobe.encoding import Encoding
from rcprobe.errors import AdapterError, OptionError
from rcprobe.plugins import registry
from rcprobe_plugins.datasets.characters import character_tokenizer, vocabulary
from rcprobe_plugins.datasets.letters import ALPHABET


def eager_attention_forward(
    module: nn.Module,
    query: Float[Tensor, "B H L D"],
    key: Float[Tensor, "B H L D"],
    value: Float[Tensor, "B H L D"],
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float = 1.0,
    position_bias: Tensor | None = None,
    **_: Any,
) -> tuple[Float[Tensor, "B L H D"], Float[Tensor, "B H L L"]]:
    """Attention written out, with its weights: what sdpa computes, mask for mask.

    ``attention_mask`` [B, 1, L, L] is boolean (true: attend) or added to the scores; None is full attention,
    or causal where ``module.is_causal``. The softmax runs in the scores' dtype, in float32 at least.
    """
    scores = query @ key.transpose(-1, -2) * scaling
    if position_bias is not None:
        scores = scores + position_bias
    if attention_mask is None and module.is_causal:
        attention_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    elif attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(value.dtype)
    attended = F.dropout(weights, dropout, training=dropout > 0.0) @ value
    return attended.transpose(1, 2).contiguous(), weights


class TinyConfig(PreTrainedConfig):
    """The sizes of a tiny model. Raises ``AdapterError`` for a width that the heads don't divide."""

    attribute_map: ClassVar[dict[str, str]] = {
        "hidden_size": "width",
        "num_hidden_layers": "depth",
        "num_attention_heads": "heads",
        "max_position_embeddings": "max_length",
    }
    vocab_size: int = len(ALPHABET)
    width: int = 64
    depth: int = 1
    heads: int = 1
    encoding: str = "rope"
    max_length: int = 64
    mlp_ratio: int = 4
    dropout: float = 0.0

    def __post_init__(self, **others: Any) -> None:
        super().__post_init__(**others)
        if self.width % self.heads:
            raise OptionError(f"width {self.width} can't be split over {self.heads} heads")


class Attention(nn.Module):
    """Self-attention from one fused projection (q|k|v in thirds); ends in the call that outside tools tap."""

    def __init__(self, config: TinyConfig, layer: int, *, causal: bool, bias: bool, dropout: float) -> None:
        super().__init__()
        self.config, self.layer_idx, self.dropout = config, layer, dropout
        # transformers' masks obey config.is_causal too
        self.is_causal = causal and getattr(config, "is_causal", True)
        self.num_key_value_groups = 1
        self.scaling = (config.width // config.heads) ** -0.5
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=bias)
        self.out = nn.Linear(config.width, config.width, bias=bias)

    def forward(
        self,
        x: Float[Tensor, "B L W"],
        encoding: Encoding,
        attention_mask: Tensor | None,
        bias: Tensor | None,
    ) -> tuple[Float[Tensor, "B L W"], Tensor | None]:
        """The output, and the attention weights [B, H, L, L] where the implementation gives them."""
        query_states, key_states, value_states = rearrange(
            self.qkv(x), "b l (three h d) -> three b h l d", three=3, h=self.config.heads
        )
        query_states, key_states = encoding.rotate(query_states, key_states)
        value_states = encoding.place(value_states)
        attention_interface = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        attn_output, attn_weights = attention_interface(
            self,
            query_states,
            key_states,
            value_states,
            attention_mask,
            dropout=self.dropout if self.training else 0.0,
            scaling=self.scaling,
            position_bias=bias,
        )
        read = encoding.read(rearrange(attn_output, "b l h d -> b h l d"))
        return self.out(rearrange(read, "b h l d -> b l (h d)")), attn_weights


class Block(nn.Module):
    """Norm, attention, add; norm, MLP (GELU-tanh, with biases), add."""

    def __init__(self, config: TinyConfig, attention: Attention) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.norm1 = nn.LayerNorm(config.width)
        self.attention = attention
        self.norm2 = nn.LayerNorm(config.width)
        self.mlp = nn.Sequential(
            nn.Linear(config.width, config.mlp_ratio * config.width),
            nn.GELU(approximate="tanh"),
            nn.Linear(config.mlp_ratio * config.width, config.width),
        )

    def forward(
        self,
        x: Float[Tensor, "B L W"],
        encoding: Encoding,
        attention_mask: Tensor | None,
        bias: Tensor | None,
    ) -> tuple[Float[Tensor, "B L W"], Tensor | None]:
        """The residual stream after this block, and its attention weights or None."""
        attended, weights = self.attention(self.norm1(x), encoding, attention_mask, bias)
        x = x + F.dropout(attended, self.dropout, self.training)
        return x + F.dropout(self.mlp(self.norm2(x)), self.dropout, self.training), weights


class TinyModel(PreTrainedModel):
    """Embedding, encoding, blocks, norm, head. A family adds its mask and its way to start the weights.

    Attributes:
        causal: whether a token attends to the left only.
        attention_bias, head_bias: whether those projections have biases.
        attention_dropout: whether dropout also falls on the attention weights.
    """

    config: TinyConfig
    causal: ClassVar[bool] = False
    attention_bias: ClassVar[bool] = False
    attention_dropout: ClassVar[bool] = False
    head_bias: ClassVar[bool] = False
    _supports_sdpa = True

    def __init__(self, config: TinyConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.width)
        encoding = registry().get("encodings", config.encoding)
        self.encoding: Encoding = encoding(config.width, config.heads, config.max_length)
        dropout = config.dropout if self.attention_dropout else 0.0
        attention = partial(Attention, config, causal=self.causal, bias=self.attention_bias, dropout=dropout)
        self.blocks = nn.ModuleList(Block(config, attention(layer)) for layer in range(config.depth))
        self.norm = nn.LayerNorm(config.width)
        self.lm_head = nn.Linear(config.width, config.vocab_size, bias=self.head_bias)
        self.post_init()

    def decode(
        self, x: Float[Tensor, "B L W"], attention_mask: Tensor | None, output_attentions: bool | None
    ) -> tuple[Float[Tensor, "B L V"], tuple[Tensor, ...] | None]:
        """Embedded tokens → logits and, if asked for, each layer's attention weights."""
        wanted = self.config.output_attentions if output_attentions is None else output_attentions
        bias = self.encoding.bias(x.shape[1])
        bias = None if bias is None else bias.to(x)
        attentions = []
        for block in self.blocks:
            x, weights = block(x, self.encoding, attention_mask, bias)
            if wanted and weights is None:
                raise AdapterError(
                    f"{self.config._attn_implementation} attention gives no weights; "
                    'call model.set_attn_implementation("eager") first'
                )
            attentions.append(weights)
        return self.lm_head(self.norm(x)), tuple(attentions) if wanted else None

    def start(self, module: nn.Module) -> None:
        """Draw the initial weights of a module that isn't the encoding's; the default is torch's own."""
        _reset(module)

    def _init_weights(self, module: nn.Module) -> None:
        (_reset if any(module is part for part in self.encoding.modules()) else self.start)(module)


def _reset(module: nn.Module) -> None:
    reset = getattr(module, "reset_parameters", None)
    if reset is not None:
        reset()


def refuse(arguments: Mapping[str, Any]) -> None:
    """Refuse what would have to change the output. Raises ``TypeError`` with the first one's name."""
    harmless = {"use_cache", "return_dict"}
    for name, value in arguments.items():
        if name not in harmless and value is not None and value is not False:
            raise TypeError(f"this model takes input_ids and attention_mask; it can't honour {name}")


class TinyAdapter(Adapter):
    """The adapter of a ``TinyModel``: its options are the configuration's sizes and an alphabet."""

    configuration: ClassVar[type[TinyConfig]]
    model: ClassVar[type[TinyModel]]
    groups: ClassVar[Mapping[str, str | tuple[str, ...]]] = {
        r"^embed_tokens\.weight$": "embedding",
        r"^encoding\..+$": "position",
        r"^blocks\.\d+\.attention\.qkv\.(weight|bias)$": ("query", "key", "value"),
        r"^blocks\.\d+\.attention\.out\.(weight|bias)$": "output",
        r"^blocks\.\d+\.mlp\.\d\.(weight|bias)$": "mlp",
        r"^(blocks\.\d+\.norm\d|norm)\.(weight|bias)$": "norm",
        r"^lm_head\.(weight|bias)$": "head",
    }
    ov_circuit = OvCircuit(
        embedding="embed_tokens",
        layers="blocks",
        norm="norm1",
        value="attention.qkv",
        output="attention.out",
        final_norm="norm",
        head="lm_head",
        value_part=(2, 3),
    )
    tiny: ClassVar[Options] = {"width": 16, "heads": 2, "depth": 2, "max_length": 32}

    @classmethod
    def matches(cls, config: Mapping[str, Any]) -> bool:
        """Whether the raw configuration is one that this family saved."""
        return bool(config.get("model_type") == cls.configuration.model_type)

    @classmethod
    def build(cls, options: Options) -> nn.Module:
        """A model with random weights, from ``options``."""
        sizes = cls.options(options)
        alphabet = sizes.pop("alphabet")
        return cls.model(cls.configuration(vocab_size=len(vocabulary(alphabet, cls._masks())), **sizes))

    @classmethod
    def default_tokenizer(cls, options: Options) -> Any:
        """One token a character of the option ``alphabet``, and the mask after them if the family has one."""
        return character_tokenizer(cls.options(options)["alphabet"], cls._masks())

    @classmethod
    def options(cls, options: Options) -> dict[str, Any]:
        """``encoding, depth, width, heads, max_length, dropout, alphabet``, with every default filled in."""
        names = ("encoding", "depth", "width", "heads", "max_length", "dropout")
        default = cls.configuration()
        return fill(cls.name, options, {**{n: getattr(default, n) for n in names}, "alphabet": ALPHABET})

    @classmethod
    def _masks(cls) -> bool:
        return cls.objective == "masked"


def fill(family: str, options: Options, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Options over defaults. Raises ``AdapterError`` for an unknown option or a value of the wrong kind."""
    unknown_options(family, options, defaults)
    for name, value in options.items():
        kind = type(defaults[name])
        fits = type(value) is kind or (kind is float and type(value) is int)
        if not fits or (kind is int and value < 1) or (kind is float and not 0 <= value < 1):
            wanted = {
                int: "a whole number from 1 up",
                float: "a number from 0 to below 1",
                bool: "true or false",
            }
            raise OptionError(f"{family}: option {name} must be {wanted.get(kind, 'text')}; got {value!r}")
    return {**defaults, **options}
