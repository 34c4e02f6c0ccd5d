"""What a source holds and what it lacks."""

import math
from collections import Counter

from tqdm import tqdm

import vlpt
from data_stub import SPLITS, Pretraining
from readers import open_source
from readers.alphabet import PARTLY, count_learnable, read_alphabet
from readers.pictures import clip_quads

OUTSIDE = "words mostly outside their picture"
UNREADABLE = "pictures that cannot be read"
WORDLESS = "pictures without a usable word"


def check(spec: str) -> list[str]:
    """Read a source through as for training, with its own alphabet.

    Returns: the lines of a report.
    Raises: ValueError or OSError if it cannot be trained on.
    """
    sources = {split: open_source(spec, split, 256, 200) for split in SPLITS}
    alphabet = vlpt.Alphabet(read_alphabet("data", *sources.values()))
    words = Counter[str]()
    lacks = Counter[str]()
    worst = []  # (-how many faults, which picture has them)
    for split, source in sources.items():
        lacks += Pretraining(source, alphabet, 32, 0).notes
        usable = 0
        for index in tqdm(range(len(source)), split, unit="picture", disable=None, leave=False):
            try:
                sample = source[index]
            except ValueError as error:
                lacks[UNREADABLE] += 1
                worst.append((-math.inf, str(error)))
                continue
            words.update(sample.words)
            faults = Counter({OUTSIDE: sample.outside})
            if sample.quads is not None:
                _, inside = clip_quads(sample.quads, *sample.image.shape[1::-1])
                faults[OUTSIDE] += int((~inside).sum())
            lacks[OUTSIDE] += faults[OUTSIDE]
            found = count_learnable(sample.words, alphabet, faults) > 0
            usable += found
            del faults[PARTLY]  # this is no fault of a picture
            faults += Counter({WORDLESS: not found})
            if faults:
                listed = ", ".join(f"{what}: {count:d}" for what, count in faults.items())
                worst.append((-faults.total(), f"{source.name(index)}: {listed}"))
        needed = 1 if split == "train" else 2  # to compare a held-out picture with another one
        if usable < needed:
            raise ValueError(
                f"{source.root}: expected {needed} or more usable {split} pictures, got {usable}"
            )
    counts = Counter(char for word in words.elements() for char in vlpt.normalize_text(word))
    shown = [f"{char} {count:,}" for char, count in counts.most_common() if char in alphabet.index]
    longest = sorted(words, key=lambda word: (-len(word), word))[:10]
    more = f"  and {len(shown) - 80:,} more" if len(shown) > 80 else ""
    train, heldout = map(len, sources.values())
    return [
        f"pictures  {train + heldout:,}, {heldout:,} of them held out",
        f"words     {words.total():,}, {len(words):,} different ones",
        f"alphabet  {len(shown):,} characters: {'  '.join(shown[:80])}{more}",
        "longest   " + "  ".join(word[:60] for word in longest),
        *(f"lacking   {what}: {count:,}" for what, count in (+lacks).most_common()),
        *(f"worst     {fault}" for _, fault in sorted(worst)[:10]),
    ]
