"""Files that hold a whole model: {"state_dict": ..., "config": the fields of vlpt.Config}.

Checkpoints of a run have both, and more. A file for others to use has nothing else, and its numbers
are in half precision; a loaded model computes in float32.
"""

import dataclasses
import io
from pathlib import Path

import torch

import vlpt

ROOT = Path(__file__).resolve().parent.parent
PACKAGED = ROOT / "weights/tiny.pt"  # the weights that come with the repository


def save_model(model: vlpt.VLPT, path: Path) -> None:
    """Write the whole model in half precision, with what is needed to build it."""
    state = {
        key: value.half().cpu() if value.is_floating_point() else value.cpu()
        for key, value in model.state_dict().items()
    }
    content = io.BytesIO()
    torch.save({"state_dict": state, "config": dataclasses.asdict(model.config)}, content)
    vlpt.write_atomically(path, content.getvalue())


def find_checkpoint(path: Path) -> Path:
    """The file that a path means: itself, or the last checkpoint in the folder of a run.

    If a run was killed between two renames, only checkpoint.previous.pt exists.

    Raises: ValueError if there is no such file.
    """
    for file in (path, path / "checkpoint.pt", path / "checkpoint.previous.pt"):
        if file.exists() and not file.is_dir():
            return file
    raise ValueError(
        f"{path}: expected a run's folder with a checkpoint.pt, or a file, got neither"
    )


def load_model(source: str | Path | None = None) -> vlpt.VLPT:
    """Build the model of a run or of a file, ready for use: in float32, and in evaluation mode.

    Args:
        source: a run's folder, of which the last checkpoint is used, a file, or None for the
            weights that come with the repository.
    Raises:
        OSError: the file cannot be read, or the one that comes with the repository is missing.
        ValueError: there is none, it is damaged, or it holds something else than a whole model.
    """
    path = PACKAGED if source is None else Path(source)
    if source is None and not path.is_file():
        raise FileNotFoundError(
            f"{path.relative_to(ROOT)}: expected the weights that come with the repository, got no "
            "such file; name the folder of a run or the file of a model"
        )
    path = find_checkpoint(path)
    content = vlpt.read_checkpoint(path)
    if not {"state_dict", "config"} <= content.keys():
        raise ValueError(f"{path}: expected a whole model, got no state_dict and config in it")
    try:
        model = vlpt.VLPT(vlpt.Config(**content["config"]))
        model.load_state_dict(content["state_dict"])  # float32, whatever the file has
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{path}: expected weights that fit the config in the file, got others: {reason}"
        ) from None
    return model.eval()
