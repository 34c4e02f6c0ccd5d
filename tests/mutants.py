"""Break vlpt.py in one place at a time and see test_vlpt.py notice: `make mutants`.

Each row is (what breaks, class that should notice first, text in vlpt.py, text instead). The text
must occur exactly once. A mutant that its class lets pass is tried against the whole file; one
that survives that fails the command.
"""

import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

MUTANTS = [
    # step 1
    ("stem strides late", "TestStep1", "3, 2 if k == 1 else 1", "3, 2 if k == 3 else 1"),
    ("max for average pool in blocks", "TestStep1", "self.avgpool = nn.AvgPool2d(stride)",
     "self.avgpool = nn.MaxPool2d(stride)"),
    ("no shortcut", "TestStep1", "+ self.downsample(x), ", "+ 0 * self.downsample(x), "),
    ("new block is not the identity", "TestStep1", "nn.init.zeros_(self.bn3.weight)",
     "nn.init.ones_(self.bn3.weight)"),
    ("attention without scale", "TestStep1", "self._split(v), mask)",
     "self._split(v), mask, scale=1.0)"),
    ("keys as values", "TestStep1", "self._split(v), mask)", "self._split(k), mask)"),
    ("pool sums instead of averaging", "TestStep1", "x.mean(1, keepdim=True)",
     "x.sum(1, keepdim=True)"),
    ("pool without positions", "TestStep1", "+ torch.cat([first, rest])", ""),
    ("mean token without its position", "TestStep1", "torch.cat([first, rest])",
     "torch.cat([0 * first, rest])"),
    ("last token for the image feature", "TestStep1", "return y[:, 0], y[:, 1:]",
     "return y[:, -1], y[:, 1:]"),
    ("local tokens shifted by one", "TestStep1", "return y[:, 0], y[:, 1:]",
     "return y[:, 0], y[:, :-1]"),
    ("positions transposed when resized", "TestStep1", "side, side), size",
     "side, side).mT, size"),
    ("pixels not scaled to 1", "TestStep1", "(pixels / 255 - mean)", "(pixels - mean)"),
    # step 2
    ("positions dropped", "TestStep2",
     " + self.position[: ids.shape[1], : ids.shape[2]]", ""),
    ("position of the wrong index", "TestStep2",
     "self.position[: ids.shape[1], : ids.shape[2]]",
     "self.position[: ids.shape[1], : ids.shape[2]].roll(1, 0)"),
    ("a position for each word", "TestStep2", "WORDS if self.sentence else 1", "WORDS"),
    # step 3
    ("words mixed", "TestStep3", "(1, 2) if self.sentence else (0, 1)", "(1, 2)"),
    ("sentence taken apart", "TestStep3", "(1, 2) if self.sentence else (0, 1)", "(0, 1)"),
    ("pads attended to", "TestStep3", "valid = valid | ~valid.any(1, keepdim=True)",
     "valid = torch.ones_like(valid)"),
    ("no key for empty words", "TestStep3", "valid = valid | ~valid.any(1, keepdim=True)",
     "x = x + 0 / valid.any(1)[:, None, None]"),
    ("causal mask", "TestStep3", "else valid[:, None, None]",
     "else valid[:, None, None] & torch.ones(len(q[0]), len(k[0])).tril().bool()"),
    ("pads not zeroed", "TestStep3", "return x * (ids != PAD).unsqueeze(-1)", "return x"),
    ("no residual around attention", "TestStep3", "x = x + self.attn(y, y, y, valid)",
     "x = self.attn(y, y, y, valid)"),
    ("no final norm in the text encoder", "TestStep3", "self.projection(self.ln_final(x))",
     "self.projection(x)"),
    ("another GELU", "TestStep3", "F.silu(1.702 * x) / 1.702", "F.silu(x)"),
    # step 4
    ("pads may be masked", "TestStep4", "draw.masked_fill(ids <= UNK, -1)", "draw"),
    ("unknown characters may be masked", "TestStep4", "draw.masked_fill(ids <= UNK, -1)",
     "draw.masked_fill(ids < UNK, -1)"),
    ("empty slots are masked", "TestStep4", "True) & (ids > UNK)", "True)"),
    ("words of unknown characters are masked", "TestStep4", "True) & (ids > UNK)",
     "True) & (ids >= UNK)"),
    ("always the first character", "TestStep4", "winner = draw.", "winner = (0 * draw)."),
    ("never the last of equals", "TestStep4", "winner = draw.",
     "winner = (draw * (ids.cumsum(1) < ids.sum(1, keepdim=True)))."),
    ("two masks a word", "TestStep4", ".scatter(1, winner, True)",
     ".scatter(1, torch.cat([winner, 0 * winner], 1), True)"),
    ("one draw for all words", "TestStep4", "torch.rand(ids.shape, generator",
     "torch.rand((*ids.shape[:2], 1), generator"),
    ("generator ignored", "TestStep4", "generator=generator, device", "device"),
    ("targets at all positions", "TestStep4", "ids.masked_fill(~masked, IGNORE)",
     "ids.masked_fill(ids == PAD, IGNORE)"),
    # step 5
    ("decoder sees its queries", "TestStep5", "self.ln_1(self.attn(query, key, value, None))",
     "self.ln_1(self.attn(query, torch.cat([key, query], 1), torch.cat([value, query], 1), None))"),
    ("keys without position", "TestStep5", "key = local + resize_table",
     "key = local + 0 * resize_table"),
    ("values with position", "TestStep5", "layer.decode(query, key, local)",
     "layer.decode(query, key, key)"),
    ("norm before instead of after", "TestStep5", "self.ln_1(self.attn(query, key, value, None))",
     "self.attn(self.ln_1(query), key, value, None)"),
    ("no final norm in the decoder", "TestStep5", "else self.ln_final(query)", "else query"),
    ("maps: softmax over the queries", "TestStep5", ".softmax(-1).mean(1)", ".softmax(-2).mean(1)"),
    ("maps: no scale", "TestStep5", " * q.shape[-1] ** -0.5", ""),
    ("maps: first layer for last", "TestStep5", "return self.layers[-1].attn",
     "return self.layers[0].attn"),
    ("maps: not followed through the pool", "TestStep5", "maps=True) @ places[:, 1:]",
     "maps=True)"),
    ("keys detached", "TestStep5", "key = local + resize_table",
     "key = local.detach() + resize_table"),
    ("decoder none: without the image", "TestStep5", "else query + image.unsqueeze(1)",
     "else query"),
    # step 6
    ("targets stay on their device", "TestStep6", ".to(logits.device)", ""),
    ("a sum over masks", "TestStep6", " / (wanted != IGNORE).sum().clamp(min=1)", ""),
    ("a mean over all positions", "TestStep6", "(wanted != IGNORE).sum().clamp(min=1)",
     "len(wanted)"),
    ("nothing masked is NaN", "TestStep6", "(wanted != IGNORE).sum().clamp(min=1)",
     "(wanted != IGNORE).sum()"),
    ("logits of words and characters transposed", "TestStep6", "logits.flatten(0, 2), ",
     "logits.transpose(1, 2).flatten(0, 2), "),
    # step 7
    ("images not normalised", "TestStep7", "F.normalize(image[worded], dim=1)", "image[worded]"),
    ("texts normalised over the batch", "TestStep7", "F.normalize(text[worded], dim=1)",
     "F.normalize(text[worded], dim=0)"),
    ("scale not capped", "TestStep7", ".clamp(max=100)", ""),
    ("temperature for scale", "TestStep7", "log_scale.exp()", "(-log_scale).exp()"),
    ("half of the sum", "TestStep7", "(i2t + t2i) /", "(i2t + t2i) / 2 /"),
    ("one direction twice", "TestStep7", "(i2t + t2i)", "(i2t + i2t)"),
    ("temperature detached", "TestStep7", "log_scale.exp()", "log_scale.detach().exp()"),
    ("pairs reversed", "TestStep7", "image[pairs] @", "image[pairs.flip(0)] @"),
    ("own rows ignored", "TestStep7", "[own][worded[own]]", "[worded]"),
    ("mean over own rows", "TestStep7", "max(1, len(image))", "max(1, len(pairs))"),
    ("images without words are negatives", "TestStep7", "worded = text.ne(0).any(1)",
     "worded = text.ne(9).any(1)"),
    # step 8
    ("contrastive loss weighted", "TestStep8", "return loss + contrastive_loss",
     "return loss + 0.5 * contrastive_loss"),
    ("contrastive=False ignored", "TestStep8", "output.log_scale) if contrastive else loss",
     "output.log_scale)"),
    ("local tokens detached", "TestStep8", "self.decoder(query, local, size) if",
     "self.decoder(query, local.detach(), size) if"),
    ("image feature detached", "TestStep8", "Output(image, text,", "Output(image.detach(), text,"),
    ("text feature detached", "TestStep8", "Output(image, text,", "Output(image, text.detach(),"),
    ("pads in the mean over characters", "TestStep8",
     "te.sum(1) / valid.sum(1).clamp(min=1).unsqueeze(-1)", "te.mean(1)"),
    ("empty words in the mean over words", "TestStep8",
     "words.sum(1) / valid.any(1).sum(1, keepdim=True).clamp(min=1)", "words.mean(1)"),
    ("mean over all characters at once", "TestStep8",
     "words.sum(1) / valid.any(1).sum(1, keepdim=True).clamp(min=1)",
     "te.sum((1, 2)) / valid.sum((1, 2)).clamp(min=1).unsqueeze(-1)"),
    # step 9
    ("export with pool and text side", "TestStep9",
     "Path(path), model.backbone if isinstance(model, VLPT) else model",
     "Path(path), model"),
    ("mmocr stem misnumbered", "TestStep9", '"stem.3", "stem.4"', '"stem.2", "stem.3"'),
    ("timm's last norm misplaced", "TestStep9", '"conv1.6", "bn1")', '"conv1.6", "conv1.7")'),
    ("shortcut not renumbered", "TestStep9", '.replace("downsample.0", "downsample.1")', ""),
    ("pool of a released checkpoint kept", "TestStep9",
     ' if not k.startswith("attnpool.")', ""),
    ("mmocr for torchvision's network", "TestStep9",
     ' or (layout == "mmocr" and "conv3" not in backbone)', ""),
    ("not flushed to the disk", "TestStep9", "os.fsync(file.fileno())", "pass"),
    ("a failed export leaves its part", "TestStep9", "part.unlink(missing_ok=True)", "pass"),
    ("metadata of another layout", "TestStep9", '"layout": layout,', '"layout": "native",'),
    ("metadata without the alphabet", "TestStep9", "if isinstance(model, VLPT):",
     "if not isinstance(model, VLPT | Backbone):"),
    ("code in a checkpoint is run", "TestStep9", "weights_only=True", "weights_only=False"),
    ("keys that do not fit are ignored", "TestStep9", "backbone.load_state_dict(state)",
     "backbone.load_state_dict(state, strict=False)"),
    ("a layout is guessed by its order", "TestStep9", "native = max(maps", "native = min(maps"),
    ("module. is kept", "TestStep9", '.removeprefix("module.")', ""),
    ("the command exports another layout", "TestCommandLine",
     "export_run(args.run, args.out, args.layout)", 'export_run(args.run, args.out, "native")'),
    ("the command says no steps", "TestCommandLine", ', "steps": held["step"]}', "}"),
    # the model
    ("trimmed one character short", "TestModel", "(1 + max(filled", "(max(filled"),
    ("logits at pads kept", "TestModel",
     "unflatten(1, (-1, N)) * valid[..., None]", "unflatten(1, (-1, N))"),
    ("masked_only: logits at every character", "TestModel", "valid = used == MASK", "pass"),
    ("masked_only: another query", "TestModel", "te = (te * valid", "te = (te * ~valid"),
    ("two masks a word are not noticed", "TestModel", ".sum(1).gt(1).any()", ".sum(1).gt(9).any()"),
    ("ids stay on their device", "TestModel", "[:, :L, :N].to(images.device)", "[:, :L, :N]"),
    ("character cut after 24", "TestAlphabet", "nfc(word)[:CHARS]", "nfc(word)[: CHARS - 1]"),
    ("cut before composing", "TestAlphabet", "nfc(word)[:CHARS]", "nfc(word[:CHARS])"),
    ("spelled decomposed", "TestAlphabet", 'partial(unicodedata.normalize, "NFC")',
     'partial(unicodedata.normalize, "NFD")'),
    ("unknown characters are pads", "TestAlphabet", "get(char, UNK)", "get(char, PAD)"),
]  # fmt: skip


def pytest_fails(folder: Path, *selection: str) -> str | None:
    """Run test_vlpt.py in a folder until the first failure; its name, or None if all pass."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-rfE", "--no-header", "--tb=no", "-p",
               "no:cacheprovider", "-m", "not slow", "test_vlpt.py", *selection]  # fmt: skip
    environment = os.environ | {"HYPOTHESIS_PROFILE": "mutants", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode == 0:
        return None
    found = re.search(r"^(?:FAILED|ERROR) (?:test_vlpt\.py::)?(\S+)", done.stdout, re.MULTILINE)
    if done.returncode not in (1, 2) or not found:
        raise RuntimeError(f"pytest itself failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return found[1]


def killer(mutant: tuple[str, str, str, str]) -> str | None:
    """The test that notices a mutant, or None."""
    name, first, old, new = mutant
    source = (ROOT / "vlpt.py").read_text()
    if source.count(old) != 1:
        raise RuntimeError(f"{name}: {old!r} occurs {source.count(old)} times in vlpt.py, wanted 1")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "vlpt.py").write_text(source.replace(old, new))
        for copied in ("test_vlpt.py", "pyproject.toml"):
            (Path(folder) / copied).write_text((ROOT / copied).read_text())
        return pytest_fails(Path(folder), "-k", first) or pytest_fails(Path(folder))


def main() -> None:
    survivors = 0
    print(f"{len(MUTANTS)} mutants of vlpt.py, two at a time", flush=True)
    with ThreadPoolExecutor(2) as pool:
        for (name, *_), test in zip(MUTANTS, pool.map(killer, MUTANTS), strict=True):
            survivors += test is None
            print(f"{name:<44} {'killed by ' + test if test else 'SURVIVED'}", flush=True)
    if survivors:
        sys.exit(f"{survivors} of {len(MUTANTS)} mutants survived")
    print(f"all {len(MUTANTS)} mutants killed")


if __name__ == "__main__":
    main()
