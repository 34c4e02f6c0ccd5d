"""Real data sets, one file each, behind one function.

    open_source("icdar2015:PATH", "train")    a `data_stub.Source`
    open_source("synth", "train", 256, 1000)  the renderer of data_stub.py

    synthtext:PATH   gt.mat beside its folders of pictures
    icdar2015:PATH   the training pictures; img_801 .. img_1000 are held out
    totaltext:PATH   its test pictures are held out
    ctw1500:PATH     its test pictures are held out
    lsvt:PATH        a folder or a label file of LSVT or ArT
    jsonl:PATH       {"image": "a.jpg", "words": ["EXIT"], "quads": [[[x, y] * 4]]}
    lsvt:PATH+jsonl:PATH    several of these as one, but not "synth"

The two splits of a data set share no picture. A source has quads; where a data set has polygons of
more points, these are boxes around them, and `readers.detection` gives the polygons to a detector.
`python -m readers check SOURCE` reads a source through and reports what it holds and what was left
out of it; `python -m readers sheet SOURCE OUT.png` draws its first pictures. docs/quirks.md lists
what becomes of the odd things that data sets hold.

To add a data set, write a subclass of `readers.folder.Folder` and list it in `READERS`.
"""

import re
from collections.abc import Callable

from data_stub import SPLITS, Rendered, Scene, Source
from readers.alphabet import read_alphabet
from readers.ctw1500 import CTW1500
from readers.icdar2015 import ICDAR2015
from readers.jsonl import JsonLines
from readers.lsvt import LSVT
from readers.mixed import Mixed
from readers.synthtext import SynthText
from readers.totaltext import TotalText

__all__ = [
    "CTW1500",
    "ICDAR2015",
    "LSVT",
    "JsonLines",
    "Mixed",
    "SynthText",
    "TotalText",
    "open_source",
    "read_alphabet",
]

READERS: dict[str, Callable[[str, str], Source]] = {
    "synthtext": SynthText,
    "icdar2015": ICDAR2015,
    "totaltext": TotalText,
    "ctw1500": CTW1500,
    "lsvt": LSVT,
    "jsonl": JsonLines,
}
SPECS = f"synth, or one or more of {', '.join(f'{kind}:PATH' for kind in READERS)} joined by +"
JOINT = re.compile(rf"\+(?=(?:{'|'.join(READERS)}):)")  # a path may have a + of its own


def open_source(
    spec: str,
    split: str,
    size: int = 256,
    count: int = 1000,
    seed: int = 0,
    scene: Scene = Scene(),
) -> Source:
    """Open one split of a data set.

    Args:
        spec: "synth", or a data set and its path, such as "synthtext:PATH", or several of these
            joined by "+"; see above.
        split: "train" or "heldout".
        size, count, seed, scene: what to draw, for "synth" only.
    Raises: ValueError or OSError, which name what is wrong.
    """
    if split not in SPLITS:
        raise ValueError(f"split: expected one of {', '.join(SPLITS)}, got {split!r}")
    kind, _, path = spec.partition(":")
    if spec == "synth":
        return Rendered(size, count, seed, split, scene)
    if kind not in READERS or not path:
        raise ValueError(f"data: expected {SPECS}, got {spec!r}")
    specs = JOINT.split(spec)
    if len(specs) > 1:
        return Mixed(spec, [open_source(each, split) for each in specs])
    return READERS[kind](path, split)
