"""With the same weights vlpt.py computes what torch, open_clip and timm compute."""

import pytest
import torch
from torch import Tensor, nn

import vlpt


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def randomize_parameters(model: nn.Module) -> nn.Module:
    """Turn to float64 and evaluation mode, statistics and gains away from 0 and 1."""
    model = model.double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
    return model


def assert_equal(got: Tensor, expected: Tensor) -> None:
    """Equal up to rounding in float64."""
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


class TestTorch:
    def theirs(self, ours: vlpt.Attention) -> nn.MultiheadAttention:
        width = ours.q_proj.in_features
        theirs = nn.MultiheadAttention(width, ours.heads, batch_first=True, dtype=torch.float64)
        projections = (ours.q_proj, ours.k_proj, ours.v_proj)
        with torch.no_grad():
            theirs.in_proj_weight.copy_(torch.cat([p.weight for p in projections]))
            theirs.in_proj_bias.copy_(torch.cat([p.bias for p in projections]))
        theirs.out_proj.load_state_dict(ours.c_proj.state_dict())
        return theirs

    def test_attention_is_multihead_attention(self):
        ours = vlpt.Attention(12, 3).double()
        for layer in (ours.q_proj, ours.k_proj, ours.v_proj, ours.c_proj):
            nn.init.normal_(layer.bias)
        query, key, value = randn(2, 4, 12), randn(2, 5, 12), randn(2, 5, 12)
        valid = torch.tensor([[True] * 5, [True, False, True, False, True]])
        expected, _ = self.theirs(ours)(query, key, value, key_padding_mask=~valid)
        assert_equal(ours(query, key, value, valid), expected)
        _, weights = self.theirs(ours)(query, key, value)
        assert_equal(ours.attention_weights(query, key), weights)

    def test_encoder_is_a_pre_norm_transformer_encoder(self):
        layers = [vlpt.EncoderLayer(12, 3).double() for _ in range(2)]
        x, valid = randn(2, 5, 12), torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
        template = nn.TransformerEncoderLayer(
            d_model=12,
            nhead=3,
            dim_feedforward=48,
            dropout=0.0,
            activation=lambda y: y * torch.sigmoid(1.702 * y),
            batch_first=True,
            norm_first=True,
            dtype=torch.float64,
        )
        encoder = nn.TransformerEncoder(template, 2, enable_nested_tensor=False)
        for ours, theirs in zip(layers, encoder.layers, strict=True):
            theirs.self_attn = self.theirs(ours.attn)
            theirs.norm1.load_state_dict(ours.ln_1.state_dict())
            theirs.norm2.load_state_dict(ours.ln_2.state_dict())
            theirs.linear1.load_state_dict(ours.mlp.c_fc.state_dict())
            theirs.linear2.load_state_dict(ours.mlp.c_proj.state_dict())
        y = x
        for layer in layers:
            y = layer(y, valid)
        assert_equal(y[valid], encoder(x, src_key_padding_mask=~valid)[valid])


class TestOpenCLIP:
    @pytest.fixture(autouse=True)
    def installed(self):
        self.open_clip = pytest.importorskip("open_clip")

    def test_contrastive_loss_is_exactly_twice_theirs(self):
        image, text = (nn.functional.normalize(randn(6, 4), dim=1) for _ in range(2))
        theirs = self.open_clip.ClipLoss()(image, text, torch.tensor(1.3).double().exp())
        assert_equal(vlpt.contrastive_loss(image, text, torch.tensor(1.3).double()), 2 * theirs)

    def test_backbone_and_pool_are_clip_s_visual_tower(self):
        from open_clip.modified_resnet import ModifiedResNet

        theirs = randomize_parameters(
            ModifiedResNet([3, 4, 6, 3], 16, heads=32, image_size=96, width=64)
        )
        theirs.float()  # load_backbone builds in float32: the same numbers on both sides
        state = {f"visual.{key}": value for key, value in theirs.state_dict().items()}
        backbone = vlpt.load_backbone(state, "clip_resnet50").double().eval()
        pool = vlpt.AttentionPool(2048, 3, 16).double()
        pool.load_state_dict(theirs.attnpool.state_dict())
        images = randn(2, 3, 96, 96)
        assert_equal(pool(backbone(images)[-1])[0], theirs.double()(images))


class TestTimm:
    @pytest.fixture(autouse=True)
    def installed(self):
        self.timm = pytest.importorskip("timm")

    def test_resnet18_reads_native_keys(self):
        """Those of 50 layers are in test_consumers.py."""
        ours = randomize_parameters(vlpt.build_backbone("resnet18"))
        theirs = self.timm.create_model("resnet18", pretrained=False, num_classes=0).double()
        theirs.load_state_dict(ours.state_dict())
        images = randn(1, 3, 64, 64)
        assert_equal(ours(images)[-1], theirs.eval().forward_features(images))
