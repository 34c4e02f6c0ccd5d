"""Annotation files: what is wrong with one is an error that names it."""

from pathlib import Path


def require(path: Path, layout: str) -> Path:
    """The path, if it exists. Raises: FileNotFoundError, which shows the expected layout."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: not found; expected\n{layout}")
    return path


def read_lines(path: Path, layout: str) -> list[str]:
    """The lines of a UTF-8 file. Raises: OSError, ValueError; both name the file."""
    if require(path, layout).is_dir():
        raise ValueError(f"{path}: is a folder; expected\n{layout}")
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error})") from None
    lines = text.split("\n")  # str.splitlines would also split at characters that JSON may hold
    return lines if lines[-1] else lines[:-1]
