"""Checkpoints go both ways between transformers and us, and everything that is not exactly a checkpoint is refused."""

import hashlib
import json
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

import gpt2model
from gpt2model import _hf
from gpt2model.checkpoint import inspect_checkpoint, load_checkpoint, save_checkpoint
from gpt2model.config import GPT2Config
from gpt2model.errors import CheckpointError, ConfigError, WeightsMismatch
from gpt2model.heads import GPT2LMHeadModel
from gpt2model.model import GPT2Model

SIZES = {"vocab_size": 64, "n_positions": 16, "n_embd": 32, "n_layer": 2, "n_head": 2}
IDS = torch.arange(24).reshape(2, 12)
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint saved by transformers; tests copy it before they touch it."""
    folder = tmp_path_factory.mktemp("made")
    oracle_model().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "checkpoint"))


def oracle_model(**options: Any) -> transformers.GPT2LMHeadModel:
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**SIZES, **options))
    if not model.config.tie_word_embeddings:
        torch.nn.init.normal_(model.lm_head.weight)
    return model.eval()


def our_model(**options: Any) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(**SIZES, **options)).eval()


@torch.no_grad()
def logits(model: Any) -> Tensor:
    found: Tensor = model(IDS).logits
    return found


def close(ours: Tensor, theirs: Tensor) -> bool:
    return torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def rewrite(folder: Path, change: Callable[[State], State]) -> None:
    """Change the weights of a checkpoint of one safetensors file."""
    state = change(load_file(folder / "model.safetensors"))
    save_file(
        {key: tensor.contiguous() for key, tensor in state.items()}, folder / "model.safetensors", {"format": "pt"}
    )


def rewrite_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def pickled(folder: Path, **options: Any) -> None:
    """Turn a checkpoint of one safetensors file into pytorch_model.bin."""
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin", **options)
    (folder / "model.safetensors").unlink()


def in_pickled_shards(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    weight_map = {key: f"pytorch_model-0000{index % 2 + 1}-of-00002.bin" for index, key in enumerate(state)}
    for name in set(weight_map.values()):
        torch.save({key: state[key] for key in state if weight_map[key] == name}, folder / name)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize("shard_size", ["50GB", "40KB"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("extra", [{}, {"add_cross_attention": True}], ids=["decoder", "cross"])
def test_what_transformers_saves_gives_the_same_logits_here(
    shard_size: str, tied: bool, extra: dict[str, Any], tmp_path: Path
) -> None:
    theirs = oracle_model(tie_word_embeddings=tied, **extra)
    theirs.save_pretrained(tmp_path, max_shard_size=shard_size)
    assert (tmp_path / "model.safetensors").exists() == (shard_size == "50GB")
    ours = load_checkpoint(GPT2LMHeadModel, tmp_path)
    assert not ours.training
    assert (ours.lm_head.weight is ours.transformer.wte.weight) == tied
    assert close(logits(ours), logits(theirs))


@pytest.mark.parametrize("shard_size", ["50GB", "40KB"])
@pytest.mark.parametrize("tied", [True, False])
def test_what_we_save_gives_the_same_logits_in_transformers(shard_size: str, tied: bool, tmp_path: Path) -> None:
    ours = our_model(tie_word_embeddings=tied, num_labels=3)
    ours.save_pretrained(tmp_path, max_shard_size=shard_size)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard_size == "40KB")
    theirs, report = transformers.GPT2LMHeadModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert close(logits(ours), logits(theirs.eval()))
    assert (theirs.config.architectures, theirs.config.num_labels) == (["GPT2LMHeadModel"], 3)
    theirs.save_pretrained(tmp_path / "again")
    assert torch.equal(logits(GPT2LMHeadModel.from_pretrained(tmp_path / "again")), logits(ours))


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("shard_size", ["50GB", "40KB"])
@pytest.mark.parametrize("model_class", [GPT2Model, GPT2LMHeadModel])
def test_a_saved_model_comes_back_bit_by_bit(
    model_class: type[GPT2LMHeadModel], shard_size: str, safe: bool, tmp_path: Path
) -> None:
    model = model_class(GPT2Config(**SIZES)).to(torch.float16)
    save_checkpoint(model, tmp_path, max_shard_size=shard_size, safe_serialization=safe)
    again = load_checkpoint(model_class, tmp_path)
    assert again.config == model.config.replace(dtype="float16", architectures=[model_class.__name__])
    weights, expected = again.state_dict(), model.state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    "change",
    [
        pickled,
        lambda folder: pickled(folder, _use_new_zipfile_serialization=False),
        in_pickled_shards,
        lambda folder: rewrite(folder, lambda state: {f"module.{key}": state[key] for key in state}),
        lambda folder: rewrite(folder, lambda state: {f"_orig_mod.module.{key}": state[key] for key in state}),
        lambda folder: rewrite(folder, lambda state: {key.removeprefix("transformer."): state[key] for key in state}),
        lambda folder: rewrite(folder, with_old_names),
        lambda folder: rewrite(folder, lambda state: {**state, "lm_head.weight": state["transformer.wte.weight"] + 0}),
        lambda folder: rewrite(folder, with_the_head_alone),
    ],
    ids=["bin", "old bin", "bin shards", "module.", "_orig_mod.", "no prefix", "old names", "equal head", "head alone"],
)
def test_every_layout_of_files_gives_the_same_model(change: Callable[[Path], None], folder: Path) -> None:
    change(folder)
    model = load_checkpoint(GPT2LMHeadModel, folder)
    assert model.lm_head.weight is model.transformer.wte.weight
    assert close(logits(model), logits(oracle_model()))
    info = inspect_checkpoint(folder, model_class=GPT2LMHeadModel)
    assert info.num_parameters == sum(weight.numel() for weight in model.parameters())


def with_old_names(state: State) -> State:
    """As in 2019: gamma and beta, and the causal mask among the weights."""
    old = {
        key.replace(".weight", ".gamma").replace(".bias", ".beta") if ".ln_" in key else key: tensor
        for key, tensor in state.items()
    }
    mask = {"transformer.h.0.attn.bias": torch.ones(1, 1, 16, 16).tril(), "h.1.attn.masked_bias": torch.tensor(-1e4)}
    return old | mask | {"h.1.crossattention.bias": torch.ones(1, 1, 16, 16, dtype=torch.uint8)}


def with_the_head_alone(state: State) -> State:
    return {"lm_head.weight" if key == "transformer.wte.weight" else key: tensor for key, tensor in state.items()}


@pytest.mark.parametrize("make", [lambda folder: None, pickled], ids=["safetensors", "bin"])
def test_a_head_with_other_values_than_the_embedding_is_untied(make: Callable[[Path], None], folder: Path) -> None:
    head = torch.full((64, 32), 0.5)
    rewrite(folder, lambda state: {**state, "lm_head.weight": head})
    make(folder)
    model = load_checkpoint(GPT2LMHeadModel, folder)
    assert torch.equal(model.lm_head.weight, head)
    assert not model.config.tie_word_embeddings
    theirs = oracle_model(tie_word_embeddings=False)
    theirs.lm_head.weight.data = head
    assert close(logits(model), logits(theirs))
    assert inspect_checkpoint(folder, model_class=GPT2LMHeadModel).config == model.config
    model.save_pretrained(folder.parent / "again")
    assert torch.equal(GPT2LMHeadModel.from_pretrained(folder.parent / "again").lm_head.weight, head)


def test_a_checkpoint_with_a_head_loads_into_the_base_model_and_the_other_way_round(folder: Path) -> None:
    with_head = load_checkpoint(GPT2LMHeadModel, folder)
    rewrite(folder, lambda state: {**state, "lm_head.weight": torch.zeros(64, 32), "score.weight": torch.zeros(2, 32)})
    base = load_checkpoint(GPT2Model, folder)
    save_checkpoint(base, folder.parent / "base")
    assert torch.equal(logits(load_checkpoint(GPT2LMHeadModel, folder.parent / "base")), logits(with_head))


def test_nan_in_weights_is_no_error(folder: Path) -> None:
    rewrite(folder, lambda state: {**state, "transformer.wte.weight": state["transformer.wte.weight"] * float("nan")})
    rewrite(folder, lambda state: {**state, "lm_head.weight": state["transformer.wte.weight"] + 0})
    model = load_checkpoint(GPT2LMHeadModel, folder)
    assert model.lm_head.weight is model.transformer.wte.weight
    assert model.lm_head.weight.isnan().all()


@pytest.mark.parametrize("in_config", [None, "float16"])
@pytest.mark.parametrize("asked", [None, "auto", "float32", torch.bfloat16])
def test_dtype_follows_transformers(in_config: str | None, asked: Any, folder: Path) -> None:
    rewrite(folder, lambda state: {key: tensor.to(torch.bfloat16) for key, tensor in state.items()})
    rewrite_config(folder, dtype=in_config)
    ours = load_checkpoint(GPT2LMHeadModel, folder, dtype=asked)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(folder, dtype=asked)
    assert {weight.dtype for weight in ours.parameters()} == {theirs.dtype} == {ours.config.dtype}
    if asked is None:
        assert inspect_checkpoint(folder, model_class=GPT2LMHeadModel).dtype == theirs.dtype


def test_a_config_that_is_given_replaces_the_file(folder: Path) -> None:
    config = GPT2Config.from_pretrained(folder).replace(scale_attn_weights=False)
    (folder / "config.json").unlink()
    model = load_checkpoint(GPT2LMHeadModel, folder, config=config, attn_implementation="eager")
    assert model.config == config
    theirs = oracle_model(scale_attn_weights=False)
    assert close(logits(model), logits(theirs))


def test_weights_stay_when_the_file_is_overwritten(folder: Path) -> None:
    model = load_checkpoint(GPT2LMHeadModel, folder)
    before = logits(model)
    size = (folder / "model.safetensors").stat().st_size
    (folder / "model.safetensors").write_bytes(bytes(size))
    assert torch.equal(logits(model), before)


def drop(*names: str) -> Callable[[State], State]:
    return lambda state: {key: tensor for key, tensor in state.items() if key not in names}


@pytest.mark.parametrize(
    "make", [lambda folder: None, pickled, in_pickled_shards], ids=["safetensors", "bin", "shards"]
)
@pytest.mark.parametrize("read", [load_checkpoint, inspect_checkpoint])
@pytest.mark.parametrize(
    ("change", "config", "words"),
    [
        (drop("transformer.ln_f.weight"), {}, ["1 missing (transformer.ln_f.weight)", "own config.json"]),
        (drop("transformer.wte.weight"), {}, ["1 missing (transformer.wte.weight)"]),
        (lambda state: {**state, "extra.weight": torch.ones(1)}, {}, ["1 unexpected (extra.weight)"]),
        (lambda state: {**state, "score.weight": torch.ones(2, 32)}, {}, ["1 unexpected (score.weight)", "class"]),
        (
            lambda state: {**state, "transformer.wpe.weight": torch.ones(8, 32)},
            {},
            ["1 of another shape (transformer.wpe.weight is [8, 32], not [16, 32])"],
        ),
        (lambda state: state, {"n_layer": 3}, ["12 missing (transformer.h.2.attn.c_attn.bias, ", "and 7 more)"]),
        (lambda state: state, {"n_layer": 1}, ["12 unexpected (transformer.h.1.attn.c_attn.bias, ", "and 7 more)"]),
        (lambda state: state, {"n_embd": 16}, ["28 of another shape", "and 23 more"]),
        (lambda state: state, {"tie_word_embeddings": False}, ["1 missing (lm_head.weight)", "tie_word_embeddings to"]),
        (
            lambda state: {**state, "transformer.h.0.attn.c_attn.weight": torch.ones(32, 96, dtype=torch.int8)},
            {},
            ["transformer.h.0.attn.c_attn.weight", "torch.int8", "quantized"],
        ),
        (
            lambda state: {**state, "transformer.h.0.attn.c_attn.weight.absmax": torch.ones(3)},
            {},
            ["1 unexpected", "quantized: put quantization_config back"],
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_weights_that_do_not_fit_are_refused_by_name(
    change: Callable[[State], State],
    config: dict[str, Any],
    words: list[str],
    read: Callable[..., Any],
    make: Callable[[Path], None],
    folder: Path,
) -> None:
    rewrite(folder, change)
    rewrite_config(folder, **config)
    make(folder)
    with pytest.raises(WeightsMismatch) as raised:
        read(path_or_id=folder, model_class=GPT2LMHeadModel)
    assert [word for word in [str(folder), *words] if word not in str(raised.value)] == []


HEADS: dict[str, tuple[str, ...]] = {
    "GPT2ForSequenceClassification": ("score.weight",),
    "GPT2ForTokenClassification": ("classifier.bias", "classifier.weight"),
    "GPT2ForQuestionAnswering": ("qa_outputs.bias", "qa_outputs.weight"),
    "GPT2DoubleHeadsModel": ("multiple_choice_head.summary.bias", "multiple_choice_head.summary.weight"),
}


@pytest.mark.parametrize("read", [load_checkpoint, inspect_checkpoint])
@pytest.mark.parametrize("name", HEADS)
def test_a_head_that_the_files_lack_is_refused_unless_asked_for(
    name: str, read: Callable[..., Any], folder: Path
) -> None:
    model_class = getattr(gpt2model, name)
    words = rf"{len(HEADS[name])} missing \({', '.join(HEADS[name])}\).*allow_new_head=True"
    with pytest.raises(WeightsMismatch, match=words):
        read(path_or_id=folder, model_class=model_class)
    read(path_or_id=folder, model_class=model_class, allow_new_head=True)


@pytest.mark.parametrize("name", HEADS)
def test_a_new_head_is_drawn_in_the_scheme_of_gpt_2(name: str, folder: Path) -> None:
    rewrite_config(folder, num_labels=40, initializer_range=0.5)
    rewrite(folder, lambda state: {**state, "lm_head.weight": torch.ones(64, 32)})
    torch.manual_seed(3)
    model = load_checkpoint(getattr(gpt2model, name), folder, allow_new_head=True, dtype="float16")
    drawn = {key: model.state_dict()[key] for key in HEADS[name]}
    for key, weight in drawn.items():
        assert weight.dtype == torch.float16
        assert not weight.any() if key.endswith("bias") else 0.35 < float(weight.float().std()) < 0.65
    torch.manual_seed(3)
    again = load_checkpoint(getattr(gpt2model, name), folder, allow_new_head=True, dtype="float16")
    assert all(torch.equal(again.state_dict()[key], weight) for key, weight in drawn.items())


def test_an_untied_language_model_head_may_be_new(folder: Path) -> None:
    rewrite_config(folder, tie_word_embeddings=False)
    model = load_checkpoint(GPT2LMHeadModel, folder, allow_new_head=True)
    assert 0.015 < float(model.lm_head.weight.detach().std()) < 0.025


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (drop("transformer.ln_f.bias"), r"1 missing \(transformer\.ln_f\.bias\)"),
        (lambda state: {**state, "clasifier.weight": torch.ones(2, 32)}, r"1 unexpected \(clasifier\.weight\)"),
        (lambda state: {**state, "classifier.bias": torch.ones(2)}, r"1 missing \(classifier\.weight\)"),
        (lambda state: {**state, "classifier.wight": torch.ones(2, 32)}, r"1 unexpected \(classifier\.wight\)"),
    ],
    ids=["no head", "misspelt head", "half a head", "misspelt weight"],
)
def test_only_a_whole_head_may_be_new(change: Callable[[State], State], words: str, folder: Path) -> None:
    rewrite(folder, change)
    with pytest.raises(WeightsMismatch, match=words) as raised:
        load_checkpoint(gpt2model.GPT2ForTokenClassification, folder, allow_new_head=True)
    assert "allow_new_head" not in str(raised.value)


def test_a_head_that_is_there_is_loaded_where_a_new_one_would_do(folder: Path) -> None:
    head = torch.ones(2, 32)
    rewrite(folder, lambda state: {**state, "score.weight": head})
    model = load_checkpoint(gpt2model.GPT2ForSequenceClassification, folder, allow_new_head=True)
    assert torch.equal(model.score.weight, head)


def test_an_option_that_is_none_is_refused_by_name(folder: Path) -> None:
    with pytest.raises(TypeError, match=r"quantisation"):
        GPT2LMHeadModel.from_pretrained(folder, quantisation="nf4")


def test_loading_and_inspecting_raise_the_same_message(folder: Path) -> None:
    rewrite(folder, drop("transformer.ln_f.weight", "transformer.h.0.ln_1.bias"))
    messages = []
    for read in (load_checkpoint, inspect_checkpoint):
        with pytest.raises(WeightsMismatch) as raised:
            read(path_or_id=folder, model_class=GPT2LMHeadModel)
        messages.append(str(raised.value))
    assert messages[0] == messages[1]


def write_into(name: str, content: bytes) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / name).write_bytes(content)

    return change


def cut(name: str, keep: float, make: Callable[[Path], None] | None = None) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        if make is not None:
            make(folder)
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(len(content) * keep)])

    return change


class Code:
    """Pickles as a call of a function."""

    def __reduce__(self) -> Any:
        return (Path, ("never",))


def with_code(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"transformer.wte.weight": Code()}, folder / "pytorch_model.bin")


def with_trainer_state(folder: Path) -> None:
    torch.save({"state_dict": load_file(folder / "model.safetensors"), "epoch": 3}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def without_a_shard(folder: Path) -> None:
    in_pickled_shards(folder)
    (folder / "pytorch_model-00002-of-00002.bin").unlink()


def with_a_shard_twice(folder: Path) -> None:
    in_pickled_shards(folder)
    shutil.copy(folder / "pytorch_model-00001-of-00002.bin", folder / "pytorch_model-00002-of-00002.bin")


INDEX = "model.safetensors.index.json"
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n"


@pytest.mark.parametrize("read", [load_checkpoint, inspect_checkpoint])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (cut("model.safetensors", 0.9), ["model.safetensors", "cut short or damaged", "again"]),
        (cut("model.safetensors", 0.0), ["model.safetensors", "it is empty"]),
        (write_into("model.safetensors", LFS_POINTER), ["model.safetensors", "git lfs pull"]),
        (write_into("model.safetensors", b"<html>404</html>" * 9), ["model.safetensors", "144 bytes", "again"]),
        (cut("pytorch_model.bin", 0.9, pickled), ["pytorch_model.bin", "cut short or damaged"]),
        (write_into("pytorch_model.bin", b""), ["pytorch_model.bin", "it is empty"]),
        (write_into("pytorch_model.bin", b"hello world" * 9), ["pytorch_model.bin", "no whole file of torch.save"]),
        (write_into("pytorch_model.bin", LFS_POINTER), ["pytorch_model.bin", "git lfs pull"]),
        (with_code, ["pytorch_model.bin", "pathlib.Path", "never run", "state_dict"]),
        (with_trainer_state, ["pytorch_model.bin", "no plain state_dict"]),
        (without_a_shard, ["pytorch_model-00002-of-00002.bin", "no such file", "again"]),
        (with_a_shard_twice, ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin", "stale"]),
        (write_into(INDEX, b"{"), [INDEX, "no index of shards", "damaged"]),
        (write_into(INDEX, b""), [INDEX, "it is empty"]),
        (write_into(INDEX, b"[]"), [INDEX, "weight_map"]),
        (write_into(INDEX, b'{"weight_map": []}'), [INDEX, "weight_map"]),
        (write_into(INDEX, b'{"weight_map": {}}'), [INDEX, "lists no shards"]),
        (write_into(INDEX, b'{"weight_map": {"a": 3}}'), [INDEX, "3", "file name"]),
        (write_into(INDEX, b'{"weight_map": {"a": "../up"}}'), [INDEX, "'../up'", "file name"]),
        (write_into("tf_model.h5", b"x"), ["holds no weights", "tf_model.h5 cannot be read here"]),
        (write_into("notes.txt", b"x"), ["holds no weights", "model.safetensors, pytorch_model.bin"]),
        (
            lambda folder: rewrite(folder, lambda state: {**state, "wpe.weight": torch.ones(16, 32)}),
            ["'transformer.wpe.weight'", "'wpe.weight'", "remove one"],
        ),
        (lambda folder: (folder / "config.json").unlink(), ["config.json", "config="]),
    ],
)  # fmt: skip
def test_damaged_files_are_refused_by_name(
    change: Callable[[Path], None], words: list[str], read: Callable[..., Any], folder: Path
) -> None:
    change(folder)
    with pytest.raises(CheckpointError) as raised:
        read(path_or_id=folder, model_class=GPT2LMHeadModel)
    assert not isinstance(raised.value, WeightsMismatch)
    assert [word for word in [str(folder), *words] if word not in str(raised.value)] == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dtype": "float17"}, ["dtype='float17'"]),
        ({"device": "cuda:99"}, ["device='cuda:99'", "'cpu'"]),
        ({"device": "toaster"}, ["device='toaster'", "'cpu'"]),
    ],
)
def test_an_impossible_dtype_or_device_is_refused(options: dict[str, Any], words: list[str], folder: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        load_checkpoint(GPT2LMHeadModel, folder, **options)
    assert [word for word in words if word not in str(raised.value)] == []


def test_a_generation_config_travels_with_the_model(folder: Path) -> None:
    wanted = {"eos_token_id": [1, 2], "max_new_tokens": 7}
    (folder / "generation_config.json").write_text(json.dumps(wanted))
    load_checkpoint(GPT2LMHeadModel, folder).save_pretrained(folder.parent / "again")
    assert json.loads((folder.parent / "again" / "generation_config.json").read_text()) == wanted
    (folder / "generation_config.json").write_text("[")
    loaded = load_checkpoint(GPT2LMHeadModel, folder)
    with pytest.raises(ConfigError, match=r"generation_config\.json: is not JSON"):
        loaded.generate()


def test_saving_again_leaves_no_stale_weights(tmp_path: Path) -> None:
    model = our_model()
    for size in ("40KB", "50GB", "20KB", "50GB", "40KB"):
        model.save_pretrained(tmp_path, max_shard_size=size)
        assert torch.equal(logits(load_checkpoint(GPT2LMHeadModel, tmp_path)), logits(model))
        held = {path.name for path in tmp_path.iterdir()} - {"config.json", "generation_config.json"}
        if size == "50GB":
            assert held == {"model.safetensors"}
        else:
            index = json.loads((tmp_path / INDEX).read_text())
            assert held == {INDEX, *index["weight_map"].values()}
            assert index["metadata"]["total_size"] == sum(weight.nbytes for weight in model.parameters())


def test_saving_where_the_new_weights_would_not_be_read_is_refused(folder: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(CheckpointError, match=r"model\.safetensors would be read instead.*another folder"):
        save_checkpoint(our_model(), folder, safe_serialization=False)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"file: the checkpoint cannot be written"):
        save_checkpoint(our_model(), tmp_path / "file")


@pytest.mark.parametrize("shard_size", ["50GB", "40KB"])
@pytest.mark.parametrize("safe", [True, False])
def test_a_full_disk_leaves_the_earlier_checkpoint_as_it_was(safe: bool, shard_size: str, tmp_path: Path) -> None:
    model = our_model()
    save_checkpoint(model, tmp_path, safe_serialization=safe, max_shard_size=shard_size)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    model.transformer.wte.weight.data.zero_()
    sizes = sorted(len(content) for content in before.values())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (sizes[-1] - 1, hard))  # the largest file does not fit
    try:
        with pytest.raises(CheckpointError, match=r"cannot be written"):
            save_checkpoint(model, tmp_path, safe_serialization=safe, max_shard_size=shard_size)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_saved_files_have_the_usual_rights(tmp_path: Path) -> None:
    our_model().save_pretrained(tmp_path, max_shard_size="40KB")
    (tmp_path / "usual").touch()
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1


@pytest.mark.parametrize("size", ["much", "5 parsecs", ""])
def test_a_shard_size_that_is_none_is_refused(size: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=rf"max_shard_size='{size}' is no size.*'5GB'"):
        our_model().save_pretrained(tmp_path, max_shard_size=size)


def test_inspecting_tells_what_there_is(folder: Path) -> None:
    info = inspect_checkpoint(folder, model_class=GPT2LMHeadModel)
    content = (folder / "model.safetensors").read_bytes()
    (file,) = info.files
    assert (file.name, file.size, file.sha256) == (
        "model.safetensors",
        len(content),
        hashlib.sha256(content).hexdigest(),
    )
    assert (info.folder, info.revision, info.dtype) == (folder, None, torch.float32)
    assert info.config.n_layer == 2
    (undigested,) = inspect_checkpoint(folder, model_class=GPT2LMHeadModel, digests=False).files
    assert (undigested.size, undigested.sha256) == (len(content), None)


def test_the_real_trained_checkpoint_continues_as_it_is_known_to(mgm_folder: Path, tmp_path: Path) -> None:
    load_checkpoint(GPT2LMHeadModel, mgm_folder).save_pretrained(tmp_path)
    model = load_checkpoint(GPT2LMHeadModel, tmp_path)
    ids = torch.tensor([[2]])
    with torch.no_grad():
        for _ in range(11):
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
    assert ids[0].tolist() == [2, 964, 6350, 320, 3317, 7829, 239, 3514, 8688, 4401, 4227, 6228]


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("wte.weight", "transformer.wte.weight"),
        ("module.transformer.wte.weight", "transformer.wte.weight"),
        ("h.0.ln_1.gamma", "transformer.h.0.ln_1.weight"),
        ("transformer.h.11.ln_cross_attn.beta", "transformer.h.11.ln_cross_attn.bias"),
        ("ln_f.beta", "transformer.ln_f.bias"),
        ("h.0.attn.bias", None),
        ("transformer.h.0.crossattention.masked_bias", None),
        ("h.0.attn.c_attn.bias", "transformer.h.0.attn.c_attn.bias"),
        ("score.weight", "score.weight"),
        ("module.multiple_choice_head.summary.bias", "multiple_choice_head.summary.bias"),
    ],
)
def test_names_in_files_become_canonical(key: str, name: str | None) -> None:
    assert _hf.canonical_name(key) == name


@pytest.mark.parametrize(
    "head", ["score.weight", "classifier.bias", "qa_outputs.bias", "multiple_choice_head.summary.bias"]
)
def test_a_head_that_the_files_lack_is_told_apart(head: str) -> None:
    with pytest.raises(WeightsMismatch, match=r"1 missing .*no such head"):
        _hf.match({"wte.weight": (4, 2)}, {"transformer.wte.weight": (4, 2), head: (2,)}, tied=True, place="here")
