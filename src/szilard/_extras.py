"""Optional dependencies: imported where used, with an error that names the extra to install."""

from importlib import import_module
from types import ModuleType


def require(module: str, extra: str) -> ModuleType:
    """Imports `module`, or says which extra of Szilard provides it.

    Args:
        module: dotted name of the module to import.
        extra: the extra in `pip install "szilard[extra]"`.

    Raises:
        ImportError: the module is not installed.

    Examples:
        >>> require("math", extra="language").pi > 3
        True
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not module.startswith(error.name):
            raise
        raise ImportError(
            f"{module} is not installed; it comes with: pip install 'szilard[{extra}]'"
        ) from error
