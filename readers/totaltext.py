"""Total-Text, whose words may be curved: 1,255 training and 300 test pictures.

https://github.com/cs-chan/Total-Text-Dataset has the data set; the annotation is its text files.
"""

import ast
import re
from pathlib import Path

import numpy as np

from readers.files import is_unreadable, read_lines, require_folder
from readers.folder import (
    BAD_LINES,
    FEW_POINTS,
    MARKED,
    NO_LABEL,
    NO_PICTURE,
    NO_TEXT,
    OTHER_NAMES,
    SAME_NAME,
    Annotation,
    Folder,
    visible_files,
)
from readers.pictures import is_picture
from readers.polygons import to_polygon

SEVERAL = "regions with several transcriptions, joined by a blank"
FOLDERS = ("Train", "Test")


class TotalText(Folder):
    """Total-Text; its test pictures are the held-out ones.

    A word that is marked "#" or "###" (unreadable) is an ignored region, and so is one without a
    transcription. An entry that cannot be read is left out; the others of its file are not.
    """

    LAYOUT = (
        "PATH/Images/Train/img11.jpg, PATH/Images/Test/img1.jpg, and for each picture "
        "PATH/txt_format/Train/poly_gt_img11.txt and so on"
    )
    MARKERS = ("#", "###")
    ENTRY = "lines of x: [[..]], y: [[..]], ornt: [u'c'], transcriptions: [u'..']"
    # An array may be broken into several lines; an entry ends with a bracket that ends its line.
    PATTERN = re.compile(
        r"x: *\[\[([^]]*)]], *y: *\[\[([^]]*)]], *ornt: *\[([^]]*)], *"
        r"transcriptions: *\[((?:(?!x: *\[).)*?)][ \t]*$",
        re.DOTALL | re.MULTILINE,
    )
    STRING = r"u?'(?:[^'\\]|\\.)*'|u?\"(?:[^\"\\]|\\.)*\""

    def list_items(self) -> list[Annotation]:
        return [item for folder in FOLDERS for item in self.list_folder(folder)]

    def list_folder(self, folder: str) -> list[Annotation]:
        heldout = folder == "Test"
        images = require_folder(self.root / "Images" / folder, self.LAYOUT)
        labels = require_folder(self.root / "txt_format" / folder, self.LAYOUT)
        texts = {path.name: path for path in visible_files(labels)}
        items = dict[str, Annotation]()
        for path in visible_files(images):
            name = f"poly_gt_{path.stem}.txt"
            if not is_picture(path):
                self.leave_out(path, OTHER_NAMES, heldout)
            elif name in items:
                self.leave_out(path, SAME_NAME, heldout)
            elif name not in texts:
                self.leave_out(path, NO_LABEL, heldout)
            else:
                items[name] = self.read_item(path, texts[name], heldout)
        for name in sorted(texts.keys() - items.keys()):
            self.leave_out(
                texts[name], NO_PICTURE if name.endswith(".txt") else OTHER_NAMES, heldout
            )
        if not items:
            raise ValueError(
                f"{images}: expected pictures with labels as in {self.LAYOUT}, got none"
            )
        bad = [where for where, why, out in self.omitted if why == BAD_LINES and out == heldout]
        if bad and not any(len(item.words) + len(item.ignored) for item in items.values()):
            raise ValueError(f"{bad[0]}: expected {self.ENTRY}, got no such line in any label")
        return list(items.values())

    def read_item(self, image: Path, label: Path, heldout: bool) -> Annotation:
        """Read the label of a picture."""
        text = "\n".join(read_lines(label, self.LAYOUT))
        words, left_out = list[str](), list[str]()
        polygons, ignored = list[np.ndarray](), list[np.ndarray]()
        for match in self.PATTERN.finditer(text):
            where = f"{label}:{text.count(chr(10), 0, match.start()) + 1}"
            try:
                x, y = (re.findall(r"[^\s,]+", match[k]) for k in (1, 2))
                if len(x) == len(y) < 3:
                    self.leave_out(where, FEW_POINTS, heldout)
                    continue
                polygon = to_polygon(list(zip(x, y, strict=True)))
                strings = self.read_strings(match[4])
            except (ValueError, SyntaxError):
                self.leave_out(where, BAD_LINES, heldout)
                continue
            word = " ".join(strings)
            if any(is_unreadable(string, self.MARKERS) for string in strings) or "#" in match[3]:
                ignored.append(polygon)
                left_out.append(MARKED)
            elif not word.strip():
                ignored.append(polygon)
                left_out.append(NO_TEXT)
            else:
                words.append(word)
                polygons.append(polygon)
                left_out += [SEVERAL] * (len(strings) > 1)
        rest = self.PATTERN.sub(lambda match: "\n" * match[0].count("\n"), text)
        for number, line in enumerate(rest.split("\n"), 1):
            if line.strip():
                self.leave_out(f"{label}:{number}", BAD_LINES, heldout)
        return Annotation(image, words, polygons, tuple(left_out), ignored, heldout)

    def read_strings(self, text: str) -> list[str]:
        """The strings of a list in Python's spelling. Raises: ValueError, SyntaxError."""
        if re.fullmatch(rf"(?:[\s,]*(?:{self.STRING}))*[\s,]*", text, re.DOTALL):
            return [ast.literal_eval(string) for string in re.findall(self.STRING, text)]
        if match := re.fullmatch(r"\s*u?(['\"])(.*)\1\s*", text):  # an apostrophe as in 'It's'
            return [match[2]]
        raise ValueError(f"expected strings, got {text!r}")
