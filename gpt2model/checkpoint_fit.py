"""A model without storage that is given the form of a checkpoint, and then its weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

import torch
from torch import Tensor, nn

from gpt2model import _hf
from gpt2model.checkpoint_source import Source
from gpt2model.config import GPT2Config
from gpt2model.errors import WeightsMismatch
from gpt2model.pretrained import GPT2PreTrainedModel
from gpt2model.quantization import (
    LinearForm,
    PartForm,
    QuantizationConfig,
    check_state,
    choose,
    linear_forms,
    part_forms,
)
from gpt2model.weights import read_tensors

if TYPE_CHECKING:
    from gpt2model.attention import AttentionImplementation
    from gpt2model.quantized_layers import QuantizedLinear

ModelT = TypeVar("ModelT", bound=GPT2PreTrainedModel)


@dataclass(frozen=True, slots=True)
class Fitted(Generic[ModelT]):
    """A model on the "meta" device, in full, and the checkpoint whose form it has.

    ``keys`` says which key of the files each weight of the model is, ``new`` which are a head's that the files lack.
    ``forms`` are the layers that are quantized in memory.
    """

    model: ModelT
    source: Source
    keys: Mapping[str, str]
    new: Mapping[str, torch.Size]
    quantization: QuantizationConfig | None
    forms: Mapping[str, LinearForm]

    def parts(self) -> dict[str, dict[str, PartForm]]:
        """What there is in the place of each quantized layer's weight."""
        if self.quantization is None:
            return {}
        return {layer: part_forms(form, self.quantization) for layer, form in self.forms.items()}

    def tensors(self) -> Iterator[tuple[list[str], Tensor]]:
        """The files' tensors with the names of the weights that each is, then a new head's, drawn."""
        names: dict[str, list[str]] = {}
        for name, key in self.keys.items():
            names.setdefault(key, []).append(name)
        for key, mapped in read_tensors(self.source.headers, names):
            yield names[key], mapped
        for name, shape in self.new.items():
            yield [name], _drawn(name, shape, self.model.config.initializer_range)


def fit(
    model_class: type[ModelT],
    source: Source,
    *,
    dtype: torch.dtype,
    attn_implementation: AttentionImplementation,
    quantization: QuantizationConfig | str | None,
    allow_new_head: bool,
) -> Fitted[ModelT]:
    """Build the model that a checkpoint's headers describe.

    Raises WeightsMismatch where the files hold other weights than the model's, ConfigError where they are quantized in
    another way than asked.
    """
    config = source.config.replace(dtype=dtype)
    stored = QuantizationConfig.of(config)
    chosen = choose(quantization, stored, source.place)
    model = _skeleton(model_class, config, attn_implementation)
    forms = {} if chosen is None else linear_forms(model, chosen)
    # A file may pack 4-bit numbers in another dtype than memory does.
    packed = {} if stored is None else {layer: part_forms(form, stored) for layer, form in forms.items()}
    keys = _match(source, model, packed, allow_new_head)
    if stored is not None:
        _check_states(source, keys, forms, stored)
    if config.tie_word_embeddings and _heads_differ(source, keys):
        model = _skeleton(model_class, config.replace(tie_word_embeddings=False), attn_implementation)
    new = {name: tensor.shape for name, tensor in model.state_dict().items() if name not in keys}
    return Fitted(model, source, keys, new, chosen, forms)


def fill(fitted: Fitted[ModelT], layers: Mapping[str, QuantizedLinear], device: torch.device) -> None:
    """Give the model its storage: each tensor is copied once from the mapped file, to the device and the dtype.

    ``layers`` are the model's quantized layers; one in full is quantized as soon as it is read.
    """
    model = fitted.model
    owners = {f"{layer}.{part}": layer for layer, parts in fitted.parts().items() for part in parts}
    due = Counter(owners[name] for name in fitted.keys if name in owners)
    gathered: dict[str, dict[str, Tensor]] = {layer: {} for layer in layers}
    state: dict[str, Tensor] = {}
    for names, tensor in fitted.tensors():
        layer = owners.get(names[0])
        if layer is None:
            held = tensor.to(device, model.dtype, copy=True, memory_format=torch.contiguous_format)
            state.update(dict.fromkeys(names, held))
            continue
        gathered[layer][names[0].removeprefix(f"{layer}.")] = tensor
        if len(gathered[layer]) == max(1, due[layer]):
            parts = gathered.pop(layer)
            layers[layer].fill(_prepared(parts, fitted.forms[layer], model.dtype, device), device)
    model.load_state_dict(state, assign=True, strict=not layers)
    model.tie_weights()
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))


def _prepared(
    parts: Mapping[str, Tensor], form: LinearForm, dtype: torch.dtype, device: torch.device
) -> dict[str, Tensor]:
    """What a quantized layer is filled with: its weight in full, [out, in], or copies of its packed parts."""
    if len(parts) > 1:
        return {part: tensor.to(device, copy=True) for part, tensor in parts.items()}
    weight = parts["weight"].to(dtype)
    return {"weight": weight.T if form.transposed else weight}


def _skeleton(model_class: type[ModelT], config: GPT2Config, attention: AttentionImplementation) -> ModelT:
    build: Callable[..., ModelT] = model_class
    with torch.device("meta"):
        return build(config, attn_implementation=attention).to(config.dtype)


def _match(
    source: Source, model: nn.Module, packed: Mapping[str, Mapping[str, PartForm]], allow_new_head: bool
) -> dict[str, str]:
    """Which key of the files each weight of the model is; raises WeightsMismatch."""
    parts = {f"{layer}.{part}": form for layer, forms in packed.items() for part, form in forms.items()}
    in_full = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    keys = _hf.match(
        {key: header.shape for key, header in source.headers.items()},
        {**in_full, **{name: form.shape for name, form in parts.items()}},
        tied=source.config.tie_word_embeddings,
        place=source.place,
        allow_new_head=allow_new_head,
    )
    for name, key in keys.items():
        held, due = source.headers[key].dtype, parts[name].dtype if name in parts else None
        if due is None and not held.is_floating_point:
            raise WeightsMismatch(
                f"{source.place}: {name} holds {held}, not floating-point numbers: the checkpoint seems quantized; "
                "load the original"
            )
        if due not in (None, held):
            raise WeightsMismatch(
                f"{source.place}: {name} holds {held}, not {due}, as quantization_config in config.json says: "
                "save the checkpoint again, or load the original"
            )
    return keys


def _check_states(
    source: Source, keys: Mapping[str, str], forms: Mapping[str, LinearForm], stored: QuantizationConfig
) -> None:
    """Raise WeightsMismatch where quantized layers say of themselves what does not fit the model."""
    telling = {
        keys[f"{layer}.{part}"]: (layer, form, part)
        for layer, form in forms.items()
        for part, kind in part_forms(form, stored).items()
        if kind.shape in (None, ()) and f"{layer}.{part}" in keys
    }
    for key, tensor in read_tensors(source.headers, telling):
        layer, form, part = telling[key]
        check_state(f"{source.place}: {layer}", form, stored, part, tensor)


def _heads_differ(source: Source, keys: Mapping[str, str]) -> bool:
    """True where the files hold a head of its own beside the token embedding, with other values."""
    pair = [keys[name] for name in (_hf.TIED_HEAD, _hf.TIED_EMBEDDING) if name in keys]
    if len(set(pair)) < 2:
        return False
    head, embedding = (tensor for _, tensor in sorted(read_tensors(source.headers, pair)))
    if head.dtype != embedding.dtype:
        return not torch.equal(head.double(), embedding.double())
    # As bytes: a NaN is equal to itself.
    return not torch.equal(head.contiguous().view(torch.uint8), embedding.contiguous().view(torch.uint8))


def _drawn(name: str, shape: torch.Size, deviation: float) -> Tensor:
    """A weight of a new head, as GPT2PreTrainedModel.init_weights draws a linear layer's."""
    return torch.zeros(shape) if name.endswith(".bias") else torch.empty(shape).normal_(std=deviation)
