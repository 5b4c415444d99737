"""Where a checkpoint's files are: a local folder, or a Hugging Face Hub repository brought to the local cache."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from gpt2model.errors import CheckpointError

_EXAMPLE_IDS = "a Hub id looks like 'gpt2' or 'openai-community/gpt2'"
# Root of the transport's errors. huggingface_hub 1 stands on httpx, 2 on httpx2; this names whichever it is.
_TransportError: type[Exception] = HfHubHTTPError.__mro__[1]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Files of one checkpoint at one moment: where they are, and the Hub's commit hash (None for a local folder)."""

    folder: Path
    revision: str | None


def resolve(
    path_or_id: str | os.PathLike[str],
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
    patterns: Sequence[str],
    endpoint: str | None = None,
) -> Snapshot:
    """Find a checkpoint's files; those of the Hub that match ``patterns`` (file name globs) are downloaded if need be.

    An existing folder wins over a Hub repository of the same name. A pattern that matches nothing is no error: which
    files are indispensable is for the reader of the folder to say. ``HF_HUB_OFFLINE``, ``HF_HOME``, ``HF_TOKEN`` and
    ``HF_ENDPOINT`` mean what they mean to huggingface_hub; ``endpoint`` overrules the last.

    Raises CheckpointError where there is no such folder, repository or revision, or where it cannot be reached.
    """
    name = os.fspath(path_or_id)
    folder = Path(name).expanduser()
    if name and folder.is_dir():
        if revision is not None:
            raise CheckpointError(f"{name!r} is a local folder and has no revisions: drop revision={revision!r}")
        return Snapshot(folder, None)
    if isinstance(path_or_id, os.PathLike) or _looks_like_a_path(name):
        raise CheckpointError(_no_folder(name, folder))
    try:
        downloaded = snapshot_download(
            name,
            revision=revision,
            cache_dir=None if cache_dir is None else Path(cache_dir),
            local_files_only=local_files_only,
            token=token,
            allow_patterns=list(patterns),
            endpoint=endpoint,
        )
    except (_TransportError, OSError, HFValidationError) as error:
        offline = local_files_only or constants.is_offline_mode()
        raise CheckpointError(_reason(error, name, revision, offline)) from error
    # The cache keeps each commit's files in a folder named by its hash.
    return Snapshot(Path(downloaded), Path(downloaded).name)


def _looks_like_a_path(name: str) -> bool:
    """True for what no Hub id can be: nothing, absolute or relative paths, URLs, and names of existing files."""
    return (
        name.startswith(("/", ".", "~"))
        or name.endswith("/")
        or name.count("/") > 1
        or "\\" in name
        or name == ""
        or Path(name).is_file()
    )


def _no_folder(name: str, folder: Path) -> str:
    if folder.is_file():
        return f"{name!r} is a file: name the folder that holds it ({str(folder.parent)!r})"
    return f"there is no folder {name!r}: correct the path, or name a repository ({_EXAMPLE_IDS})"


def _reason(error: Exception, name: str, revision: str | None, offline: bool) -> str:
    """What stopped the download, with the remedy. The order matters: a gated repository is also a missing one."""
    what = f"{name!r} at revision {revision!r}" if revision else f"{name!r}"
    if isinstance(error, GatedRepoError):
        return (
            f"the Hub repository {what} is gated: accept its terms on its page, then run hf auth login or pass token="
        )
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"there is neither a folder {name!r} here nor a model {what} on the Hub: check the spelling "
            f"({_EXAMPLE_IDS}); a private repository needs a token (hf auth login, HF_TOKEN or token=)"
        )
    if isinstance(error, RevisionNotFoundError):
        return f"the Hub repository {name!r} has no revision {revision!r}: name a branch, a tag or a full commit hash"
    if isinstance(error, LocalTokenNotFoundError):
        return f"token=True asks for a saved token to read {what}, and there is none: run hf auth login or set HF_TOKEN"
    if isinstance(error, HFValidationError):
        return f"{name!r} is neither a folder here nor a possible repository name: {_EXAMPLE_IDS}"
    if isinstance(error, LocalEntryNotFoundError) and offline:
        return (
            f"{what} is not, or not wholly, in the local Hub cache, there is no folder of that name here, and "
            "downloads are switched off (HF_HUB_OFFLINE or local_files_only): download it where the network may be used"
        )
    return _unreachable(error, what)


def _unreachable(error: Exception, what: str) -> str:
    # Where the cache could not help either, huggingface_hub says so, and what went wrong at first is the cause.
    cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) and error.__cause__ else error
    if isinstance(cause, HfHubHTTPError):
        status = cause.response.status_code
        if status in (401, 403):
            return f"the Hub refuses {what} (HTTP {status}): check the token (hf auth login, HF_TOKEN or token=)"
        return (
            f"the Hub failed to deliver {what} (HTTP {status}), and the local cache does not hold it: try again later"
        )
    if isinstance(error, LocalEntryNotFoundError) or not isinstance(error, OSError):
        return (
            f"the Hub cannot be reached for {what}, and the local cache does not hold it "
            f"({type(cause).__name__}: {cause}): check the network and HF_ENDPOINT, or name a local folder"
        )
    return (
        f"{what} could not be stored in the local Hub cache: {error}; check its space and rights (HF_HOME, cache_dir)"
    )
