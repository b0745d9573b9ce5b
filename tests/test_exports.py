"""Packages export what their tables of contents list, and import it on first use."""

import subprocess
import sys
from importlib import import_module

import pytest

PACKAGES = [
    "measures",
    "scoring",
    "decoding",
    "rl",
    "layers",
    "representations",
    "dynamics",
    "physics",
    "uncertainty",
    "quantum",
]


@pytest.mark.parametrize("name", PACKAGES)
def test_every_export_resolves_under_its_own_name(name: str) -> None:
    package = import_module(f"szilard.{name}")
    assert package.__all__
    for export in package.__all__:
        value = getattr(package, export)
        # A constant has no name of its own.
        assert getattr(value, "__name__", export) == export
    with pytest.raises(AttributeError, match="no_such_name"):
        package.no_such_name  # noqa: B018


@pytest.mark.parametrize("name", PACKAGES)
def test_importing_a_package_loads_nothing_heavy(name: str) -> None:
    heavy = "torch", "numpy", "scipy", "sklearn", "numba", "transformers", "trl", "plotly", "pandas"
    code = f"import sys, szilard.{name}; print([m for m in {heavy} if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
