"""What the commands share: consoles, exit codes and the error a user can act on."""

from __future__ import annotations

from functools import cache

from rich.console import Console
from rich.markup import escape

FAILED = 1
USAGE = 2
CLAIM_FAILED = 3


class UserError(Exception):
    """What the user can act on: shown in one line, without a traceback."""

    def __init__(self, message: str, code: int = USAGE) -> None:
        super().__init__(message)
        self.code = code

    @property
    def markup(self) -> str:
        return escape(str(self))


@cache
def out() -> Console:
    """Standard output, for results."""
    return Console()


@cache
def errors() -> Console:
    """Standard error, for warnings and progress."""
    return Console(stderr=True)


def warn(message: str) -> None:
    """One line on standard error."""
    errors().print(f"[yellow]warning:[/] {escape(message)}", highlight=False, soft_wrap=True)
