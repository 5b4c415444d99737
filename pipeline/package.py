"""What of a working directory travels to a cluster: code and settings. Data, output and environments stay."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from pipeline.errors import JobError

FOLDERS_LEFT_OUT = frozenset({"__pycache__", "node_modules", "build", "dist"})
PACKAGES = frozenset({"pipeline", "gpt2model"})
"""Travel as Ray's `py_modules`: a second copy, or another package of that name, would come before them."""
DATA = frozenset(
    ".parquet .arrow .feather .orc .avro .csv .tsv .jsonl .ndjson .gz .bz2 .xz .zst .zip .tar .tgz .sqlite .db "
    ".safetensors .bin .pt .pth .ckpt .h5 .gguf .onnx .npy .npz".split()
)
LARGEST = 100 << 20
"""Bytes: Ray's job server takes no larger package."""
MOST_TOLD = 3
EPOCH = (1980, 1, 1, 0, 0, 0)
"""Every file's time in the package, so that the same content is the same package, which the cluster keeps."""


def travelling(working_dir: Path, models: Sequence[Path], left_out: Sequence[str] = ()) -> Iterator[Path]:
    """The files of `working_dir` that travel, as paths relative to it.

    What stays: names that begin with a dot, virtual environments, folders that hold a run's output, caches, and data
    and weights by their suffix. `left_out` are further patterns, of names or of paths relative to `working_dir`.
    `models` (folders, relative) travel whole.
    """
    for folder, folders, files in os.walk(working_dir):
        here = Path(folder).relative_to(working_dir)
        folders[:] = sorted(
            name
            for name in folders
            if not (_stays(here / name, left_out) or here / name in models or _apart(Path(folder) / name))
            and (here.parts or name not in PACKAGES)
        )
        for name in sorted(files):
            data = Path(name).suffix.lower() in DATA
            if not data and not _stays(here / name, left_out) and (Path(folder) / name).is_file():
                yield here / name
    weights = {file for model in models for file in (working_dir / model).rglob("*") if file.is_file()}
    yield from sorted(file.relative_to(working_dir) for file in weights)


def _stays(path: Path, left_out: Sequence[str]) -> bool:
    if path.name.startswith(".") or path.name in FOLDERS_LEFT_OUT or path.name.endswith(".egg-info"):
        return True
    return any(fnmatch(path.name, each) or fnmatch(path.as_posix(), each.rstrip("/")) for each in left_out)


def _apart(folder: Path) -> bool:
    """A virtual environment, or what a run wrote."""
    return (folder / "pyvenv.cfg").is_file() or (folder / "_pipeline").is_dir()


def pack(target: Path, working_dir: Path, files: Sequence[Path], job: PurePosixPath, job_text: str) -> None:
    """Write a zip archive of `files` and of the job. Raises JobError where it is too large for Ray."""
    sizes: dict[Path, int] = {}
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        _add(archive, job.as_posix(), job_text.encode())
        for file in files:
            sizes[file] = (working_dir / file).stat().st_size
            if sum(sizes.values()) > LARGEST:
                break
            _add(archive, file.as_posix(), (working_dir / file).read_bytes())
    if sum(sizes.values()) <= LARGEST:
        return
    largest = sorted(sizes, key=lambda file: -sizes[file])[:MOST_TOLD]
    raise JobError(
        f"the working directory {working_dir} is above the {LARGEST >> 20} MiB that a Ray job may bring; "
        f"{', '.join(f'{file} ({sizes[file] / 2**20:.0f} MiB)' for file in largest)}: leave such files out by "
        "--exclude, name a smaller --working-dir, or put a model in storage that all nodes see"
    )


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    archive.writestr(zipfile.ZipInfo(name, EPOCH), content, zipfile.ZIP_DEFLATED)
