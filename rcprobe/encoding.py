"""The contract of a positional encoding of the tiny models."""

import copy
import inspect
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rcprobe.errors import PluginError

DECLARED = ("reads_distance_only", "values_carry_position")
GIVEN = ("width", "heads", "max_length")  # what every encoding is built from; its own options follow
TRIED = 16  # tokens on which declarations are tried


class Encoding(nn.Module):
    """Where a token stands, as a model is told it. Subclasses override only what they do, and declare two things.

    What a subclass's constructor takes after ``width, heads, max_length`` are its options, each with a default; it
    raises ``OptionError`` for a value it can't take. Shapes: B prompts, L length, H heads, D head width, W model
    width.

    Attributes:
        reads_distance_only: scores depend on the content of the two tokens plus a term in |i − j| (or none), and
            values carry no position. A mirrored query then has the same output (Prop. 4.5): forward and reverse
            agree by construction, trained or not.
        values_carry_position: what a token gives when it is attended to depends on where it stands, or on how far
            away. Storage is then one map for each place.
    """

    reads_distance_only: ClassVar[bool]
    values_carry_position: ClassVar[bool]

    def __init__(self, width: int, heads: int, max_length: int) -> None:
        super().__init__()

    def embed(self, x: Tensor) -> Tensor:
        """Token embeddings [B, L, W] → what enters the first block, same shape."""
        return x

    def rotate(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys [B, H, L, D] → the same, with position turned in."""
        return query, key

    def bias(self, length: int) -> Tensor | None:
        """What is added to attention scores: [1, H, L, L], or None."""
        return None

    def place(self, value: Tensor) -> Tensor:
        """Values [B, H, L, D] → what attention mixes, with position put in where they stand; linear in the values."""
        return value

    def read(self, mixed: Tensor) -> Tensor:
        """What attention mixed for each row [B, H, L, D] → what is read there; linear too."""
        return mixed


def encoding_options(name: str, kind: type[Encoding]) -> dict[str, Any]:
    """The options of an encoding's constructor, with their defaults.

    Raises ``PluginError`` naming ``name`` and what the class lacks of the contract.
    """
    for declaration in DECLARED:
        if not isinstance(getattr(kind, declaration, None), bool):
            raise PluginError(f"encoding {name!r} lacks a declaration: set {declaration} = True or False in its class")
    taken = list(inspect.signature(kind).parameters.values())
    if tuple(p.name for p in taken[: len(GIVEN)]) != GIVEN:
        raise PluginError(f"encoding {name!r}: its constructor must take {', '.join(GIVEN)} first")
    for option in taken[len(GIVEN) :]:
        if option.default is inspect.Parameter.empty:
            raise PluginError(f"encoding {name!r}: its option {option.name!r} needs a default")
    return {option.name: option.default for option in taken[len(GIVEN) :]}


def misdeclared(encoding: Encoding, width: int, heads: int, max_length: int) -> str:
    """What an encoding does otherwise than its contract and declarations say; empty where all is well.

    It is tried on random content, a copy of it with its weights moved (a table of zeros would hide what it can
    learn), in float64.
    """
    moved, length = _moved(encoding), min(TRIED, max_length)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, length, width, generator=generator, dtype=torch.float64)
    maps = torch.randn(3, width, width, generator=generator, dtype=torch.float64) / width**0.5
    with torch.no_grad():
        wrong = _misshapen(moved, x, heads) or _crooked(moved, x, heads)
        if wrong:
            return wrong
        there, back = _attend(moved, x, maps, heads), _attend(moved, x.flip(1), maps, heads)
        carried = _given(moved, x[:, :1].expand_as(x), maps[2], heads)
    mirrored = _close(there[0], back[0].flip(2, 3)) and _close(there[1], back[1].flip(2))
    found = {"reads_distance_only": mirrored, "values_carry_position": not _close(carried, carried[:1, :, :1])}
    if length < 2:
        return ""  # one place alone shows neither
    said = {
        "reads_distance_only": f"a mirrored sequence {'gives' if mirrored else 'does not give'} the mirrored output",
        "values_carry_position": "what is read of one token at several places is "
        + ("not the same" if found["values_carry_position"] else "always the same"),
    }
    for declaration, behaves in found.items():
        if getattr(encoding, declaration) != behaves:
            return f"it declares {declaration} = {not behaves}, but {said[declaration]}"
    return ""


def _moved(encoding: Encoding) -> Encoding:
    moved = copy.deepcopy(encoding).to("cpu", torch.float64)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return moved


def _misshapen(encoding: Encoding, x: Float[Tensor, "1 L W"], heads: int) -> str:
    """Which method gives another shape than the contract's."""
    length, width = x.shape[1:]
    parts = x.view(1, length, heads, width // heads).transpose(1, 2)
    bias = encoding.bias(length)
    shapes = {
        "embed": (encoding.embed(x).shape, x.shape),
        "rotate": (torch.stack(encoding.rotate(parts, parts)).shape, (2, *parts.shape)),
        "place": (encoding.place(parts).shape, parts.shape),
        "read": (encoding.read(parts).shape, parts.shape),
        "bias": (None if bias is None else bias.shape, None if bias is None else (1, heads, length, length)),
    }
    for method, (found, wanted) in shapes.items():
        if found != wanted:
            return f"{method} gives shape {tuple(found or ())}; the contract wants {tuple(wanted or ())}"
    return ""


def _crooked(encoding: Encoding, x: Float[Tensor, "1 L W"], heads: int) -> str:
    """Which method isn't linear in the values: storage is read off linear maps."""
    one, other = _heads(x, heads), _heads(x.roll(1, dims=2), heads)
    for name, method in {"place": encoding.place, "read": encoding.read}.items():
        whole, parts = method(one + 2 * other), method(one) + 2 * method(other)
        if not torch.allclose(whole, parts, rtol=1e-4, atol=1e-4):  # it may compute in float32
            return f"{name} isn't linear; the contract wants it linear in the values"
    return ""


def _heads(x: Tensor, heads: int) -> Float[Tensor, "1 H L D"]:
    return x.view(1, x.shape[1], heads, -1).transpose(1, 2)


def _attend(
    encoding: Encoding, x: Float[Tensor, "1 L W"], maps: Float[Tensor, "3 W W"], heads: int
) -> tuple[Float[Tensor, "1 H L L"], Float[Tensor, "1 H L D"]]:
    """Scores, and what each row reads."""
    h = encoding.embed(x)
    query, key, value = (_heads(h @ w, heads) for w in maps)
    query, key = encoding.rotate(query, key)
    scores, bias = query @ key.transpose(-1, -2), encoding.bias(x.shape[1])
    if bias is not None:
        scores = scores + bias
    return scores, encoding.read(scores.softmax(dim=-1) @ encoding.place(value))


def _given(
    encoding: Encoding, x: Float[Tensor, "1 L W"], value: Float[Tensor, "W W"], heads: int
) -> Float[Tensor, "S H L D"]:
    """What each row reads of the token so many places (S of them) away alone."""
    placed = encoding.place(_heads(encoding.embed(x) @ value, heads))
    return torch.cat([encoding.read(placed.roll(steps, dims=2)) for steps in range(x.shape[1])])


def _close(a: Tensor, b: Tensor) -> bool:
    return bool(torch.allclose(a, b, rtol=1e-6, atol=1e-9))
