"""Quantized models are transformers' and bitsandbytes': the same logits, and checkpoints that go both ways."""

import copy
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module

import gpt2model
from gpt2model import quantized_layers
from gpt2model.checkpoint import inspect_checkpoint, load_checkpoint
from gpt2model.config import GPT2Config
from gpt2model.errors import CheckpointError, ConfigError, WeightsMismatch
from gpt2model.heads import GPT2LMHeadModel
from gpt2model.model import GPT2Model
from gpt2model.packing import pack
from gpt2model.quantization import METHODS, QuantizationConfig, linear_forms
from tests.gpt2model.oracle import assert_close, ours, padded, random_ids

WIDE: dict[str, Any] = {"n_embd": 64, "n_layer": 2}
HEADS = (
    "GPT2Model",
    "GPT2LMHeadModel",
    "GPT2DoubleHeadsModel",
    "GPT2ForSequenceClassification",
    "GPT2ForTokenClassification",
    "GPT2ForQuestionAnswering",
)
IDS = random_ids(3, 12)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint in full, with outliers for LLM.int8; tests copy it before they touch it."""
    folder = tmp_path_factory.mktemp("made")
    model = ours(**WIDE)
    with torch.no_grad():
        model.transformer.h[0].ln_1.weight[5] = 9.0
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def packed(made: Path, tmp_path: Path) -> Path:
    """The same quantized by nf4."""
    load_checkpoint(GPT2LMHeadModel, made, quantization="nf4").save_pretrained(tmp_path / "packed")
    return tmp_path / "packed"


def their_config(method: str, **options: Any) -> transformers.BitsAndBytesConfig:
    ours = {**QuantizationConfig.from_name(method).to_dict(), **options}
    return transformers.BitsAndBytesConfig(**{name: ours[name] for name in ours if name != "quant_method"})


def their_model(folder: Path, name: str = "GPT2LMHeadModel", **options: Any) -> Any:
    """transformers' model, computing in the dtype that it was told to: see gpt2model.quantized_layers.Linear4bit."""
    model = getattr(transformers, name).from_pretrained(folder, device_map="cpu", **options)
    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False
    return model.eval()


@torch.no_grad()
def logits(model: Any, ids: Tensor = IDS) -> Tensor:
    found: Tensor = model(ids)[0]
    return found


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})


def rewrite_quantization(folder: Path, **changes: Any) -> None:
    content = json.loads((folder / "config.json").read_text())
    content["quantization_config"] |= changes
    (folder / "config.json").write_text(json.dumps(content))


def exact_products(method: str) -> None:
    """bitsandbytes' own products, the oracle's, may be cut off: see quantized_layers.cpu_products_are_exact."""
    if method == "int8" and not quantized_layers.cpu_products_are_exact():
        pytest.skip("8-bit products overflow on this CPU, or under this ONEDNN_MAX_CPU_ISA")


@pytest.mark.parametrize("method", METHODS)
def test_logits_are_those_of_transformers_with_bitsandbytes(method: str, made: Path) -> None:
    exact_products(method)
    model = load_checkpoint(GPT2LMHeadModel, made, quantization=method)
    theirs = their_model(made, quantization_config=their_config(method))
    assert_close(logits(model), logits(theirs))
    assert not torch.equal(logits(model), logits(load_checkpoint(GPT2LMHeadModel, made)))


@pytest.mark.parametrize("method", ["nf4-double", "int8"])
@pytest.mark.parametrize("name", HEADS)
def test_every_head_is_quantized_as_by_transformers(name: str, method: str, tmp_path: Path) -> None:
    exact_products(method)
    ours(name, **WIDE, num_labels=3, pad_token_id=96).save_pretrained(tmp_path)
    model = load_checkpoint(getattr(gpt2model, name), tmp_path, quantization=method)
    theirs = their_model(tmp_path, name, quantization_config=their_config(method))
    kinds = (bitsandbytes.nn.Linear4bit, bitsandbytes.nn.Linear8bitLt)
    quantized = [
        {path for path, module in each.named_modules() if isinstance(module, kinds)} for each in (model, theirs)
    ]
    assert quantized[0] == quantized[1] != set()
    assert_close(logits(model), logits(theirs))


@pytest.mark.parametrize(("shard_size", "forward_first"), [("50GB", True), ("20KB", False)])
@pytest.mark.parametrize("method", METHODS)
def test_what_we_save_quantized_gives_the_same_logits_here_and_in_transformers(
    method: str, shard_size: str, forward_first: bool, made: Path, tmp_path: Path
) -> None:
    exact_products(method)
    model = load_checkpoint(GPT2LMHeadModel, made, quantization=method)
    expected = logits(copy.deepcopy(model))
    if forward_first:
        logits(model)
    model.save_pretrained(tmp_path, max_shard_size=shard_size)
    again = load_checkpoint(GPT2LMHeadModel, tmp_path)
    assert torch.equal(logits(again), expected)
    assert again.config == model.config.replace(architectures=["GPT2LMHeadModel"])
    theirs, report = transformers.GPT2LMHeadModel.from_pretrained(tmp_path, device_map="cpu", output_loading_info=True)
    assert not any(report.values())
    assert_close(logits(their_model(tmp_path)), expected)
    assert theirs.config.quantization_config.to_dict() == their_config(method).to_dict()


@pytest.mark.parametrize(
    ("method", "shard_size"), [*((method, "50GB") for method in METHODS), ("nf4-double", "20KB"), ("int8", "20KB")]
)
def test_what_transformers_saves_quantized_gives_the_same_logits_here(
    method: str, shard_size: str, made: Path, tmp_path: Path
) -> None:
    exact_products(method)
    theirs = their_model(made, quantization_config=their_config(method))
    theirs.save_pretrained(tmp_path, max_shard_size=shard_size)
    for asked in (None, method):
        model = load_checkpoint(GPT2LMHeadModel, tmp_path, quantization=asked)
        assert_close(logits(model), logits(theirs))


@pytest.mark.parametrize("method", ["nf4", "int8"])
def test_a_quantized_checkpoint_loads_into_the_base_model_and_into_a_new_head(
    method: str, made: Path, tmp_path: Path
) -> None:
    load_checkpoint(GPT2LMHeadModel, made, quantization=method).save_pretrained(tmp_path / "lm")
    base = load_checkpoint(GPT2Model, tmp_path / "lm")
    assert torch.equal(logits(base), logits(load_checkpoint(GPT2Model, made, quantization=method)))
    base.save_pretrained(tmp_path / "base")
    back = load_checkpoint(GPT2LMHeadModel, tmp_path / "base")
    assert torch.equal(logits(back), logits(load_checkpoint(GPT2LMHeadModel, tmp_path / "lm")))
    tagger = load_checkpoint(gpt2model.GPT2ForTokenClassification, tmp_path / "lm", allow_new_head=True)
    tagger.save_pretrained(tmp_path / "tagger")
    again = load_checkpoint(gpt2model.GPT2ForTokenClassification, tmp_path / "tagger")
    assert torch.equal(logits(again), logits(tagger))


@pytest.mark.parametrize("storage", ["int8", "bfloat16", "float32"])
def test_four_bit_weights_that_a_file_packs_in_another_dtype_are_read(storage: str, made: Path, tmp_path: Path) -> None:
    theirs = their_model(made, quantization_config=their_config("nf4", bnb_4bit_quant_storage=storage))
    theirs.save_pretrained(tmp_path)
    model = load_checkpoint(GPT2LMHeadModel, tmp_path)
    assert_close(logits(model), logits(theirs))
    model.save_pretrained(tmp_path / "again")
    assert torch.equal(logits(load_checkpoint(GPT2LMHeadModel, tmp_path / "again")), logits(model))


def test_modules_that_are_to_be_skipped_stay_in_full(made: Path, tmp_path: Path) -> None:
    skipped = ["lm_head", "transformer.h.0", r"transformer\.h\.\d+\.mlp", "n.c_proj"]
    config = QuantizationConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", llm_int8_skip_modules=tuple(skipped))
    model = load_checkpoint(GPT2LMHeadModel, made, quantization=config)
    kinds = {name: type(module).__name__ for name, module in model.named_modules() if hasattr(module, "weight")}
    quantized = {name for name, kind in kinds.items() if kind == "Linear4bit"}
    assert quantized == {"transformer.h.1.attn.c_attn"}
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(load_checkpoint(GPT2LMHeadModel, tmp_path)), logits(model))
    load_checkpoint(GPT2Model, tmp_path)
    theirs = their_model(made, quantization_config=their_config("nf4", llm_int8_skip_modules=skipped))
    assert_close(logits(model), logits(theirs))


@given(st.lists(st.sampled_from(["h.1", "h.*", "c_proj", "attn", "transformer.h", "mlp.c_fc", "ead", "h.1.attn.c_"])))
def test_a_pattern_matches_what_it_matches_in_transformers(patterns: list[str]) -> None:
    config = QuantizationConfig(load_in_8bit=True, llm_int8_skip_modules=tuple(patterns))
    for name in ("transformer.h.1.attn.c_proj", "transformer.h.11.mlp.c_fc", "lm_head"):
        assert config.skips(name) == (not should_convert_module(name, patterns))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", HEADS)
def test_what_stays_in_full_by_default_is_what_transformers_leaves(name: str, tied: bool) -> None:
    config = GPT2Config(vocab_size=8, n_positions=4, n_embd=4, n_layer=1, n_head=1, tie_word_embeddings=tied)
    theirs = getattr(transformers, name)(transformers.GPT2Config(**config.to_dict()))
    left = HfQuantizer.get_modules_to_not_convert(theirs)
    linear = (nn.Linear, transformers.pytorch_utils.Conv1D)
    expected = {
        path
        for path, module in theirs.named_modules()
        if isinstance(module, linear) and should_convert_module(path, left)
    }
    model = getattr(gpt2model, name)(config)
    assert linear_forms(model, QuantizationConfig.from_name("nf4")).keys() == expected


@pytest.mark.parametrize("method", METHODS)
def test_a_row_has_the_same_logits_alone_padded_and_packed(method: str, made: Path) -> None:
    model = load_checkpoint(GPT2LMHeadModel, made, quantization=method)
    # LLM.int8 rounds to 8 bits what differs by float32's rounding, and takes its outliers from the whole batch.
    tolerance = 0.05 if method == "int8" else 1e-4
    mask = padded([12, 7, 3], 12, "right")
    batch = model(IDS, attention_mask=mask).logits
    rows = [row[:length] for row, length in zip(IDS, (12, 7, 3), strict=True)]
    flat = model.lm_head(model.transformer.forward_packed(pack([row.tolist() for row in rows])))
    for row, single, inside in zip(rows, batch, flat.split([12, 7, 3]), strict=True):
        alone = model(row[None]).logits[0]
        assert_close(single[: len(row)], alone, tolerance=tolerance)
        assert_close(inside, alone, tolerance=tolerance)


@pytest.mark.parametrize("threshold", [0.0, 1.0, 6.0])
def test_eight_bit_products_in_float32_are_those_in_integers(
    threshold: float, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact_products("int8")
    config = QuantizationConfig(load_in_8bit=True, llm_int8_threshold=threshold)
    layer = load_checkpoint(GPT2Model, made, quantization=config).h[0].get_submodule("attn.c_attn")
    x = 2 * torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(0))
    expected = layer(x)
    monkeypatch.setattr(quantized_layers, "cpu_products_are_exact", lambda: False)
    assert_close(layer(x), expected)
    assert_close(layer(x[0]), expected[0], tolerance=0.05)


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_eight_bits_are_near_float32_wherever_they_are_computed(threshold: float, made: Path) -> None:
    config = QuantizationConfig(load_in_8bit=True, llm_int8_threshold=threshold)
    model = load_checkpoint(GPT2LMHeadModel, made, quantization=config)
    assert_close(logits(model), logits(load_checkpoint(GPT2LMHeadModel, made)), tolerance=0.1)


@pytest.mark.parametrize("method", METHODS)
def test_a_quantized_model_is_moved_and_copied_without_change(method: str, made: Path) -> None:
    model = load_checkpoint(GPT2LMHeadModel, made, quantization=method, dtype="float32")
    expected = logits(model)
    assert torch.equal(logits(copy.deepcopy(model)), expected)
    assert torch.equal(logits(model.to("cpu")), expected)
    assert (model.dtype, model.device.type) == (torch.float32, "cpu")
    tolerance = 0.1 if method == "int8" else 0.02
    assert_close(logits(model.to(torch.float16)).float(), expected, tolerance=tolerance)
    assert model.dtype == torch.float16


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("method", METHODS)
def test_inspecting_tells_the_memory_that_a_quantized_model_takes(method: str, dtype: str, made: Path) -> None:
    model = load_checkpoint(GPT2LMHeadModel, made, quantization=method, dtype=dtype)
    info = inspect_checkpoint(made, model_class=GPT2LMHeadModel, quantization=method, dtype=dtype)
    held = {name: tensor for name, tensor in model.state_dict().items() if "quant_state" not in name}
    del held["lm_head.weight"]
    assert info.bytes_in_memory == sum(tensor.nbytes for tensor in held.values())
    full = load_checkpoint(GPT2LMHeadModel, made)
    assert info.num_parameters == sum(parameter.numel() for parameter in full.parameters())
    assert info.bytes_full == 4 * info.num_parameters
    assert (info.quantization, info.dtype) == (QuantizationConfig.from_name(method), getattr(torch, dtype))


@pytest.mark.parametrize("method", METHODS)
def test_inspecting_a_quantized_checkpoint_counts_its_real_parameters(method: str, made: Path, tmp_path: Path) -> None:
    load_checkpoint(GPT2LMHeadModel, made, quantization=method).save_pretrained(tmp_path)
    read, asked = (
        inspect_checkpoint(folder, model_class=GPT2LMHeadModel, quantization=quantization)
        for folder, quantization in ((tmp_path, None), (made, method))
    )
    assert (read.num_parameters, read.bytes_in_memory) == (asked.num_parameters, asked.bytes_in_memory)
    assert read.quantization is not None
    assert read.quantization.method == method


def test_in_full_the_bytes_follow_the_dtype(made: Path) -> None:
    info = inspect_checkpoint(made, model_class=GPT2LMHeadModel, dtype="float16")
    assert 2 * info.bytes_in_memory == info.bytes_full
    assert info.quantization is None


@pytest.mark.parametrize("read", [load_checkpoint, inspect_checkpoint])
@pytest.mark.parametrize("asked", ["fp4", "int8", "nf4-double", QuantizationConfig(load_in_4bit=True)])
def test_a_quantized_checkpoint_is_not_quantized_in_another_way(
    asked: Any, read: Callable[..., Any], packed: Path
) -> None:
    with pytest.raises(ConfigError, match=r"is quantized by nf4 .* not as asked by .* load the full checkpoint"):
        read(path_or_id=packed, model_class=GPT2LMHeadModel, quantization=asked)


def test_how_a_quantized_checkpoint_computes_may_be_asked_for(packed: Path) -> None:
    asked = QuantizationConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float16)
    model = load_checkpoint(GPT2LMHeadModel, packed, quantization=asked)
    assert model.transformer.h[0].mlp.c_fc.compute_dtype == torch.float16
    assert model.config.extra["quantization_config"]["bnb_4bit_compute_dtype"] == "float16"


KEY = "transformer.h.0.mlp.c_fc.weight"
STATE = f"{KEY}.quant_state.bitsandbytes__nf4"


def state_of(**changes: Any) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    def change(state: dict[str, Tensor]) -> dict[str, Tensor]:
        said = {**json.loads(bytes(state[STATE].tolist())), **changes}
        return {**state, STATE: torch.tensor(list(json.dumps(said).encode()), dtype=torch.uint8)}

    return change


@pytest.mark.parametrize("read", [load_checkpoint, inspect_checkpoint])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: {k: v for k, v in state.items() if k != f"{KEY}.absmax"}, [f"1 missing ({KEY}.absmax)"]),
        (lambda state: {**state, KEY: state[KEY][1:].clone()}, [f"1 of another shape ({KEY} is [8191, 1]"]),
        (lambda state: {**state, KEY: state[KEY].to(torch.int8)}, [KEY, "torch.int8, not torch.uint8"]),
        # What bitsandbytes 0.50 leaves of a checkpoint that transformers saves after a first forward on some CPUs.
        (
            lambda state: {**state, f"{KEY}.absmax": state[f"{KEY}.absmax"].view(256, 1).T.clone()},
            [f"{KEY}.absmax is [1, 256], not [256]"],
        ),
        (state_of(quant_type="fp4"), [STATE, "'fp4'", "'nf4'"]),
        (state_of(shape=[64, 256]), [STATE, "[64, 256]", "[256, 64]"]),
        (state_of(blocksize=128), [STATE, "128", "64"]),
        (lambda state: {**state, STATE: torch.zeros(3, dtype=torch.uint8)}, [STATE, "is damaged"]),
        (
            lambda state: {k: v for k, v in state.items() if not k.startswith(KEY + ".")} | {KEY: torch.ones(64, 256)},
            ["3 missing", "not quantized as quantization_config"],
        ),
    ],
)  # fmt: skip
def test_quantized_weights_that_do_not_fit_are_refused_by_name(
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    words: list[str],
    read: Callable[..., Any],
    packed: Path,
) -> None:
    rewrite(packed, change)
    with pytest.raises(WeightsMismatch) as raised:
        read(path_or_id=packed, model_class=GPT2LMHeadModel)
    assert [word for word in [str(packed), *words] if word not in str(raised.value)] == []


def test_eight_bit_weights_in_an_old_order_are_refused(made: Path, tmp_path: Path) -> None:
    load_checkpoint(GPT2LMHeadModel, made, quantization="int8").save_pretrained(tmp_path)
    name = "transformer.h.0.mlp.c_fc.weight_format"
    rewrite(tmp_path, lambda state: {**state, name: torch.tensor(2, dtype=torch.uint8)})
    with pytest.raises(WeightsMismatch, match=r"weight_format is 2: only 0, by rows"):
        load_checkpoint(GPT2LMHeadModel, tmp_path)


def test_quantized_files_without_a_word_of_it_in_the_config_are_refused(packed: Path) -> None:
    config = GPT2Config.from_pretrained(packed).replace(extra={})
    with pytest.raises(CheckpointError, match=r"put quantization_config back"):
        load_checkpoint(GPT2LMHeadModel, packed, config=config)


def test_a_full_model_with_a_quantized_ones_config_is_saved_as_full(packed: Path, tmp_path: Path) -> None:
    model = GPT2LMHeadModel(GPT2Config.from_pretrained(packed)).eval()
    model.save_pretrained(tmp_path / "full")
    assert torch.equal(logits(load_checkpoint(GPT2LMHeadModel, tmp_path / "full")), logits(model))


def test_weights_stay_when_the_file_is_overwritten(packed: Path) -> None:
    model = load_checkpoint(GPT2LMHeadModel, packed)
    before = logits(model)
    size = (packed / "model.safetensors").stat().st_size
    (packed / "model.safetensors").write_bytes(bytes(size))
    assert torch.equal(logits(model), before)


def test_pickled_files_are_quantized_too(made: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made, tmp_path / "checkpoint"))
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    model, same = (load_checkpoint(GPT2LMHeadModel, each, quantization="nf4") for each in (folder, made))
    assert torch.equal(logits(model), logits(same))


@pytest.mark.parametrize("method", METHODS)
def test_a_config_goes_through_config_json_as_it_is(method: str) -> None:
    config = QuantizationConfig.from_name(method)
    said = json.loads(json.dumps(config.to_dict()))
    assert QuantizationConfig.from_dict(said).to_dict() == config.to_dict()
    assert QuantizationConfig.from_dict(said).method == method
    theirs = transformers.BitsAndBytesConfig.from_dict(dict(said))
    assert QuantizationConfig.from_dict(theirs.to_dict()).to_dict() == config.to_dict()
    assert {name: theirs.to_dict()[name] for name in said} == said


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "exactly one must be true"),
        ({"load_in_4bit": True, "load_in_8bit": True}, "exactly one must be true"),
        ({"load_in_4bit": "yes"}, "load_in_4bit='yes' must be true or false"),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf5"}, "bnb_4bit_quant_type='nf5' must be 'nf4' or 'fp4'"),
        ({"load_in_8bit": True, "llm_int8_threshold": -1.0}, "llm_int8_threshold=-1.0 must be a number"),
        ({"load_in_8bit": True, "llm_int8_threshold": "6"}, "llm_int8_threshold='6' must be a number"),
        ({"load_in_4bit": True, "bnb_4bit_compute_dtype": "int8"}, "no floating-point dtype"),
        ({"load_in_4bit": True, "bnb_4bit_quant_storage": 8}, "bnb_4bit_quant_storage=8 must be"),
        ({"load_in_4bit": True, "bnb_4bit_quant_storage": "u8"}, "bnb_4bit_quant_storage='u8' must be the name"),
        ({"load_in_8bit": True, "llm_int8_skip_modules": "lm_head"}, "llm_int8_skip_modules='lm_head' must be a list"),
        ({"load_in_8bit": True, "llm_int8_skip_modules": ["h.("]}, "'h.(' is no regular expression"),
        ({"load_in_8bit": True, "llm_int8_has_fp16_weight": True}, "is for training"),
        ({"load_in_8bit": True, "quant_method": "gptq"}, "quant_method='gptq': only 'bitsandbytes'"),
        ({"load_in_8bit": True, "llm_int8_treshold": 5.0}, "did you mean 'llm_int8_threshold'?"),
    ],
)
def test_an_impossible_config_is_refused_with_its_value(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as raised:
        QuantizationConfig.from_dict(options)
    assert words in str(raised.value)


@pytest.mark.parametrize(
    ("quantization", "words"),
    [
        ("nf5", r"quantization='nf5' is unknown: did you mean 'nf4'\?"),
        ("4bit", r"'4bit' is unknown: there are nf4, fp4, nf4-double, fp4-double, int8"),
        (QuantizationConfig(load_in_8bit=True, llm_int8_skip_modules=("h.0",)), r"lm_head is the token embedding"),
        (QuantizationConfig(load_in_4bit=True, bnb_4bit_quant_storage=torch.float16), r"packed in torch\.uint8"),
    ],
)
def test_a_quantization_that_cannot_be_is_refused(quantization: Any, words: str, made: Path) -> None:
    for read in (load_checkpoint, inspect_checkpoint):
        with pytest.raises(ConfigError, match=words):
            read(path_or_id=made, model_class=GPT2LMHeadModel, quantization=quantization)


def test_without_bitsandbytes_there_is_a_word_of_what_to_install(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "gpt2model.quantized_layers")
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    assert inspect_checkpoint(made, model_class=GPT2LMHeadModel, quantization="nf4").bytes_in_memory
    with pytest.raises(ConfigError, match=r"pip install bitsandbytes"):
        load_checkpoint(GPT2LMHeadModel, made, quantization="nf4")
