"""Batch runs of GPT-2 over Parquet and Hugging Face datasets, exactly once, on Ray."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("gpt2-pipeline")
except PackageNotFoundError:  # the folder was put on the path, as Ray's py_modules does
    __version__ = "0.1.0"
