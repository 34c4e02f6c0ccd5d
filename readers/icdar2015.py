"""ICDAR 2015 Incidental Scene Text, the training pictures.

https://rrc.cvc.uab.es/?ch=4 has the data set; its challenge calls the two zip files "Training Set
Images" and "Training Set Localisation and Transcription Ground Truth".
"""

import re
from pathlib import Path

from readers.files import is_unreadable, read_lines, require_folder
from readers.folder import (
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
from readers.pictures import PICTURE_ENDINGS
from readers.polygons import to_polygon

FIRST_HELDOUT = 801


class ICDAR2015(Folder):
    """The 1,000 training pictures; img_801 and later are held out.

    A word that is marked "###" (unreadable) is an ignored region, and so is an empty one.
    """

    LAYOUT = (
        "PATH/ch4_training_images/img_1.jpg and "
        "PATH/ch4_training_localization_transcription_gt/gt_img_1.txt, and so on"
    )

    def list_items(self) -> list[Annotation]:
        images = require_folder(self.root / "ch4_training_images", self.LAYOUT)
        labels = require_folder(
            self.root / "ch4_training_localization_transcription_gt", self.LAYOUT
        )
        pictures = self.by_number(visible_files(images), r"img_([0-9]+)", PICTURE_ENDINGS)
        texts = self.by_number(visible_files(labels), r"gt_img_([0-9]+)", (".txt",))
        for number in sorted(pictures.keys() - texts.keys()):
            self.leave_out(pictures[number], NO_LABEL, number >= FIRST_HELDOUT)
        for number in sorted(texts.keys() - pictures.keys()):
            self.leave_out(texts[number], NO_PICTURE, number >= FIRST_HELDOUT)
        both = sorted(pictures.keys() & texts.keys())
        return [self.read_item(pictures[n], texts[n], n >= FIRST_HELDOUT) for n in both]

    def by_number(self, paths: list[Path], stem: str, endings: tuple[str, ...]) -> dict[int, Path]:
        """The files by the number in their names; others are left out."""
        found = dict[int, Path]()
        for path in paths:
            match = re.fullmatch(stem, path.stem, re.IGNORECASE)
            if not match or path.suffix.lower() not in endings:
                self.leave_out(path, OTHER_NAMES)
            elif int(match[1]) in found:
                self.leave_out(path, SAME_NAME, int(match[1]) >= FIRST_HELDOUT)
            else:
                found[int(match[1])] = path
        return found

    def read_item(self, image: Path, label: Path, heldout: bool) -> Annotation:
        words, quads, ignored, left_out = [], [], [], list[str]()
        for number, line in enumerate(read_lines(label, self.LAYOUT), 1):
            if not line.strip():
                continue
            fields = line.split(",", 8)  # a transcription may hold commas
            try:
                quad, word = to_polygon(fields[:8]), fields[8]
            except (ValueError, IndexError):
                raise ValueError(
                    f"{label}:{number}: expected x1,y1,x2,y2,x3,y3,x4,y4,text, got {line!r}"
                ) from None
            if is_unreadable(word) or not word.strip():
                left_out.append(MARKED if word.strip() else NO_TEXT)
                ignored.append(quad)
            else:
                words.append(word)
                quads.append(quad)
        return Annotation(image, words, quads, tuple(left_out), ignored, heldout)
