"""The contract a model family fills in: declarative data first, methods only where data can't say it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from rcprobe.errors import AdapterError, OptionError, UsageError

Options = Mapping[str, Any]


@dataclass(frozen=True)
class OvCircuit:
    """Where a family keeps the direct path from a token's embedding through value and output to the logits.

    Paths are dotted module names; those after ``layers`` are relative to one layer. ``value_part`` is (index,
    count) where query, key and value are fused in equal parts along the output dimension. ``encoding`` names the
    ``rcprobe.Encoding`` that may put position into embeddings or values; None where the path is free of position.
    """

    embedding: str
    layers: str
    norm: str
    value: str
    output: str
    final_norm: str
    head: str
    value_part: tuple[int, int] = (0, 1)
    encoding: str | None = None


class Adapter:
    """One model family. Subclass it, fill in the class attributes, and register the class under ``name``.

    Attributes:
        objective: ``"masked"`` (a mask at every target token) or ``"causal"`` (asked by its left context).
        loss: the objective of ``rcprobe.training.objectives`` that the family is trained with; None is ``"t-dce"``
            (1/t) for masked models, ``"next-token"`` for causal ones.
        attention: ``"full"``, ``"causal"`` or ``"hybrid"``, as the model really attends; ``verify`` checks it.
        shift: token i is predicted by the logits at position i − shift (causal models: 1).
        architecture: the transformers class that runs the family, e.g. ``"LlamaForCausalLM"``.
        keys: regular expressions → replacements that turn a checkpoint's parameter names into the architecture's.
        unused: regular expressions over a checkpoint's parameter names: weights that the family has no use for, as
            another head's. Any other weight that the architecture lacks is refused.
        mask_token: the mask's id; None takes it from the tokenizer.
        mask_in_softmax: false where the family never predicts the mask and leaves it out of the softmax.
        groups: regular expressions over parameter names → the group they belong to (embedding, query, key, value,
            output, mlp, norm, head), or a tuple of groups for equal parts of a fused weight's output dimension.
        ov_circuit: where storage is read; None leaves the storage signature undefined.
        lora_targets: regular expressions over dotted module names: the linear modules that low-rank adapters go on.
        generality: 0 for a family that knows its checkpoints by their marks; one that takes whatever fits says 1 or
            more, and steps back where a family of a lower number claims the checkpoint too.
        tiny: options of ``build`` for a small random model, as tests and ``plugins check`` use it.
        tiny_config: the same for a family that is read from checkpoints: a ``config.json`` of its layout in small.
    """

    name: ClassVar[str] = ""
    objective: ClassVar[Literal["masked", "causal"]]
    attention: ClassVar[Literal["full", "causal", "hybrid"]]
    loss: ClassVar[str | None] = None
    shift: ClassVar[int] = 0
    architecture: ClassVar[str]
    keys: ClassVar[Mapping[str, str]] = {}
    unused: ClassVar[tuple[str, ...]] = ()
    mask_token: ClassVar[int | None] = None
    mask_in_softmax: ClassVar[bool] = True
    groups: ClassVar[Mapping[str, str | tuple[str, ...]]]
    ov_circuit: ClassVar[OvCircuit | None] = None
    lora_targets: ClassVar[tuple[str, ...]] = ()
    generality: ClassVar[int] = 0
    tiny: ClassVar[Options] = {}
    tiny_config: ClassVar[Mapping[str, Any]] = {}

    @classmethod
    def matches(cls, config: Mapping[str, Any]) -> bool:
        """Whether a checkpoint with this raw ``config.json`` is of this family."""
        return cls.architecture in (config.get("architectures") or ())

    @classmethod
    def resolve(cls, raw: Mapping[str, Any]) -> type[Self]:
        """The family as one checkpoint has it: this class, or a ``variant`` with what its raw ``config.json`` decides.

        Raises ``AdapterError`` for a checkpoint of the family that the family's architecture can't run.
        """
        return cls

    @classmethod
    def variant(cls, data: Mapping[str, Any]) -> type[Self]:
        """A subclass of the same name with other class attributes."""
        return type(cls.__name__, (cls,), {"__module__": cls.__module__, "__doc__": cls.__doc__, **data})

    @classmethod
    def config(cls, raw: Mapping[str, Any]) -> Any:
        """The transformers configuration of a checkpoint's raw ``config.json``."""
        from transformers import AutoConfig

        return AutoConfig.for_model(**raw)

    @classmethod
    def build(cls, options: Options) -> nn.Module:
        """A model with random weights from options. Raises ``OptionError`` for an option it doesn't know."""
        raise AdapterError(
            f"{cls.name}: this family can't be built from options; give the folder or hub id of a checkpoint (of a "
            f"folder with the family's own name: ./{cls.name})"
        )

    @classmethod
    def default_tokenizer(cls, options: Options) -> Any:
        """The fast tokenizer of a model built from options."""
        raise AdapterError(f"{cls.name}: no default tokenizer; pass tokenizer=")

    @classmethod
    def tokenizer(cls, folder: Path) -> Any:
        """The fast tokenizer of a checkpoint in a folder; code that came with it is never run."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)

    def lora_modules(self, model: nn.Module, targets: Sequence[str] = ()) -> tuple[str, ...]:
        """Dotted names of the linear modules that ``targets``, or ``lora_targets``, name: peft's, to the letter.

        One that names none is refused, peft would leave it out without a word: with ``UsageError`` of ``targets``,
        with ``AdapterError`` of the family's own.
        """
        from transformers.pytorch_utils import Conv1D

        names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]
        for target in targets or self.lora_targets:
            if not any(re.search(target, name) for name in names):
                lost = f"{target!r} names no linear module of this model"
                if targets:
                    raise UsageError(f"targets: {lost}, which has {', '.join(_endings(names))}")
                raise AdapterError(f"{self.name}: lora_targets: {lost}")
        return tuple(name for name in names if any(re.search(target, name) for target in targets or self.lora_targets))

    def mask_id(self, model: nn.Module, tokenizer: Any) -> int | None:
        """The id of the mask token, or None for a causal model. Raises ``AdapterError`` where it isn't known."""
        if self.objective == "causal":
            return None
        known = getattr(tokenizer, "mask_token_id", None)
        token = self.mask_token if self.mask_token is not None else known
        if token is None:
            raise AdapterError(f"{self.name}: a masked model needs mask_token, and its tokenizer declares none")
        if known is not None and known != token:
            raise AdapterError(
                f"{self.name}: the mask is {token} by the model's side and {known} by the tokenizer's; use the "
                "tokenizer that belongs to the weights, or correct mask_token"
            )
        return int(token)

    def identities(self, model: nn.Module) -> Mapping[str, str]:
        """Signatures that hold by construction, whatever was learned: metric → why.

        They are labelled instead of judged where each reverse prompt is its forward one read backwards, token by token.
        It is the metric's first pairing that is meant.
        """
        return {}

    def logits(self, logits: Tensor, mask_id: int | None) -> Tensor:
        """The logits as the family reads them (… V): the mask is left out of the softmax where so declared."""
        if self.mask_in_softmax or mask_id is None:
            return logits
        forbidden = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
        forbidden[mask_id] = True
        return logits.masked_fill(forbidden, -torch.inf)


def _endings(names: Sequence[str]) -> list[str]:
    """The last parts of dotted names, each once."""
    return list(dict.fromkeys(name.rpartition(".")[2] for name in names))


def misdeclarations(family: type[Adapter]) -> str:
    """What a family declares that no model can be; empty where nothing is wrong."""
    known = {"objective": ("masked", "causal"), "attention": ("full", "causal", "hybrid")}
    for name, values in known.items():
        value = getattr(family, name, None)
        if value not in values:
            return f"{name} is {value!r}; use {' or '.join(map(repr, values))}"
    if type(family.shift) is not int:
        return (
            f"shift is {family.shift!r}; use a whole number, the places between a token and the logits that predict it"
        )
    return ""


def unknown_options(family: str, options: Options, known: Mapping[str, Any]) -> None:
    """Raise ``OptionError`` if an option isn't known to the family."""
    extra = sorted(set(options) - set(known))
    if extra:
        raise OptionError(f"{family}: unknown option {extra[0]!r}; known: {', '.join(sorted(known))}")
