"""Fixtures that more than one test module uses."""

import os

# Some virtual machines advertise AMX and then kill whoever uses it; must be set before torch starts.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_VNNI")
# Threads of many small products wait for each other longer than they compute.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODEL_TESTS = Path(__file__).resolve().parent / "gpt2model"


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests that are marked `gpu` skip where there is none."""
    if item.get_closest_marker("gpu") is not None:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The many short files of the model last, so that of several processes none ends long before the others."""
    items.sort(key=lambda item: MODEL_TESTS in item.path.parents)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of public test data beside the checkout; tests that need it skip where it is missing."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the shared test data is not at {folder.name}/ beside the checkout")
    return folder


@pytest.fixture(scope="session")
def mgm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real trained GPT-2 (8 layers, width 256): the MGM checkpoint that the microformer-mgm wheel carries."""
    cache = ROOT / "build" / "mgm"
    folder = cache / "mgm" / "resources" / "general_model"
    if not (folder / "pytorch_model.bin").is_file():
        wheels = tmp_path_factory.mktemp("wheels")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", str(wheels)]
        done = subprocess.run([*command, "microformer-mgm==0.5.8"], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            pytest.skip(f"the package registry has no microformer-mgm here: {done.stderr.strip()[-200:]}")
        cache.parent.mkdir(exist_ok=True)
        unpacked = Path(tempfile.mkdtemp(dir=cache.parent))
        with zipfile.ZipFile(next(wheels.glob("*.whl"))) as wheel:
            wheel.extractall(unpacked, [name for name in wheel.namelist() if "/general_model/" in name])
        try:
            unpacked.rename(cache)
        except OSError:  # the tests in another process were faster
            shutil.rmtree(unpacked)
    return folder
