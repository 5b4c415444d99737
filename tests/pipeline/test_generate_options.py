"""Every option of generate does what it says, for rows of a model whose texts are known."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from gpt2model import GPT2Config, GPT2LMHeadModel
from pipeline.compose import load_job
from pipeline.errors import JobError
from pipeline.preflight import prepare
from pipeline.tasks.rows import ROW
from pipeline.worker import Worker
from tests.pipeline.answers import saved_model
from tests.pipeline.conftest import JobWriter, sentence
from tests.pipeline.generating import Generating, answered, save_lively

TEXTS = [sentence(seed, 1 + seed % 9) for seed in range(12)]
DRAWN: dict[str, Any] = {"do_sample": True, "top_k": 0}


@pytest.fixture(scope="module")
def lively(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Generating:
    return Generating(save_lively(tmp_path_factory.mktemp("lively"), checkpoint))


SCRIPT = "the cat sat on a naïve 日本 é語🚀 mat again, Very late"
"""Of its letters é, 語 and 🚀 are several tokens each, the other words one."""


@pytest.fixture(scope="module")
def scripted(checkpoint: Path) -> Generating:
    """A model that goes on with SCRIPT and then ends, where it stands in it by the number of tokens before."""
    found = Generating(checkpoint)
    script = [*found.ids(SCRIPT), found.tokenizer.eos_token_id]
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config.from_pretrained(checkpoint).replace(n_layer=1)).requires_grad_(False)
    for parameter in model.transformer.h.parameters():
        parameter.zero_()
    words = model.transformer.wte.weight
    words.copy_(torch.nn.functional.normalize(torch.randn_like(words), dim=1))
    model.transformer.wpe.weight.zero_()
    model.transformer.wpe.weight[: len(script) - 1] = 9 * words[script[1:]]
    found.model = model.eval()
    return found


OPTIONS: list[dict[str, Any]] = [
    {**DRAWN, "temperature": 0.6},
    {"do_sample": True, "top_k": 3},
    {**DRAWN, "top_p": 0.4},
    {**DRAWN, "min_p": 0.2},
    {**DRAWN, "typical_p": 0.3},
    {**DRAWN, "epsilon_cutoff": 0.03},
    {**DRAWN, "eta_cutoff": 0.1},
    {**DRAWN, "repetition_penalty": 3.0},
    {"repetition_penalty": 1.5},
    {"no_repeat_ngram_size": 1},
    {"min_new_tokens": 14},
    {**DRAWN, "temperature": 0.7, "top_p": 0.8, "no_repeat_ngram_size": 2, "min_new_tokens": 3},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_an_option_does_what_it_does_in_model_generate(lively: Generating, options: dict[str, Any]) -> None:
    columns = {"text": TEXTS, ROW: [0] * len(TEXTS)}
    task = lively.task("text", seed=3, max_new_tokens=14, token_ids=True, logprobs=True, **options)
    rows, _ = answered(task, lively.model, pa.table(columns), lively.runner(task))
    found = [row["generated_ids"] for row in rows]
    assert found == [lively.alone(text, seed=3, max_new_tokens=14, **options)[0] for text in TEXTS]
    plain = DRAWN if "do_sample" in options else {}
    assert found != [lively.alone(text, seed=3, max_new_tokens=14, **plain)[0] for text in TEXTS]
    for text, row in zip(TEXTS, rows, strict=True):
        own = lively.logprobs(lively.ids(text), row["generated_ids"])
        assert row["generated_logprobs"] == pytest.approx(own, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("beams", [1, 2])
def test_the_scripted_text_ends_with_its_end(scripted: Generating, beams: int) -> None:
    (row,), _ = scripted({"text": ["the"]}, num_beams=beams)
    assert (row["generated_text"], row["finish_reason"]) == (SCRIPT.removeprefix("the"), "eos")
    assert row["num_generated_tokens"] == len(scripted.ids(SCRIPT))


STOPS = [
    (["cat"], " "),
    (["t sa", "sat"], " ca"),
    (["日"], " cat sat on a naïve "),
    (["本 é"], " cat sat on a naïve 日"),
    (["語"], " cat sat on a naïve 日本 é"),
    (["🚀 m", "🚀 n"], " cat sat on a naïve 日本 é語"),
    (["late", "Very", "nowhere"], " cat sat on a naïve 日本 é語🚀 mat again, "),
    (["ïv"], " cat sat on a na"),
    (["on a", "sat on a naïve"], " cat sat "),
]


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize(("stop", "text"), STOPS, ids=[str(stop) for stop, _ in STOPS])
def test_a_text_ends_before_a_stop_string(scripted: Generating, stop: list[str], text: str, beams: int) -> None:
    (row,), result = scripted({"text": ["the"]}, stop=stop, token_ids=True, logprobs=True, num_beams=beams)
    assert (row["generated_text"], row["finish_reason"]) == (text, "stop")
    script = scripted.ids(SCRIPT)[1:]
    decoded = [scripted.tokenizer.decode(script[:count]) for count in range(len(script) + 1)]
    needed = next(count for count, each in enumerate(decoded) if any(one in each for one in stop))
    assert row["generated_ids"] == script[:needed]
    assert row["num_generated_tokens"] == len(row["generated_logprobs"]) == needed
    assert result.figures["ended by stop"] == 1


@pytest.mark.parametrize("beams", [1, 2])
def test_a_stop_string_that_begins_in_the_prompt_is_none(scripted: Generating, beams: int) -> None:
    prompt = "the cat sat"
    rows, _ = scripted({"text": [prompt, "the"]}, stop=["sat on", "at s"], max_new_tokens=30, num_beams=beams)
    assert rows[0]["finish_reason"] == "eos"
    assert prompt + rows[0]["generated_text"] == SCRIPT
    assert (rows[1]["generated_text"], rows[1]["finish_reason"]) == (" c", "stop")


@pytest.mark.parametrize("pad", [None, 7])
def test_what_fills_a_batch_of_beams_up_is_no_part_of_a_text(
    lively: Generating, monkeypatch: pytest.MonkeyPatch, pad: int | None
) -> None:
    monkeypatch.setattr(lively.model, "config", lively.model.config.replace(pad_token_id=pad, eos_token_id=None))
    said = lively({"text": TEXTS}, num_beams=2, max_new_tokens=12)[0]
    stop = [piece for row in said if "�" not in (piece := row["generated_text"][-5:-3])]
    rows, _ = lively({"text": TEXTS}, num_beams=2, max_new_tokens=12, stop=stop, token_ids=True)
    ends = {row["finish_reason"]: row for row in rows}
    assert set(ends) == {"stop", "length"}
    for row in rows:
        text = lively.tokenizer.decode(row["generated_ids"])
        assert row["num_generated_tokens"] == len(row["generated_ids"])
        if row["finish_reason"] == "stop":
            assert any(each in text for each in stop)
            assert not any(each in lively.tokenizer.decode(row["generated_ids"][:-1]) for each in stop)


@pytest.mark.parametrize("beams", [1, 3])
def test_suppressed_texts_are_not_written(lively: Generating, beams: int) -> None:
    options: dict[str, Any] = {"max_new_tokens": 16, "num_beams": beams, "token_ids": True}
    calm = [row["generated_ids"] for row in lively({"text": TEXTS}, **options)[0]]
    end, said = lively.tokenizer.eos_token_id, [token for ids in calm for token in ids]
    alone = [token for token in dict.fromkeys(said) if lively.ids(lively.tokenizer.decode([token])) == [token]][:3]
    pairs = [ids[:2] for ids in calm if lively.ids(lively.tokenizer.decode(ids[:2])) == ids[:2]][:3]
    assert end in said
    assert len(alone) == len(pairs) == 3
    suppress = [lively.tokenizer.decode(ids) for ids in [[end], *pairs, *([each] for each in alone)]]
    rows, result = lively({"text": TEXTS}, suppress=suppress, **options)
    assert result.figures["ended by eos"] == 0
    for row in rows:
        ids = row["generated_ids"]
        assert len(ids) == 16
        assert not {end, *alone} & set(ids)
        assert not any(ids[place : place + 2] in pairs for place in range(len(ids) - 1))


def test_what_the_tokenizer_puts_before_a_text_is_not_put_before_a_suppressed_one(scripted: Generating) -> None:
    scripted.tokenizer.add_bos_token = True
    try:
        (row,), _ = scripted({"text": ["the"]}, suppress=[" sat", " again,"], token_ids=True, max_new_tokens=30)
    finally:
        scripted.tokenizer.add_bos_token = False
    assert row["num_prompt_tokens"] == 2
    assert " sat" not in row["generated_text"]
    assert " again" in row["generated_text"]
    assert " again," not in row["generated_text"]


def test_several_samples_are_lists(lively: Generating) -> None:
    options: dict[str, Any] = {**DRAWN, "max_new_tokens": 8, "token_ids": True, "logprobs": True}
    several, _ = lively({"text": [*TEXTS, None]}, num_return_sequences=3, **options)
    single, _ = lively({"text": [*TEXTS, None]}, **options)
    for row, one in zip(several[:-1], single[:-1], strict=True):
        assert row["num_prompt_tokens"] == one["num_prompt_tokens"]
        for name in row.keys() - {"num_prompt_tokens"}:
            assert (len(row[name]), row[name][0]) == (3, one[name])
        assert len({tuple(ids) for ids in row["generated_ids"]}) > 1
    assert set(several[-1].values()) == {None}


def test_only_the_columns_that_are_asked_for_are_written(lively: Generating) -> None:
    plain = ["generated_text", "finish_reason", "num_prompt_tokens", "num_generated_tokens"]
    assert [field.name for field in lively.task("text").fields] == plain
    assert [field.name for field in lively.task("text", token_ids=True).fields] == [*plain, "generated_ids"]
    assert [field.name for field in lively.task("text", logprobs=True).fields] == [*plain, "generated_logprobs"]


@pytest.mark.parametrize("beams", [1, 2])
def test_a_long_prompt_loses_its_beginning_and_is_counted(lively: Generating, beams: int) -> None:
    text = sentence(4, 80)
    ids = lively.ids(text)
    task = lively.task("text", max_new_tokens=10, num_beams=beams, token_ids=True)
    rows, result = answered(task, lively.model, pa.table({"text": [text, "cat"]}), lively.runner(task))
    kept = lively.tokenizer.decode(ids[-55:])
    assert lively.ids(kept) == ids[-55:]
    assert rows[0]["num_prompt_tokens"] == 55
    assert rows[0]["generated_ids"] == lively.alone(kept, max_new_tokens=10, num_beams=beams)[0]
    assert task.summarize(result.figures)["prompts cut at the left"] == 1


def test_a_long_prompt_may_be_an_error(lively: Generating) -> None:
    ids = lively.ids(sentence(4, 80))
    texts = [lively.tokenizer.decode(ids[-count:]) for count in (55, 56)]
    columns = {"text": [*texts, texts[1]], "max_new_tokens": [None, None, 9]}
    rows, result = lively(columns, overflow="error", max_new_tokens=10)
    assert result.errors == {1: "the prompt has 56 tokens, and the context leaves 55 before 10 new ones"}
    assert [row["num_prompt_tokens"] for row in rows] == [55, None, 56]
    assert result.figures["cut"] == 0


def test_an_empty_prompt_begins_with_the_start_token(lively: Generating) -> None:
    rows, _ = lively({"text": ["", "<|endoftext|>"]}, max_new_tokens=12, token_ids=True)
    assert rows[0] == rows[1]
    assert rows[0]["generated_ids"] == lively.looped([lively.start], 12)


@pytest.mark.parametrize("beams", [1, 2])
def test_an_empty_prompt_without_a_start_token_is_that_rows_error(checkpoint: Path, beams: int) -> None:
    found = Generating(checkpoint)
    found.tokenizer.bos_token = found.tokenizer.eos_token = None
    rows, result = found({"text": ["the cat", "", "sat"]}, num_beams=beams, max_new_tokens=5)
    assert list(result.errors) == [1]
    assert result.errors[1].startswith("the prompt is empty")
    assert [row["num_generated_tokens"] for row in rows] == [5, None, 5]


def test_a_bos_token_that_the_tokenizer_adds_is_kept_before_a_prompt_that_is_cut(checkpoint: Path) -> None:
    found = Generating(checkpoint)
    plain = {text: found.ids(text) for text in ("the cat", sentence(4, 80))}
    found.tokenizer.add_bos_token = True
    start = found.tokenizer.bos_token_id
    # Half of the context is the prompt's in any case.
    for limit, room in ((10, 55), (30, 35), (63, 32), (64, 32)):
        prepared = found.task("text", max_new_tokens=limit).prepare(pa.table({"text": [*plain, ""]}))
        for ids, prompt in zip(plain.values(), prepared.prompts, strict=False):
            whole = [start, *ids]
            expected = whole if len(whole) <= room else [start, *ids[1 - room :]]
            assert prompt.tolist() == expected
        assert prepared.prompts[2].tolist() == [start]


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"num_return_sequences": 2}, "num_return_sequences=2 needs do_sample=True or num_beams"),
        ({"num_beams": 2, "num_return_sequences": 3}, "at most num_beams=2"),
        ({"do_sample": True, "temperature": float("inf")}, "temperature=inf"),
    ],
    ids=str,
)
def test_options_that_contradict_each_other_are_refused(lively: Generating, options: Any, wanted: str) -> None:
    with pytest.raises(JobError, match=f"generate: .*{wanted}"):
        lively.task("text", **options)


def saved(checkpoint: Path, folder: Path, **generation: Any) -> Path:
    """`checkpoint` with lively weights and another generation_config.json."""
    save_lively(folder, checkpoint)
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def test_the_checkpoints_eos_tokens_are_those_of_its_generation_config(
    write_job: JobWriter, checkpoint: Path, tmp_path: Path
) -> None:
    ends = [26, 290]
    plain = Generating(save_lively(tmp_path / "plain", checkpoint))
    folder = saved(checkpoint, tmp_path / "model", eos_token_id=ends)
    prepared = prepare(load_job(write_job(task="generate", model={"path": str(folder)}), []))
    task: Any = prepared.steps[0].task
    rows, _ = answered(task, plain.model, pa.table({"text": TEXTS}), plain.runner(task))
    assert task.generation.eos_token_id == tuple(ends)
    assert {row["finish_reason"] for row in rows} >= {"eos"}
    other = prepare(load_job(write_job(task="generate", model={"path": str(tmp_path / "plain")}), []))
    files = [each.plan.identity["model"]["files"]["generation_config.json"] for each in (prepared, other)]
    assert files[0] != files[1]
    assert prepared.plan.fingerprint != other.plan.fingerprint
    (folder / "generation_config.json").unlink()
    without = prepare(load_job(write_job(task="generate", model={"path": str(folder)}), []))
    assert without.steps[0].task.generation.eos_token_id == (plain.tokenizer.eos_token_id,)  # type: ignore[attr-defined]


@pytest.mark.parametrize("beams", [1, 2])
def test_a_checkpoint_with_a_second_head_is_continued_by_its_first(
    write_job: JobWriter, checkpoint: Path, tmp_path: Path, beams: int
) -> None:
    architectures = ("GPT2DoubleHeadsModel",)
    model = saved_model("GPT2DoubleHeadsModel", tmp_path / "double", checkpoint, architectures=architectures)
    options = {"num_beams": beams, "max_new_tokens": 12, "token_ids": True, "logprobs": True}
    job = write_job(task="generate", model={"path": str(tmp_path / "double")}, generate=options)
    spec = prepare(load_job(job, [])).spec
    worker = Worker(spec)
    worker.start()
    (step,), (stage,) = worker.steps, worker.stages
    rows, _ = answered(step.task, step.model, pa.table({"text": TEXTS}), stage.runner)  # type: ignore[arg-type]
    assert type(step.model) is type(model)
    plain = Generating(checkpoint)
    plain.model = model
    for text, row in zip(TEXTS, rows, strict=True):
        assert row["generated_ids"] == plain.alone(text, num_beams=beams, max_new_tokens=12)[0]


@pytest.mark.parametrize("way", [{}, DRAWN, {"num_beams": 2}], ids=str)
def test_numbers_that_no_machine_word_holds_are_a_rows_affair(lively: Generating, way: dict[str, Any]) -> None:
    most = 2**64 - 1
    columns = {
        "text": ["the cat"] * 3,
        "max_new_tokens": pa.array([most, 5, 5], pa.uint64()),
        "seed": pa.array([1, most, 2**63 - 1], pa.uint64()),
    }
    rows, result = lively(columns, min_new_tokens=64, **way)
    assert result.errors == {1: f"seed is {most}: it must be from -2**63 to 2**63 - 1"}
    assert [row["num_generated_tokens"] for row in rows] == [63, None, 5]
    assert [row["num_prompt_tokens"] for row in rows] == [2, None, 2]


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"top_p": 0.9}, "generate.top_p does nothing without generate.do_sample=true"),
        ({"top_k": 3, "num_beams": 2}, "generate.top_k does nothing without generate.do_sample=true"),
        ({"length_penalty": 2.0}, "generate.length_penalty does nothing without generate.num_beams above 1"),
    ],
    ids=str,
)
def test_an_option_that_another_keeps_from_doing_anything_is_refused(
    lively: Generating, options: dict[str, Any], wanted: str
) -> None:
    with pytest.raises(JobError, match=wanted):
        lively.task("text", **options)
    lively.task("text", **{"do_sample": False, "num_beams": 1, **options})


@pytest.mark.parametrize("beams", [1, 2])
def test_the_checkpoints_other_options_change_no_text(checkpoint: Path, tmp_path: Path, beams: int) -> None:
    said = {"do_sample": True, "temperature": 0.1, "min_new_tokens": 9, "suppress_tokens": [26, 290], "max_length": 5}
    plain = Generating(save_lively(tmp_path / "plain", checkpoint))
    other = Generating(saved(checkpoint, tmp_path / "other", repetition_penalty=2.0, bad_words_ids=[[242]], **said))
    assert other.model.generation_config.suppress_tokens == (26, 290)
    options: dict[str, Any] = {"num_beams": beams, "max_new_tokens": 12, "token_ids": True}
    assert other({"text": TEXTS}, **options)[0] == plain({"text": TEXTS}, **options)[0]
