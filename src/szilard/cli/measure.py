"""`szilard measure`."""


def measure() -> None:
    """Measure."""
