"""The commands: python -m readers check SOURCE, python -m readers sheet SOURCE OUT.png."""

import argparse
import io
import sys
from pathlib import Path

import vlpt
from data_stub import DIGITS, SPLITS, Scene
from readers import SPECS, open_source
from readers.check import check
from readers.sheet import contact_sheet


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m readers", description=f"Look at a SOURCE of pictures: {SPECS}."
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    text = "Read a source through; report its pictures, words, characters, and what is left out."
    check_parser = commands.add_parser("check", help=text, description=text)
    check_parser.add_argument("source", metavar="SOURCE", help=SPECS)

    text = "Draw a contact sheet: pictures, quads with a dot at the first corner, and words."
    sheet_parser = commands.add_parser("sheet", help=text, description=text)
    add = sheet_parser.add_argument
    add("source", metavar="SOURCE", help=SPECS)
    add("out", metavar="OUT.png", type=Path, help="picture to write, PNG or JPEG")
    add("--split", choices=SPLITS, default="train", help="split to show (default: train)")
    add("--count", type=int, default=24, help="pictures to show, at most (default: 24)")
    add("--size", type=int, help="side of rendered pictures, pixels (default: 256; digits: 64)")
    add("--seed", type=int, default=0, help="seed of rendered pictures (default: 0)")
    add("--digits", action="store_true", help="render what the demo trains on (default: off)")
    return parser.parse_args(argv)


def print_report(spec: str) -> None:
    """Print what a source holds. Raises: ValueError or OSError if it cannot be trained on."""
    report = check(spec)
    for line in report.lines:
        print("".join(c if c.isprintable() else ascii(c)[1:-1] for c in line))
    if report.problems:
        raise ValueError("; ".join(report.problems))


def draw_sheet(args: argparse.Namespace) -> None:
    size = args.size if args.size is not None else 64 if args.digits else 256
    for name, value, smallest in (
        ("--count", args.count, 1),
        ("--size", size, 32),
        ("--seed", args.seed, 0),
    ):
        if value < smallest:
            raise ValueError(f"{name}: expected at least {smallest}, got {value}")
    kind = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}.get(args.out.suffix.lower())
    if not kind:
        raise ValueError(
            f"OUT.png: expected a name that ends in .png or .jpg, got {str(args.out)!r}"
        )
    scene = DIGITS if args.digits else Scene()
    source = open_source(args.source, args.split, size, args.count, args.seed, scene)
    tile = 256 if args.source == "synth" else 384
    sheet, count = contact_sheet(source, args.count, tile)
    content = io.BytesIO()
    sheet.save(content, kind)
    vlpt.write_atomically(args.out, content.getvalue())
    split = {"train": "training", "heldout": "held-out"}[args.split]
    print(f"wrote {args.out}: {count:,} of {len(source):,} {split} pictures of {args.source}")


def main(argv: list[str] | None = None) -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal may not have all characters
        sys.stdout.reconfigure(errors="backslashreplace")
    args = parse_args(argv)
    try:
        if args.command == "check":
            print_report(args.source)
        else:
            draw_sheet(args)
    except (ValueError, OSError) as error:
        message = str(error)
        if isinstance(error, OSError) and error.filename:  # the system's own message
            message = f"{error.filename}: {error.strerror}"
        sys.exit(f"python -m readers: error: {message}")
    except MemoryError as error:
        sys.exit(f"python -m readers: error: the memory is full; use a machine with more ({error})")
    except KeyboardInterrupt:
        print("python -m readers: stopped", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
