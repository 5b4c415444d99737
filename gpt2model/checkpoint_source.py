"""A checkpoint found: its files, what their headers say, its config."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from gpt2model import hub
from gpt2model.config import CONFIG_NAME, GENERATION_CONFIG_NAME, GPT2Config
from gpt2model.config_values import as_dtype
from gpt2model.errors import CheckpointError
from gpt2model.weights import FORMATS, TensorHeader, read_headers, read_index

# Formats that other libraries write, for the message.
_FOREIGN = ("tf_model.h5", "flax_model.msgpack", "model.ckpt.index", "pytorch_model.pt", "model.onnx")


@dataclass(frozen=True, slots=True)
class Source:
    """A checkpoint's files, and by their headers what is in them."""

    snapshot: hub.Snapshot
    files: tuple[Path, ...]
    headers: Mapping[str, TensorHeader]
    config: GPT2Config

    @property
    def place(self) -> str:
        """Where the files are, for messages."""
        return str(self.snapshot.folder)

    def dtype(self, asked: torch.dtype | str | None) -> torch.dtype:
        """The asked dtype; by default the config's, or else that of the first floating-point tensor."""
        if asked is not None and asked != "auto":
            return as_dtype(asked)
        kept = (header.dtype for header in self.headers.values() if header.dtype.is_floating_point)
        return self.config.dtype or next(kept, torch.get_default_dtype())


def find_source(
    path_or_id: str | os.PathLike[str],
    *,
    revision: str | None,
    config: GPT2Config | None,
    cache_dir: str | os.PathLike[str] | None,
    local_files_only: bool,
    token: str | bool | None,
    endpoint: str | None,
) -> Source:
    """Find a checkpoint's files and read their headers; ``config`` replaces config.json, the rest is hub.resolve's.

    Raises CheckpointError for what cannot be found or read, ConfigError for an impossible config.json.
    """

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
    return Source(snapshot, files, read_headers(files), held)


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
