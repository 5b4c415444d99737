"""What a quantized checkpoint is: its options and its layout, as transformers and bitsandbytes write them.

Known here by names, shapes and bytes alone: bitsandbytes, which takes seconds to import, computes in
gpt2model/quantized_layers.py.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from gpt2model._hf import BASE_PREFIX
from gpt2model.config import GPT2Config
from gpt2model.config_values import as_dtype
from gpt2model.errors import ConfigError, WeightsMismatch
from gpt2model.layers import Conv1D

# The key of config.json that holds a QuantizationConfig.
CONFIG_KEY = "quantization_config"
# Weights that share one scale (4 bits), and scales that share one (double quantization): bitsandbytes' defaults.
BLOCK_SIZE, NESTED_BLOCK_SIZE = 64, 256
# What transformers leaves in full in a GPT-2: the output embedding, and the last layer where that has no bias.
_SKIPPED = ("lm_head", "score")
_METHODS: Mapping[str, Mapping[str, Any]] = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    "nf4-double": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "fp4-double": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": True},
    "int8": {"load_in_8bit": True},
}
METHODS = tuple(_METHODS)
# In what transformers writes and we have no use for: the method once more, training, and offloading.
_IGNORED = ("quant_method", "_load_in_4bit", "_load_in_8bit", "llm_int8_enable_fp32_cpu_offload")


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationConfig:
    """How the linear layers are quantized, under the names and with the defaults of transformers' BitsAndBytesConfig.

    ``bnb_4bit_compute_dtype`` None is float32 on a CPU and the model's dtype elsewhere. ``bnb_4bit_quant_storage`` is
    what a file packs its 4-bit numbers in; memory always has them in bytes. ``llm_int8_skip_modules``, names or regular
    expressions as transformers matches them, holds for every method and takes the place of lm_head and score, which
    stay in full where it is None.

    Raises ConfigError for values that cannot be, or that contradict each other.
    """

    load_in_4bit: bool = False
    load_in_8bit: bool = False
    bnb_4bit_quant_type: str = "fp4"
    bnb_4bit_use_double_quant: bool = False
    bnb_4bit_compute_dtype: torch.dtype | None = None
    bnb_4bit_quant_storage: torch.dtype = torch.uint8
    llm_int8_threshold: float = 6.0
    llm_int8_skip_modules: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("load_in_4bit", "load_in_8bit", "bnb_4bit_use_double_quant"):
            _require(isinstance(getattr(self, name), bool), name, getattr(self, name), "true or false")
        if self.load_in_4bit == self.load_in_8bit:
            raise ConfigError(
                f"load_in_4bit={self.load_in_4bit} and load_in_8bit={self.load_in_8bit}: exactly one must be true"
            )
        kind, threshold = self.bnb_4bit_quant_type, self.llm_int8_threshold
        _require(kind in ("nf4", "fp4"), "bnb_4bit_quant_type", kind, "'nf4' or 'fp4'")
        number = isinstance(threshold, (int, float)) and not isinstance(threshold, bool) and threshold >= 0
        _require(number, "llm_int8_threshold", threshold, "a number of at least 0")
        object.__setattr__(self, "llm_int8_threshold", float(threshold))
        self._set_dtypes()
        self._set_skipped()

    def _set_dtypes(self) -> None:
        if self.bnb_4bit_compute_dtype is not None:
            compute = as_dtype(self.bnb_4bit_compute_dtype)
            _require(compute.is_floating_point, "bnb_4bit_compute_dtype", compute, "a floating-point dtype")
            object.__setattr__(self, "bnb_4bit_compute_dtype", compute)
        storage = self.bnb_4bit_quant_storage
        named = getattr(torch, storage, None) if isinstance(storage, str) else storage
        _require(isinstance(named, torch.dtype), "bnb_4bit_quant_storage", storage, "the name of a dtype")
        object.__setattr__(self, "bnb_4bit_quant_storage", named)

    def _set_skipped(self) -> None:
        skipped = self.llm_int8_skip_modules
        if skipped is None:
            return
        listed = isinstance(skipped, (list, tuple)) and all(isinstance(name, str) for name in skipped)
        _require(listed, "llm_int8_skip_modules", skipped, "a list of module names")
        for name in skipped:
            try:
                re.compile(name)
            except re.error as error:
                raise ConfigError(f"llm_int8_skip_modules: {name!r} is no regular expression ({error})") from error
        object.__setattr__(self, "llm_int8_skip_modules", tuple(skipped))

    @classmethod
    def from_name(cls, name: str) -> Self:
        """The config of a method: nf4, fp4, nf4-double, fp4-double or int8; raises ConfigError for another name."""
        if name not in _METHODS:
            near = difflib.get_close_matches(name, METHODS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(METHODS)}"
            raise ConfigError(f"quantization={name!r} is unknown: {hint}")
        return cls(**_METHODS[name])

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """What transformers keeps in config.json under ``quantization_config``.

        Raises ConfigError for another library's quantization, an unknown option or an impossible value.
        """
        method = values.get("quant_method", "bitsandbytes")
        if method != "bitsandbytes":
            raise ConfigError(f"quant_method={method!r}: only 'bitsandbytes' can be read; load the full checkpoint")
        if values.get("llm_int8_has_fp16_weight"):
            raise ConfigError("llm_int8_has_fp16_weight=True is for training and saves no memory: set it to false")
        known = {option.name for option in fields(cls)}
        given = {name: value for name, value in values.items() if name not in _IGNORED}
        given.pop("llm_int8_has_fp16_weight", None)
        for name in given:
            if name not in known:
                near = difflib.get_close_matches(name, sorted(known), n=1)
                hint = f": did you mean {near[0]!r}?" if near else f"; there are {', '.join(sorted(known))}"
                raise ConfigError(f"{CONFIG_KEY} has no option {name!r}{hint}")
        return cls(**given)

    @classmethod
    def of(cls, config: GPT2Config) -> Self | None:
        """What a model's config says under ``quantization_config``; None where its weights are in full."""
        held = config.extra.get(CONFIG_KEY)
        if held is None:
            return None
        if not isinstance(held, Mapping):
            raise ConfigError(f"{CONFIG_KEY}={held!r} must be an object of bitsandbytes' options")
        return cls.from_dict(held)

    def to_dict(self) -> dict[str, Any]:
        """The object of config.json: from_dict reads it, and so does transformers."""
        compute = self.bnb_4bit_compute_dtype or torch.float32
        skipped = self.llm_int8_skip_modules
        return {
            **{option.name: getattr(self, option.name) for option in fields(self)},
            "bnb_4bit_compute_dtype": str(compute).removeprefix("torch."),
            "bnb_4bit_quant_storage": str(self.bnb_4bit_quant_storage).removeprefix("torch."),
            "llm_int8_skip_modules": None if skipped is None else list(skipped),
            "llm_int8_enable_fp32_cpu_offload": False,
            "llm_int8_has_fp16_weight": False,
            "quant_method": "bitsandbytes",
        }

    @property
    def method(self) -> str:
        """nf4, fp4, nf4-double, fp4-double or int8."""
        if self.load_in_8bit:
            return "int8"
        return self.bnb_4bit_quant_type + ("-double" if self.bnb_4bit_use_double_quant else "")

    def skips(self, name: str) -> bool:
        """Whether the module of that name stays in full.

        As transformers' should_convert_module: a pattern matches from the start to a module's end, or as a suffix.
        """
        patterns = _SKIPPED if self.llm_int8_skip_modules is None else self.llm_int8_skip_modules
        return any(
            re.match(rf"(?:{pattern})(?:(?<=\.)|(?=\.|$))", name) or name.endswith(pattern) for pattern in patterns
        )

    def on(self, device: torch.device, dtype: torch.dtype) -> Self:
        """The same with the compute dtype settled for a device and a model's dtype, as it is held in memory."""
        default = torch.float32 if device.type == "cpu" else dtype
        compute = self.bnb_4bit_compute_dtype or default
        return replace(self, bnb_4bit_compute_dtype=compute, bnb_4bit_quant_storage=torch.uint8)


def choose(
    asked: QuantizationConfig | str | None, stored: QuantizationConfig | None, place: str
) -> QuantizationConfig | None:
    """How to load a checkpoint that is quantized as ``stored`` says, or in full (None), when ``asked`` is wanted.

    A name asks for a method; a config also says by which threshold and in which dtype to compute. Raises ConfigError
    where a quantized checkpoint would have to be quantized in another way.
    """
    wanted = QuantizationConfig.from_name(asked) if isinstance(asked, str) else asked
    if stored is None or wanted is None:
        if wanted is not None and wanted.bnb_4bit_quant_storage != torch.uint8:
            raise ConfigError(
                f"bnb_4bit_quant_storage={wanted.bnb_4bit_quant_storage}: weights are packed in torch.uint8; other "
                "storage is for training in shards, and can only be read"
            )
        return wanted or stored
    if wanted.method != stored.method or wanted.llm_int8_skip_modules not in (None, stored.llm_int8_skip_modules):
        raise ConfigError(
            f"{place}: is quantized by {stored.method} (skipping {stored.llm_int8_skip_modules}), not as asked by "
            f"{wanted.method} (skipping {wanted.llm_int8_skip_modules}): ask for none, or load the full checkpoint"
        )
    if isinstance(asked, str):
        return stored
    compute = wanted.bnb_4bit_compute_dtype or stored.bnb_4bit_compute_dtype
    return replace(stored, bnb_4bit_compute_dtype=compute, llm_int8_threshold=wanted.llm_int8_threshold)


@dataclass(frozen=True, slots=True)
class LinearForm:
    """A linear layer to quantize; ``transposed`` where a full checkpoint has its weight as [in, out]."""

    in_features: int
    out_features: int
    transposed: bool


@dataclass(frozen=True, slots=True)
class PartForm:
    """One tensor of a quantized weight in a file; a shape of None may be any."""

    shape: tuple[int, ...] | None
    dtype: torch.dtype


def linear_forms(model: nn.Module, quantization: QuantizationConfig) -> dict[str, LinearForm]:
    """The layers of a full model that quantization replaces, by name.

    Raises ConfigError where the list of modules to skip lacks a head that is the token embedding.
    """
    forms: dict[str, LinearForm] = {}
    weights = [module.weight for module in model.modules() if isinstance(module, nn.Embedding)]
    # A base model may be given the checkpoint of a head, where names begin with "transformer.".
    is_base = not any(name.startswith(BASE_PREFIX) for name, _ in model.named_modules())
    for name, module in model.named_modules():
        if quantization.skips(name) or (is_base and quantization.skips(BASE_PREFIX + name)):
            continue
        if isinstance(module, Conv1D):
            rows, columns = module.weight.shape
            forms[name] = LinearForm(rows, columns, transposed=True)
        elif isinstance(module, nn.Linear):
            if any(module.weight is weight for weight in weights):
                raise ConfigError(
                    f"llm_int8_skip_modules={quantization.llm_int8_skip_modules}: {name} is the token embedding and "
                    f"cannot be quantized; add {name!r}"
                )
            forms[name] = LinearForm(module.in_features, module.out_features, transposed=False)
    return forms


def part_forms(form: LinearForm, quantization: QuantizationConfig) -> dict[str, PartForm]:
    """The tensors that a quantized layer has in the place of its weight, by what follows the layer's name."""
    rows, columns = form.out_features, form.in_features
    if quantization.load_in_8bit:
        return {
            "weight": PartForm((rows, columns), torch.int8),
            "SCB": PartForm((rows,), torch.float32),
            "weight_format": PartForm((), torch.uint8),
        }
    storage, double = quantization.bnb_4bit_quant_storage, quantization.bnb_4bit_use_double_quant
    packed, blocks = math.ceil(rows * columns / 2), math.ceil(rows * columns / BLOCK_SIZE)
    parts = {
        "weight": PartForm((packed // storage.itemsize, 1), storage),
        "weight.absmax": PartForm((blocks,), torch.uint8 if double else torch.float32),
        "weight.quant_map": PartForm((16,), torch.float32),
        f"weight.quant_state.bitsandbytes__{quantization.bnb_4bit_quant_type}": PartForm(None, torch.uint8),
    }
    if double:
        parts["weight.nested_absmax"] = PartForm((math.ceil(blocks / NESTED_BLOCK_SIZE),), torch.float32)
        parts["weight.nested_quant_map"] = PartForm((256,), torch.float32)
    return parts


def weight_bytes(model: nn.Module, forms: Mapping[str, LinearForm], quantization: QuantizationConfig | None) -> int:
    """What the weights of a full model take in memory when those layers of it are quantized."""
    in_full = sum(
        weight.nbytes for name, weight in model.named_parameters() if name.removesuffix(".weight") not in forms
    )
    if quantization is None:
        return in_full
    parts = (part for form in forms.values() for part in part_forms(form, quantization).values())
    return in_full + sum(math.prod(part.shape) * part.dtype.itemsize for part in parts if part.shape is not None)


def check_state(layer: str, form: LinearForm, quantization: QuantizationConfig, part: str, tensor: Tensor) -> None:
    """Raise WeightsMismatch where what a quantized layer says of itself is not what this model needs.

    ``part`` and ``tensor`` are one of part_forms: the format of an 8-bit weight, or the state of a 4-bit one, which is
    JSON in bytes; of other parts nothing is said but their shape.
    """
    if part == "weight_format" and int(tensor) != 0:
        raise WeightsMismatch(
            f"{layer}.{part} is {int(tensor)}: only 0, by rows, can be read; load and save it again by an "
            "older bitsandbytes, or take the full checkpoint"
        )
    if "quant_state" not in part:
        return
    due = {
        "quant_type": quantization.bnb_4bit_quant_type,
        "blocksize": BLOCK_SIZE,
        "shape": [form.out_features, form.in_features],
    }
    if quantization.bnb_4bit_use_double_quant:
        due["nested_blocksize"] = NESTED_BLOCK_SIZE
    try:
        said = json.loads(bytes(tensor.tolist()))
        wrong = {name: said.get(name) for name in due if said.get(name) != due[name]}
    except (ValueError, TypeError, AttributeError) as error:
        raise WeightsMismatch(f"{layer}.{part} is damaged ({error}): download or copy the checkpoint again") from error
    if wrong:
        raise WeightsMismatch(
            f"{layer}.{part} says {wrong}, not { ({name: due[name] for name in wrong}) }: take the full checkpoint"
        )


def _require(holds: bool, name: str, value: object, requirement: str) -> None:
    if not holds:
        raise ConfigError(f"{name}={value!r} must be {requirement}")
