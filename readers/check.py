"""What a source holds and what is left out of it."""

import math
from collections import Counter
from typing import NamedTuple

from tqdm import tqdm

import vlpt
from data_stub import SPLITS, Sample
from readers import open_source
from readers.alphabet import CUT, PARTLY, count_learnable, read_alphabet
from readers.folder import EVERY_TENTH
from readers.pictures import FIT_SHOWN, FIT_STORED, UNDECIDED_SHOWN, UNDECIDED_STORED
from readers.polygons import counter_clockwise, crossed, starts_elsewhere
from readers.totaltext import SEVERAL

OUTSIDE = "words mostly outside their picture"
UNREADABLE = "pictures that cannot be read"
WORDLESS = "pictures without a usable word"
CROSSED = "quads whose sides cross"
REVERSED = "quads that go counter-clockwise"
ELSEWHERE = "quads that start at another corner than the top left (a turned word has such)"
# What is odd, but used; everything else that is counted is left out.
ORIENTED = (FIT_STORED, FIT_SHOWN, UNDECIDED_STORED, UNDECIDED_SHOWN)
USED = {CROSSED, REVERSED, ELSEWHERE, PARTLY, CUT, SEVERAL, *ORIENTED}
SHOWN = 10  # pictures, files and lines that are named


class Report(NamedTuple):
    """What a source holds, and why it cannot be trained on, if so."""

    lines: list[str]
    problems: list[str]


def check(spec: str) -> Report:
    """Read a source through as for training, with its own alphabet.

    Raises: ValueError or OSError if it cannot be opened or has no word that can be read.
    """
    sources = {split: open_source(spec, split, 256, 200) for split in SPLITS}
    root = sources["train"].root
    if not any(source.characters() for source in sources.values()):
        notes = sum((source.notes for source in sources.values()), Counter[str]())
        found = "".join(f"; {what}: {count:,}" for what, count in notes.most_common())
        raise ValueError(f"{root}: expected words that can be read, got none{found}")
    alphabet = vlpt.Alphabet(read_alphabet("data", *sources.values()))
    words = Counter[str]()
    notes = Counter[str]()  # what is left out or odd
    worst = []  # (-how many faults, which picture has them)
    problems = []
    for split, source in sources.items():
        learnable, unlearned = source.learnable(alphabet)
        notes += source.notes + unlearned
        notes[WORDLESS] += int((~learnable).sum())
        worst += [(-math.inf, line) for line in source.left_out]
        usable = 0
        for index in tqdm(range(len(source)), split, unit="picture", disable=None, leave=False):
            try:
                sample = source[index]
            except ValueError as error:
                notes[UNREADABLE] += 1
                worst.append((-math.inf, str(error)))
                continue
            words.update(sample.words)
            notes.update(sample.notes)
            faults = faults_of(sample)
            notes += faults
            usable += count_learnable(sample.words, alphabet, faults) > 0
            faults[WORDLESS] = 0 if learnable[index] else 1
            del faults[PARTLY], faults[ELSEWHERE]  # these are no faults of a picture
            if faults := +faults:
                listed = ", ".join(f"{what}: {count:d}" for what, count in faults.items())
                worst.append((-faults.total(), f"{source.name(index)}: {listed}"))
        needed = 1 if split == "train" else 2  # to compare a held-out picture with another one
        if usable < needed:
            problem = f"{root}: expected {needed} or more usable {split} pictures, got {usable}"
            problems.append(problem if split == "train" else f"{problem}; {EVERY_TENTH}")
    chars = Counter(char for word in words.elements() for char in vlpt.normalize_text(word))
    shown = [f"{char} {count:,}" for char, count in chars.most_common() if char in alphabet.index]
    longest = sorted(words, key=lambda word: (-len(word), word))[:10]
    more = f"  and {len(shown) - 80:,} more" if len(shown) > 80 else ""
    train, heldout = map(len, sources.values())
    counts = (+notes).most_common()
    lines = [
        f"pictures  {train + heldout:,}, {heldout:,} of them held out",
        f"words     {words.total():,}, {len(words):,} different ones",
        f"alphabet  {len(shown):,} characters: {'  '.join(shown[:80])}{more}",
        "longest   " + "  ".join(word[:60] for word in longest),
        *(f"left out  {what}: {count:,}" for what, count in counts if what not in USED),
        *(f"note      {what}: {count:,}" for what, count in counts if what in USED),
        *(f"worst     {fault}" for _, fault in sorted(worst)[:SHOWN]),
    ]
    if len(worst) > SHOWN:
        lines.append(f"worst     and {len(worst) - SHOWN:,} more")
    return Report(lines, problems)


def faults_of(sample: Sample) -> Counter[str]:
    """What is odd about the words of a picture."""
    faults = Counter({OUTSIDE: sample.outside, CROSSED: 0, REVERSED: 0, ELSEWHERE: 0})
    for quads in (sample.quads, sample.ignored):
        if quads is not None and len(quads):
            faults[CROSSED] += int(crossed(quads).sum())
            faults[REVERSED] += int(counter_clockwise(quads).sum())
            faults[ELSEWHERE] += int(starts_elsewhere(quads).sum())
    return faults
