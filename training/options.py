"""Command-line options: a parser whose errors are one line, and checks of single values."""

import argparse
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that reports an error in one line instead of printing its usage."""

    def error(self, message: str) -> NoReturn:
        """Exit with status 2. Under torchrun only the first process prints the message."""
        line = f"{self.prog}: error: {message.removeprefix('argument ')}; see --help\n"
        self.exit(2, line if os.environ.get("RANK", "0") == "0" else None)


def number(
    kind: type[int] | type[float],
    minimum: float,
    below: float = math.inf,
    exclusive: bool = False,
) -> Callable[[str], float]:
    """Return a converter for an option that takes a number.

    Args:
        kind: int or float.
        minimum: the smallest value, which is not allowed itself if `exclusive`.
        below: the value has to be smaller than this.
    """
    what = "a whole number" if kind is int else "a number"
    expected = f"{what} {'above' if exclusive else 'of at least'} {minimum}"
    if below < math.inf:
        expected += f" and below {below}"

    def convert(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not minimum <= value < below or (exclusive and value == minimum):
            raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
        return value

    return convert


def some_path(text: str) -> str:
    """Accept any text that is not empty."""
    if not text:
        raise argparse.ArgumentTypeError("expected a path, got ''")
    return text


def folder_name(text: str) -> str:
    """Accept the name of a folder in runs/, which may itself contain folders."""
    parts = Path(text).parts
    if not text.isprintable() or not parts or ".." in parts or Path(text).is_absolute():
        raise argparse.ArgumentTypeError(f"expected the name of a folder in runs/, got {text!r}")
    return text
