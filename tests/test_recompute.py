"""Tests of training/recompute.py, gradient checkpointing of the backbone."""

import copy
from collections import defaultdict

import pytest
import torch
from torch import nn

import vlpt
from training.recompute import recompute


def recomputed(backbone):
    recompute(backbone)
    return backbone


class TestRecompute:
    backbones = pytest.mark.parametrize(
        ("name", "size"), [("clip_resnet", {"width": 8, "layers": (1, 2, 2, 1)}), ("resnet18", {})]
    )

    @backbones
    def test_maps_gradients_and_running_statistics_are_the_same_bit_by_bit(self, name, size):
        torch.manual_seed(0)
        plain = vlpt.build_backbone(name, **size)
        again, x = recomputed(copy.deepcopy(plain)), torch.randn(3, 3, 64, 64)
        for _ in range(2):  # two steps: statistics have moved
            for net in (plain, again):
                sum(y.square().mean() for y in net(x)).backward()
        assert all(torch.equal(a, b) for a, b in zip(plain(x), again(x), strict=True))
        for (k, a), b in zip(plain.named_parameters(), again.parameters(), strict=True):
            assert torch.equal(a.grad, b.grad), k
        theirs = again.state_dict()
        assert list(theirs) == list(plain.state_dict())
        assert all(torch.equal(v, theirs[k]) for k, v in plain.state_dict().items())

    @backbones
    def test_statistics_that_processes_share_move_once_as_well(self, name, size):
        """SyncBatchNorm, which runs on a CPU as long as there is only one process."""
        torch.manual_seed(0)
        plain = vlpt.build_backbone(name, **size)
        again, x = recomputed(copy.deepcopy(plain)), torch.randn(3, 3, 64, 64)
        nn.SyncBatchNorm.convert_sync_batchnorm(again)
        for net in (plain, again):
            sum(y.square().mean() for y in net(x)).backward()
        theirs = again.state_dict()
        assert all(torch.equal(v, theirs[k]) for k, v in plain.state_dict().items())

    @backbones
    def test_evaluation_changes_no_statistics(self, name, size):
        net = recomputed(vlpt.build_backbone(name, **size)).eval()
        before = copy.deepcopy(net.state_dict())
        with torch.no_grad():
            net(torch.randn(2, 3, 64, 64))
        assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())

    def test_each_stage_runs_twice_and_its_inside_is_not_kept(self):
        net = recomputed(vlpt.build_backbone("resnet18"))
        runs, kept = defaultdict(int), []
        for name in ("conv1", "layer1", "layer4"):
            getattr(net, name).register_forward_pre_hook(
                lambda *_, name=name: runs.update({name: runs[name] + 1})
            )
        x = torch.randn(2, 3, 64, 64)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            loss = net(x)[-1].mean()
        assert runs == {"conv1": 1, "layer1": 1, "layer4": 1} and len(kept) <= 10
        loss.backward()
        assert runs == {"conv1": 2, "layer1": 2, "layer4": 2}

    def test_the_export_is_that_of_the_plain_backbone(self, tmp_path):
        plain = vlpt.build_backbone("resnet18")
        vlpt.export_backbone(recomputed(plain), tmp_path / "b.pt")
        again = vlpt.load_backbone(tmp_path / "b.pt", "resnet18").state_dict()
        assert all(torch.equal(v, again[k]) for k, v in plain.state_dict().items())
