"""Kernels for the GPU are collected where Triton is: it is published for Linux alone."""

from importlib.util import find_spec

collect_ignore_glob = (
    [] if find_spec("triton") else ["src/szilard/kernels/*_triton.py", "tests/kernels/*_triton.py"]
)
