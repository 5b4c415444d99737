"""Whatever stands in a job file or on the command line: a job, or one refusal that names the place; nothing else."""

import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.compose import _models, load_job
from pipeline.errors import JobError
from pipeline.job import Job
from pipeline.preflight import prepare
from tests.pipeline.conftest import JobWriter
from tests.pipeline.fuzzing import CASES, SEED, bounded

RESOLVERS = (
    "${oc.env:SECRET} ${oc.env:NO_SUCH} ${oc.env:NO_SUCH,null} ${oc.decode:'[1,2'} ${oc.select:task} ${task} ${model} "
    "${oc.dict.keys:model} ${oc.dict.values:model} ${oc.deprecated:task} ${hydra:runtime.cwd} ${..task} ${ ${task ${} "
    "${oc.create:1} ${nope:1} ${oc.dict.keys:input} ${.} ${output.path} ${input.columns} \\${task}"
).split()
WILD: list[Any] = [
    *RESOLVERS,
    *(None, True, 0, -1, 1, 7, 2**31, 2**63, 10**30, -(10**30), 1e308, float("nan"), float("inf"), -0.0, 0.5),
    *("", " ", "\t", "\0", "\ud800", "😀", "ключ", "a" * 5000, "text", "id", "nope", "'", '"', "{", "}", "{text}"),
    *(
        "{text.__class__}",
        "{text!r}",
        "{text:>1000000000}",
        "$",
        "%s",
        "???",
        "_self_",
        "~",
        "~nobody/x",
        "../x",
        "./x",
    ),
    *("no://such", "://", "file://", "[", "[z-a]", "**", "x::y://z", "1e999", "0x1f", "2001-99-99", "null", "yes"),
    *([], [1], [[]], [None], {}, {"a": 1}, {"": ""}, {None: None}, {1: 2}, {"_target_": "os.system"}, ["a"] * 500),
    *({"text": "text"}, {"text": "id"}, ["text", "text"], {"min": 5, "max": 1}, b"bytes", {"a", "b"}, ("t",)),
]
SECTIONS = ["task", *(name for name in Job.model_fields if name != "task")]
SNIPPETS = [
    *("\t", "\n", ":", "- ", "&a ", "*a", "!!python/object/apply:os.system ['true']", "!!binary aGk=", "!!set {a}"),
    *("%YAML 9.9\n", "---\n", "...\n", "<<: *a\n", "# @package x.y\n", "# @package\n", "? ", "|\n", ">\n", "'", '"'),
    *("{" * 200, "[" * 5000, "9" * 5000, "\ufeff", "\x01", "\x85", "\u2028", "task: ner\n", "defaults: 5\n", "@", "`"),
    *("defaults: [{model: x}]\n", "defaults: [nope, _self_]\n", "defaults: [{override hydra/launcher: x}]\n", "!x "),
    *("defaults: [/etc/passwd]\n", "hydra: {searchpath: [pkg://os]}\n", "x: &x [*x]\n", "null: 1\n", "1: {2: 3}\n"),
    "a: &a [x,x,x,x,x,x,x,x,x,x]\n"
    + "".join(f"{b}: &{b} [{','.join(['*' + a] * 10)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
    "".join(f"k{i + 1}: '${{k{i}}}${{k{i}}}'\n" for i in range(40)) + "k0: x\n",
]
GRAMMAR = "= ++ + ~ . / @ : [ ] { } ( ) , ' \" \\ $ * ? # % space a task model score.stride 1 x glob( choice(".split()


def misspelt(chance: random.Random, name: str) -> str:
    place = chance.randrange(len(name) + 1)
    return name[:place] + chance.choice(["", "_", "x", ".", "é", " ", "="]) + name[place + chance.randrange(2) :]


def mutated(chance: random.Random, node: Any) -> Any:
    """`node` with one thing changed somewhere in it."""
    if not isinstance(node, dict) or not node or chance.random() < 0.1:
        return chance.choice(WILD)
    node, key = dict(node), chance.choice(list(node))
    match chance.randrange(6):
        case 0:
            node[misspelt(chance, str(key))] = node.pop(key)
        case 1:
            del node[key]
        case 2:
            known = [*SECTIONS, *options_of(key)] if key in SECTIONS else SECTIONS
            node[chance.choice(known)] = chance.choice(WILD)
        case _:
            node[key] = mutated(chance, node[key])
    return node


def options_of(section: str) -> list[str]:
    """Of `steps` those of one step, which stand a level deeper than here."""
    return list(next(_models(Job.model_fields[section].annotation)).model_fields) if section != "task" else [""]


def text_of(chance: random.Random, job: dict[str, Any]) -> bytes:
    for _ in range(chance.choice([0, 0, 0, 1, 1, 2, 5])):
        job = mutated(chance, job)
    if isinstance(job, dict) and chance.random() < 0.5:
        section = chance.choice(SECTIONS[1:])
        held = job.get(section)
        job[section] = {
            **(held if isinstance(held, dict) else {}),
            chance.choice(options_of(section)): chance.choice(WILD),
        }
    text = yaml.dump(job, allow_unicode=True).encode("utf-8", "surrogatepass")
    for _ in range(chance.choice([0] * 8 + [1, 1, 4])):
        place = chance.randrange(len(text) + 1)
        match chance.randrange(8):
            case 0:
                text = text[:place] + bytes(chance.randrange(256) for _ in range(chance.randrange(1, 4))) + text[place:]
            case 1:
                text = text[:place]
            case _:
                place = chance.choice([0, len(text), text.find(b"\n", place) + 1, place])
                text = text[:place] + chance.choice(SNIPPETS).encode() + text[place:]
    return text


def override_of(chance: random.Random) -> str:
    if chance.random() < 0.2:
        return "".join(chance.choice(GRAMMAR).replace("space", " ") for _ in range(chance.randrange(1, 8)))
    section = chance.choice(SECTIONS)
    key = f"{section}.{chance.choice(options_of(section))}".rstrip(".")
    value = str(chance.choice(WILD)).replace("\ud800", "?")
    if chance.random() < 0.2:
        key = misspelt(chance, key)
    return f"{chance.choice(['', '', '', '++', '+', '~'])}{key}={value}"


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A working directory of one's own, no probing processes, and datasets' cache elsewhere."""
    import datasets

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SECRET", "nope://user:hunter2hunter2@bucket/x?key=hunter2")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    monkeypatch.setattr("pipeline.preflight.PROBE", "raise SystemExit(1)")


@pytest.mark.usefixtures("offline")
@pytest.mark.filterwarnings("ignore")
def test_any_job_file_and_any_override_give_a_job_or_a_refusal_and_no_file(
    write_job: JobWriter, tmp_path: Path
) -> None:
    print(f"PIPELINE_SEED={SEED}, {CASES} cases")
    file = write_job()
    valid = yaml.safe_load(file.read_text())
    before = sorted(tmp_path.rglob("*"))
    jobs = 0
    for case in range(CASES):
        chance = random.Random(f"{SEED} {case}")
        tasks = chance.choices(["score"] * 4 + ["generate"] * 3 + ["embed", "choose"], k=2)
        job = {**valid, "task": tasks[0]}
        if chance.random() < 0.2:
            job = {**job, "task": None, "steps": {f"{task}{place}": {"task": task} for place, task in enumerate(tasks)}}
        text = text_of(chance, job)
        overrides = [override_of(chance) for _ in range(chance.choice([0, 0, 0, 1, 1, 3]))]
        told = f"PIPELINE_SEED={SEED}, case {case}, overrides {overrides!r}, job file {text[:3000]!r}"
        file.write_bytes(text)
        try:
            with bounded(60):
                prepare(load_job(file, overrides))
            jobs += 1
        except JobError as refusal:
            message = str(refusal)
            assert 10 < len(message) < 4000, told
            assert "Traceback" not in message, told
            assert "hunter2" not in message, told
            named = [str(file), *overrides, *SECTIONS, "override"]
            assert any(each in message for each in named), f"{told}: {message}"
        except BaseException as error:
            raise AssertionError(told) from error
        assert sorted(tmp_path.rglob("*")) == before, told
    print(f"{jobs} jobs, {CASES - jobs} refusals")
    assert 0 < jobs < CASES
