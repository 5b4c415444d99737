"""`pipeline push`: a finished run becomes a dataset on the Hub, which a stand-in on the loopback is here."""

import io
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import datasets
import huggingface_hub
import pyarrow as pa
import pytest
from huggingface_hub import constants
from rich.console import Console

from pipeline import push as command
from pipeline.lease import Lease
from pipeline.locations import locate
from pipeline.push_progress import UploadWatch
from pipeline.store import Store
from tests.pipeline.hub_stand_in import TOKEN, StandIn, serving
from tests.pipeline.pushing import SCHEMA, finish, load, metadata, parts_in, push, pushed, refused, table, whole
from tests.pipeline.test_store import footer, make_plan

# httpx2 about how huggingface_hub gives it a file.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

BRANCH = "nights/2026-11-24"


@pytest.fixture
def out(tmp_path: Path) -> str:
    finish(str(tmp_path / "out"))
    return str(tmp_path / "out")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[StandIn]:
    """The only Hub there is, and a token to it. It has no Xet, and the suite is offline but for it."""
    with serving() as server:
        for module, name in [(constants, "ENDPOINT"), (datasets.config, "HF_ENDPOINT")]:
            monkeypatch.setattr(module, name, server.endpoint)
        template = f"{server.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        for module in (constants, datasets.config):
            monkeypatch.setattr(module, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        huggingface_hub.close_session()
        yield server
        huggingface_hub.close_session()


def test_a_dry_run_writes_a_folder_that_loads_and_asks_nobody(hub: StandIn, out: str, tmp_path: Path) -> None:
    done = pushed(out, "--dry-run", tmp_path / "folder")
    assert (hub.asked, "nothing was uploaded" in done.stdout) == ([], True)
    files = {str(file.relative_to(tmp_path / "folder")) for file in (tmp_path / "folder").rglob("*") if file.is_file()}
    assert files == {"README.md", *parts_in(Path(out))}
    linked = next((tmp_path / "folder" / "data").iterdir())
    assert linked.samefile(Path(out) / linked.name)
    assert load(str(tmp_path / "folder"), tmp_path).equals(whole())


@pytest.mark.parametrize("folder", ["full", "file", "out/inside"])
def test_a_dry_run_into_something_that_is_there_is_refused(folder: str, out: str, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    (tmp_path / "file").touch()
    refused(push(out, "--dry-run", tmp_path / folder), 2, ["--dry-run", folder, "give a"])
    assert {file.name for file in tmp_path.iterdir()} == {"full", "file", "out"}


def test_an_output_that_is_no_finished_run_is_refused(hub: StandIn, tmp_path: Path) -> None:
    finish(str(tmp_path / "half"), parts=3)
    refused(push(str(tmp_path / "half")), 2, ["has not finished", "summary.json", "`pipeline run`"])
    finish(str(tmp_path / "lost"))
    next((tmp_path / "lost").glob("part-00002*")).unlink()
    refused(push(str(tmp_path / "lost")), 2, ["3 of 4 parts with 230 rows", "ended with 280 rows", "`pipeline run`"])
    (tmp_path / "empty").mkdir()
    refused(push(str(tmp_path / "empty")), 2, [str(tmp_path / "empty"), "holds no run"])
    finish(str(tmp_path / "torn"))
    next((tmp_path / "torn").glob("part-00001*")).write_bytes(b"PAR1")
    refused(push(str(tmp_path / "torn")), 2, ["part-00001", "can't be read"])
    finish(str(tmp_path / "busy"))
    with Lease(Store(locate(str(tmp_path / "busy"), "OUT"))):
        refused(push(str(tmp_path / "busy")), 2, ["its run goes on", str(os.getpid()), "wait"])
    assert hub.asked == []


@pytest.mark.parametrize("branch", [None, BRANCH])
def test_what_is_pushed_is_private_and_loads_from_the_hub(
    branch: str | None, hub: StandIn, out: str, tmp_path: Path
) -> None:
    named = ["--revision", branch] if branch else []
    done = pushed(out, *named, "--message", "The scores")
    repo = hub.repos["anna/scores"]
    files = hub.files("anna/scores", branch or "main")
    card = files.pop("README.md").decode()
    assert files == parts_in(Path(out))
    assert (repo.private, repo.messages) == (True, ["initial commit", "The scores"])
    assert f"{hub.endpoint}/datasets/anna/scores" in done.stdout
    assert repo.branches[branch or "main"] in done.stdout
    assert (f"revision='{branch}'" in card) == (branch is not None)
    assert load("anna/scores", tmp_path, revision=branch).equals(whole())
    if branch:
        assert hub.files("anna/scores") == {}


def test_a_push_of_what_is_there_sends_and_commits_nothing(hub: StandIn, out: str) -> None:
    pushed(out, "--public")
    before = list(hub.received)
    done = pushed(out, "--public")
    assert (hub.received, len(hub.repos["anna/scores"].messages)) == (before, 2)
    assert (hub.repos["anna/scores"].private, "0 parts are new" in done.stdout) == (False, True)


def test_a_dropped_connection_is_told_and_the_same_command_sends_the_rest(hub: StandIn, out: str) -> None:
    def drop(method: str, path: str) -> None:
        if method == "PUT" and len(hub.received) >= 2:
            raise ConnectionAbortedError

    hub.fault = drop
    refused(push(out), 1, ["anna/scores", "broke off", "same command goes on"])
    assert hub.files("anna/scores") == {}
    before = sum(hub.received)
    hub.fault = lambda method, path: None
    pushed(out)
    sizes = [len(data) for data in parts_in(Path(out)).values()]
    assert len(hub.received) == len(sizes)
    assert sum(hub.received) - before < sum(sizes) == sum(hub.received)
    assert {**hub.files("anna/scores"), **parts_in(Path(out))} == hub.files("anna/scores")


def test_a_push_killed_with_sigkill_is_gone_on_with_and_sends_less(hub: StandIn, out: str, tmp_path: Path) -> None:
    reached, go_on = threading.Event(), threading.Event()

    def block(method: str, path: str) -> None:
        if method == "PUT" and len(hub.received) >= 2:
            reached.set()
            go_on.wait()
            raise ConnectionAbortedError

    hub.fault = block
    line = [sys.executable, "-m", "pipeline", "push", out, "--repo", "anna/scores"]
    environment = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    with open(tmp_path / "log", "wb") as log:
        process = subprocess.Popen(line, env=environment, stdout=log, stderr=log)
        while not reached.wait(timeout=0.1):
            assert process.poll() is None, (tmp_path / "log").read_text()
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    hub.fault = lambda method, path: None
    go_on.set()
    assert hub.files("anna/scores") == {}
    arrived = len(hub.received)
    pushed(out)
    assert (arrived, len(hub.received)) == (2, 4)
    assert hub.files("anna/scores").keys() == {"README.md", *parts_in(Path(out))}


def test_what_is_half_committed_can_not_be_loaded(
    hub: StandIn, out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "PARTS_A_COMMIT", 1)
    repo = hub.make("anna/scores")
    hub.fault = lambda method, path: 503 if "/commit/" in path and len(repo.messages) == 3 else None
    refused(push(out, "--revision", BRANCH), 1, ["503", "same command goes on"])
    files = hub.files("anna/scores", BRANCH)
    assert len(files) == 3
    assert "This upload has not finished" in files["README.md"].decode()
    with pytest.raises(FileNotFoundError, match=r"No .* data files found in anna/scores"):
        load("anna/scores", tmp_path, revision=BRANCH)
    hub.fault = lambda method, path: None
    done = pushed(out, "--revision", BRANCH)
    assert "2 parts are new" in done.stdout
    assert repo.messages[-1].endswith("(4 of 4)")
    assert "has not finished" not in hub.files("anna/scores", BRANCH)["README.md"].decode()
    assert load("anna/scores", tmp_path, revision=BRANCH).equals(whole())


@pytest.mark.parametrize(
    ("repo", "token", "words"),
    [
        ("anna/scores", "hf_wrong", ["HTTP 401", "hf auth login", "HF_TOKEN"]),
        ("anna/scores", "", ["no token", "hf auth login", "HF_TOKEN"]),
        ("bob/scores", TOKEN, ["bob/scores", "HTTP 403", "don't have the rights", "HF_TOKEN"]),
        ("anna/hidden", TOKEN, ["anna/hidden is taken", "HTTP 409", "another --repo"]),
        ("anna/theirs", TOKEN, ["anna/theirs is taken", "'notes.txt'", "--update"]),
        ("anna/public", TOKEN, ["everybody can see anna/public", "--public"]),
        ("scores", TOKEN, ["'scores'", "user/name"]),
        ("anna/a b", TOKEN, ["'anna/a b'", "can't be the name"]),
    ],
)
def test_a_token_or_a_name_that_will_not_do_is_told_with_the_remedy(
    repo: str, token: str, words: list[str], hub: StandIn, out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.make("anna/theirs", **{"notes.txt": "mine"})
    hub.make("anna/public", private=False)
    monkeypatch.setenv("HF_TOKEN", token)
    refused(push(out, repo=repo), 2, words)
    assert hub.received == []
    assert hub.files("anna/theirs") == {"notes.txt": b"mine"}


def test_another_run_takes_the_place_of_one_when_told_to(hub: StandIn, out: str, tmp_path: Path) -> None:
    pushed(out)
    finish(str(tmp_path / "other"), seed=1)
    refused(push(str(tmp_path / "other")), 2, ["another run", "--revision", "--update"])
    pushed(str(tmp_path / "other"), "--revision", BRANCH)  # which nobody has written to
    pushed(str(tmp_path / "other"), "--update")
    for branch in ("main", BRANCH):
        assert hub.files("anna/scores", branch).keys() == {"README.md", *parts_in(tmp_path / "other")}
    assert load("anna/scores", tmp_path).equals(whole(seed=1))


def test_what_people_wrote_into_the_card_stays(hub: StandIn, out: str, tmp_path: Path) -> None:
    features = "dataset_info: {features: [{name: other, dtype: string}]}\n"
    written = f"---\nlicense: mit\ntags: [mine]\npretty_name: Scores\n{features}---\n\nWritten by hand.\n"
    hub.make("anna/scores", **{"README.md": written, "data/notes.csv": "a"})
    refused(push(out), 2, ["is taken", "--update"])
    pushed(out, "--update")
    finish(str(tmp_path / "other"), seed=1)
    pushed(str(tmp_path / "other"), "--update")
    files = hub.files("anna/scores")
    card = files["README.md"].decode()
    held = metadata(card)
    assert (held["license"], held["pretty_name"], held["tags"]) == ("mit", "Scores", ["mine", "gpt2-pipeline", "score"])
    assert (card.count("Written by hand."), card.count("# scores"), "fill this in" in card) == (1, 1, False)
    assert files.keys() == {"README.md", "data/notes.csv", *parts_in(tmp_path / "other")}
    assert load("anna/scores", tmp_path).equals(whole(seed=1))


def test_a_part_that_was_done_again_is_sent_again(hub: StandIn, out: str) -> None:
    pushed(out)
    file = next(Path(out).glob("part-00001*"))
    plan = make_plan(seed=0)
    part = list(plan.parts())[1]
    store = Store(locate(out, "OUT"))
    rows = table(100, 100, seed=0)
    with store.stage(part, SCHEMA) as staged:
        staged.write(rows.set_column(1, "text", pa.array(["mended"] * 100)))
        staged.commit(replace(footer(plan, part, 100), errors=1))
    assert "1 parts are new" in pushed(out).stdout
    assert hub.files("anna/scores")[f"data/{file.name}"] == file.read_bytes()


def test_somebody_else_who_writes_at_the_same_time_is_told(hub: StandIn, out: str) -> None:
    repo = hub.make("anna/scores")

    def interfere(method: str, path: str) -> None:
        if method == "PUT":
            repo.put("main", {**repo.commits[repo.branches["main"]]}, "theirs")

    hub.fault = interfere
    refused(push(out), 1, ["anna/scores was written to meanwhile", "same command goes on"])
    hub.fault = lambda method, path: None
    pushed(out)


def test_parts_that_a_gitignore_keeps_out_are_missed(hub: StandIn, out: str) -> None:
    (ignored, *_) = parts_in(Path(out))
    hub.make("anna/scores", **{".gitignore": ignored})
    refused(push(out, "--update"), 1, [ignored, "1 parts are missing", ".gitignore"])


def test_the_token_is_told_to_the_hub_and_to_nobody_else(hub: StandIn, out: str, tmp_path: Path) -> None:
    outputs = [push(out), push(out, "--debug"), push(out, "--dry-run", tmp_path / "folder"), push(out, repo="bob/x")]
    hub.fault = lambda method, path: 403 if method == "PUT" else None
    finish(str(tmp_path / "other"), seed=1)
    outputs.append(push(str(tmp_path / "other"), repo="anna/failing"))
    assert [done.exit_code for done in outputs] == [0, 0, 0, 2, 1]
    assert hub.tokens == {f"Bearer {TOKEN}"}
    assert "?Signature=***" in outputs[-1].stderr
    for done in outputs:
        assert TOKEN not in done.output + done.stderr
        assert "Signature=secret" not in done.output + done.stderr
    told = [file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()]
    assert len(told) > 10
    assert [data for data in [*told, *hub.blobs.values()] if TOKEN.encode() in data] == []


def test_an_output_on_an_object_store_is_pushed_and_written_part_by_part(hub: StandIn, tmp_path: Path) -> None:
    output = f"memory://{tmp_path.name}/out"
    finish(output)
    pushed(output)
    pushed(output, "--dry-run", tmp_path / "folder")
    assert load("anna/scores", tmp_path).equals(whole())
    assert load(str(tmp_path / "folder"), tmp_path).equals(whole())


def test_a_hub_with_xet_gets_the_content_through_it_and_nothing_twice(
    hub: StandIn, out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    refused(push(out), 1, ["xet-write-token", "HF_HUB_DISABLE_XET=1"])
    hub.xet = tmp_path / "xet"
    hub.xet.mkdir()
    hub.fault = lambda method, path: 503 if "/commit/" in path else None
    refused(push(out), 1, ["503"])
    stored = hub.xet_bytes()
    assert stored > sum(len(data) for data in parts_in(Path(out)).values()) / 2
    hub.fault = lambda method, path: None
    pushed(out)
    assert (hub.xet_bytes(), hub.received) == (stored, [])
    repo = hub.repos["anna/scores"]
    tree = repo.commits[repo.branches["main"]]
    assert {path: tree[path] for path in tree if path.startswith("data/")} == {
        path: hub.keep(data) for path, data in parts_in(Path(out)).items()
    }


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_a_bar_on_a_terminal_and_lines_in_a_log(terminal: bool) -> None:
    shown = io.StringIO()
    with UploadWatch("there", Console(file=shown, force_terminal=terminal, width=100)) as watch:
        watch.begin(4, 4 * 2**20)
        watch.advance(3, 3 * 2**20)
    assert "there 3 of 4 parts" in shown.getvalue()
    assert ("\x1b[" in shown.getvalue(), "3.0 of 4.0 MiB" in shown.getvalue()) == (terminal, not terminal)


def test_more_parts_than_a_folder_may_hold_go_into_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "FILES_A_FOLDER", 2)
    few, many = [f"part-0000{number}-3f9c2a71b0.parquet" for number in range(2)], "abcde"
    assert list(command.places_of(few).values()) == [f"data/{name}" for name in few]
    assert command.pattern_of(command.places_of(few)) == "data/part-*-3f9c2a71b0.parquet"
    assert list(command.places_of(many).values()) == [
        "data/0000/a",
        "data/0000/b",
        "data/0001/c",
        "data/0001/d",
        "data/0002/e",
    ]


def test_a_run_in_several_folders_loads(
    hub: StandIn, out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "FILES_A_FOLDER", 3)
    pushed(out)
    assert sum("data/0000/" in path for path in hub.files("anna/scores")) == 3
    assert load("anna/scores", tmp_path).equals(whole())
