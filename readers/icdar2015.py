"""ICDAR 2015 Incidental Scene Text, the training pictures.

https://rrc.cvc.uab.es/?ch=4 has the data set; its challenge calls the two zip files "Training Set
Images" and "Training Set Localisation and Transcription Ground Truth".
"""

from pathlib import Path

from readers.files import read_lines, require
from readers.folder import Annotation, Folder
from readers.pictures import to_quads


class ICDAR2015(Folder):
    """The 1,000 training pictures; img_801 and later are held out.

    A word that is marked "###" (unreadable) is in `Sample.ignored` instead of `Sample.words`.
    """

    LAYOUT = """    ROOT/ch4_training_images/img_1.jpg
    ROOT/ch4_training_localization_transcription_gt/gt_img_1.txt"""

    def list_items(self) -> list[Annotation]:
        images = require(self.root / "ch4_training_images", self.LAYOUT)
        labels = require(self.root / "ch4_training_localization_transcription_gt", self.LAYOUT)
        paths = sorted(images.glob("img_*.jpg"), key=self.number)
        return [self.read_item(path, labels / f"gt_{path.stem}.txt") for path in paths]

    def is_heldout(self, position: int, item: Annotation) -> bool:
        return self.number(item.path) > 800

    def number(self, path: Path) -> int:
        digits = path.stem.removeprefix("img_")
        if not digits.isdecimal():
            raise ValueError(f"{path}: expected the name img_NUMBER.jpg, got {path.name}")
        return int(digits)

    def read_item(self, image: Path, label: Path) -> Annotation:
        words, quads, ignored = [], [], []
        for number, line in enumerate(read_lines(label, self.LAYOUT), 1):
            fields = line.split(",", 8)  # a transcription may hold commas
            try:
                quad, word = to_quads(fields[:8], 1)[0], fields[8]
            except (ValueError, IndexError):
                raise ValueError(
                    f"{label}:{number}: expected x1,y1,x2,y2,x3,y3,x4,y4,text, got {line!r}"
                ) from None
            if word == "###":
                ignored.append(quad)
            else:
                words.append(word)
                quads.append(quad)
        left_out = ("words marked unreadable",) * len(ignored)
        regions = to_quads(ignored, len(ignored))
        return Annotation(image, words, to_quads(quads, len(words)), left_out, regions)
