"""What `pipeline push` does: a finished run becomes a dataset on the Hugging Face Hub, or a folder like it.

Content is sent first, and takes effect by commits. Where one commit is too small for all parts, the first of several
puts a card there that names no data, and the last one the card that does: nothing half arrived can be loaded.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pyarrow import fs

from pipeline import card
from pipeline.errors import JobError, PushError, StoreError
from pipeline.finished import FinishedRun, read_finished
from pipeline.push_progress import UploadWatch
from pipeline.retries import explain

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd

    from pipeline.repository import Operation, Repository, Standing

PARTS_A_COMMIT = 500
"""The Hub takes long over large commits, and refuses many small ones."""
PARTS_AT_ONCE = 16
"""Sent together; of an output that is not on this machine so many are copied here at a time."""
FILES_A_FOLDER = 10_000
"""The Hub has no larger folders."""
GITATTRIBUTES = ".gitattributes"

Item = TypeVar("Item")

_PART = re.compile(r"data/(?:\d+/)?part-[\d-]+-[0-9a-f]{10}\.parquet")


@dataclass(frozen=True, slots=True)
class Target:
    """Where to, and how."""

    repo: str
    """user/name."""
    revision: str | None = None
    """Branch; None: main."""
    public: bool = False
    update: bool = False
    """Put the run in place of another that stands there, or beside the files of others."""
    message: str | None = None
    """Of the last commit."""


@dataclass(frozen=True, slots=True)
class Pushed:
    """A run that stands on the Hub whole."""

    url: str
    commit: str
    public: bool
    sent: int
    """Parts that were not there before this command."""

    def __str__(self) -> str:
        seen = "public" if self.public else "private"
        return f"{self.url} ({seen}) holds the run whole, at commit {self.commit}; {self.sent:,} parts are new there"


def push(output: str, target: Target, watch: UploadWatch, quietly: bool = True) -> Pushed:
    """Upload the run in folder `output` (a path or URI), or go on with that.

    Raises JobError where there is no finished run, the repository is another's or the token won't do, and PushError
    where the upload broke off.
    """
    from pipeline.repository import Repository, quiet

    if quietly:
        quiet()
    run = read_finished(output)
    repository = Repository(target.repo, target.revision)
    public = _open(repository, target)
    standing = repository.standing()
    _refuse_taken(standing, run, target)
    repository.begin()
    upload = _Upload(run, target, repository, standing, watch)
    with watch:
        upload.complete()
    _check_arrived(upload)
    if target.public and not public:
        watch.log(f"{target.repo} is private as it was before: its settings on the Hub make it public")
    return Pushed(repository.url, upload.head, public, upload.sent)


def _open(repository: Repository, target: Target) -> bool:
    """Make the repository where there is none; returns whether everybody sees it."""
    public = repository.visible()
    if public is None:
        repository.create(target.public)
        return target.public
    if public and not target.public:
        raise JobError(
            f"everybody can see {target.repo}, and --public is not given: give it, make the repository private in its "
            "settings, or give another --repo"
        )
    return public


def _refuse_taken(standing: Standing, run: FinishedRun, target: Target) -> None:
    stands = card.pushed_run(standing.card)
    others = sorted(path for path in standing.files if path != GITATTRIBUTES)
    if not others or target.update or (stands and (standing.fresh or stands == run.fingerprint)):
        return
    if stands is None:
        raise JobError(
            f"the name {target.repo} is taken: it holds {others[0]!r} and no run that was pushed: give another --repo, "
            "or --update to put the run beside what is there (README.md is kept, below the card)"
        )
    raise JobError(
        f"{target.repo} holds another run ({stands[:10]}, and this is {run.fingerprint[:10]}): give another "
        "--repo, a branch by --revision, or --update to put this run in its place"
    )


class _Upload:
    """One run on its way into one branch."""

    def __init__(
        self, run: FinishedRun, target: Target, repository: Repository, standing: Standing, watch: UploadWatch
    ) -> None:
        self.source, self.target, self.repository = run, target, repository
        self.standing, self.watch = standing, watch
        self.head, self.sent = standing.commit, 0
        self.places = places_of([info.base_name for info in run.parts])
        self._card = standing.card

    def complete(self) -> None:
        """Send all parts and commit them, then the card."""
        groups = list(_chunks(self.source.parts, PARTS_A_COMMIT))
        self.watch.begin(len(self.source.parts), sum(info.size for info in self.source.parts))
        for number, group in enumerate(groups, start=1):
            last = number == len(groups)
            with tempfile.TemporaryDirectory() as folder:
                operations: list[Operation] = [*self._send(group, Path(folder))]
                if last:
                    operations += self._removals()
                if last or operations:
                    operations += self._cards(finished=last)
                if operations:
                    self._commit(operations, f"{number} of {len(groups)}" if len(groups) > 1 else None)

    def _send(self, group: Sequence[fs.FileInfo], folder: Path) -> Iterator[CommitOperationAdd]:
        """The parts of a group that do not stand there yet, their content sent."""
        for several in _chunks(group, PARTS_AT_ONCE):
            missing = [each for info in several if (each := self._addition(info, folder)) is not None]
            if missing:
                self.repository.upload(missing)
            for addition in missing:
                if addition.path_or_fileobj == b"":  # sent, and no more needed
                    (folder / Path(addition.path_in_repo).name).unlink(missing_ok=True)
            self.sent += len(missing)
            self.watch.advance(len(several), sum(info.size for info in several))
            yield from missing

    def _addition(self, info: fs.FileInfo, folder: Path) -> CommitOperationAdd | None:
        from huggingface_hub import CommitOperationAdd

        place = self.places[info.base_name]
        addition = CommitOperationAdd(place, local_copy(self.source, info, folder))
        held = self.standing.files.get(place)
        if held is None or addition.upload_info.sha256.hex() != held:
            return addition
        (folder / info.base_name).unlink(missing_ok=True)
        return None

    def _removals(self) -> list[Operation]:
        """Parts of a run that stood there before."""
        from huggingface_hub import CommitOperationDelete

        ours = set(self.places.values())
        return [
            CommitOperationDelete(path) for path in self.standing.files if _PART.fullmatch(path) and path not in ours
        ]

    def _cards(self, finished: bool) -> list[Operation]:
        """The card, where another one stands."""
        from huggingface_hub import CommitOperationAdd

        pattern = pattern_of(self.places)
        text = card.write_card(
            self.source, self.target.repo, self.target.revision, pattern, finished, standing=self._card
        )
        if text == self._card:
            return []
        self._card = text
        return [CommitOperationAdd(card.NAME, text.encode())]

    def _commit(self, operations: Sequence[Operation], number: str | None) -> None:
        message = self.target.message or f"Push run {self.source.fingerprint[:10]}"
        self.head = self.repository.commit(operations, f"{message} ({number})" if number else message, self.head)
        self.watch.log(f"committed {number or 'all'}: {self.head[:10]}")


def _check_arrived(upload: _Upload) -> None:
    """Look once more at what stands there: a .gitignore in the repository keeps files out without a word."""
    files = upload.repository.files(upload.head)
    missing = [place for place in upload.places.values() if place not in files]
    if missing:
        raise PushError(
            f"{upload.target.repo} took the commit and holds no {missing[0]} ({len(missing):,} parts are missing): "
            "look for a .gitignore there, or for somebody who writes to it; then the same command goes on"
        )


def places_of(names: Sequence[str]) -> Mapping[str, str]:
    """Path in the repository of each part; in several folders where one may not hold them all."""
    if len(names) <= FILES_A_FOLDER:
        return {name: f"data/{name}" for name in names}
    return {name: f"data/{number // FILES_A_FOLDER:04d}/{name}" for number, name in enumerate(names)}


def pattern_of(places: Mapping[str, str]) -> str:
    """A glob over the paths of one run's parts, and of no other's."""
    name, place = next(iter(places.items()))
    folder = "data/*" if place.count("/") > 1 else "data"
    return f"{folder}/part-*-{name.rpartition('-')[2]}"


def local_copy(run: FinishedRun, info: fs.FileInfo, folder: Path) -> str:
    """The path of a part on this machine: its own, or that of a copy in `folder`."""
    if run.store.folder.local:
        return str(info.path)
    copy = folder / info.base_name
    content = run.store.read_whole(info.path)
    try:
        copy.write_bytes(content)
    except OSError as error:
        raise StoreError(f"{copy} can't be written: {explain(error)}") from error
    return str(copy)


def write_folder(output: str, target: Target, folder: Path, watch: UploadWatch) -> None:
    """Write what `push` would upload into `folder`, which must be new or empty. Touches no network.

    Parts that are on the same disk are linked, not copied. Raises JobError and StoreError.
    """
    run = read_finished(output)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise JobError(f"--dry-run {folder} is there already, and not empty: give a new folder")
    if run.store.folder.local and folder.absolute().is_relative_to(run.store.folder.path):
        raise JobError(f"--dry-run {folder} is inside the run's own folder: give another one")
    places = places_of([info.base_name for info in run.parts])
    text = card.write_card(run, target.repo, target.revision, pattern_of(places))
    draft = folder.absolute().parent / f".{folder.absolute().name}.{uuid.uuid4().hex[:8]}"
    try:
        with watch:
            watch.begin(len(run.parts), sum(info.size for info in run.parts))
            for info in run.parts:
                _place(run, info, draft / places[info.base_name])
                watch.advance(1, info.size)
        (draft / card.NAME).write_text(text, encoding="utf-8")
        draft.replace(folder.absolute())
    except OSError as error:
        raise StoreError(f"--dry-run {folder} can't be written: {explain(error)}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _place(run: FinishedRun, info: fs.FileInfo, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    source = local_copy(run, info, target.parent)
    if Path(source) == target:
        return
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without links
        shutil.copyfile(source, target)


def _chunks(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    return (items[start : start + size] for start in range(0, len(items), size))
