"""`szilard doctor`."""


def doctor() -> None:
    """Doctor."""
