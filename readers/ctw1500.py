"""SCUT-CTW1500, curved text lines: 1,000 training and 500 test pictures.

https://github.com/Yuliang-Liu/Curve-Text-Detector has the data set. Each line of text has a polygon
of 14 points.
"""

import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from readers.files import is_unreadable, read_lines, require_folder
from readers.folder import (
    BAD_LINES,
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


class CTW1500(Folder):
    """CTW1500; its test pictures are the held-out ones.

    A text that is marked "###" (unreadable) is an ignored region, and so is one without a
    transcription. A region that cannot be read is left out; the others of its file are not.
    """

    LAYOUT = (
        "PATH/train_images/0001.jpg with PATH/ctw1500_train_labels/0001.xml and so on, and "
        "PATH/test_images/1001.jpg with PATH/gt_ctw1500/0001001.txt and so on"
    )

    def list_items(self) -> list[Annotation]:
        return [
            *self.list_folder("train_images", "ctw1500_train_labels", ".xml", False),
            *self.list_folder("test_images", "gt_ctw1500", ".txt", True),
        ]

    def list_folder(self, images: str, labels: str, ending: str, heldout: bool) -> list[Annotation]:
        pictures, texts = dict[int, Path](), dict[int, Path]()
        for folder, found in ((images, pictures), (labels, texts)):
            for path in visible_files(require_folder(self.root / folder, self.LAYOUT)):
                fits = is_picture(path) if folder == images else path.suffix.lower() == ending
                if not fits or not re.fullmatch("[0-9]+", path.stem):
                    self.leave_out(path, OTHER_NAMES, heldout)
                elif int(path.stem) in found:
                    self.leave_out(path, SAME_NAME, heldout)
                else:
                    found[int(path.stem)] = path
        for number in sorted(pictures.keys() - texts.keys()):
            self.leave_out(pictures[number], NO_LABEL, heldout)
        for number in sorted(texts.keys() - pictures.keys()):
            self.leave_out(texts[number], NO_PICTURE, heldout)
        both = sorted(pictures.keys() & texts.keys())
        if not both:
            raise ValueError(
                f"{self.root / images}: expected pictures with labels as in {self.LAYOUT}, got none"
            )
        read = self.read_txt if heldout else self.read_xml
        return [self.make_item(pictures[n], read(texts[n]), texts[n], heldout) for n in both]

    def read_xml(self, label: Path) -> list[tuple[str, str]]:
        """Numbers and text of each region of a training label."""
        try:
            boxes = ElementTree.fromstring(label.read_bytes()).iter("box")
            return [(box.findtext("segs") or "", box.findtext("label") or "") for box in boxes]
        except (ElementTree.ParseError, ValueError, LookupError) as error:
            raise ValueError(
                f"{label}: expected XML of image, box, label and segs, got other content ({error})"
            ) from None

    def read_txt(self, label: Path) -> list[tuple[str, str]]:
        """Numbers and text of each region of a test label: x1,y1,...,x14,y14,####text."""
        lines = read_lines(label, self.LAYOUT)
        parts = [line.partition("####") for line in lines if line.strip()]
        return [(numbers.rstrip(", "), text) for numbers, _, text in parts]

    def make_item(
        self, image: Path, regions: list[tuple[str, str]], label: Path, heldout: bool
    ) -> Annotation:
        words, left_out = list[str](), list[str]()
        polygons, ignored = list[np.ndarray](), list[np.ndarray]()
        for number, (numbers, text) in enumerate(regions, 1):
            try:
                polygon = to_polygon(numbers.split(","))
                if len(polygon) != 14:
                    raise ValueError(f"expected 14 points, got {len(polygon)}")
            except ValueError:
                self.leave_out(f"{label}: region {number}", BAD_LINES, heldout)
                continue
            if is_unreadable(text) or not text.strip():
                left_out.append(MARKED if text.strip() else NO_TEXT)
                ignored.append(polygon)
            else:
                words.append(text)
                polygons.append(polygon)
        return Annotation(image, words, polygons, tuple(left_out), ignored, heldout)
