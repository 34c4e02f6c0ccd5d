"""Speed and memory of VLPT's parts, each against a yardstick of the same run.

    python experiments/bench_min.py data --data synthtext:PATH      # from a clone, any folder

`data`: how long a source takes to open, what it costs in memory, and how fast it feeds a model.
Each part has a process of its own. Memory is Linux's PSS: what a process has for itself and its
share of what it has with others, so it may be summed. It is measured with small batches, which
would drown a source otherwise: `added_mb` is what opening and reading add to the parent and all
workers together, `added_by_few_mb` the same for 500 pictures of the same source.
`rendered_256_s` is how many pictures of 256 x 256 the renderer draws a second of one core.
"""

import argparse
import json
import multiprocessing
import pickle
import re
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from torch.utils.data import DataLoader
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the clone
import data_stub
import vlpt


def apart(function, *args):
    """Call a function in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def memory(pid: int | str = "self", file: str = "smaps_rollup") -> dict[str, float]:
    """What /proc says of a process, MB; elsewhere than in Linux NaN."""
    path = Path(f"/proc/{pid}/{file}")
    text = path.read_text() if path.exists() else ""
    sizes = {key: int(kb) * 1024 / 1e6 for key, kb in re.findall(r"(\w+):\s+(\d+) kB", text)}
    return {"Pss": float("nan"), "VmHWM": float("nan")} | sizes


def build(root: str) -> dict[str, float]:
    """Build SynthText's index anew: seconds, and the most memory that took."""
    for path in data_stub.index_places(Path(root) / "gt.mat"):
        path.unlink(missing_ok=True)
    start = time.perf_counter()
    data_stub.open_index(Path(root))
    return {"index_s": time.perf_counter() - start, "index_mb": memory(file="status")["VmHWM"]}


def feed(args: argparse.Namespace) -> dict[str, float]:
    """Open both halves as train_min.py does, then read batches."""
    before, start, halves = memory()["Pss"], time.perf_counter(), []
    for split in data_stub.SPLITS:
        source = data_stub.open_source(args.data, split, args.size, args.pictures)
        augment = split == "train" and args.data != "synth"
        alphabet = vlpt.Alphabet()
        halves.append(data_stub.Pretraining(source, alphabet, args.size, 0, augment=augment))
    found = {"pictures": len(halves[0].indices), "start_s": time.perf_counter() - start,
             "before_mb": before, "opened_mb": memory()["Pss"]}  # fmt: skip
    batches = [range(k, k + args.batch) for k in range(0, args.pictures, args.batch)]
    iterator = iter(DataLoader(
        halves[0], batch_sampler=batches, num_workers=args.workers, collate_fn=data_stub.collate,
        multiprocessing_context=args.start if args.workers else None,
    ))  # fmt: skip
    next(iterator)  # then the workers are at work
    start, seen = time.perf_counter(), 0
    for _ in tqdm(batches[1:], unit="batch", disable=None, leave=False):
        seen += len(next(iterator).images)
    seconds = time.perf_counter() - start
    workers = [memory(child.pid)["Pss"] for child in multiprocessing.active_children()]
    parent = memory()["Pss"]
    return found | {
        "parent_mb": parent, "workers_mb": workers, "added_mb": parent + sum(workers) - before,
        "pickle_mb": len(pickle.dumps(halves[0])) / 1e6,
        "images_s_worker": seen / seconds / max(1, args.workers),
    }  # fmt: skip


def decode(paths: list[Path]) -> float:
    """How many pictures Pillow alone decodes a second, at their own size."""
    start = time.perf_counter()
    for path in paths:
        data_stub.open_image(path)
    return len(paths) / (time.perf_counter() - start)


def draw(count: int, size: int = 256) -> float:
    """How many pictures the renderer draws a second of one core, with everything on."""
    data_stub.render(0, count, size)  # finds the fonts
    start = time.process_time()
    for k in range(count):
        data_stub.render(0, k, size)
    return count / (time.process_time() - start)


def bench_data(args: argparse.Namespace) -> dict[str, float]:
    """All figures of a source; for SynthText beside those of a few of its pictures."""
    kind, _, root = args.data.partition(":")
    found = apart(build, root) if kind == "synthtext" and not args.keep_index else {}
    fast = apart(feed, args)
    args = argparse.Namespace(**vars(args) | {"size": 64, "batch": 8, "pictures": 512})
    found |= apart(feed, args) | {key: fast[key] for key in ("start_s", "images_s_worker")}
    if kind == "synth":
        return found | {"rendered_256_s": apart(draw, 300)}
    source = data_stub.open_source(args.data, "train", args.size, args.pictures)
    folder = getattr(source, "folder", Path())  # where names are not paths
    paths = [(folder / source.name(k)).resolve() for k in range(min(500, len(source)))]
    found["pillow_images_s"] = apart(decode, paths)
    if kind != "synthtext":
        return found
    with tempfile.TemporaryDirectory() as folder:
        few = Path(folder) / "few.jsonl"
        few.write_text("\n".join(json.dumps({"image": str(p), "words": ["a"]}) for p in paths))
        args.data = f"jsonl:{few}"
        found["added_by_few_mb"] = apart(feed, args)["added_mb"]
    return found


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser(
        "data", help="a source: index, start, memory, pictures a second",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )  # fmt: skip
    add, methods = command.add_argument, multiprocessing.get_all_start_methods()
    add("--data", default="synth", help="synth, synthtext:PATH, icdar2015:PATH or jsonl:PATH")
    add("--size", type=int, default=512, help="side of the pictures that leave the loader, pixels")
    add("--batch", type=int, default=32, help="pictures a batch")
    add("--pictures", type=int, default=2048, help="to read, two batches or more")
    add("--workers", type=int, default=2, help="processes that read, 0 for none")
    add("--start", choices=methods, default=methods[0], help="how workers start")
    add("--keep-index", action="store_true", help="do not build SynthText's index anew")
    add("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args(argv)
    if args.batch < 1 or args.pictures <= args.batch or args.workers < 0:
        parser.error("--pictures must be more than one --batch, --workers not below 0")
    try:
        found = bench_data(args)
    except (ValueError, OSError) as error:
        sys.exit(f"bench_min.py: error: {error}")
    if args.json:
        print(json.dumps({"args": vars(args)} | found))
        return
    for key, value in found.items():
        values = value if isinstance(value, list) else [value]
        shown = (f"{v:,}" if isinstance(v, int) else f"{v:,.2f}" for v in values)
        print(f"{key:<16}", *shown)


if __name__ == "__main__":
    main()
