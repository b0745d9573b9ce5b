"""What a run ran on: versions and hardware, for its manifest."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import szilard

PACKAGES = (
    "torch",
    "numpy",
    "scipy",
    "numba",
    "pandas",
    "scikit-learn",
    "transformers",
    "datasets",
    "trl",
    "plotly",
)


def versions() -> dict[str, str]:
    """Versions of Szilard, Python and the installed ones of the packages that results rest on."""
    found = {"szilard": szilard.__version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, str]:
    """Processor, memory and accelerators in words."""
    found = {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": str(os.cpu_count()),
    }
    memory = _memory()
    if memory is not None:
        found["memory"] = f"{memory / 2**30:.0f} GiB"
    accelerators = accelerator_names()
    if accelerators:
        found["accelerators"] = ", ".join(accelerators)
    return found


def accelerator_names() -> list[str]:
    """Names of the accelerators that torch can use."""
    import torch

    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        names.append("Apple GPU (mps)")
    return names


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
