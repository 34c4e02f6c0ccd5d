"""Alphabets: what to learn, and which words an alphabet can spell."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import vlpt
from data_stub import Source, is_learnable
from readers.files import read_lines

# What `notes` of a source and of `training.dataset.Pretraining` count.
EMPTY = "words that are empty"
CUT = f"words cut to {vlpt.MAX_CHARS} characters"
UNKNOWN = "words without a character of the alphabet"
PARTLY = "words with some characters outside the alphabet (kept)"
MAX_ALPHABET = 6000  # characters of an alphabet that is built from words


def count_learnable(words: Sequence[str], alphabet: vlpt.Alphabet, notes: Counter[str]) -> int:
    """How many words can be learned; `notes` counts those that cannot, or not as they are."""
    found = 0
    for word in words:
        spelled = vlpt.normalize_text(word)
        if is_learnable(word, alphabet):
            found += 1
            notes[PARTLY] += not alphabet.index.keys() >= set(spelled[: vlpt.MAX_CHARS])
            notes[CUT] += len(spelled) > vlpt.MAX_CHARS
        else:
            notes[UNKNOWN if word.strip() else EMPTY] += 1
    return found


def read_alphabet(spec: str, *sources: Source) -> str:
    """The characters to learn.

    Args: spec: "ascii"; "data" for the characters of the sources, the most frequent first, at
        most MAX_ALPHABET; or a UTF-8 text file, whose order is kept and whose blanks and
        repetitions are not.
    Raises: ValueError, FileNotFoundError.
    """
    if spec == "ascii":
        return vlpt.PRINTABLE
    if spec == "data":
        counts = sum((source.characters() for source in sources), Counter[str]())
        chars = sorted(counts, key=lambda char: (-counts[char], char))
    else:
        lines = read_lines(Path(spec), "ascii, data, or a UTF-8 file of characters to learn")
        chars = list(dict.fromkeys(vlpt.normalize_text("\n".join(lines))))
    chars = [char for char in chars if char.isprintable() and char != " "]
    if not chars:
        name = sources[0].root if spec == "data" else spec
        raise ValueError(f"alphabet: expected printable characters in {name}, got none")
    return "".join(chars[:MAX_ALPHABET] if spec == "data" else chars)
