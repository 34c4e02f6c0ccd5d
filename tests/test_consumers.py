"""An exported backbone where it goes: strictly loaded, all four stages equal to ours.

In float32 and bit for bit, except where torchvision folds the statistics into a scale and a shift.
MMOCR does not install from the registry: its names and shapes are in clip_resnet50_keys.txt. The
lines that docs/backbone.md gives for each consumer are run here.
"""

import re
import subprocess
import sys
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import load_file
from torch import Tensor, nn

import hubconf
import vlpt

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "backbone.md").read_text()
SECTION = PAGE.split("## Load it in a network\n")[1].split("\n## ")[0]
ROWS = re.findall(r"^\| `?([^`|]+)`? \| `([^`]+)`.* \| `(\w+)`, (\w+).* \|$", SECTION, re.MULTILINE)
FUSED = 1e-5  # of the largest value; torchvision's FrozenBatchNorm2d multiplies by w / sqrt(var)


@cache
def randomized_backbone(name: str) -> vlpt.Backbone:
    """A backbone with statistics and gains away from 0 and 1, in evaluation mode."""
    torch.manual_seed(0)
    backbone = vlpt.build_backbone(name).eval()
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
            module.num_batches_tracked.fill_(5)
    return backbone


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("exported")


@cache
def exported(folder: Path, name: str, layout: str) -> Path:
    path = folder / f"{name}_{layout}{'.pt' if layout == 'mmocr' else '.safetensors'}"
    vlpt.export_backbone(randomized_backbone(name), path, layout)
    return path


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))


def run_row(start: str, folder: Path) -> tuple[Any, str]:
    """Do what the page's row for a network says; the network (or what the line gives), its name."""
    ((network, line, name, layout),) = [row for row in ROWS if row[0].startswith(start)]
    path = exported(folder, name, "native" if layout == "any" else layout)
    detection = torchvision.models.detection
    names = vars(detection) | vars(detection.backbone_utils) | {"torchvision": torchvision}
    names |= {"torch": torch, "vlpt": vlpt, "CLONE": str(ROOT), "FILE": str(path)}
    if start.startswith(("timm", "smp")):
        module = "timm" if start.startswith("timm") else "segmentation_models_pytorch"
        names[start.split(".")[0]] = pytest.importorskip(module)
    if network.endswith(")"):
        names |= {"net": eval(network, names), "state": load_file(path)}
    if line.startswith("dict"):
        return eval(line, names), name
    exec(line, names)
    return names["net"].eval(), name


def stages(network: nn.Module, images: Tensor) -> list[Tensor]:
    """What layer1 to layer4 of a ResNet put out, whatever is around them."""
    seen = []
    hooks = [
        getattr(network, f"layer{k}").register_forward_hook(lambda *args: seen.append(args[2]))
        for k in (1, 2, 3, 4)
    ]
    with torch.no_grad():
        network.eval()(images)
    for hook in hooks:
        hook.remove()
    return seen


def same(got: list[Tensor], name: str, images: Tensor) -> None:
    with torch.no_grad():
        want = randomized_backbone(name)(images)
    assert [x.shape for x in got] == [x.shape for x in want]
    assert [torch.equal(a, b) for a, b in zip(got, want, strict=True)] == [True] * 4


class TestTorchvision:
    def test_resnet50(self, folder, images):
        network, name = run_row("torchvision.models.resnet50", folder)
        same(stages(network, images), name, images)
        state = load_file(exported(folder, name, "native"))
        missing = network.load_state_dict(state, strict=False)
        assert missing.missing_keys == ["fc.weight", "fc.bias"] and not missing.unexpected_keys

    @pytest.mark.parametrize("start", ["maskrcnn_resnet50_fpn", "fcos_resnet50_fpn"])
    def test_detectors(self, start, folder, images):
        network, name = run_row(start, folder)
        same(stages(network.backbone.body, images), name, images)
        network.transform.min_size = (64,)  # of 800: as given
        with torch.no_grad():
            assert len(network(list(images))) == 2

    def test_pyramid_that_fuses_its_norms(self, folder, images):
        network, name = run_row("resnet_fpn_backbone", folder)
        got = stages(network.body, images)
        with torch.no_grad():
            want = randomized_backbone(name)(images)
        assert not torch.equal(got[3], want[3])  # else the tolerance is not needed any more
        for a, b in zip(got, want, strict=True):
            assert (a - b).abs().max() <= FUSED * b.abs().max()
        # with torch's own norms the same network is equal, so it is the fusing and nothing else
        build = torchvision.models.detection.backbone_utils.resnet_fpn_backbone
        network = build(backbone_name=name, weights=None, norm_layer=nn.BatchNorm2d)
        network.body.load_state_dict(load_file(exported(folder, name, "native")))
        same(stages(network.body, images), name, images)


class TestTimmAndSegmentationModels:
    @pytest.mark.parametrize(
        "start", ['timm.create_model("resnet50"', 'timm.create_model("resnetaa']
    )
    def test_timm(self, start, folder, images):
        network, name = run_row(start, folder)
        with torch.no_grad():
            same(network(images)[1:], name, images)

    @pytest.mark.parametrize("start", ['smp.Unet("resnet50"', 'smp.Unet("tu-resnetaa50d"'])
    def test_segmentation_models_pytorch(self, start, folder, images):
        network, name = run_row(start, folder)
        with torch.no_grad():
            same(network.encoder(images)[2:], name, images)


def key_table() -> list[tuple[str, str, tuple[int, ...]]]:
    """MMOCR's name, CLIP's name and the shape of each tensor."""
    rows = []
    for line in (ROOT / "tests" / "clip_resnet50_keys.txt").read_text().splitlines():
        if not line.startswith("#"):
            theirs, ours, shape = line.split()
            sides = () if shape == "scalar" else tuple(int(side) for side in shape.split("x"))
            rows.append((theirs, ours, sides))
    return rows


class TestMMOCR:
    def test_export_has_exactly_the_330_names_and_shapes_of_its_network(self, folder):
        held = torch.load(exported(folder, "clip_resnet50", "mmocr"), weights_only=True)
        want = {theirs: shape for theirs, _, shape in key_table()}
        assert len(want) == 330
        assert {key: tuple(value.shape) for key, value in held.items()} == want

    def test_each_tensor_has_the_place_that_its_name_says(self, folder):
        held = torch.load(exported(folder, "clip_resnet50", "mmocr"), weights_only=True)
        state = randomized_backbone("clip_resnet50").state_dict()
        assert len(state) == 330
        for theirs, ours, _ in key_table():
            assert torch.equal(held[theirs], state[ours])

    def test_the_configuration_names_the_file_and_load_from_would_match_nothing(self, folder):
        backbone, _ = run_row("MMOCR", folder)
        assert backbone["type"] == "CLIPResNet"
        assert backbone["init_cfg"]["type"] == "Pretrained"
        held = torch.load(backbone["init_cfg"]["checkpoint"], weights_only=True)
        detector = {f"backbone.{theirs}" for theirs, _, _ in key_table()}  # a detector's names
        assert not detector & held.keys()


DETECTORS = PAGE.split("## Load it in another project's text detector\n")[1].split("\n## ")[0]


def resnet50_keys(column: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Torchvision's name and the shape of each tensor, by its name in a detector.

    Args: column: 0 for Mask TextSpotter v3, 1 for TextBPN++, 2 for FCENet of MMOCR.
    """
    rows = {}
    for line in (ROOT / "tests" / "resnet50_keys.txt").read_text().splitlines():
        if not line.startswith("#"):
            *names, shape = line.split()
            sides = () if shape == "scalar" else tuple(int(side) for side in shape.split("x"))
            rows[names[column]] = (names[2], sides)
    return {name: row for name, row in rows.items() if name != "-"}


def run_recipe(start: str, **names: Any) -> dict[str, Any]:
    """Run the Python lines that follow a detector's name in bold; the names that they leave."""
    block = re.search(rf"\*\*{re.escape(start)}\*\*.*?```python\n(.*?)```", DETECTORS, re.DOTALL)
    assert block
    exec(block[1], names)
    return names


class TestOtherProjectsDetectors:
    @pytest.fixture
    def state(self, folder) -> dict[str, Tensor]:
        return load_file(exported(folder, "resnet50", "native"))

    def test_fcenet_s_resnet_has_exactly_the_318_names_and_shapes_of_the_file(self, state):
        want = {name: shape for name, (_, shape) in resnet50_keys(2).items()}
        assert len(want) == 318
        assert {name: tuple(tensor.shape) for name, tensor in state.items()} == want

    def test_configurations_of_mmocr_name_the_file_and_fcenet_s_its_stages(self):
        lines = re.findall(r"`(dict\(.*\))` \|", DETECTORS)
        backbones = [eval(line, {"FILE": "b.pt"}) for line in lines]
        types = ["mmdet.ResNet", "CLIPResNet", "mmdet.ResNet"]
        assert [backbone["type"] for backbone in backbones] == types
        stages = [backbone.get("out_indices") for backbone in backbones]
        assert stages == [None, (1, 2, 3), (1, 2, 3)]
        for backbone in backbones:
            assert backbone["init_cfg"] == {"type": "Pretrained", "checkpoint": "b.pt"}

    def test_the_lines_for_textbpn_give_each_tensor_its_name(self, state):
        table = resnet50_keys(1)
        network = nn.Module()
        network.fpn = nn.Module()
        network.fpn.backbone = nn.Module()
        resnet = torchvision.models.resnet50()
        stem = nn.Sequential(resnet.conv1, resnet.bn1, resnet.relu, resnet.maxpool)
        layers = (resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4)
        for number, stage in enumerate((stem, *layers), 1):  # as its network/layers/resnet.py does
            network.fpn.backbone.add_module(f"stage{number}", stage)
        network.fpn.backbone.up2 = nn.ConvTranspose2d(64, 64, 4, stride=2, padding=1)
        run_recipe("TextBPN++", state=state, net=network)
        loaded = network.state_dict()
        assert {name for name in loaded if ".up2." not in name} == table.keys()
        for theirs, (ours, shape) in table.items():
            assert tuple(loaded[theirs].shape) == shape and torch.equal(loaded[theirs], state[ours])

    def test_the_lines_for_mask_textspotter_write_each_tensor_under_its_name(
        self, state, tmp_path, monkeypatch
    ):
        monkeypatch.chdir(tmp_path)
        run_recipe("Mask TextSpotter v3", state=state, torch=torch)
        held = torch.load("mask_textspotter.pth", weights_only=True)["model"]
        table = resnet50_keys(0)
        assert len(table) == 318 - 53  # no layer counts batches
        assert {name: tuple(tensor.shape) for name, tensor in held.items()} == {
            name: shape for name, (_, shape) in table.items()
        }
        for theirs, (ours, _) in table.items():
            added = 1e-5 if theirs.endswith("running_var") else 0
            assert torch.equal(held[theirs], state[ours] + added)

    def test_without_torch_s_epsilon_mask_textspotter_computes_the_same(
        self, state, images, tmp_path, monkeypatch
    ):
        monkeypatch.chdir(tmp_path)
        run_recipe("Mask TextSpotter v3", state=state, torch=torch)
        held = torch.load("mask_textspotter.pth", weights_only=True)["model"]
        frozen = partial(torchvision.ops.FrozenBatchNorm2d, eps=0)
        network = torchvision.models.resnet50(norm_layer=frozen)
        named = {
            name.removeprefix("backbone.body.").removeprefix("stem."): held[name] for name in held
        }
        missing = network.load_state_dict(named, strict=False)
        assert missing.missing_keys == ["fc.weight", "fc.bias"] and not missing.unexpected_keys
        with torch.no_grad():
            want = randomized_backbone("resnet50")(images)
        for a, b in zip(stages(network, images), want, strict=True):
            assert (a - b).abs().max() <= FUSED * b.abs().max()

    def test_the_pixel_statistics_for_mask_textspotter_are_clip_s_backwards(self):
        for name, values in (("MEAN", vlpt.PIXEL_MEAN), ("STD", vlpt.PIXEL_STD)):
            quoted = re.search(rf"PIXEL_{name}: \[([\d., ]+)\]", DETECTORS)[1]
            got = [float(number) for number in quoted.split(",")]
            assert got == [round(255 * value, 2) for value in reversed(values)]


@cache
def released() -> dict:
    """A checkpoint in the form of the released one: wrapped, with optimiser and text side."""
    generator = torch.Generator().manual_seed(2)
    state = {}
    for _, ours, shape in key_table():
        value = torch.rand(shape, generator=generator) + 0.5
        state[f"visual.{ours}"] = value if shape else torch.tensor(7)
    sides = {"q_proj": 2048, "k_proj": 2048, "v_proj": 2048, "c_proj": 384}
    for name, side in sides.items():
        state[f"visual.attnpool.{name}.weight"] = torch.rand(side, 2048, generator=generator)
        state[f"visual.attnpool.{name}.bias"] = torch.rand(side, generator=generator)
    state["visual.attnpool.positional_embedding"] = torch.rand(257, 2048, generator=generator)
    state |= {
        "logit_scale": torch.tensor(1.0),
        "token_embedding.weight": torch.zeros(97, 64),
        "transformer.resblocks.0.ln_1.weight": torch.ones(64),
    }
    moments = {"step": 3, "exp_avg": torch.zeros(2), "exp_avg_sq": torch.zeros(2)}
    optimizer = {"state": {0: moments}, "param_groups": [{"lr": 1e-4, "params": [0]}]}
    return {"epoch": 100, "name": "oclip", "state_dict": state, "optimizer": optimizer}


class TestReleasedCheckpoint:
    def test_backbone_and_pool_load_into_the_published_sizes(self, tmp_path):
        path, state = tmp_path / "oclip.pt", released()["state_dict"]
        prefixed = {f"module.{key}": value for key, value in state.items()}
        torch.save(released() | {"state_dict": prefixed}, path)
        backbone = vlpt.load_backbone(path, "clip_resnet50").state_dict()
        assert len(backbone) == 330
        for key, value in backbone.items():
            assert torch.equal(value, state[f"visual.{key}"])
        pool = vlpt.AttentionPool(2048, 16, 384)  # what VLPT(OCLIP_RN50) has, see below
        pool.load_state_dict(vlpt.read_tensors(path, "visual.attnpool."))
        for key, value in pool.state_dict().items():
            assert torch.equal(value, state[f"visual.attnpool.{key}"])
        with torch.no_grad():  # another grid is served at run time
            assert pool(torch.rand(1, 2048, 4, 7))[1].shape == (1, 28, 384)

    def test_the_published_model_s_pool_has_the_released_shapes(self):
        with torch.device("meta"):
            pool = vlpt.VLPT(vlpt.OCLIP_RN50).pool.state_dict()
        want = {k: v.shape for k, v in released()["state_dict"].items() if "attnpool" in k}
        assert {f"visual.attnpool.{k}": v.shape for k, v in pool.items()} == want

    def test_goes_on_to_mmocr(self, tmp_path):
        torch.save(released(), tmp_path / "oclip.pt")
        backbone = vlpt.load_backbone(tmp_path / "oclip.pt", "clip_resnet50")
        vlpt.export_backbone(backbone, tmp_path / "b.pt", "mmocr")
        held = torch.load(tmp_path / "b.pt", weights_only=True)
        state = released()["state_dict"]
        for theirs, ours, _ in key_table():
            assert torch.equal(held[theirs], state[f"visual.{ours}"])


class TestHub:
    def test_the_line_of_the_readme(self, folder, images):
        network, name = run_row("this", folder)
        with torch.no_grad():
            same(network(images), name, images)

    def test_needs_nothing_but_the_clone(self, folder):
        """From another folder and a process that has not imported vlpt."""
        path = exported(folder, "resnet50", "native")
        code = (
            f"import torch; net = torch.hub.load({str(ROOT)!r}, 'backbone', source='local', "
            f"path={path.name!r}, name='resnet50'); print(net.channels, net.name)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True
        )
        assert done.stdout == "2048 resnet50\n"

    def test_offers_one_entry_and_asks_for_what_a_plain_install_has(self):
        entries = [name for name, value in vars(hubconf).items() if callable(value)]
        assert entries == ["backbone"]
        project = (ROOT / "pyproject.toml").read_text()
        assert all(f'"{name}>=' in project for name in hubconf.dependencies)


def test_the_section_has_no_row_that_is_not_run_above():
    starts = (
        "torchvision.models.resnet50",
        "resnet_fpn",
        "maskrcnn_",
        "fcos_",
        "timm.",
        "smp.",
        "MMOCR",
        "this",
    )
    assert len(ROWS) == 10 and all(row[0].startswith(starts) for row in ROWS)
    rows = [line for line in SECTION.splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + len(ROWS)  # the heading's


def test_the_version_has_one_place():
    project = (ROOT / "pyproject.toml").read_text()
    assert 'dynamic = ["version"]' in project and 'attr = "vlpt.__version__"' in project
    assert re.fullmatch(r"\d+\.\d+\.\d+", vlpt.__version__)
