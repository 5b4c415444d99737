"""The YAML of job files and config groups: read within bounds, and found again by line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import JobError

Place = tuple[int | str, ...]
MOST_BYTES = 2**20
MOST_NODES = 100_000
"""With every alias written out, which is what OmegaConf does with it."""
DEEPEST = 50


def read_yaml(file: Path) -> dict[str, Any]:
    """The mapping in `file`. Raises JobError for what is no such thing, or would grow out of bounds when composed."""
    try:
        if file.stat().st_size > MOST_BYTES:
            raise JobError(f"{file}: is larger than {MOST_BYTES:,} bytes, and no job is: is it the right file?")
        text = file.read_text(encoding="utf-8-sig")
        node = yaml.compose(text, yaml.SafeLoader)
        nodes, depth = _size(node, {})
        if nodes > MOST_NODES or depth > DEEPEST:
            raise JobError(
                f"{file}: with its aliases written out it has {nodes:,} values, {depth} deep; a job has "
                f"{MOST_NODES:,} and {DEEPEST} at most: name many input files by a folder or a pattern"
            )
        content = yaml.safe_load(text)
    except RecursionError as error:
        raise JobError(f"{file}: not valid YAML: it is nested deeper than {DEEPEST} or holds itself") from error
    except (yaml.YAMLError, ValueError, TypeError, OSError) as error:  # ValueError: dates and numbers out of range
        raise JobError(f"{file}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise JobError(f"{file}: a job file is a mapping of options, and this one holds {type(content).__name__}")
    return content


def line_of(file: Path, place: Place) -> int | None:
    """The line on which the key at `place` stands; None where the file does not hold it."""
    node = yaml.compose(file.read_text(encoding="utf-8-sig"), yaml.SafeLoader)
    line: int | None = None
    for key in place:
        if not isinstance(node, yaml.MappingNode):
            return line
        for name, value in node.value:
            if name.value == str(key):
                line, node = name.start_mark.line + 1, value
                break
        else:
            return None
    return line


def _size(node: yaml.Node | None, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """Values in `node`, and how deep they lie, with every alias written out. RecursionError where it holds itself."""
    if not isinstance(node, yaml.CollectionNode):
        return 1, 1
    if id(node) not in known:
        inside = [each for entry in node.value for each in (entry if isinstance(entry, tuple) else (entry,))]
        sizes = [_size(each, known) for each in inside]
        known[id(node)] = 1 + sum(size for size, _ in sizes), 1 + max((depth for _, depth in sizes), default=0)
    return known[id(node)]
