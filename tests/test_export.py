"""The files that vlpt.py writes and reads: metadata, full disks, damage and foreign contents."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors
import torch

import vlpt
from vlpt import Config

SIZE = {"width": 4, "layers": (1, 1, 1, 1)}
CONFIG = Config(
    alphabet="abcd",
    image_size=64,
    backbone="clip_resnet",
    backbone_size=SIZE,
    embed_dim=8,
    text_width=6,
    text_heads=2,
    decoder_heads=2,
)
endings = pytest.mark.parametrize("ending", [".pt", ".safetensors"])
layouts = pytest.mark.parametrize("layout", ["native", "mmocr", "timm"])


@pytest.fixture
def backbone() -> vlpt.Backbone:
    return vlpt.build_backbone("clip_resnet", **SIZE)


def read_metadata(path: Path) -> dict[str, str]:
    with safetensors.safe_open(path, "pt") as file:
        return file.metadata()


class TestExport:
    @layouts
    def test_the_metadata_describes_the_file(self, tmp_path, layout):
        """Whatever the notes say: one cannot replace the name of the backbone."""
        path = tmp_path / "b.safetensors"
        notes = {"training_data": "synth", "steps": 7, "backbone": "another"}
        vlpt.export_backbone(vlpt.VLPT(CONFIG), path, layout, **notes)
        metadata = read_metadata(path)
        assert metadata.pop("format") == "pt"  # what other libraries look for
        assert tuple(json.loads(metadata.pop("pixel_mean"))) == vlpt.PIXEL_MEAN
        assert tuple(json.loads(metadata.pop("pixel_std"))) == vlpt.PIXEL_STD
        assert metadata == {
            "backbone": "clip_resnet",
            "layout": layout,
            "vlpt_version": vlpt.__version__,
            "alphabet_size": "4",
            "width": "4",
            "layers": "(1, 1, 1, 1)",
            "training_data": "synth",
            "steps": "7",
        }

    def test_a_backbone_alone_can_be_exported(self, tmp_path, backbone):
        vlpt.export_backbone(backbone, tmp_path / "b.safetensors")
        metadata = read_metadata(tmp_path / "b.safetensors")
        assert metadata["backbone"] == "clip_resnet" and "alphabet_size" not in metadata

    @endings
    def test_the_file_is_on_the_disk_before_it_has_its_name(
        self, tmp_path, ending, monkeypatch, backbone
    ):
        path, flushed = tmp_path / f"b{ending}", []

        def fsync(descriptor):
            flushed.append((os.fstat(descriptor).st_size, path.exists()))

        monkeypatch.setattr(os, "fsync", fsync)
        vlpt.export_backbone(backbone, path)
        assert flushed == [(path.stat().st_size, False)]
        usual = tmp_path / "usual"
        usual.touch()
        assert path.stat().st_mode == usual.stat().st_mode

    @endings
    def test_a_full_disk_leaves_the_old_file_and_nothing_else(
        self, tmp_path, ending, monkeypatch, backbone
    ):
        def full_disk(_descriptor):
            raise OSError(28, "No space left on device")

        path = tmp_path / f"b{ending}"
        path.write_bytes(b"old")
        monkeypatch.setattr(os, "fsync", full_disk)
        with pytest.raises(OSError, match="No space left"):
            vlpt.export_backbone(backbone, path)
        assert [p.name for p in tmp_path.iterdir()] == [path.name]
        assert path.read_bytes() == b"old"

    def test_a_folder_that_nothing_can_be_written_to_is_named(self, tmp_path, monkeypatch):
        """Without the permission to search it, not even the file's absence can be seen."""

        def denied(*_args, **_kwargs):
            raise PermissionError(13, "Permission denied")

        with monkeypatch.context() as patch:
            patch.setattr(Path, "open", denied)
            patch.setattr(Path, "unlink", denied)
            with pytest.raises(OSError, match=r"b\.pt: cannot be written \(Permission denied\)"):
                vlpt.write_atomically(tmp_path / "b.pt", b"new")

    @pytest.mark.parametrize(
        ("path", "layout", "message"),
        [
            ("b.pt", "keras", "layout: expected one of native, mmocr, timm for .*, got 'keras'"),
            ("b.bin", "native", r"path: expected .* ends in \.pt or \.safetensors, got .*b\.bin"),
            ("none/b.pt", "native", r"path: expected a file in an existing folder, got .*none/b"),
        ],
    )
    def test_an_impossible_argument_is_an_error_and_writes_nothing(
        self, tmp_path, path, layout, message, backbone
    ):
        with pytest.raises(ValueError, match=message):
            vlpt.export_backbone(backbone, tmp_path / path, layout)
        assert not list(tmp_path.iterdir())

    @endings
    def test_mmocrs_layout_is_for_clips_resnets_only(self, tmp_path, ending):
        with pytest.raises(ValueError, match="layout: expected one of native, timm for resnet18"):
            vlpt.export_backbone(vlpt.build_backbone("resnet18"), tmp_path / f"b{ending}", "mmocr")
        assert not list(tmp_path.iterdir())

    def test_without_the_package_safetensors_nothing_is_written(
        self, tmp_path, monkeypatch, backbone
    ):
        monkeypatch.setitem(sys.modules, "safetensors.torch", None)
        with pytest.raises(ImportError, match="safetensors"):
            vlpt.export_backbone(backbone, tmp_path / "b.safetensors")
        assert not list(tmp_path.iterdir())


class Bomb:
    """What a malicious checkpoint can hold: unpickling it makes a folder."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


class TestLoad:
    def test_no_code_in_a_checkpoint_is_executed(self, tmp_path):
        torch.save({"state_dict": Bomb(str(tmp_path / "exploded"))}, tmp_path / "bomb.pt")
        message = r"bomb\.pt: expected .* plain values, got .* other Python objects \(Unpickling"
        with pytest.raises(ValueError, match=message):
            vlpt.load_backbone(tmp_path / "bomb.pt", "resnet18")
        assert [path.name for path in tmp_path.iterdir()] == ["bomb.pt"]
        torch.load(tmp_path / "bomb.pt", weights_only=False)  # shows that the bomb works
        assert (tmp_path / "exploded").is_dir()

    def test_a_torchscript_archive_is_an_error_that_says_how_to_convert_it(self, tmp_path):
        torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "RN50.pt")
        with pytest.raises(ValueError, match=r"RN50\.pt: .* TorchScript archive; .*jit\.load"):
            vlpt.load_backbone(tmp_path / "RN50.pt", "clip_resnet50")

    @endings
    def test_a_truncated_file_is_an_error(self, tmp_path, ending, backbone):
        path = tmp_path / f"b{ending}"
        vlpt.export_backbone(backbone, path)
        path.write_bytes(path.read_bytes()[:-200])
        with pytest.raises(ValueError, match=rf"b{ending}: expected .* got a damaged file"):
            vlpt.load_backbone(path, "clip_resnet", **SIZE)

    @pytest.mark.parametrize(
        ("field", "damage"),
        [
            (0, b"\0" * 8),  # where an entry begins
            (6, b"\xff" * 8),  # the version of the format
            (46, b"\x80" * 8),  # the name, which is no UTF-8 then
        ],
    )
    def test_a_damaged_directory_is_an_error(self, tmp_path, field, damage):
        path = tmp_path / "b.pt"
        torch.save({"state_dict": {"weight": torch.zeros(2)}}, path)
        content = path.read_bytes()
        start = content.rindex(b"PK\x01\x02") + field
        path.write_bytes(content[:start] + damage + content[start + 8 :])
        with pytest.raises(ValueError, match=r"b\.pt: expected .* got a damaged file"):
            vlpt.read_checkpoint(path)

    def test_without_the_package_safetensors_its_files_are_not_called_damaged(
        self, tmp_path, monkeypatch
    ):
        (tmp_path / "b.safetensors").touch()
        monkeypatch.setitem(sys.modules, "safetensors.torch", None)
        with pytest.raises(ImportError, match="safetensors"):
            vlpt.load_backbone(tmp_path / "b.safetensors", "resnet18")

    def test_a_missing_file_is_an_error(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"none\.pt"):
            vlpt.load_backbone(tmp_path / "none.pt", "resnet18")

    @pytest.mark.parametrize(
        "content",
        [
            [torch.zeros(2)],
            torch.zeros(2),
            "text",
            {0: torch.zeros(2)},
            {"state_dict": 1},
            {"model": {"conv1.weight": torch.zeros(2)}},
            {},
        ],
    )
    def test_a_file_of_something_else_is_an_error(self, tmp_path, content):
        torch.save(content, tmp_path / "b.pt")
        message = r"b\.pt: (expected a checkpoint of tensors|not the weights of resnet18)"
        with pytest.raises(ValueError, match=message):
            vlpt.load_backbone(tmp_path / "b.pt", "resnet18")

    @layouts
    def test_tensors_that_do_not_fit_are_named(self, tmp_path, layout, backbone):
        keys = vlpt.layout_keys(backbone, layout)
        whole = {keys[key]: value for key, value in backbone.state_dict().items()}
        first, last = keys["conv2.weight"], keys["layer4.0.downsample.1.bias"]
        seven, missing = torch.zeros(7), r'Missing key\(s\) in state_dict: "conv2.weight"'
        shapes = r"size mismatch for layer4.0.downsample.1.bias: .*\[7\].*\[128\]"
        for change, message in (
            ({"x.bias": seven}, r'Unexpected key\(s\) in state_dict: "x.bias"'),
            ({first: None}, missing),
            ({last: seven}, shapes),
            ({last: 7}, ".*layer4.0.downsample.1.bias.*received <class 'int'>"),
            ({"x": seven, first: None, last: seven}, f'{missing}.*; .*"x".*; {shapes}'),
        ):
            state = {k: v for k, v in (whole | change).items() if v is not None}
            torch.save(state, tmp_path / "b.pt")
            for source, where in ((state, "source"), (tmp_path / "b.pt", r".*b\.pt")):
                with pytest.raises(ValueError, match=f"^{where}: not the weights.*: {message}"):
                    vlpt.load_backbone(source, "clip_resnet", **SIZE)

    def test_names_of_two_layouts_in_one_file_are_an_error(self, backbone):
        state = {vlpt.layout_keys(backbone, "timm")[k]: v for k, v in backbone.state_dict().items()}
        extra = "bn3.weight"  # native; timm's name for it is another one
        assert extra in backbone.state_dict() and extra not in state
        with pytest.raises(ValueError, match="source: expected the names of one layout, got those"):
            vlpt.load_backbone(state | {extra: state["bn1.weight"]}, "clip_resnet", **SIZE)

    def test_the_error_for_another_backbone_is_one_short_line(self, backbone):
        with pytest.raises(ValueError, match="not the weights of resnet18: ") as error:
            vlpt.load_backbone(backbone.state_dict(), "resnet18")
        text = str(error.value)
        assert "Missing key(s)" in text and "Unexpected key(s)" in text and "size mismatch" in text
        assert len(text) < 900 and "\n" not in text


class TestCommand:
    def test_prints_the_shape_and_size_of_every_part(self, capsys):
        vlpt.print_shapes(vlpt.TINY)
        lines = capsys.readouterr().out.splitlines()
        parts = (
            "mask_one_char CLIPResNet AttentionPool TextEncoder VisualTextualDecoder Linear VLPT"
        )
        assert [line.split()[0] for line in lines] == parts.split()
        size = sum(p.numel() for p in vlpt.VLPT(vlpt.TINY).parameters())
        assert f"{size:,} parameters -> (2, 128) (2, 128) (2, 25, 3, 13) ()" in lines[-1]

    def test_an_unknown_preset_is_one_line(self):
        command = [sys.executable, vlpt.__file__, "huge"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 1
        assert done.stderr == "vlpt.py: error: expected one of tiny, oclip_rn50, got 'huge'\n"
