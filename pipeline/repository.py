"""A dataset repository on the Hugging Face Hub: what stands in it, and commits to it. Knows nothing of runs."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils.tqdm import disable_progress_bars

from pipeline import __version__
from pipeline.errors import JobError, PipelineError, PushError

MAIN = "main"
TOKEN = "log in by `hf auth login`, or set HF_TOKEN to a token with write permission (hf.co/settings/tokens)"
AGAIN = "the same command goes on, and sends nothing again that arrived"
# Root of the transport's errors. huggingface_hub 1 stands on httpx, 2 on httpx2; this names whichever it is.
_TransportError: type[Exception] = HfHubHTTPError.__mro__[1]

Operation = CommitOperationAdd | CommitOperationDelete


def quiet() -> None:
    """Keep the library from telling of its own progress and retries on stderr, where it writes out signed addresses."""
    disable_progress_bars()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


@dataclass(frozen=True, slots=True)
class Standing:
    """What a branch holds at one commit."""

    commit: str
    files: Mapping[str, str | None]
    """Paths, and the SHA-256 of those that the Hub stores by it."""
    card: str | None
    """README.md."""
    fresh: bool = False
    """The branch holds what main does, and nobody has written to it."""


class Repository:
    """One branch of one dataset repository. Every method raises JobError for a token or name that won't do (exit code
    2), and PushError for what may go well another time."""

    def __init__(self, repo: str, revision: str | None = None) -> None:
        self.repo, self.branch = repo, revision or MAIN
        self._token = get_token()
        self._api = HfApi(token=self._token, library_name="gpt2-pipeline", library_version=__version__)
        if repo.count("/") != 1:
            raise JobError(f"--repo {repo!r} names no owner and repository: write user/name, or organisation/name")
        if self._token is None:
            raise JobError(f"there is no token to write to {repo} with: {TOKEN}")

    @property
    def url(self) -> str:
        """The page of the branch."""
        page = f"{self._api.endpoint}/datasets/{self.repo}"
        return page if self.branch == MAIN else f"{page}/tree/{self.branch}"

    def visible(self) -> bool | None:
        """Whether everybody sees the repository; None where there is none that this token sees."""
        with self._told():
            try:
                return not self._api.dataset_info(self.repo).private
            except RepositoryNotFoundError:
                return None

    def create(self, public: bool) -> None:
        """Make the repository."""
        with self._told(creating=True):
            self._api.create_repo(self.repo, repo_type="dataset", private=not public)

    def standing(self) -> Standing:
        """What the branch holds, or main where there is no such branch yet."""
        with self._told():
            main = self._head(MAIN)
            here = main if self.branch == MAIN else self._head(self.branch)
            commit = here or main
            if commit is None:
                raise PushError(f"{self.repo} has no branch {MAIN}: make one on its page, then {AGAIN}")
            files = self.files(commit)
            card = self._read(commit, "README.md") if "README.md" in files else None
            return Standing(commit, files, card, fresh=self.branch != MAIN and commit == main)

    def files(self, commit: str) -> dict[str, str | None]:
        """The paths at a commit, and the SHA-256 of those that the Hub stores by it."""
        with self._told():
            entries = self._api.list_repo_tree(self.repo, recursive=True, revision=commit, repo_type="dataset")
            found = [entry for entry in entries if isinstance(entry, RepoFile)]
        return {entry.path: None if entry.lfs is None else entry.lfs.sha256 for entry in found}

    def begin(self) -> None:
        """Make the branch where there is none."""
        if self.branch != MAIN:
            with self._told():
                self._api.create_branch(self.repo, branch=self.branch, repo_type="dataset", exist_ok=True)

    def upload(self, additions: Sequence[CommitOperationAdd]) -> None:
        """Send the content of files that are to be committed later, where the Hub has not got it already."""
        with self._told():
            self._api.preupload_lfs_files(self.repo, additions, repo_type="dataset", revision=self.branch)

    def commit(self, operations: Sequence[Operation], message: str, parent: str) -> str:
        """Commit on top of `parent`, and only there; returns the new commit."""
        with self._told():
            done = self._api.create_commit(
                self.repo,
                operations,
                commit_message=message,
                repo_type="dataset",
                revision=self.branch,
                parent_commit=parent,
            )
        return str(done.oid)

    def _head(self, revision: str) -> str | None:
        try:
            return self._api.dataset_info(self.repo, revision=revision).sha
        except RevisionNotFoundError:
            return None

    def _read(self, commit: str, path: str) -> str:
        with tempfile.TemporaryDirectory() as folder:
            file = self._api.hf_hub_download(
                self.repo, path, repo_type="dataset", revision=commit, cache_dir=Path(folder)
            )
            return Path(file).read_text(encoding="utf-8")

    @contextmanager
    def _told(self, creating: bool = False) -> Iterator[None]:
        """What the Hub, the network or the upload library says, as one short paragraph without the token."""
        try:
            yield
        except PipelineError:
            raise
        except HFValidationError as error:
            raise JobError(f"--repo {self.repo!r} can't be the name of a repository: {error}") from error
        except HfHubHTTPError as error:
            raise self._refusal(error, creating) from error
        except (_TransportError, OSError, RuntimeError, ValueError) as error:
            said = self._reason(error).rstrip(".:")
            remedy = (
                f"a Hub without Xet takes uploads with HF_HUB_DISABLE_XET=1; {AGAIN}" if "xet-write" in said else AGAIN
            )
            raise PushError(f"the upload to {self.repo} broke off: {said}: {remedy}") from error

    def _refusal(self, error: HfHubHTTPError, creating: bool) -> PipelineError:
        status, said = error.response.status_code, self._reason(error)
        if status == 401:
            return JobError(f"the Hub does not take this token for {self.repo} (HTTP 401): {TOKEN}")
        if status == 403:
            return JobError(
                f"this token may not write to {self.repo} (HTTP 403: {said}): name a place of yours, or {TOKEN}"
            )
        if status == 409 and creating:
            return JobError(
                f"the name {self.repo} is taken, by what this token does not see (HTTP 409): give another --repo, or "
                f"{TOKEN}"
            )
        if status in (409, 412):
            return PushError(f"{self.repo} was written to meanwhile (HTTP {status}): {AGAIN}")
        if status == 404:
            return JobError(f"the Hub finds no dataset {self.repo} with branch {self.branch} for this token: {TOKEN}")
        return PushError(f"the Hub failed with {self.repo} (HTTP {status}: {said}): {AGAIN}")

    def _reason(self, error: BaseException) -> str:
        """The innermost cause, on one line: the library wraps what a thread of it met."""
        while error.__cause__ is not None and isinstance(error, RuntimeError):
            error = error.__cause__
        told = getattr(error, "server_message", None) or str(error) or type(error).__name__
        text = " ".join(str(told).split())
        return text.replace(self._token, "***") if self._token else text
