"""Break vlpt.py in one place at a time and check that a test fails: `make mutants`.

Each row is (what breaks, the tests that should notice first, text in vlpt.py, the text instead).
The text has to occur exactly once. If those tests pass, all of TESTS but the slow ones are tried; a
mutant that survives them as well fails the command.
"""

import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS = ("test_vlpt.py", "tests/test_words.py", "tests/test_export.py")

# fmt: off
MUTANTS = [
    # step 1
    ("the stem does not stride", "TestStep1",
     "nn.Conv2d(3, width // 2, 3, stride=2, padding=1", "nn.Conv2d(3, width // 2, 3, padding=1"),
    ("the stem does not pool", "TestStep1", "return self.avgpool(x)  # stride 4", "return x"),
    ("maximum instead of average pooling in blocks", "TestStep1",
     "self.avgpool = nn.AvgPool2d(stride)", "self.avgpool = nn.MaxPool2d(stride)"),
    ("no shortcut", "TestStep1", "y + self.downsample(x)", "y + 0 * self.downsample(x)"),
    ("a new block is not its shortcut", "TestStep1", "nn.init.zeros_(self.bn3.weight)",
     "nn.init.ones_(self.bn3.weight)"),
    ("the first stage strides", "TestStep1", "stride=1 if k == 0 else 2", "stride=2"),
    ("torchvision's stem is cut off the gradient", "TestModel", "return self.maxpool(x)",
     "return self.maxpool(x.detach())"),
    ("torchvision's stem without its pooling", "TestStep1", "return self.maxpool(x)", "return x"),
    ("attention without its scale", "TestStep1", "(q, k, v, attn_mask=allowed)",
     "(q, k, v, attn_mask=allowed, scale=1.0)"),
    ("keys as values", "TestStep1", "(q, k, v, attn_mask=allowed)", "(q, k, k, attn_mask=allowed)"),
    ("heads taken as positions", "TestStep1",
     "return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)",
     "return x.unflatten(-1, (-1, self.heads)).permute(0, 3, 1, 2)"),
    ("the pool sums instead of averaging", "TestStep1", "cells.mean(dim=1, keepdim=True)",
     "cells.sum(dim=1, keepdim=True)"),
    ("cells without positions", "TestStep1", "cells + cell_positions]", "cells]"),
    ("the mean token without its position", "TestStep1", "[mean + mean_position, ", "[mean, "),
    ("the last token is the image feature", "TestStep1", "return pooled[:, 0], pooled[:, 1:]",
     "return pooled[:, -1], pooled[:, 1:]"),
    ("image tokens shifted by one", "TestStep1", "return pooled[:, 0], pooled[:, 1:]",
     "return pooled[:, 0], pooled[:, :-1]"),
    ("resized positions transposed", "TestStep1", "table_2d = table.T.reshape(1, -1, side, side)",
     "table_2d = table.T.reshape(1, -1, side, side).mT"),
    ("pixels not scaled to 1", "TestStep1", "pixels[:, c] / 255", "pixels[:, c]"),
    ("pixels are rounded down", "TestStep1", "pixels[:, c] / 255", "pixels[:, c] // 255"),
    ("channels of pixels come last", "TestStep1", "torch.stack(channels, dim=1)",
     "torch.stack(channels, dim=-1)"),
    ("an attention without heads", "TestStep1", "heads < 1 or width % heads", "width % heads"),
    ("a backbone without stages", "TestStep1", '1 <= len(size["layers"]) <= 4',
     'len(size["layers"]) <= 4'),
    ("positions of the transposed map", "TestStep1", "self.side, feature_map.shape[2:])",
     "self.side, feature_map.shape[2:][::-1])"),
    ("bilinear positions", "TestStep1", 'mode="bicubic"', 'mode="bilinear"'),
    ("a convolution is cut off the gradient", "TestStep1", "self.bn1(self.conv1(x))",
     "self.bn1(self.conv1(x.detach()))"),
    ("only the last feature map", "TestStep1", "feature_maps.append(x)",
     "feature_maps.append(x if stage is self.stages[-1] else 0 * x)"),
    # step 2
    ("no positions", "TestStep2", "self.token_embedding(ids) + positions",
     "self.token_embedding(ids)"),
    ("the position of another character", "TestStep2", "self.positional_embedding[:L, :N]",
     "self.positional_embedding.roll(1, 0)[:L, :N]"),
    ("positions of their own for every word", "TestStep2", "words_per_sequence = 1  # the words",
     "words_per_sequence = MAX_WORDS  # the words"),
    ("MASK embedded as UNK", "TestStep2", "self.token_embedding(ids) + positions",
     "self.token_embedding(ids.masked_fill(ids == MASK, UNK)) + positions"),
    ("the sentence ablation is ignored", "TestStep2",
     "SentenceEncoder(config) if is_sentence else TextEncoder(config)", "TextEncoder(config)"),
    # step 3
    ("words see each other", "TestStep3", "return x.transpose(1, 2).flatten(0, 1)",
     "return x.transpose(1, 2).flatten(1, 2)"),
    ("words of a sentence do not see each other", "TestStep3",
     "return x.transpose(1, 2).flatten(1, 2)", "return x.transpose(1, 2).flatten(0, 1)"),
    ("pads are attended to", "TestStep3", "valid = valid | ~valid.any(dim=1, keepdim=True)",
     "valid = torch.ones_like(valid)"),
    ("no key for empty slots", "TestStep3", "valid = valid | ~valid.any(dim=1, keepdim=True)",
     "pass"),
    ("a causal mask", "TestStep3", "else valid[:, None, None, :]",
     "else valid[:, None, None] & torch.ones(q.shape[2], k.shape[2]).tril().bool()"),
    ("no residual around the attention", "TestStep3", "x = x + self.attn(y, y, y, valid)",
     "x = self.attn(y, y, y, valid)"),
    ("attention before its norm", "TestStep3", "y = self.ln_1(x)\n", "y = x\n"),
    ("no final norm in the text encoder", "TestStep3", "self.text_projection(self.ln_final(x))",
     "self.text_projection(x)"),
    ("another GELU", "TestStep3", "x * torch.sigmoid(1.702 * x)", "x * torch.sigmoid(x)"),
    ("only the first text layer", "TestStep3", "x = layer(x, valid)",
     "x = self.layers[0](x, valid)"),
    ("pads in the mean over characters", "TestStep3",
     "mean_where(char_features, is_char, dim=1)", "char_features.mean(1)"),
    ("empty slots in the mean over words", "TestStep3",
     "mean_where(word_features, is_word, dim=1)", "word_features.mean(1)"),
    ("the mean over all characters at once", "TestStep3",
     "text = mean_where(word_features, is_word, dim=1)",
     "text = mean_where(char_features.flatten(1, 2), is_char.flatten(1, 2), dim=1)"),
    ("an empty mean is undefined", "TestStep3", "included.sum(dim).clamp(min=1)",
     "included.sum(dim)"),
    ("MASK is not attended to", "TestStep3", "valid = self.to_sequences(ids != PAD)",
     "valid = self.to_sequences((ids != PAD) & (ids != MASK))"),
    ("unknown characters are not in the mean", "TestStep3", "is_char = ids != PAD",
     "is_char = (ids != PAD) & (ids != UNK)"),
    # step 4
    ("pads can be masked", "TestStep4", "scores.masked_fill(~can_be_masked, -1)", "scores"),
    ("unknown characters can be masked", "TestStep4", "can_be_masked = ids > UNK",
     "can_be_masked = ids >= UNK"),
    ("empty slots are masked", "TestStep4", "masked = is_drawn & can_be_masked",
     "masked = is_drawn"),
    ("always the first character", "TestStep4", "position = scores.argmax",
     "position = scores.sign().argmax"),
    ("two masks a word", "TestStep4", ".scatter(1, position, True)",
     ".scatter(1, torch.cat([position, 0 * position], 1), True)"),
    ("one draw for all words", "TestStep4", "torch.rand(ids.shape, generator",
     "torch.rand((*ids.shape[:2], 1), generator"),
    ("the generator is ignored", "TestStep4", "generator=generator).to(ids.device)",
     "generator=None).to(ids.device)"),
    ("targets at all positions", "TestStep4", "ids.masked_fill(~masked, IGNORE_INDEX)",
     "ids.masked_fill(ids == PAD, IGNORE_INDEX)"),
    ("later letters of the alphabet are preferred", "TestStep4",
     "scores = scores.masked_fill(", "scores = (scores * ids).masked_fill("),
    # step 5
    ("queries see each other", "TestStep5", "self.ln_1(self.attn(query, key, value))",
     "self.ln_1(self.attn(query, torch.cat([key, query], 1), torch.cat([value, query], 1)))"),
    ("keys without positions", "TestStep5",
     "image_tokens + interpolate_pos_embed(self.positional_embedding, self.side, grid)",
     "image_tokens"),
    ("values with positions", "TestStep5",
     "query = layer(query, key, image_tokens)\n        return self.ln_final",
     "query = layer(query, key, key)\n        return self.ln_final"),
    ("the norm before attention instead of after it", "TestStep5",
     "self.ln_1(self.attn(query, key, value))", "self.attn(self.ln_1(query), key, value)"),
    ("no final norm in the decoder", "TestStep5", "return self.ln_final(query)", "return query"),
    ("maps: softmax over the queries", "TestStep5", "scores.softmax(dim=-1)",
     "scores.softmax(dim=-2)"),
    ("maps: no scale", "TestStep5", " * q.shape[-1] ** -0.5", ""),
    ("maps: the first layer instead of the last", "TestStep5",
     "*earlier_layers, last_layer = self.layers", "last_layer, *earlier_layers = self.layers"),
    ("maps: not followed through the pool", "TestStep5", "decoder_weights @ pool_weights[:, 1:]",
     "decoder_weights"),
    ("keys detached", "TestStep5", "return image_tokens + interpolate",
     "return image_tokens.detach() + interpolate"),
    ("without a decoder, without the image", "TestStep5", "y = query + image.unsqueeze(1)",
     "y = query"),
    ("words and characters transposed in the logits", "TestStep5",
     "logits.unflatten(1, char_features.shape[1:3])",
     "logits.unflatten(1, char_features.shape[1:3][::-1]).transpose(1, 2)"),
    ("positions of the transposed grid", "TestStep5",
     "interpolate_pos_embed(self.positional_embedding, self.side, grid)",
     "interpolate_pos_embed(self.positional_embedding, self.side, grid[::-1])"),
    ("the model transposes the grid", "TestStep5", "y = self.decoder(query, image_tokens, grid)",
     "y = self.decoder(query, image_tokens, grid[::-1])"),
    # step 6
    ("a sum over the masks", "TestStep6", "total / (targets != IGNORE_INDEX).sum().clamp(min=1)",
     "total"),
    ("a mean over all positions", "TestStep6", "(targets != IGNORE_INDEX).sum().clamp(min=1)",
     "len(targets)"),
    ("undefined if nothing is masked", "TestStep6",
     "(targets != IGNORE_INDEX).sum().clamp(min=1)", "(targets != IGNORE_INDEX).sum()"),
    ("logits of words and characters transposed", "TestStep6", "to_float32(logits).flatten(0, 2)",
     "to_float32(logits).transpose(1, 2).flatten(0, 2)"),
    ("half precision in the loss", "TestStep6", "to_float32(logits).flatten(0, 2)",
     "logits.flatten(0, 2)"),
    # step 7
    ("images not normalized", "TestStep7", "F.normalize(to_float32(image), dim=1)",
     "to_float32(image)"),
    ("texts normalized over the batch", "TestStep7", "F.normalize(to_float32(text), dim=1)",
     "F.normalize(to_float32(text), dim=0)"),
    ("the scale is not capped", "TestStep7", ".clamp(max=MAX_SCALE)", ""),
    ("the temperature instead of the scale", "TestStep7", "logit_scale.exp()",
     "(-logit_scale).exp()"),
    ("half of the sum", "TestStep7", "return (loss_i2t + loss_t2i) /",
     "return (loss_i2t + loss_t2i) / 2 /"),
    ("one direction twice", "TestStep7", "(loss_i2t + loss_t2i)", "(loss_i2t + loss_i2t)"),
    ("the scale detached", "TestStep7", "logit_scale.exp()", "logit_scale.detach().exp()"),
    ("pairs reversed", "TestStep7", "torch.arange(len(image), device=image.device)",
     "torch.arange(len(image), device=image.device).flip(0)"),
    ("images without words are negatives", "TestStep7",
     "logits.T.masked_fill(~is_pair, lowest)", "logits.T"),
    ("texts without words are negatives", "TestStep7",
     "i2t = logits.masked_fill(~is_pair, lowest)", "i2t = logits"),
    ("images without words are pairs", "TestStep7", ".masked_fill(~is_pair, IGNORE_INDEX)", ""),
    ("a mean over all images", "TestStep7", "is_pair.sum().clamp(min=1)", "len(image)"),
    ("undefined without pairs", "TestStep7", "is_pair.sum().clamp(min=1)",
     "is_pair.sum()"),
    ("similarities in half precision", "TestStep7", "with autocast_off(image):",
     "if True:"),
    # step 8
    ("the contrastive loss is weighted", "TestStep8", "loss = loss + contrastive_loss",
     "loss = loss + 0.5 * contrastive_loss"),
    ("contrastive=False is ignored", "TestStep8", "    if contrastive:\n", "    if True:\n"),
    ("images without words are counted", "TestStep8",
     "output.text, output.logit_scale, has_target)", "output.text, output.logit_scale)"),
    ("image tokens detached", "TestStep8", "y = self.decoder(query, image_tokens, grid)",
     "y = self.decoder(query, image_tokens.detach(), grid)"),
    ("the image feature detached", "TestStep8", "return Output(image, text, logits, self.logit",
     "return Output(image.detach(), text, logits, self.logit"),
    ("the text feature detached", "TestStep8", "return Output(image, text, logits, self.logit",
     "return Output(image, text.detach(), logits, self.logit"),
    ("the scale is trained without a contrastive loss", "TestStep8",
     "requires_grad=config.contrastive", "requires_grad=True"),
    ("images with unknown words only are counted", "TestStep8",
     "has_target = (targets != IGNORE_INDEX).flatten(1).any(dim=1)",
     "has_target = (output.text != 0).any(dim=1)"),
    ("the first word decides whether an image counts", "TestStep8",
     "has_target = (targets != IGNORE_INDEX).flatten(1).any(dim=1)",
     "has_target = (targets != IGNORE_INDEX)[:, :, 0].any(dim=1)"),
    # step 9
    ("pool and text side are exported as well", "TestStep9",
     "backbone = model.backbone if isinstance(model, VLPT) else model", "backbone = model"),
    ("MMOCR's stem is numbered wrongly", "TestStep9", '"stem.3", "stem.4"', '"stem.2", "stem.3"'),
    ("timm's last norm has another name", "TestStep9", '"conv1.6", "bn1")',
     '"conv1.6", "conv1.7")'),
    ("the shortcut is not renumbered", "TestStep9",
     'renamed = renamed.replace("downsample.0.", "downsample.1.")', "pass"),
    ("the shortcut's norm is not renumbered", "TestStep9",
     'renamed = renamed.replace("downsample.1.", "downsample.2.")', "pass"),
    ("the pool of a released checkpoint is kept", "TestStep9",
     ' if not k.startswith(("attnpool.", "fc."))', ' if not k.startswith("fc.")'),
    ("tensors that do not fit are ignored", "tests/test_export.py",
     "backbone.load_state_dict(renamed)", "backbone.load_state_dict(renamed, strict=False)"),
    ("the worst layout is guessed", "TestStep9",
     "best = max(layouts, key=", "best = min(layouts, key="),
    ("module. is kept", "TestStep9", '.removeprefix("module.")', ""),
    ("the last prefix is taken", "TestStep9", "for prefix in prefixes:",
     "for prefix in prefixes[::-1]:"),
    ("MMOCR's layout for torchvision's ResNets", "tests/test_export.py",
     'layouts = ["native", "timm"] if isinstance(backbone, TorchvisionResNet) else list(LAYOUTS)',
     "layouts = list(LAYOUTS)"),
    ("the file is not flushed to the disk", "tests/test_export.py", "os.fsync(file.fileno())",
     "pass"),
    ("a failed export leaves its part", "tests/test_export.py", "part.unlink(missing_ok=True)",
     "pass"),
    ("a part that cannot be removed hides the error", "tests/test_export.py",
     "contextlib.suppress(OSError)", "contextlib.suppress()"),
    ("tensors of another memory format are exported as they are", "TestStep9",
     "tensor.cpu().contiguous()", "tensor.cpu()"),
    ("a note replaces metadata", "tests/test_export.py", '"vlpt_version": __version__,',
     '"vlpt_version": __version__, **notes,'),
    ("a missing package is called a damaged file", "tests/test_export.py",
     "except (OSError, ImportError):", "except OSError:"),
    ("the metadata of another layout", "tests/test_export.py", '"layout": layout,',
     '"layout": "native",'),
    ("metadata without the alphabet", "tests/test_export.py",
     'metadata["alphabet_size"] = len(Alphabet(model.config.alphabet).chars)', "pass"),
    ("code in a checkpoint is executed", "tests/test_export.py", "weights_only=True",
     "weights_only=False"),
    ("a TorchScript archive is not recognised", "tests/test_export.py",
     'name.endswith("/constants.pkl")', 'name.endswith("/nothing")'),
    ("the layout is ignored", "TestStep9", "    keys = layout_keys(backbone, layout)\n",
     '    keys = layout_keys(backbone, "native")\n'),
    # the model
    ("the first character is decoded for the masked one", "TestModel",
     "char_features.take_along_dim(position.unsqueeze(-1), dim=1)", "char_features[:, :1]"),
    ("targets of another character", "TestModel", "targets.gather(1, position)", "targets[:, :1]"),
    ("the head computes in half precision", "TestModel", "with autocast_off(y):", "if True:"),
    ("any width of an image", "TestModel", " or shape[3] % 32", ""),
    ("images of any number of dimensions", "TestModel", "len(shape) != 4 or shape[1] != 3",
     "shape[1] != 3"),
    ("the text feature is normalised", "TestModel", "Output(image, text, logits, self.logit_scale)",
     "Output(image, F.normalize(text, dim=1), logits, self.logit_scale)"),
    ("image and text swapped in training", "TestModel", "Output(image, text, logits, self.model.",
     "Output(text, image, logits, self.model."),
    ("images of multiples of 16", "TestModel", "shape[2] % 32", "shape[2] % 16"),
    ("four words an image", "TestModel", "shape[2] > N", "shape[2] > N + 1"),
    ("no words an image", "TestModel", "shape[2] > N or 0 in shape", "shape[2] > N"),
    ("dropout in training", "TestModel", "(q, k, v, attn_mask=allowed)",
     "(q, k, v, attn_mask=allowed, dropout_p=0.1 * self.training)"),
    ("one text layer", "TestModel", "range(config.text_layers)", "range(1)"),
    ("tied layers in the text encoder", "TestModel",
     "[EncoderLayer(width, config.text_heads) for _ in range(config.text_layers)]",
     "[EncoderLayer(width, config.text_heads)] * config.text_layers"),
    ("the decoder with the text encoder's heads", "TestModel",
     "DecoderLayer(width, config.decoder_heads)", "DecoderLayer(width, config.text_heads)"),
    ("the head without a bias", "TestModel",
     "nn.Linear(config.embed_dim, len(Alphabet(config.alphabet)))",
     "nn.Linear(config.embed_dim, len(Alphabet(config.alphabet)), bias=False)"),
    ("the decoder's table of another size", "TestModel", "else VisualTextualDecoder(config, side)",
     "else VisualTextualDecoder(config, 2)"),
    ("another initialisation of attention", "TestModel", "std=width**-0.5)  # D9",
     "std=2 * width**-0.5)  # D9"),
    ("attention's output starts by its own width", "TestModel", "std=width**-0.5)  # D9",
     "std=layer.out_features**-0.5)  # D9"),
    ("the head starts as the released one", "TestModel",
     "self.head = nn.Linear(config.embed_dim, len(Alphabet(config.alphabet)))",
     "self.head = nn.Linear(config.embed_dim, len(Alphabet(config.alphabet)))\n"
     "        nn.init.normal_(self.head.weight, std=config.text_width**-0.5)"),
    # words
    ("words are cut after 24 characters", "tests/test_words.py",
     "normalize_text(word)[:MAX_CHARS]", "normalize_text(word)[: MAX_CHARS - 1]"),
    ("words are cut before they are composed", "tests/test_words.py",
     "normalize_text(word)[:MAX_CHARS]", "normalize_text(word[:MAX_CHARS])"),
    ("words are decomposed", "tests/test_words.py", '("NFC", text)', '("NFD", text)'),
    ("unknown characters are pads", "tests/test_words.py", "self.index.get(char, UNK)",
     "self.index.get(char, PAD)"),
    ("an alphabet may repeat a character", "tests/test_words.py",
     " or len(set(self.chars)) != len(self.chars)", ""),
    ("targets have a letter where nothing is masked", "tests/test_words.py",
     "for k in word if k != IGNORE_INDEX", "for k in word"),
    ("a negative image size", "tests/test_words.py", "self.image_size <= 0",
     "self.image_size == 0"),
    ("a model without heads", "tests/test_words.py", "not 1 <= heads <= size or size", "size"),
    ("an image size of multiples of 16", "tests/test_words.py", "self.image_size % 32",
     "self.image_size % 16"),
    ("the text encoder's heads divide another width", "tests/test_words.py",
     '("text_heads", "text_width")', '("text_heads", "embed_dim")'),
]
# fmt: on


def first_failure(folder: Path, *selection: str) -> str | None:
    """Run the selected tests in a folder; the name of the first that fails, or None."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-rfE", "--no-header", "--tb=no"]
    command += ["-p", "no:cacheprovider", "-m", "not slow", *selection]
    environment = os.environ | {"HYPOTHESIS_PROFILE": "mutants", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode == 0:
        return None
    found = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    if done.returncode not in (1, 2) or not found:
        raise RuntimeError(f"pytest itself failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return found[1]


def find_killer(mutant: tuple[str, str, str, str]) -> str | None:
    """The test that notices a mutant, or None."""
    name, expected, old, new = mutant
    source = (ROOT / "vlpt.py").read_text()
    if source.count(old) != 1:
        raise RuntimeError(f"{name}: expected {old!r} once in vlpt.py, got {source.count(old)}")
    selection = [expected] if expected.endswith(".py") else ["test_vlpt.py", "-k", expected]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "tests").mkdir()
        (Path(folder) / "vlpt.py").write_text(source.replace(old, new))
        for path in ("pyproject.toml", "conftest.py", *TESTS):
            (Path(folder) / path).write_text((ROOT / path).read_text())
        return first_failure(Path(folder), *selection) or first_failure(Path(folder), *TESTS)


def main() -> None:
    source = (ROOT / "vlpt.py").read_text()
    if failed := find_killer(("no mutant", TESTS[0], source, source)):
        sys.exit(f"{failed} fails without a mutant")
    survivors = 0
    print(f"{len(MUTANTS)} mutants of vlpt.py, two at a time", flush=True)
    with ThreadPoolExecutor(2) as pool:
        killers = pool.map(find_killer, MUTANTS)
        for (name, expected, _, _), killer in zip(MUTANTS, killers, strict=True):
            survivors += killer is None
            verdict = f"killed by {killer}" if killer else "SURVIVED"
            if killer and expected not in killer:
                verdict += f" and not by {expected}"
            print(f"{name:<52} {verdict}", flush=True)
    if survivors:
        sys.exit(f"{survivors} of {len(MUTANTS)} mutants survived")
    print(f"all {len(MUTANTS)} mutants killed")


if __name__ == "__main__":
    main()
