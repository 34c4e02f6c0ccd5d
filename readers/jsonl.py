"""Your own pictures: a file with one JSON object a line.

    {"image": "a.jpg", "words": ["EXIT", "NO"], "quads": [[[x, y], [x, y], [x, y], [x, y]], ...]}

Image paths are relative to the file. "quads" may be missing: pre-training needs only the words.
"""

import json

from readers.files import read_lines
from readers.folder import Annotation, Folder
from readers.pictures import to_quads


class JsonLines(Folder):
    """One JSON object a line; every tenth picture is held out."""

    LAYOUT = '    a file of lines like {"image": path, "words": [...], "quads": optional}'
    ENTRY = '{"image": path, "words": [text], "quads": [[[x, y] * 4]] or nothing}'

    def list_items(self) -> list[Annotation]:
        items = []
        for number, line in enumerate(read_lines(self.root, self.LAYOUT), 1):
            if not line.strip():
                continue
            try:
                items.append(self.read_item(line))
            except (ValueError, TypeError, KeyError, ArithmeticError, RecursionError) as error:
                where = f"{self.root}:{number}"
                raise ValueError(
                    f"{where}: expected {self.ENTRY}, got {line[:80]!r} ({error})"
                ) from None
        return items

    def read_item(self, line: str) -> Annotation:
        entry = json.loads(line)
        words, quads = entry["words"], entry.get("quads")
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise TypeError("words is not a list of strings")
        "".join([entry["image"], *words]).encode()  # fails for half a surrogate pair
        quads = None if quads is None else to_quads(quads, len(words))
        return Annotation(self.root.parent / entry["image"], words, quads)
