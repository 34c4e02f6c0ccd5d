"""Total-Text, whose words may be curved: 1,255 training and 300 test pictures.

https://github.com/cs-chan/Total-Text-Dataset has the data set; the annotation is its text files.
"""

import re
from pathlib import Path

import numpy as np

from readers.files import read_lines, require
from readers.pictures import DetectionSample, open_image


class TotalText:
    """Total-Text as detection samples; its test pictures are the held-out ones.

    A word that is marked "#" or "###" (unreadable) is an ignored region.
    """

    LAYOUT = """    ROOT/Images/Train/img11.jpg, ROOT/Images/Test/img1.jpg, and for each picture
    ROOT/txt_format/Train/poly_gt_img11.txt and so on"""
    ENTRY = "lines of x: [[..]], y: [[..]], ornt: [u'c'], transcriptions: [u'..']"
    PATTERN = re.compile(
        r"x: *\[\[([\d\s]+)]], *y: *\[\[([\d\s]+)]], *ornt: *\[u?'.'], *"
        r"transcriptions: *\[u?(['\"])(.*)\3]\s*"
    )

    def __init__(self, root: str | Path, split: str) -> None:
        folder = "Train" if split == "train" else "Test"
        images = require(Path(root) / "Images" / folder, self.LAYOUT)
        self.paths = sorted(p for p in images.iterdir() if p.suffix.lower() in (".jpg", ".png"))
        if not self.paths:
            raise ValueError(f"{images}: has no picture; expected\n{self.LAYOUT}")
        labels = Path(root) / "txt_format" / folder
        self.items = [self.read_item(labels / f"poly_gt_{path.stem}.txt") for path in self.paths]

    def read_item(self, label: Path) -> tuple[list[np.ndarray], np.ndarray]:
        """Read one label file: the polygons, and which of them are ignored."""
        text = "\n".join(read_lines(label, self.LAYOUT)).strip()
        polygons, ignored = [], []
        for match in self.PATTERN.finditer(text):  # an array may be broken into several lines
            x, y, word = match[1].split(), match[2].split(), match[4]
            if len(x) != len(y) or len(x) < 3:
                raise ValueError(f"{label}: expected {self.ENTRY}, got {match[0][:60]!r}")
            polygons.append(np.array([x, y], np.float32).T)
            ignored.append(word in ("#", "###"))
        rest = self.PATTERN.sub("", text)
        if rest:
            raise ValueError(f"{label}: expected {self.ENTRY}, got {rest[:60]!r}")
        return polygons, np.array(ignored, bool)

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        return self.paths[index].stem

    def __getitem__(self, index: int) -> DetectionSample:
        image, _ = open_image(self.paths[index])
        return DetectionSample(image, *self.items[index])
