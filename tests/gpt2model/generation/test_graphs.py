"""Recorded passes give what plain ones do. A recording here is a trace: like a CUDA graph, it knows tensors alone."""

import logging
from functools import cache
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.fx.experimental.proxy_tensor import make_fx

from gpt2model.generation import Engine, GenerationConfig, Prefix, Request
from gpt2model.generation import graphs as graphs_module
from gpt2model.generation.graphs import FINE, LEAST, DecodeGraphs, Sizes, Work, rounded
from tests.gpt2model.oracle import ours

POSITIONS = 200
VOCABULARY = 97


@cache
def model() -> Any:
    return ours(n_positions=POSITIONS, n_layer=2, eos_token_id=None)


def traced(work: Work) -> Work:
    """The operations of the work as they are done now: sizes and numbers for good, tensors by their places."""
    with patch("gpt2model.model.check_ids"):  # which looks at ids on a CPU alone
        return make_fx(work)()


def requests(count: int, prefixes: int = 0) -> list[Request]:
    """Prompts of many lengths, in turn behind so many prefixes."""
    drawn = np.random.default_rng(0)
    beginnings = [Prefix(drawn.integers(0, VOCABULARY, 20 + 40 * each)) for each in range(prefixes)]
    made = []
    for number in range(count):
        own = drawn.integers(0, VOCABULARY, int(drawn.integers(1, 70)))
        prefix = beginnings[number % prefixes] if prefixes else None
        prompt = own if prefix is None else np.concatenate([prefix.ids, own])
        made.append(Request(prompt, int(drawn.integers(1, 60)), number, row=number, prefix=prefix))
    return made


def running(record: Any = None, **options: Any) -> Engine:
    """An engine of six slots; with `record`, its passes are recorded so."""
    made = Engine(model(), GenerationConfig(**options), slots=6, cache_tokens=3000, logprobs=True)
    if record is not None:
        made._graphs = DecodeGraphs(model(), made._schedule, made._ids, record)
    return made


def answers(engine: Engine, asked: list[Request]) -> dict[int, tuple[list[int], str]]:
    return {each.request.ticket: (each.token_ids.tolist(), each.finish_reason) for each in engine.run(asked)}


@pytest.mark.parametrize(
    ("prefixes", "options"), [(0, {}), (1, {}), (2, {}), (3, {}), (1, {"do_sample": True, "top_k": 0})], ids=str
)
def test_recorded_passes_give_what_plain_ones_do(prefixes: int, options: dict[str, Any]) -> None:
    asked = requests(30, prefixes)
    recorded, plain = running(traced, **options), running(**options)
    assert answers(recorded, asked) == answers(plain, asked)
    assert plain.counts.replayed_steps == 0
    assert recorded._graphs is not None
    # Far more steps than recordings, so that graphs were indeed met again with other numbers.
    assert recorded.counts.replayed_steps > 3 * len(recorded._graphs._recorded) or prefixes > 2


def test_log_probabilities_are_the_plain_ones() -> None:
    asked = requests(12)
    found, wanted = (
        {each.request.ticket: each.logprobs for each in engine.run(asked)} for engine in (running(traced), running())
    )
    for ticket, values in wanted.items():
        assert found[ticket] == pytest.approx(values, rel=1e-5, abs=1e-5)


def test_steps_behind_more_prefixes_than_a_graph_takes_are_plain() -> None:
    asked = [Request(each.prompt_ids, 20, each.ticket, prefix=each.prefix) for each in requests(6, 3)]
    engine = running(traced)
    answers(engine, asked)
    assert engine.counts.replayed_steps < engine.counts.steps / 2


def refusing(work: Work) -> Work:
    raise RuntimeError("operation not permitted when stream is capturing")


def forgetting(work: Work) -> Work:
    """A recording that does nothing."""
    return lambda: None


def poisoned(work: Work) -> Work:
    """A recording whose work gives what is no number."""

    def replay() -> None:
        with patch("gpt2model.generation.graphs.DecodeGraphs._pass", lambda self, *_: torch.full((16, 32), torch.nan)):
            work()

    return replay


@pytest.mark.parametrize(
    ("record", "reason"),
    [(poisoned, "inf from the plain pass"), (refusing, "operation not permitted"), (forgetting, "from the plain pass")],
)
def test_without_a_recording_that_can_be_trusted_all_goes_on_plainly(
    record: Any, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    asked = requests(12)
    engine = running(record)
    with caplog.at_level(logging.WARNING):
        assert answers(engine, asked) == answers(running(), asked)
    assert engine.counts.replayed_steps == 0
    (told,) = caplog.messages
    assert reason in told


def test_memory_that_runs_out_while_recording_is_no_shortage_of_the_rows(caplog: pytest.LogCaptureFixture) -> None:
    def short(work: Work) -> Work:
        raise torch.OutOfMemoryError("out of memory")

    asked = requests(12)
    engine = running(short)
    assert answers(engine, asked) == answers(running(), asked)
    assert engine._schedule._most == 6
    assert "out of memory" in caplog.text


def test_the_oldest_recordings_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs_module, "MOST_GRAPHS", 1)
    asked = requests(30)
    engine = running(traced)
    assert answers(engine, asked) == answers(running(), asked)
    assert engine._graphs is not None
    assert len(engine._graphs._recorded) == 1


def test_where_memory_runs_out_recordings_are_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = requests(12)
    engine = running(traced)
    assert engine._graphs is not None
    graphs, halve, pass_ = engine._graphs, engine._schedule.halve, engine._read
    held: list[int] = []

    def scarce(step: Any) -> torch.Tensor:
        if not held and len(engine._schedule.running) > 1 and graphs._recorded:
            held.append(len(graphs._recorded))
            raise torch.OutOfMemoryError("out of memory")
        return pass_(step)

    def halving() -> Any:
        held.append(len(graphs._recorded))
        return halve()

    monkeypatch.setattr(engine, "_read", scarce)
    monkeypatch.setattr(engine._schedule, "halve", halving)
    assert answers(engine, asked) == answers(running(), asked)
    before, after = held
    assert before > after == 0
    assert graphs._recorded  # what was needed again


@given(count=st.integers(1, 5000), steps=st.sampled_from([1, FINE]), most=st.integers(1, 6000))
def test_sizes_are_rounded_up_to_a_few(count: int, steps: int, most: int) -> None:
    count = min(count, most)
    found = rounded(count, steps, most)
    assert count <= found <= most
    assert found <= max(LEAST, count * (1 + 1 / steps) + 1)
    assert rounded(found, steps, most) == found


def test_rounded_sizes_are_few() -> None:
    assert len({rounded(count, 1, 4096) for count in range(1, 4097)}) == 9
    assert len({rounded(count, FINE, 4096) for count in range(1, 4097)}) <= 9 * FINE


def test_the_numbers_of_a_pass_have_the_shapes_of_its_sizes() -> None:
    engine = running(traced)
    found: list[tuple[Sizes, int]] = []
    assert engine._graphs is not None
    numbers = engine._graphs._numbers

    def kept(*given: Any) -> Any:
        sizes, values = numbers(*given)
        found.append((sizes, values.numel()))
        return sizes, values

    engine._graphs._numbers = kept  # type: ignore[method-assign]
    answers(engine, requests(8, 2))
    assert found
    for sizes, count in found:
        assert count == sum(int(np.prod(shape)) for shape in sizes.fields())


@pytest.mark.gpu
@pytest.mark.parametrize("prefixes", [0, 1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_graphs_of_a_device_give_what_plain_passes_do(dtype: torch.dtype, prefixes: int) -> None:
    there = ours(n_positions=POSITIONS, n_layer=2, eos_token_id=None).to("cuda", dtype)
    asked = requests(60, prefixes)
    with_graphs, without = (
        Engine(there, GenerationConfig(), slots=24, cache_tokens=8000, graphs=graphs) for graphs in (True, False)
    )
    found, wanted = answers(with_graphs, asked), answers(without, asked)
    assert with_graphs.counts.replayed_steps > with_graphs.counts.steps / 2
    same = sum(found[ticket] == wanted[ticket] for ticket in wanted)
    assert same == len(wanted) if dtype == torch.float32 else same >= 0.8 * len(wanted)
