"""Encoder and decoder: sizes, layers by hand, the image they measure from, and how many weights
the published sizes have."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.nn import functional as F

from tests.model_batches import SPECS, random_batch, scramble, spec_of, tiny
from worldmodel.nets import count_parameters
from worldmodel.rssm import ModelConfig, WorldModel
from worldmodel.rssm.codec import Decoder, Encoder, ImageCentre
from worldmodel.rssm.state import LatentState
from worldmodel.types import ActionSpec, EnvSpec, ObsSpec

SIZES = Path(__file__).resolve().parents[2] / "configs" / "size"
# deter, hidden, classes, depth, units, as published
PUBLISHED = {
    "1m": (512, 64, 4, 4, 64),
    "12m": (2048, 256, 16, 16, 256),
    "25m": (3072, 384, 24, 24, 384),
    "50m": (4096, 512, 32, 32, 512),
    "100m": (6144, 768, 48, 48, 768),
    "200m": (8192, 1024, 64, 64, 1024),
    "400m": (12288, 1536, 96, 96, 1536),
}


# How many weights


def norm_linear(inputs: int, outputs: int) -> int:
    """Weight, bias and the scale of the norm that follows."""
    return inputs * outputs + 2 * outputs


def by_hand(d: int, h: int, k: int, c: int, u: int) -> dict[str, int]:
    """Weights of each module for one 64x64x3 image, six action entries, 8 blocks, 32 groups."""
    z, out, block = 32 * k, 4 * c, d // 8
    embed = 4 * 4 * 4 * c
    feat = d + z
    mix = 8 * (block + 3 * h) * block + d
    gates = 8 * block * 3 * block + 3 * d
    return {
        "encoder": sum(
            25 * a * c * b * c + 2 * b * c for a, b in ((2, 3), (3, 4), (4, 4))
        ) + 25 * 3 * 2 * c + 2 * 2 * c,
        "core": (
            sum(norm_linear(n, h) for n in (d, z, 6))
            + mix + d + gates
            + norm_linear(d, h) + norm_linear(h, h) + h * z + z
            + norm_linear(d + embed, h) + h * z + z
        ),
        "decoder": (
            8 * block * (16 * out // 8) + 16 * out
            + norm_linear(z, 2 * u) + 2 * u * 16 * out + 16 * out
            + out
            + sum(25 * a * c * b * c + 2 * b * c for a, b in ((4, 4), (4, 3), (3, 2)))
            + 25 * 2 * c * 3 + 3
        ),
        "heads": 2 * norm_linear(feat, u) + (u * 255 + 255) + (u + 1),
    }  # fmt: skip


@pytest.mark.parametrize("size", PUBLISHED)
def test_every_module_of_every_size_has_the_published_number_of_weights(size: str) -> None:
    values = OmegaConf.load(SIZES / f"{size}.yaml")
    names = ("deter", "hidden", "classes", "depth", "units")
    assert tuple(values[n] for n in names) == PUBLISHED[size]
    assert set(values) == set(names)
    spec = spec_of(ActionSpec("continuous", (6,)), image=ObsSpec("image", (64, 64, 3)))
    with torch.device("meta"):
        model = WorldModel(spec, ModelConfig(**values))
    counts = {name: count_parameters(module) for name, module in model.named_children()}
    assert counts == by_hand(*PUBLISHED[size])


def test_the_smallest_size_in_numbers() -> None:
    assert by_hand(*PUBLISHED["1m"]) == {
        "encoder": 14304, "core": 376704, "decoder": 80595, "heads": 98816,
    }  # fmt: skip


# Sizes of images


@pytest.mark.parametrize("convolution", ["pool", "strided", "patch"])
@pytest.mark.parametrize("size", [(32, 32), (48, 48), (64, 64), (96, 64)])
def test_images_of_any_multiple_of_16_are_coded(size: tuple[int, int], convolution: str) -> None:
    spec = spec_of(image=ObsSpec("image", (*size, 3)))
    torch.manual_seed(0)
    mults = [2, 4, 4] if convolution == "patch" else [2, 3, 4, 4]  # its first stage counts twice
    model = WorldModel(spec, tiny(mults=mults, convolution=convolution))
    assert model.encoder.out_features == size[0] * size[1] // 16**2 * 4 * tiny().depth
    batch = random_batch(spec, 2, 3)
    output = model.losses(batch)
    assert output.losses["image"].shape == (2, 3)
    image = model.decode(output.states)["image"]
    assert image.shape == (2, 3, *size, 3)
    assert image.min() >= 0
    assert image.max() <= 1
    output.losses["image"].mean().backward()


@pytest.mark.parametrize("size", [(40, 40), (24, 24), (16, 16), (64, 40)])
def test_other_sizes_say_what_is_allowed(size: tuple[int, int]) -> None:
    spec = spec_of(image=ObsSpec("image", (*size, 3)))
    message = rf"{size[0]}x{size[1]} cannot be .* multiples of 16, at least 32.*env.image_size"
    with pytest.raises(ValueError, match=message):
        WorldModel(spec, tiny())


def test_five_stages_need_multiples_of_32() -> None:
    with pytest.raises(ValueError, match=r"48x48 cannot be .* multiples of 32, at least 32"):
        WorldModel(spec_of(image=ObsSpec("image", (48, 48, 3))), tiny(mults=[1, 1, 1, 2, 2]))
    spec = spec_of(image=ObsSpec("image", (64, 32, 3)))
    model = WorldModel(spec, tiny(mults=[1, 1, 1, 2, 2]))
    assert model.losses(random_batch(spec)).losses["image"].shape == (3, 5)
    small = tiny(mults=[1, 1, 2, 2], convolution="patch")
    with pytest.raises(ValueError, match=r"48x48 cannot be .* multiples of 32, at least 32"):
        WorldModel(spec_of(image=ObsSpec("image", (48, 48, 3))), small)


def test_images_of_two_sizes_are_an_error() -> None:
    spec = spec_of(a=ObsSpec("image", (32, 32, 3)), b=ObsSpec("image", (64, 64, 3)))
    with pytest.raises(ValueError, match="must have one size"):
        WorldModel(spec, tiny())


def test_an_unknown_convolution_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"'fft'. Known: pool, strided, patch."):
        WorldModel(SPECS["image"], tiny(convolution="fft"))


def test_nothing_to_encode_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"no image and no vector .* keys: none"):
        WorldModel(EnvSpec({}, ActionSpec("continuous", (2,))), tiny())


def test_widths_that_do_not_divide_into_blocks_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"deter=18 .* multiples of blocks=4"):
        WorldModel(SPECS["image"], tiny(deter=18, blocks=4))
    with pytest.raises(ValueError, match=r"depth\*mults\[-1\]=6 must both be multiples of blocks"):
        WorldModel(SPECS["image"], tiny(depth=3, blocks=4))
    WorldModel(SPECS["vector"], tiny(depth=3, blocks=4))  # no image, no such rule


# Layers by hand


def rms_silu(x: Tensor, scale: Tensor) -> Tensor:
    """Over channels of [N, C, h, w], or the last axis of [N, C]."""
    y = x / (x.square().mean(1, keepdim=True) + 1e-4).sqrt()
    return F.silu(y * scale.view(1, -1, *[1] * (x.dim() - 2)))


def test_the_encoder_by_hand() -> None:
    spec = spec_of(image=ObsSpec("image", (32, 48, 3)))
    torch.manual_seed(0)
    encoder = Encoder(spec, depth=2, units=4, mults=[1, 3], kernel=5)
    scramble(encoder)
    weights = {k: v.double() for k, v in encoder.named_parameters()}
    assert len(weights) == 2 * 3  # two stages of weight, bias and norm
    images = random_batch(spec, 2, 3).obs["image"]
    x = images.flatten(0, 1).double().permute(0, 3, 1, 2) / 255 - 0.5
    for weight, bias, scale in zip(*[iter(weights.values())] * 3, strict=True):
        x = F.conv2d(x, weight, bias, padding=2)
        top = torch.maximum(x[..., 0::2, :], x[..., 1::2, :])
        x = rms_silu(torch.maximum(top[..., 0::2], top[..., 1::2]), scale)
    expected = x.permute(0, 2, 3, 1).reshape(2, 3, 8 * 12 * 6)
    assert encoder.out_features == 8 * 12 * 6
    torch.testing.assert_close(encoder({"image": images}).double(), expected, rtol=1e-4, atol=1e-5)


def test_the_decoder_by_hand() -> None:
    spec = spec_of(image=ObsSpec("image", (32, 32, 3)))
    torch.manual_seed(0)
    centre = ImageCentre((32, 32, 3))
    decoder = Decoder(
        spec, centre, deter=6, stoch=4, blocks=2, depth=2, units=3, mults=[1, 2], kernel=5
    )
    scramble(decoder)
    w = {k: v.double() for k, v in decoder.named_parameters()}
    deter, stoch = torch.randn(3, 6), torch.randn(3, 2, 2)
    # Each half of deter makes half of the channels of the smallest map.
    size = 8 * 8
    parts = []
    for g, own in enumerate(deter.double().chunk(2, -1)):
        bias = w["from_deter.bias"].chunk(2)[g]
        parts.append((own @ w["from_deter.weight"][g] + bias).view(3, 8, 8, 2))
    x = torch.cat(parts, -1)
    y = stoch.double().flatten(1) @ w["from_stoch.0.weight"].T + w["from_stoch.0.bias"]
    y = rms_silu(y, w["from_stoch.1.norm.scale"])
    y = y @ w["from_stoch.2.weight"].T + w["from_stoch.2.bias"]
    assert y.shape == (3, size * 4)
    x = (x + y.view(3, 8, 8, 4)).permute(0, 3, 1, 2)
    x = rms_silu(x, w["smallest_norm.norm.scale"])
    convs = [(w[f"conv.{i}.1.weight"], w[f"conv.{i}.1.bias"]) for i in range(2)]
    x = F.conv2d(x.repeat_interleave(2, 2).repeat_interleave(2, 3), *convs[0], padding=2)
    x = rms_silu(x, w["norms.0.norm.norm.scale"])
    x = F.conv2d(x.repeat_interleave(2, 2).repeat_interleave(2, 3), *convs[1], padding=2)
    expected = torch.sigmoid(x).permute(0, 2, 3, 1)
    image = decoder.decode_images(LatentState(deter, stoch))["image"]
    torch.testing.assert_close(image.double(), expected, rtol=1e-4, atol=1e-5)


def test_vectors_are_squashed_and_one_hots_are_not() -> None:
    spec = SPECS["mixed"]
    torch.manual_seed(0)
    encoder = Encoder(spec, depth=2, units=8, mults=[1, 2, 2])
    seen: list[Tensor] = []
    encoder.mlp.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    obs = random_batch(spec).obs
    embed = encoder(obs)
    assert embed.shape == (3, 5, encoder.out_features)
    v = obs["v"]
    squashed = v.sign() * v.abs().add(1).log()
    expected = torch.cat([squashed, obs["c"], obs["action_mask"]], -1)
    torch.testing.assert_close(seen[0], expected)


def test_two_images_share_the_channels() -> None:
    spec = SPECS["mixed"]
    torch.manual_seed(0)
    model = WorldModel(spec, tiny())
    batch = random_batch(spec)
    first = model.encoder.conv[0][0]  # type: ignore[index]
    assert isinstance(first, nn.Conv2d)
    assert first.in_channels == 6
    decoded = model.decode(model.losses(batch).states)
    assert decoded["image"].shape == decoded["wrist"].shape == (3, 5, 32, 32, 3)
    assert not torch.equal(decoded["image"], decoded["wrist"])


# The image to measure from


def test_the_centre_is_the_papers_grey_until_it_is_updated() -> None:
    centre = ImageCentre((2, 2, 1))
    assert torch.equal(centre.mean, torch.full((2, 2, 1), 0.5))
    assert not centre.logit.any()


def test_the_centre_is_the_mean_of_its_first_batches_and_then_fixed() -> None:
    centre = ImageCentre((2, 2, 1), batches=3)
    images = torch.randint(256, (5, 2, 7, 2, 2, 1), dtype=torch.uint8)
    for batch in images[:3]:
        centre.update(batch)
    expected = images[:3].float().mean((0, 1, 2)) / 255
    torch.testing.assert_close(centre.mean, expected)
    for batch in images[3:]:
        centre.update(batch)
    torch.testing.assert_close(centre.mean, expected)
    other = ImageCentre((2, 2, 1), batches=3)
    other.load_state_dict(centre.state_dict())
    other.update(images[4])
    assert torch.equal(other.mean, centre.mean)  # its count is saved with it


@pytest.mark.parametrize("centred", [False, True])
def test_only_centre_images_moves_the_centre(centred: bool) -> None:
    torch.manual_seed(0)
    model = WorldModel(SPECS["image"], tiny(centre_images=centred))
    batch = random_batch(SPECS["image"])
    batch.obs["image"] = torch.full_like(batch.obs["image"], 51)
    model.losses(batch)
    mean = model.encoder.centre.mean
    torch.testing.assert_close(mean, torch.full_like(mean, 0.2 if centred else 0.5))


def test_encoder_and_decoder_measure_from_the_centre() -> None:
    torch.manual_seed(0)
    model = WorldModel(SPECS["image"], tiny(convolution="strided", centre_images=True))
    batch = random_batch(SPECS["image"])
    still = batch.obs["image"][:1, :1].expand(3, 5, -1, -1, -1)
    model.encoder.centre.update(still)
    with torch.no_grad():
        last = model.decoder.conv[-1][0]  # type: ignore[index]
        last.weight.zero_()
        state = model.initial(2)
        decoded = model.decode(state.map(lambda x: x.unsqueeze(1)))["image"][0, 0]
        assert not model.encoder({"image": still}).any()
    truth = still[0, 0].float() / 255
    torch.testing.assert_close(decoded, truth.clamp(0.02, 0.98))
    names = [name for name, _ in model.named_buffers()]
    assert names == ["encoder.centre.mean", "encoder.centre.count"]  # once, not twice
