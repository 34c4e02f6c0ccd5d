"""Annotation files: what is wrong with one is an error of one line that names it."""

from pathlib import Path

UNREADABLE_MARKERS = ("###",)  # transcriptions of text that nobody can read, in most data sets


def require(path: Path, layout: str) -> Path:
    """The path, if it exists. Raises: FileNotFoundError, which says what was expected."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: expected {layout}, got no such file or folder")
    return path


def require_folder(path: Path, layout: str) -> Path:
    """The path, if it is a folder. Raises: OSError, which says what was expected."""
    if not require(path, layout).is_dir():
        raise NotADirectoryError(f"{path}: expected the folder of {layout}, got a file")
    return path


def read_lines(path: Path, layout: str) -> list[str]:
    """The lines of a UTF-8 file. Raises: OSError, ValueError; both name the file."""
    if require(path, layout).is_dir():
        raise ValueError(f"{path}: expected {layout}, got a folder")
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected UTF-8 text, got other bytes ({error})") from None
    lines = text.split("\n")  # str.splitlines would also split at characters that JSON may hold
    return lines if lines[-1] else lines[:-1]


def is_unreadable(word: str, markers: tuple[str, ...] = UNREADABLE_MARKERS) -> bool:
    """Whether a transcription says that its text is unreadable; blanks around it do not matter.

    Such text is no word to learn, and a detector ignores its region.
    """
    return word.strip() in markers
