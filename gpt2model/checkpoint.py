"""Load, save and inspect checkpoints in Hugging Face's layout: a folder, or a repository of the Hub. Strictly."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from gpt2model import _hf, hub, onednn
from gpt2model.config import CONFIG_NAME, GPT2Config
from gpt2model.config_values import as_dtype
from gpt2model.errors import CheckpointError, ConfigError, WeightsMismatch
from gpt2model.layers import Conv1D
from gpt2model.weights import (
    FORMATS,
    PICKLE,
    SAFETENSORS,
    SAFETENSORS_INDEX,
    TensorHeader,
    read_headers,
    read_index,
    read_tensors,
    write_files,
    write_text,
)

if TYPE_CHECKING:
    from gpt2model.attention import AttentionImplementation
    from gpt2model.model import GPT2PreTrainedModel

    ModelT = TypeVar("ModelT", bound=GPT2PreTrainedModel)

GENERATION_CONFIG_NAME = "generation_config.json"
# Where a model keeps what generation_config.json said; by vars(), as Module types its attributes as tensors or modules.
_GENERATION_ATTRIBUTE = "generation_config"
# Formats that other libraries write, for the message.
_FOREIGN = ("tf_model.h5", "flax_model.msgpack", "model.ckpt.index", "pytorch_model.pt", "model.onnx")


@dataclass(frozen=True, slots=True)
class WeightsFile:
    """One file of weights: its name, its size in bytes, and its sha256 in hexadecimal (None where not asked for)."""

    name: str
    size: int
    sha256: str | None


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """What a checkpoint is, known without loading it.

    ``revision`` is the Hub's commit hash (None for a folder); ``dtype`` what ``load_checkpoint`` makes of it when no
    other is asked for; ``num_parameters`` counts a weight that two modules share once.
    """

    folder: Path
    revision: str | None
    config: GPT2Config
    files: tuple[WeightsFile, ...]
    dtype: torch.dtype
    num_parameters: int


@dataclass(frozen=True, slots=True)
class _Source:
    """A checkpoint found: its files, what its headers say, its config."""

    snapshot: hub.Snapshot
    files: tuple[Path, ...]
    headers: Mapping[str, TensorHeader]
    config: GPT2Config

    def dtype(self, asked: torch.dtype | str | None) -> torch.dtype:
        """The asked dtype; by default the config's, or else that of the first floating-point tensor."""
        if asked is not None and asked != "auto":
            return as_dtype(asked)
        kept = (header.dtype for header in self.headers.values() if header.dtype.is_floating_point)
        return self.config.dtype or next(kept, torch.get_default_dtype())

    def match(self, model: GPT2PreTrainedModel) -> dict[str, str]:
        """Which key of the files each weight of the model is; raises WeightsMismatch."""
        expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        found = {key: header.shape for key, header in self.headers.items()}
        place = str(self.snapshot.folder)
        keys = _hf.match(found, expected, tied=model.config.tie_word_embeddings, place=place)
        for name, key in keys.items():
            if not self.headers[key].dtype.is_floating_point:
                raise WeightsMismatch(
                    f"{place}: {name} holds {self.headers[key].dtype}, not floating-point numbers: the checkpoint "
                    "seems quantized; load the original"
                )
        return keys


def load_checkpoint(
    model_class: type[ModelT],
    path_or_id: str | os.PathLike[str],
    *,
    revision: str | None = None,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    config: GPT2Config | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
    attn_implementation: AttentionImplementation = "sdpa",
    endpoint: str | None = None,
) -> ModelT:
    """A model in evaluation mode with a checkpoint's weights; memory peaks at about one copy of them.

    ``dtype`` None or "auto" is the config's, or where it names none that of the first weight, as in transformers 5.
    ``config`` replaces config.json. A head whose weights differ from the token embedding is untied, whatever the config
    says; the model's config then says so.

    Raises CheckpointError for what cannot be found or read, ConfigError for an impossible config or device,
    WeightsMismatch unless the files hold exactly the model's weights.
    """
    place = _usable_device(device)
    source = _open(path_or_id, revision, config, cache_dir, local_files_only, token, endpoint)
    model, keys = _matched(source, model_class, source.dtype(dtype), attn_implementation)
    _fill(model, source, keys, place)
    vars(model)[_GENERATION_ATTRIBUTE] = _generation_config(source.snapshot.folder)
    return model.eval()


def inspect_checkpoint(
    path_or_id: str | os.PathLike[str],
    *,
    model_class: type[GPT2PreTrainedModel],
    revision: str | None = None,
    config: GPT2Config | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
    endpoint: str | None = None,
    digests: bool = True,
) -> CheckpointInfo:
    """Check that a checkpoint has what ``model_class`` needs, from the files' headers, and tell what it is.

    Raises what ``load_checkpoint`` would. ``digests`` False leaves the files unread; a file of the Hub's cache is named
    by its digest and not read either way.
    """
    source = _open(path_or_id, revision, config, cache_dir, local_files_only, token, endpoint)
    model, _ = _matched(source, model_class, source.dtype(None), "sdpa")
    return CheckpointInfo(
        folder=source.snapshot.folder,
        revision=source.snapshot.revision,
        config=model.config,
        files=tuple(
            WeightsFile(file.name, file.stat().st_size, _sha256(file) if digests else None) for file in source.files
        ),
        dtype=model.dtype,
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
    )


def save_checkpoint(
    model: GPT2PreTrainedModel,
    folder: str | os.PathLike[str],
    *,
    max_shard_size: int | str = "50GB",
    safe_serialization: bool = True,
) -> None:
    """Write config.json, the weights and, where the model holds one, generation_config.json, as transformers 5 does.

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
    generation = vars(model).get(_GENERATION_ATTRIBUTE)
    state, tied = _without_tied_head(model)
    config = model.config.replace(architectures=(type(model).__name__,), dtype=model.dtype, tie_word_embeddings=tied)
    try:
        target.mkdir(parents=True, exist_ok=True)
        write_files(state, target, max_shard_size=max_shard_size, safe=safe_serialization)
        if generation is not None:
            write_text(target / GENERATION_CONFIG_NAME, json.dumps(generation, indent=2, sort_keys=True) + "\n")
        write_text(target / CONFIG_NAME, config.to_json_string())
    except OSError as error:
        raise CheckpointError(f"{target}: the checkpoint cannot be written: {error}") from error


def _open(
    path_or_id: str | os.PathLike[str],
    revision: str | None,
    config: GPT2Config | None,
    cache_dir: str | os.PathLike[str] | None,
    local_files_only: bool,
    token: str | bool | None,
    endpoint: str | None,
) -> _Source:
    def fetch(names: Sequence[str], at: str | None) -> hub.Snapshot:
        return hub.resolve(
            path_or_id,
            revision=at,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            token=token,
            patterns=names,
            endpoint=endpoint,
        )

    snapshot = fetch((CONFIG_NAME, GENERATION_CONFIG_NAME, *FORMATS[0]), revision)
    held = config or _config_in(snapshot.folder)
    if not any((snapshot.folder / name).exists() for name in FORMATS[0]):
        snapshot = fetch(FORMATS[1], snapshot.revision)
    names = _weights_names(snapshot.folder)
    if len(names) > 1 or not (snapshot.folder / names[0]).exists():
        snapshot = fetch(names, snapshot.revision)
    files = tuple(snapshot.folder / name for name in names)
    return _Source(snapshot, files, read_headers(files), held)


def _weights_names(folder: Path) -> tuple[str, ...]:
    """The files to read: one, or the shards of an index."""
    for single, index in FORMATS:
        if (folder / single).exists():
            return (single,)
        if (folder / index).exists():
            return read_index(folder / index)
    names = ", ".join(single for single, _ in FORMATS)
    foreign = [name for name in _FOREIGN if (folder / name).exists()]
    hint = f"{', '.join(foreign)} cannot be read here: convert it" if foreign else "name the folder of a saved model"
    raise CheckpointError(f"{folder}: holds no weights ({names}, whole or in shards with an index): {hint}")


def _config_in(folder: Path) -> GPT2Config:
    if not (folder / CONFIG_NAME).exists():
        raise CheckpointError(f"{folder}: holds no {CONFIG_NAME}: put the model's there, or pass config=")
    return GPT2Config.from_json_file(folder / CONFIG_NAME)


def _generation_config(folder: Path) -> dict[str, Any] | None:
    path = folder / GENERATION_CONFIG_NAME
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: is not JSON ({error}): correct it or remove it") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: must hold a JSON object, not {type(content).__name__}: correct or remove it")
    return content


def _usable_device(device: torch.device | str | None) -> torch.device:
    try:
        usable = torch.device("cpu" if device is None else device)
        torch.empty(0, device=usable)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"device={str(device)!r} cannot be used here ({str(error).splitlines()[0]}): try 'cpu'"
        ) from error
    return usable


def _matched(
    source: _Source, model_class: type[ModelT], dtype: torch.dtype, attention: AttentionImplementation
) -> tuple[ModelT, dict[str, str]]:
    """A model without storage that has the checkpoint's form, and which key of the files each of its weights is."""
    config = source.config.replace(dtype=dtype)
    model = _skeleton(model_class, config, attention)
    keys = source.match(model)
    if config.tie_word_embeddings and _heads_differ(source, keys):
        model = _skeleton(model_class, config.replace(tie_word_embeddings=False), attention)
    return model, keys


def _skeleton(model_class: type[ModelT], config: GPT2Config, attention: AttentionImplementation) -> ModelT:
    build: Callable[..., ModelT] = model_class
    with torch.device("meta"):
        return build(config, attn_implementation=attention).to(config.dtype)


def _heads_differ(source: _Source, keys: Mapping[str, str]) -> bool:
    """True where the files hold a head of its own beside the token embedding, with other values."""
    pair = [keys[name] for name in (_hf.TIED_HEAD, _hf.TIED_EMBEDDING) if name in keys]
    if len(set(pair)) < 2:
        return False
    head, embedding = (tensor for _, tensor in sorted(read_tensors(source.headers, pair)))
    if head.dtype != embedding.dtype:
        return not torch.equal(head.double(), embedding.double())
    # As bytes: a NaN is equal to itself.
    return not torch.equal(head.contiguous().view(torch.uint8), embedding.contiguous().view(torch.uint8))


def _fill(model: GPT2PreTrainedModel, source: _Source, keys: Mapping[str, str], device: torch.device) -> None:
    """Give the model its storage: each tensor is copied once from the mapped file, to the device and the dtype."""
    names: dict[str, list[str]] = {}
    for name, key in keys.items():
        names.setdefault(key, []).append(name)
    state: dict[str, Tensor] = {}
    for key, mapped in read_tensors(source.headers, names):
        held = mapped.to(device, model.dtype, copy=True, memory_format=torch.contiguous_format)
        state.update(dict.fromkeys(names[key], held))
    model.load_state_dict(state, assign=True)
    model.tie_weights()
    for module in model.modules():
        if isinstance(module, Conv1D):
            module.weight.data = onednn.laid_out(module.weight.data)
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))


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


def _sha256(file: Path) -> str:
    real = file.resolve()
    # The Hub's cache names the blobs of large files by their sha256 (64 digits), small ones by a git hash (40).
    if real.parent.name == "blobs" and len(real.name) == 64:
        return real.name
    with real.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
