"""Files of named tensors: safetensors, PyTorch's pickles, and either of them in shards under an index."""

import json
import os
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gpt2model.errors import CheckpointError

SAFETENSORS = "model.safetensors"
SAFETENSORS_INDEX = "model.safetensors.index.json"
PICKLE = "pytorch_model.bin"
PICKLE_INDEX = "pytorch_model.bin.index.json"
# In the order of preference; a single file wins over shards, as it does in transformers.
FORMATS = ((SAFETENSORS, SAFETENSORS_INDEX), (PICKLE, PICKLE_INDEX))

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """What is known of a tensor before it is read."""

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype


def read_index(path: Path) -> tuple[str, ...]:
    """The file names of the shards that an index lists, in order; raises CheckpointError for what is no index."""
    try:
        shards = json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()
        names = sorted(set(shards))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path}: is no index of shards (JSON with a weight_map): {_hint(path)}") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise CheckpointError(
                f"{path}: lists the shard {name!r}, which is no plain file name: the index is damaged"
            )
    if not names:
        raise CheckpointError(f"{path}: lists no shards: {_hint(path)}")
    return tuple(names)


def read_headers(files: Iterable[Path]) -> dict[str, TensorHeader]:
    """Names, shapes and dtypes of all tensors, without reading them.

    Raises CheckpointError for an unreadable file, and for a name that two files have.
    """
    headers: dict[str, TensorHeader] = {}
    for file in files:
        for key, header in _headers_of(file):
            if key in headers:
                raise CheckpointError(
                    f"{key!r} is in {headers[key].file} and in {file}: remove the shard that is stale"
                )
            headers[key] = header
    return headers


def read_tensors(headers: Mapping[str, TensorHeader], keys: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
    """The named tensors, file by file. They live in the mapped file: copy what is to stay."""
    by_file: dict[Path, list[str]] = {}
    for key in keys:
        by_file.setdefault(headers[key].file, []).append(key)
    for file, own in by_file.items():
        if file.suffix == ".safetensors":
            yield from _safetensors(file, own)
        else:
            tensors = _unpickled(file)
            yield from ((key, tensors[key]) for key in own)


def _headers_of(file: Path) -> Iterator[tuple[str, TensorHeader]]:
    if file.suffix != ".safetensors":
        for key, tensor in _unpickled(file).items():
            yield key, TensorHeader(file, tuple(tensor.shape), tensor.dtype)
        return
    with _opened(file) as opened:
        for key in opened.keys():  # noqa: SIM118  # not a mapping
            part = opened.get_slice(key)
            if part.get_dtype() not in _DTYPES:
                raise CheckpointError(f"{file}: {key!r} has the dtype {part.get_dtype()}, which is none of a GPT-2's")
            yield key, TensorHeader(file, tuple(part.get_shape()), _DTYPES[part.get_dtype()])


def _safetensors(file: Path, keys: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
    with _opened(file) as opened:
        for key in keys:
            yield key, opened.get_tensor(key)


def _opened(file: Path) -> Any:
    """A safe_open object; checks that the file is as long as its header says."""
    try:
        return safe_open(file, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: is no whole safetensors file ({error}): {_hint(file)}") from error


def _unpickled(file: Path) -> dict[str, Tensor]:
    try:
        # Files from before PyTorch 1.6 are no zip archives and cannot be mapped.
        loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except Exception as error:  # a damaged pickle can raise anything
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused:
            raise CheckpointError(
                f"{file}: wants to run {refused[1]} while it is read, and code in weights is never run: "
                "save the weights alone (torch.save of a state_dict), or better as safetensors"
            ) from error
        raise CheckpointError(
            f"{file}: is no whole file of torch.save ({_first_line(error)}): {_hint(file)}"
        ) from error
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise CheckpointError(f"{file}: holds no plain state_dict (names and tensors): save model.state_dict() alone")
    return loaded


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:120]


def _hint(file: Path) -> str:
    """The likeliest reason why a file cannot be read, and what to do."""
    if not file.is_file():
        return "there is no such file; download or copy it again"
    with file.open("rb") as opened:
        start = opened.read(24)
    if start.startswith(b"version https://git-lfs"):
        return "it is a git-lfs pointer to the real file; run git lfs pull"
    if not start:
        return "it is empty; download or copy it again"
    return f"its {file.stat().st_size} bytes are cut short or damaged; download or copy it again"


def write_files(state: Mapping[str, Tensor], folder: Path, *, max_shard_size: int | str, safe: bool) -> None:
    """Write the tensors, in shards with an index where they are more than ``max_shard_size`` (bytes, or as "5GB").

    All files are written under other names before the first appears under its own, the index last. Files of an earlier
    save that would be read instead of these are then removed.
    """
    single, index = FORMATS[0] if safe else FORMATS[1]
    stem, suffix = single.rsplit(".", 1)
    try:
        plan = split_torch_state_dict_into_shards(
            dict(state), filename_pattern=f"{stem}{{suffix}}.{suffix}", max_shard_size=max_shard_size
        )
    except ValueError as error:
        raise CheckpointError(f"max_shard_size={max_shard_size!r} is no size: give bytes, or text as '5GB'") from error
    with _staged(folder) as stage:
        for name, keys in plan.filename_to_tensors.items():
            _write_tensors({key: state[key] for key in keys}, stage(name))
        if plan.is_sharded:
            content = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
            stage(index).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    written = {*plan.filename_to_tensors, *([index] if plan.is_sharded else [])}
    parts = re.compile(rf"{stem}(-\d{{5}}-of-\d{{5}})?\.{suffix}(\.index\.json)?")
    for stale in folder.iterdir():
        if parts.fullmatch(stale.name) and stale.name not in written:
            stale.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a text file that appears whole or not at all."""
    with _staged(path.parent) as stage:
        stage(path.name).write_text(text, encoding="utf-8")


@contextmanager
def _staged(folder: Path) -> Iterator[Callable[[str], Path]]:
    """Gives temporary paths for file names; the files move to their names when all went well, and vanish otherwise."""
    staged: dict[str, Path] = {}

    def stage(name: str) -> Path:
        # In the same folder, so that renaming does not copy; of this process, so that two do not meet.
        staged[name] = folder / f".{os.getpid()}.{name}"
        return staged[name]

    try:
        yield stage
        for name, temporary in staged.items():
            temporary.replace(folder / name)
    finally:
        for temporary in staged.values():
            temporary.unlink(missing_ok=True)


def _write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    held = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    try:
        if path.suffix == ".safetensors":
            path.touch()
            mode = path.stat().st_mode
            save_file(held, path, metadata={"format": "pt"})
            path.chmod(mode)  # safetensors 0.8 lets nobody but the owner read
        else:
            torch.save(held, path)
    except (SafetensorError, RuntimeError) as error:  # what the two make of a full disk
        raise OSError(str(error).splitlines()[0]) from error
