"""The cache of a worker has room for one whole row, and takes no more memory than its share."""

from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2model import GPT2Config, GPT2LMHeadModel, onednn
from gpt2model.generation import Engine, GenerationConfig
from gpt2model.generation.blocks import BLOCK
from pipeline.cli import main
from pipeline.compose import load_job
from pipeline.job import Job
from pipeline.memory import CPU_SHARE, CUDA_SHARE, CacheSize, cache_size
from pipeline.preflight import prepare
from pipeline.worker import Worker
from tests.pipeline.conftest import JobWriter

CONFIG = GPT2Config(vocab_size=50, n_positions=100, n_embd=16, n_layer=3, n_head=2)
SAMPLE = Path(__file__).resolve().parents[2] / "samples" / "gpt2-tiny"
BLOCKS = 4
"""Of one row of 100 positions."""
BLOCK_BYTES = 2 * 3 * 16 * BLOCK * 4
"""Keys and values of all layers, in float32."""
LEAST = (BLOCKS + 1) * BLOCK


def job(**cluster: Any) -> Job:
    sections = {"model": {"path": "m"}, "input": {"parquet": "in"}, "output": {"path": "out"}}
    return Job.model_validate({"task": "generate", "cluster": cluster, **sections})


def size(threads: int = 1, device: str = "cpu", dtype: torch.dtype = torch.float32, **cluster: Any) -> CacheSize:
    return cache_size(job(**cluster), CONFIG, dtype, device, threads)


class Machine:
    """What the operating system tells of memory, in bytes; None where it doesn't tell."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self._files = {name: folder / name for name in ("MEMINFO", "LIMIT", "USED")}
        for name, file in self._files.items():
            patch.setattr(f"pipeline.memory.{name}", file)
        patch.setattr("pipeline.memory.available_cpus", lambda: 4)

    def __call__(self, free: int | None = None, limit: int | str | None = None, used: int | None = None) -> None:
        told = {"MEMINFO": free and f"MemTotal: 9 kB\nMemAvailable: {free // 1024} kB", "LIMIT": limit, "USED": used}
        for name, content in told.items():
            self._files[name].unlink(missing_ok=True)
            if content is not None:
                self._files[name].write_text(f"{content}\n")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def test_where_memory_is_plenty_all_rows_have_room_at_their_full_length(machine: Machine) -> None:
    machine(free=2**40)
    assert size() == CacheSize(1, 64, (64 * BLOCKS + 1) * BLOCK, (64 * BLOCKS + 1) * BLOCK_BYTES)
    assert size(threads=3) == CacheSize(3, 64, (64 * BLOCKS + 1) * BLOCK, 3 * (64 * BLOCKS + 1) * BLOCK_BYTES)
    assert size(dtype=torch.bfloat16).bytes == size().bytes / 2


def test_what_the_job_asks_for_is_shared_by_the_engines(machine: Machine) -> None:
    machine(free=2**40)
    found = size(threads=3, sequences_at_once=10, cache_tokens=3000)
    assert (found.engines, found.sequences) == (3, 4)
    assert found.tokens == 32 * BLOCK  # the first multiple of a block from 1000 on
    assert size(threads=3, sequences_at_once=10).tokens == (4 * BLOCKS + 1) * BLOCK
    assert size(sequences_at_once=10).sequences == 10


@pytest.mark.parametrize("threads", [1, 3])
def test_one_whole_row_has_room_whatever_there_is(machine: Machine, threads: int) -> None:
    machine(free=2**20)
    assert size(threads, cache_tokens=1).tokens == LEAST
    for limit, used in ((2**20, 2**20), (2**20, 2**30)):
        machine(free=2**40, limit=limit, used=used)
        assert size(threads).tokens == LEAST
    assert size(threads, sequences_at_once=1).sequences == 1


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_a_worker_takes_a_quarter_of_its_share_of_what_is_free(machine: Machine, threads: int) -> None:
    free = 80 * BLOCK_BYTES * 16
    machine(free=free)
    share = CPU_SHARE * free * threads / 4
    assert share - threads * BLOCK_BYTES < size(threads).bytes <= share
    assert size(threads).tokens == 80 * BLOCK
    machine(free=2**40, limit=free + 5 * 2**20, used=5 * 2**20)
    assert size(threads).tokens == 80 * BLOCK
    machine(free=free, limit=2**40, used=0)
    assert size(threads).tokens == 80 * BLOCK
    machine(free=free, limit="max", used=0)
    assert size(threads).tokens == 80 * BLOCK


def test_more_threads_than_cores_do_not_make_the_share_greater(machine: Machine) -> None:
    machine(free=80 * BLOCK_BYTES * 16)
    assert size(8).bytes <= CPU_SHARE * 80 * BLOCK_BYTES * 16


def test_where_nothing_is_told_of_memory_the_rows_decide(machine: Machine) -> None:
    machine()
    assert size().tokens == (64 * BLOCKS + 1) * BLOCK
    machine(limit="max")
    assert size().tokens == (64 * BLOCKS + 1) * BLOCK


@pytest.mark.parametrize("gpus", [None, 1.0, 2.0, 0.25])
def test_a_gpu_has_one_engine_and_the_workers_share_of_its_memory(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, gpus: float | None
) -> None:
    machine(free=2**40)
    free = 1000 * BLOCK_BYTES
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free, 2 * free))
    found = size(threads=5, device="cuda", gpus_per_worker=gpus)
    assert (found.engines, found.sequences) == (1, 256)
    share = CUDA_SHARE * free * (gpus if gpus == 0.25 else 1)
    assert share - BLOCK_BYTES < found.bytes <= share


def test_a_gpu_of_another_machine_is_planned_for_by_the_rows(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(free=2**20)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert size(device="cuda").tokens == (256 * BLOCKS + 1) * BLOCK


MODEL = GPT2LMHeadModel(CONFIG)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 200), st.integers(1, 5000), st.integers(1, 5))
def test_an_engine_of_any_size_that_is_asked_for_can_be_made(sequences: int, cache_tokens: int, threads: int) -> None:
    found = size(threads, sequences_at_once=sequences, cache_tokens=cache_tokens)
    assert found.engines * found.sequences >= sequences
    assert found.engines * found.tokens >= cache_tokens
    engine = Engine(MODEL, GenerationConfig(), slots=found.sequences, cache_tokens=found.tokens)
    assert engine.vacant == found.sequences


def planned(job: Path, *overrides: str, what: str = "cache") -> str:
    result = CliRunner().invoke(main, ["plan", str(job), *overrides])
    assert result.exit_code == 0, result.output
    return next((line for line in result.stdout.splitlines() if line.startswith(f"{what} ")), "")


def test_plan_tells_the_cache_of_what_continues_rows_by_engines(write_job: JobWriter) -> None:
    job = write_job(task="generate", cluster={"cpus_per_worker": 2, "sequences_at_once": 6, "cache_tokens": 640})
    line = planned(job)
    # 2 layers of width 32: 512 bytes a position.
    assert "0.3 MiB a worker at most: keys and values of 640 positions, for 6 rows at once" in line
    assert planned(job, "generate.num_beams=2") == ""
    assert planned(job, "task=score") == ""


def test_plan_tells_the_copies_of_heads_that_workers_make(
    write_job: JobWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = write_job(task="generate", model={"path": str(SAMPLE)})
    monkeypatch.setattr(onednn, "_is_better", lambda: False)
    assert planned(job, what="head") == ""
    monkeypatch.setattr(onednn, "_is_better", lambda: True)
    worker = Worker(prepare(load_job(job)).spec)
    worker.start()
    head = worker.steps[0].model.lm_head
    assert head.operand is not head.weight
    assert f" {head.weight.nbytes / 2**20:.1f} MiB a worker: " in planned(job, what="head")
    assert planned(job, "generate.num_beams=2", what="head") == ""
    assert planned(job, "task=score", what="head") == ""
