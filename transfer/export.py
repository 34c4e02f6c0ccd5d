"""Export the backbone of a pre-training run, for a detector of this or another project.

    python -m transfer.export runs/demo backbone.safetensors
    python -m transfer.export runs/demo backbone.pt --layout mmocr

The file holds the weights of the backbone alone; a .safetensors file also names the backbone, the
layout and the training data. To add a layout, see `LAYOUTS` in vlpt.py. Run this from
the clone of the repository.
"""

import argparse
from pathlib import Path

import vlpt
from training.options import Parser
from training.runs import damaged, one_line_errors
from training.weights import find_checkpoint, load_model


def export_run(run: Path, out: Path, layout: str = "native") -> None:
    """Export the backbone of a run or of a whole model, see `vlpt.export_backbone`.

    Args:
        run: the run's folder, or a file that `load_model` reads.
        out: the file to write, which ends in ".pt" or ".safetensors".
        layout: "native", "mmocr" or "timm".
    Raises: ValueError if there is no such run, or for another path or layout; OSError; ImportError
        without safetensors.
    """
    path = find_checkpoint(run)
    model = load_model(path)
    checkpoint = vlpt.read_checkpoint(path)
    notes = {}
    if "args" in checkpoint:  # a checkpoint of a run, and not a model alone
        try:
            notes = {"training_data": checkpoint["args"]["data"], "steps": checkpoint["step"]}
        except (KeyError, TypeError) as error:
            raise damaged(path, error) from None
    vlpt.export_backbone(model, out, layout, **notes)


def main(argv: list[str] | None = None) -> None:
    description, epilog = __doc__.split("\n\n", 1)
    parser = Parser(
        prog="python -m transfer.export",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("run", type=Path, help="runs/NAME, or a file with a whole model")
    parser.add_argument("out", type=Path, help="the .safetensors or .pt file to write")
    parser.add_argument(
        "--layout",
        choices=tuple(vlpt.LAYOUTS),
        default="native",
        help="whose parameter names the file uses (default: native, those of vlpt.py)",
    )
    args = parser.parse_args(argv)
    with one_line_errors(parser.prog):
        export_run(args.run, args.out, args.layout)
        print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
