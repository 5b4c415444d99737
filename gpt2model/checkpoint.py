"""Load, save and inspect checkpoints in Hugging Face's layout: a folder, or a repository of the Hub. Strictly."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import torch
from torch import Tensor

from gpt2model import _hf
from gpt2model.checkpoint_fit import Fitted, ModelT, fill, fit
from gpt2model.checkpoint_source import find_source
from gpt2model.config import CONFIG_NAME, GENERATION_CONFIG_NAME, GPT2Config
from gpt2model.errors import CheckpointError, ConfigError
from gpt2model.pretrained import GPT2PreTrainedModel
from gpt2model.quantization import CONFIG_KEY, QuantizationConfig, weight_bytes
from gpt2model.weights import PICKLE, SAFETENSORS, SAFETENSORS_INDEX, write_files, write_text

if TYPE_CHECKING:
    from gpt2model.attention import AttentionImplementation
    from gpt2model.quantized_layers import QuantizedLinear


@dataclass(frozen=True, slots=True)
class WeightsFile:
    """One file of weights: its name, its size in bytes, and its sha256 in hexadecimal (None where not asked for)."""

    name: str
    size: int
    sha256: str | None


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """What a checkpoint is, known without loading it.

    ``revision`` is the Hub's commit hash (None for a folder). ``dtype`` and ``quantization`` (None: in full) are what
    ``load_checkpoint`` makes of it with the same options, and ``bytes_in_memory`` what the weights then take;
    ``bytes_full`` is what they would take in float32. ``num_parameters`` counts a weight that two modules share once.
    """

    folder: Path
    revision: str | None
    config: GPT2Config
    files: tuple[WeightsFile, ...]
    dtype: torch.dtype
    quantization: QuantizationConfig | None
    num_parameters: int
    bytes_in_memory: int
    bytes_full: int


class LoadOptions(TypedDict, total=False):
    """Which checkpoint, and as what; all may be left out.

    ``revision`` is a branch, tag or commit of the Hub. ``dtype`` None or "auto" is the config's, or where it names none
    that of the first weight, as in transformers 5. ``config`` replaces config.json. ``quantization`` is a name (nf4,
    fp4, nf4-double, fp4-double, int8) or a config: linear layers are quantized while they are loaded; a checkpoint that
    is saved quantized is loaded as it is, and may be asked for by the same method only. ``allow_new_head`` lets the
    files lack the model's head, which is then drawn in GPT-2's scheme, and hold another. ``cache_dir``,
    ``local_files_only``, ``token`` and ``endpoint`` are huggingface_hub's.
    """

    revision: str | None
    dtype: torch.dtype | str | None
    config: GPT2Config | None
    quantization: QuantizationConfig | str | None
    allow_new_head: bool
    cache_dir: str | os.PathLike[str] | None
    local_files_only: bool
    token: str | bool | None
    endpoint: str | None


def load_checkpoint(
    model_class: type[ModelT],
    path_or_id: str | os.PathLike[str],
    *,
    device: torch.device | str | None = None,
    attn_implementation: AttentionImplementation = "sdpa",
    **options: Unpack[LoadOptions],
) -> ModelT:
    """A model in evaluation mode with a checkpoint's weights; memory peaks at about one copy of them.

    A head whose weights differ from the token embedding is untied, whatever the config says; the model's config then
    says so, and how the model is quantized.

    Raises CheckpointError for what cannot be found or read, ConfigError for an impossible config, device or
    quantization, WeightsMismatch unless the files hold exactly the model's weights.
    """
    place = _usable_device(device)
    fitted = _fitted(model_class, path_or_id, attn_implementation, **options)
    layers: dict[str, QuantizedLinear] = {}
    if fitted.quantization is not None:
        from gpt2model.quantized_layers import replace_layers  # imports bitsandbytes, which takes seconds

        held = fitted.quantization.on(place, fitted.model.dtype)
        layers = replace_layers(fitted.model, fitted.forms, held)
        config = fitted.model.config
        fitted.model.config = config.replace(extra={**config.extra, CONFIG_KEY: held.to_dict()})
    fill(fitted, layers, place)
    generation = fitted.source.snapshot.folder / GENERATION_CONFIG_NAME
    if generation.exists():
        fitted.model.generation_config = generation  # read when it is asked for
    return fitted.model.eval()


def inspect_checkpoint(
    path_or_id: str | os.PathLike[str],
    *,
    model_class: type[GPT2PreTrainedModel],
    digests: bool = True,
    **options: Unpack[LoadOptions],
) -> CheckpointInfo:
    """Check that a checkpoint has what ``model_class`` needs, from the files' headers, and tell what it is.

    Raises what ``load_checkpoint`` would. ``digests`` False leaves the files unread; a file of the Hub's cache is named
    by its digest and not read either way.
    """
    fitted = _fitted(model_class, path_or_id, "sdpa", **options)
    number = sum(parameter.numel() for parameter in fitted.model.parameters())
    return CheckpointInfo(
        folder=fitted.source.snapshot.folder,
        revision=fitted.source.snapshot.revision,
        config=fitted.model.config,
        files=tuple(
            WeightsFile(file.name, file.stat().st_size, _sha256(file) if digests else None)
            for file in fitted.source.files
        ),
        dtype=fitted.model.dtype,
        quantization=fitted.quantization,
        num_parameters=number,
        bytes_in_memory=weight_bytes(fitted.model, fitted.forms, fitted.quantization),
        bytes_full=number * torch.float32.itemsize,
    )


def save_checkpoint(
    model: GPT2PreTrainedModel,
    folder: str | os.PathLike[str],
    *,
    max_shard_size: int | str = "50GB",
    safe_serialization: bool = True,
) -> None:
    """Write config.json, the weights and, where the model generates, generation_config.json, as transformers 5 does.

    More than ``max_shard_size`` (bytes, or as "5GB") becomes shards with an index. ``safe_serialization`` False writes
    pytorch_model.bin instead of safetensors. A head tied to the token embedding isn't written; config.json gets the
    model's class, dtype and whether the head is tied. Each file appears whole or not at all, config.json last.

    Raises CheckpointError where the folder cannot be written or holds safetensors that would hide a new .bin file.
    """
    target = Path(folder)
    if not safe_serialization and any((target / name).exists() for name in (SAFETENSORS, SAFETENSORS_INDEX)):
        raise CheckpointError(
            f"{target}: its {SAFETENSORS} would be read instead of a new {PICKLE}: take another folder"
        )
    state, tied = _without_tied_head(model)
    config = model.config.replace(
        architectures=(type(model).__name__,),
        dtype=model.dtype,
        tie_word_embeddings=tied,
        extra=_extra_of(model, state),
    )
    try:
        target.mkdir(parents=True, exist_ok=True)
        write_files(state, target, max_shard_size=max_shard_size, safe=safe_serialization)
        if model.get_output_embeddings() is not None:
            write_text(target / GENERATION_CONFIG_NAME, model.generation_config.to_json_string())
        write_text(target / CONFIG_NAME, config.to_json_string())
    except OSError as error:
        raise CheckpointError(f"{target}: the checkpoint cannot be written: {error}") from error


def _fitted(
    model_class: type[ModelT],
    path_or_id: str | os.PathLike[str],
    attn_implementation: AttentionImplementation,
    *,
    revision: str | None = None,
    dtype: torch.dtype | str | None = None,
    config: GPT2Config | None = None,
    quantization: QuantizationConfig | str | None = None,
    allow_new_head: bool = False,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
    endpoint: str | None = None,
) -> Fitted[ModelT]:
    """LoadOptions and their defaults: the checkpoint is found, the model fitted to its headers."""
    source = find_source(
        path_or_id,
        revision=revision,
        config=config,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
        token=token,
        endpoint=endpoint,
    )
    return fit(
        model_class,
        source,
        dtype=source.dtype(dtype),
        attn_implementation=attn_implementation,
        quantization=quantization,
        allow_new_head=allow_new_head,
    )


def _usable_device(device: torch.device | str | None) -> torch.device:
    try:
        usable = torch.device("cpu" if device is None else device)
        torch.empty(0, device=usable)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"device={str(device)!r} cannot be used here ({str(error).splitlines()[0]}): try 'cpu'"
        ) from error
    return usable


def _without_tied_head(model: GPT2PreTrainedModel) -> tuple[dict[str, Tensor], bool]:
    """The weights to write, and what tie_word_embeddings then is."""
    state = dict(model.state_dict())
    head, embedding = state.get(_hf.TIED_HEAD), state.get(_hf.TIED_EMBEDDING)
    if head is None or embedding is None:
        return state, model.config.tie_word_embeddings
    tied = head.data_ptr() == embedding.data_ptr()
    if tied:
        del state[_hf.TIED_HEAD]
    return state, tied


def _extra_of(model: GPT2PreTrainedModel, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """What config.json says beside GPT-2's options: of quantization only where the weights are quantized."""
    is_quantized = any(name.endswith((".absmax", ".SCB")) for name in state)
    return {key: value for key, value in model.config.extra.items() if is_quantized or key != CONFIG_KEY}


def _sha256(file: Path) -> str:
    real = file.resolve()
    # The Hub's cache names the blobs of large files by their sha256 (64 digits), small ones by a git hash (40).
    if real.parent.name == "blobs" and len(real.name) == 64:
        return real.name
    with real.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
