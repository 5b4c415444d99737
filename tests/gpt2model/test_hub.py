"""Finding files: folders, and a stand-in for the Hub that answers what huggingface_hub asks."""

import hashlib
import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch

from gpt2model import hub
from gpt2model.checkpoint import inspect_checkpoint, load_checkpoint, save_checkpoint
from gpt2model.config import GPT2Config
from gpt2model.errors import CheckpointError
from gpt2model.heads import GPT2LMHeadModel

COMMIT = "0123456789abcdef0123456789abcdef01234567"
# Repository names that stand for a fault: HTTP status and the Hub's error code.
FAULTS = {
    "nobody/nothing": (404, "RepoNotFound"),
    "gated/model": (403, "GatedRepo"),
    "closed/model": (403, ""),
    "broken/model": (501, ""),
}


class StandIn(ThreadingHTTPServer):
    """A Hub with one repository, some/gpt2; remembers the paths of the requests and the tokens they bore."""

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.asked, self.tokens = files, list[str](), set[str | None]()
        self.largest_in_git = 4000

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def blob_name(self, data: bytes) -> str:
        """The Hub names large files by their sha256, others by a hash of git."""
        return (hashlib.sha256 if len(data) > self.largest_in_git else hashlib.sha1)(data).hexdigest()

    def tree_entry(self, name: str) -> dict[str, Any]:
        data = self.files[name]
        entry = {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
        if len(data) > self.largest_in_git:
            entry["lfs"] = {"oid": self.blob_name(data), "size": len(data), "pointerSize": 130}
        return entry

    @property
    def downloads(self) -> set[str]:
        return {path.rsplit("/", 1)[1] for path in self.asked if path.startswith("GET") and "/resolve/" in path}


class Handler(BaseHTTPRequestHandler):
    server: StandIn
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing on stderr."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        self.server.asked.append(f"{self.command} {path}")
        self.server.tokens.add(self.headers.get("Authorization"))
        for name, (status, code) in FAULTS.items():
            if f"/{name}/" in path:
                return self._reply(status, b"{}", {"X-Error-Code": code} if code else {})
        if path.startswith("/api/models/some/gpt2/"):
            return self._api(*path.removeprefix("/api/models/some/gpt2/").split("/")[:2])
        data = self.server.files.get(path.removeprefix(f"/some/gpt2/resolve/{COMMIT}/"))
        if data is None:
            return self._reply(404, b"", {"X-Error-Code": "EntryNotFound"})
        headers = {"ETag": f'"{self.server.blob_name(data)}"', "X-Repo-Commit": COMMIT, "X-Linked-Size": str(len(data))}
        return self._reply(200, data, headers)

    def _api(self, kind: str, revision: str) -> None:
        if revision not in ("main", "v1", COMMIT):
            return self._reply(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        answer: Any = {
            "id": "some/gpt2",
            "sha": COMMIT,
            "siblings": [{"rfilename": name} for name in self.server.files],
        }
        if kind == "tree":
            answer = [self.server.tree_entry(name) for name in self.server.files]
        return self._reply(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _reply(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One small model as safetensors, in shards, and as pytorch_model.bin."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=16, n_embd=32, n_layer=2, n_head=2))
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in ("whole", "shards", "pickle")}
    save_checkpoint(model, folders["whole"])
    save_checkpoint(model, folders["shards"], max_shard_size="40KB")
    save_checkpoint(model, folders["pickle"], safe_serialization=False)
    return folders


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """The suite is offline; these tests reach the stand-in, and no proxy that the machine may have."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    huggingface_hub.close_session()


@pytest.fixture
def stand_in(online: None, saved: dict[str, Path]) -> Iterator[StandIn]:
    files = {path.name: path.read_bytes() for path in saved["whole"].iterdir()}
    files |= {"pytorch_model.bin": b"\x00not wanted", "README.md": b"not wanted", "onnx/model.onnx": b"\x00"}
    server = StandIn(files)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def serve(server: StandIn, folder: Path) -> None:
    server.files = {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_folder_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gpt2").mkdir()
    monkeypatch.chdir(tmp_path)
    assert hub.resolve("gpt2", patterns=["*"]) == hub.Snapshot(Path("gpt2"), None)
    assert hub.resolve(tmp_path / "gpt2", patterns=[]) == hub.Snapshot(tmp_path / "gpt2", None)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert hub.resolve("~/gpt2", patterns=[]).folder == tmp_path / "gpt2"


@pytest.mark.parametrize(
    "missing",
    ["/no/such", "./no", "../no", "~/no/such", "a/b/c", "s3://bucket/model", "no/", "a\\b", "", Path("no/such")],
)
def test_a_missing_folder_is_refused_and_told_what_an_id_looks_like(missing: str | Path) -> None:
    with pytest.raises(CheckpointError) as raised:
        hub.resolve(missing, patterns=["*"])
    assert f"there is no folder {str(missing)!r}" in str(raised.value)
    assert "'openai-community/gpt2'" in str(raised.value)


def test_a_file_in_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(CheckpointError, match=r"is a file: name the folder that holds it"):
        hub.resolve(tmp_path / "model.safetensors", patterns=["*"])


def test_a_revision_of_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"local folder.*drop revision='v1'"):
        hub.resolve(tmp_path, revision="v1", patterns=["*"])


def test_only_matching_files_are_downloaded_and_the_commit_is_told(stand_in: StandIn, tmp_path: Path) -> None:
    snapshot = hub.resolve("some/gpt2", cache_dir=tmp_path, patterns=["config.json"], endpoint=stand_in.endpoint)
    assert snapshot.revision == COMMIT
    assert [path.name for path in snapshot.folder.iterdir()] == ["config.json"]
    assert stand_in.downloads == {"config.json"}


def test_a_model_of_the_hub_loads_from_safetensors_alone(
    stand_in: StandIn, saved: dict[str, Path], tmp_path: Path
) -> None:
    options: dict[str, Any] = {
        "cache_dir": tmp_path,
        "revision": "v1",
        "endpoint": stand_in.endpoint,
        "token": "hf_abc",
    }
    model = load_checkpoint(GPT2LMHeadModel, "some/gpt2", **options)
    assert stand_in.downloads == {"config.json", "generation_config.json", "model.safetensors"}
    assert stand_in.tokens == {"Bearer hf_abc"}
    here = load_checkpoint(GPT2LMHeadModel, saved["whole"])
    assert all(torch.equal(weight, here.state_dict()[name]) for name, weight in model.state_dict().items())


@pytest.mark.parametrize("kind", ["shards", "pickle"])
def test_a_model_of_the_hub_loads_from_other_formats(
    kind: str, stand_in: StandIn, saved: dict[str, Path], tmp_path: Path
) -> None:
    serve(stand_in, saved[kind])
    load_checkpoint(GPT2LMHeadModel, "some/gpt2", cache_dir=tmp_path, endpoint=stand_in.endpoint)
    assert stand_in.downloads == set(stand_in.files)


def test_what_is_cached_loads_without_the_network(
    stand_in: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"cache_dir": tmp_path, "endpoint": stand_in.endpoint}
    load_checkpoint(GPT2LMHeadModel, "some/gpt2", **options)
    asked = list(stand_in.asked)
    load_checkpoint(GPT2LMHeadModel, "some/gpt2", local_files_only=True, **options)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    load_checkpoint(GPT2LMHeadModel, "some/gpt2", **options)
    assert GPT2Config.from_pretrained("some/gpt2", revision=COMMIT, **options).n_layer == 2
    assert stand_in.asked == asked


@pytest.mark.parametrize("largest_in_git", [4000, 10**9])
def test_digests_of_cached_files_are_right(
    largest_in_git: int, stand_in: StandIn, saved: dict[str, Path], tmp_path: Path
) -> None:
    stand_in.largest_in_git = largest_in_git
    info = inspect_checkpoint("some/gpt2", model_class=GPT2LMHeadModel, cache_dir=tmp_path, endpoint=stand_in.endpoint)
    here = inspect_checkpoint(saved["whole"], model_class=GPT2LMHeadModel)
    assert (info.revision, here.revision) == (COMMIT, None)
    assert info.files == here.files
    assert here.files[0].sha256 == hashlib.sha256((saved["whole"] / "model.safetensors").read_bytes()).hexdigest()


def test_a_digest_that_the_cache_tells_is_not_computed_again(stand_in: StandIn, tmp_path: Path) -> None:
    options: dict[str, Any] = {"cache_dir": tmp_path, "endpoint": stand_in.endpoint}
    info = inspect_checkpoint("some/gpt2", model_class=GPT2LMHeadModel, **options)
    file = (info.folder / "model.safetensors").resolve()
    damaged = bytearray(file.read_bytes())
    damaged[-1] ^= 1
    file.write_bytes(damaged)
    assert inspect_checkpoint("some/gpt2", model_class=GPT2LMHeadModel, **options).files == info.files


@pytest.mark.parametrize(
    ("name", "revision", "words"),
    [
        ("nobody/nothing", None, ["'nobody/nothing'", "neither a folder", "spelling", "'gpt2'", "HF_TOKEN"]),
        ("nobody/nothing", "v7", ["'nobody/nothing' at revision 'v7'"]),
        ("some/gpt2", "v7", ["'some/gpt2'", "no revision 'v7'", "branch"]),
        ("gated/model", None, ["'gated/model'", "accept its terms", "hf auth login"]),
        ("closed/model", None, ["refuses 'closed/model'", "403", "HF_TOKEN"]),
        ("broken/model", None, ["failed to deliver 'broken/model'", "501", "again later"]),
        ("a b", None, ["'a b'", "neither a folder here nor a possible", "'gpt2'"]),
    ],
)
def test_what_the_hub_refuses_is_told_with_name_revision_and_remedy(
    name: str, revision: str | None, words: list[str], stand_in: StandIn, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError) as raised:
        hub.resolve(name, revision=revision, cache_dir=tmp_path, patterns=["*"], endpoint=stand_in.endpoint)
    assert [word for word in words if word not in str(raised.value)] == []


@pytest.mark.parametrize("local_files_only", [True, False])
def test_offline_and_not_cached_is_told(
    local_files_only: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", not local_files_only)
    with pytest.raises(CheckpointError) as raised:
        hub.resolve("some/gpt2", cache_dir=tmp_path, local_files_only=local_files_only, patterns=["*"])
    for word in ("'some/gpt2'", "local Hub cache", "HF_HUB_OFFLINE", "download it"):
        assert word in str(raised.value)


def test_a_cache_that_lacks_a_file_is_told_offline(stand_in: StandIn, tmp_path: Path) -> None:
    options: dict[str, Any] = {"cache_dir": tmp_path, "endpoint": stand_in.endpoint}
    hub.resolve("some/gpt2", patterns=["config.json"], **options)
    with pytest.raises(CheckpointError, match=r"'some/gpt2' is not, or not wholly, in the local Hub cache"):
        load_checkpoint(GPT2LMHeadModel, "some/gpt2", local_files_only=True, **options)


def test_a_network_that_is_down_is_told(online: None, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(CheckpointError) as raised:
        hub.resolve("some/gpt2", cache_dir=tmp_path, patterns=["*"], endpoint=f"http://127.0.0.1:{port}")
    for word in ("'some/gpt2'", "cannot be reached", "ConnectError", "HF_ENDPOINT"):
        assert word in str(raised.value)


def test_a_cache_that_cannot_be_written_is_told(stand_in: StandIn, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"'some/gpt2' could not be stored in the local Hub cache.*HF_HOME"):
        hub.resolve("some/gpt2", cache_dir=tmp_path / "file", patterns=["*"], endpoint=stand_in.endpoint)


def test_a_saved_token_that_is_not_there_is_told(
    stand_in: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    with pytest.raises(CheckpointError, match=r"token=True asks for a saved token to read 'some/gpt2'.*hf auth login"):
        hub.resolve("some/gpt2", cache_dir=tmp_path, patterns=["*"], endpoint=stand_in.endpoint, token=True)


def test_a_repository_without_weights_is_told(stand_in: StandIn, tmp_path: Path) -> None:
    stand_in.files = {"config.json": stand_in.files["config.json"], "tf_model.h5": b"\x00"}
    with pytest.raises(CheckpointError, match=r"holds no weights \(model.safetensors, pytorch_model.bin"):
        load_checkpoint(GPT2LMHeadModel, "some/gpt2", cache_dir=tmp_path, endpoint=stand_in.endpoint)
