"""Backbones: each is the transformers model that it says it is, its [LRN] learns, and an interleaved sequence does not look ahead."""

from importlib.util import find_spec

import pytest
import torch

from vla_ros.core.devices import load_device
from vla_ros.core.errors import PolicyError
from vla_ros.policies.vlms import BACKBONES
from vla_ros.policies.vlms.pixels import CLIP, Pixels, prepare
from vla_ros.policies.vlms.qwen import patchify

CAMERAS = ("front", "wrist")
DECODER_ONLY = ["kosmos2", "paligemma", "llava", "qwen3_5", "internvl_qwen2_5", "prismatic"]
SMALL = {"text": {"num_hidden_layers": 2}, "vision": {"num_hidden_layers": 2}}
NAMES = {"kosmos2": {"text": {"layers": 2}}, "qwen3_5": {"text": {"num_hidden_layers": 4}, "vision": {"depth": 1}}}
needs_transformers = pytest.mark.skipif(find_spec("transformers") is None, reason="transformers is not installed")


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def sizes_of(name, **changes):
    sizes = dict(load_device(BACKBONES, name).SIZES) | {"vocabulary": 20}
    if name == "convolutional":
        return sizes | {"text_length": 6, "text_width": 16, "hidden_size": 32, "keypoints": 4} | changes
    return sizes | SMALL | NAMES.get(name, {}) | changes


def make(name, vocabulary_head=False, **changes):
    return load_device(BACKBONES, name)(CAMERAS, 5, sizes_of(name, **changes), vocabulary_head)


def observation(steps=None):
    lead = (2,) if steps is None else (2, steps)
    tokens = torch.tensor([[5, 6, 7, 0, 0, 0], [8, 9, 10, 11, 12, 0]])
    return 2 * torch.rand(*lead, 2, 3, 48, 64) - 1, torch.randn(*lead, 5), tokens, CAMERAS


@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if name == "convolutional" else needs_transformers) for name in BACKBONES])
def test_lrn_gets_a_gradient(name):
    backbone = make(name)
    encoding = backbone.encode(*observation())
    assert encoding.hidden.shape == (2, backbone.hidden_size) and encoding.visual.shape == (2, backbone.visual_size)
    assert encoding.sequence.shape[:2] == encoding.mask.shape
    loss = (encoding.hidden - torch.randn_like(encoding.hidden)).square().mean()
    loss.backward()
    assert loss.isfinite() and backbone.lrn.grad.isfinite().all() and backbone.lrn.grad.norm() > 1e-6


@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if name == "convolutional" else needs_transformers) for name in BACKBONES])
def test_every_input_counts_and_padding_does_not(name):
    backbone = make(name).eval()
    images, state, tokens, cameras = observation()
    with torch.no_grad():
        first = backbone.encode(images, state, tokens, cameras).hidden
        dark = torch.stack([images[:, 0], -torch.ones_like(images[:, 1])], dim=1)
        others = {
            "wrist": backbone.encode(dark, state, tokens, cameras).hidden,
            "state": backbone.encode(images, -state, tokens, cameras).hidden,
            "words": backbone.encode(images, state, tokens.flip(0), cameras).hidden,
            "missing": backbone.encode(images[:, :1], state, tokens, cameras[:1]).hidden,
        }
        shorter = backbone.encode(images, state, tokens[:, :5], cameras).hidden
    for what, other in others.items():
        assert (other - first).abs().amax() > 1e-5, what
    torch.testing.assert_close(shorter, first, rtol=0, atol=1e-4)


@needs_transformers
@pytest.mark.parametrize("name", DECODER_ONLY)
def test_states_of_the_layers_are_the_model_s_and_queries_are_seen_by_nothing_else(name):
    backbone = make(name).eval()
    images, _, tokens, cameras = observation()
    with torch.no_grad():
        whole = backbone.encode(images, None, tokens, cameras, layers=True)
        states = backbone.read_layers(images, tokens, cameras, backbone.lrn[None])
        others = backbone.read_layers(images, tokens, cameras, torch.randn(3, backbone.hidden_size))
    assert backbone.depth == len(states.seen) == len(states.queries) == len(whole.layers) - 1
    for layer, seen, queries, again in zip(whole.layers[1:], states.seen, states.queries, others.seen, strict=True):
        assert torch.equal(seen, layer[:, :-1]) and torch.equal(queries, layer[:, -1:])
        torch.testing.assert_close(again, seen, rtol=0, atol=1e-5)
    assert others.queries[0].shape == (2, 3, backbone.hidden_size)
    assert torch.equal(states.mask, whole.mask[:, :-1]) and torch.equal(states.visual, whole.visual)
    assert states.mask[:, states.patches].all() and states.patches.sum() % 2 == 0 and 0 < states.patches.sum() <= len(states.patches) - 6


@needs_transformers
@pytest.mark.parametrize("name", [*DECODER_ONLY, "idefics"])
def test_bfloat16_is_the_same_but_for_rounding(name):
    backbone = make(name).eval()
    seen = observation()
    with torch.no_grad():
        exact = backbone.encode(*seen).hidden
        with torch.autocast("cpu", torch.bfloat16):
            mixed = backbone.encode(*seen).hidden
        cast = backbone.to(torch.bfloat16).encode(*seen).hidden
    for found in (mixed, cast):
        assert found.dtype == torch.float32
        assert (found - exact).abs().mean() < 0.1


@needs_transformers
@pytest.mark.parametrize("name", DECODER_ONLY)
def test_interleaved_step_does_not_see_the_next(name):
    backbone = make(name).eval()
    images, state, tokens, cameras = observation(steps=3)
    with torch.no_grad():
        before = backbone.interleave(images, state, tokens, cameras).hidden
        later = images.clone()
        later[:, 2] = -later[:, 2]
        after = backbone.interleave(later, state, tokens, cameras).hidden
        earlier = images.clone()
        earlier[:, 0] = -earlier[:, 0]
        history = backbone.interleave(earlier, state, tokens, cameras).hidden
    assert torch.equal(before[:, :2], after[:, :2])
    assert (before[:, 2] - after[:, 2]).abs().max() > 1e-5
    assert (before[:, 2] - history[:, 2]).abs().max() > 1e-5


@needs_transformers
@pytest.mark.parametrize("name", [*DECODER_ONLY, "idefics"])
def test_cached_generation_is_the_uncached(name):
    backbone = make(name, vocabulary_head=True).eval()
    seen, ids = observation(), range(30, 280)
    expected = seen[2][:, :0]
    with torch.no_grad():
        for _ in range(4):
            logits, _ = backbone.score(*seen, expected)
            expected = torch.cat([expected, logits[:, -1:, ids.start : ids.stop].argmax(-1) + ids.start], dim=1)
    assert torch.equal(backbone.generate(*seen, 4, ids), expected)


def own_forward(name, backbone, pixels, tokens):
    """The last word's state as transformers itself computes it from ids, one image before the words."""
    vlm, count = backbone.vlm, {"kosmos2": 16, "internvl_qwen2_5": 16, "paligemma": 16, "llava": 16, "qwen3_5": 16}[name]
    if name == "kosmos2":
        ids = torch.cat([torch.zeros(1, count, dtype=torch.long), tokens], dim=1)
        mask = torch.tensor([[1] * count + [0] * tokens.shape[1]])
        features = vlm.image_to_text_projection(
            torch.nn.functional.normalize(vlm.vision_model.model.post_layernorm(vlm.vision_model(pixels)[0]), dim=-1)
        )[0]
        return vlm.text_model.model(input_ids=ids, image_embeds=features, image_embeds_position_mask=mask, position_ids=None)
    image = vlm.config.image_token_id
    shown = torch.full((1, count), image)
    if name == "qwen3_5":
        config, patch = vlm.config, vlm.visual.patch_size
        side = pixels.shape[-1] // patch
        ids = torch.cat(
            [torch.tensor([[config.vision_start_token_id]]), shown, torch.tensor([[config.vision_end_token_id]]), tokens], dim=1
        )
        return vlm(
            input_ids=ids, pixel_values=patchify(pixels, patch, 2, 2), image_grid_thw=torch.tensor([[1, side, side]]),
            mm_token_type_ids=(ids == image).int(), attention_mask=torch.ones_like(ids),
        )  # fmt: skip
    ids = torch.cat([shown, tokens], dim=1)
    extra = {"token_type_ids": torch.zeros_like(ids)} if name == "paligemma" else {}
    return vlm(input_ids=ids, pixel_values=pixels, attention_mask=torch.ones_like(ids), **extra)


@needs_transformers
@pytest.mark.parametrize("name", ["kosmos2", "paligemma", "llava", "qwen3_5", "internvl_qwen2_5"])
def test_sequence_is_what_transformers_makes_of_the_same_ids(name):
    backbone = make(name, use_state=False).eval()
    if name not in ("kosmos2",):
        backbone.vlm.config.image_token_id = 25  # a spare id in place of the paper's, which the tiny vocabulary lacks
    images, tokens = 2 * torch.rand(1, 1, 3, 64, 64) - 1, torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        found = backbone.encode(images, None, tokens, ("front",)).sequence[:, -2]
        expected = own_forward(name, backbone, prepare(images[0], backbone.pixels), tokens).last_hidden_state[:, -1]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@needs_transformers
@pytest.mark.parametrize(("name", "published"), [("kosmos2", 1_664_485_376), ("paligemma", 2_923_466_480)])
def test_paper_counts_are_those_of_transformers(name, published):
    import transformers

    with torch.device("meta"):
        backbone = make(name, preset="paper", text={}, vision={}, vocabulary=1000)
        expected = transformers.AutoModel.from_config(backbone.vlm.config)
    count = sum(parameter.numel() for parameter in backbone.vlm.parameters())
    assert count == sum(parameter.numel() for parameter in expected.parameters()) == published
    own = sum(parameter.numel() for parameter in backbone.parameters()) - count
    assert own == 2048 + (5 + 1) * 2048  # [LRN] and the proprioception's projection


@needs_transformers
@pytest.mark.parametrize(
    ("name", "billions"), [("llava", 6.93), ("qwen3_5", 4.54), ("internvl_qwen2_5", 7.40), ("idefics", 8.8), ("prismatic", 1.238)]
)
def test_paper_presets_need_no_memory(name, billions):
    """Published sizes without the untied output layer of the language model."""
    with torch.device("meta"):
        backbone = make(name, preset="paper", text={}, vision={}, vocabulary=1000)
    assert sum(parameter.numel() for parameter in backbone.parameters()) == pytest.approx(billions * 1e9, rel=0.01)


@needs_transformers
def test_weights_come_from_a_local_folder(tmp_path):
    from transformers import AutoModelForImageTextToText

    from vla_ros.policies.vlms.presets import configuration

    AutoModelForImageTextToText.from_config(configuration("llava", sizes_of("llava"))).save_pretrained(tmp_path / "model")
    one, other = (make("llava", folder=str(tmp_path / "model")).vlm.state_dict() for _ in range(2))
    assert one.keys() == make("llava").vlm.state_dict().keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    with pytest.raises(PolicyError, match="holds a 'llava', backbone 'paligemma' needs a 'paligemma'"):
        make("paligemma", folder=str(tmp_path / "model"))
    (tmp_path / "model" / "model.safetensors").rename(tmp_path / "model" / "pytorch_model.bin")
    with pytest.raises(PolicyError, match=r"cannot be loaded .*model\.safetensors"):
        make("llava", folder=str(tmp_path / "model"))
    with pytest.raises(PolicyError, match="no such file; download the model"):
        make("llava", folder=str(tmp_path / "nowhere"))


@needs_transformers
@pytest.mark.parametrize("name", [*DECODER_ONLY, "idefics"])
def test_state_dict_is_strict_and_shares_nothing(name):
    """safetensors refuses tensors that share memory."""
    one, other = make(name, vocabulary_head=True), make(name, vocabulary_head=True)
    tensors = one.state_dict()
    assert len({tensor.data_ptr() for tensor in tensors.values()}) == len(tensors)
    other.load_state_dict(tensors)
    seen = observation()
    assert torch.equal(one.eval().encode(*seen).hidden, other.eval().encode(*seen).hidden)


def test_pixels_get_the_towers_own_range():
    grey = torch.zeros(1, 3, 48, 64)
    mean, std = CLIP
    found = prepare(grey, Pixels(32, mean, std))
    assert found.shape == (1, 3, 32, 32)
    torch.testing.assert_close(found[0, :, 5, 5], torch.tensor([(0.5 - m) / s for m, s in zip(mean, std, strict=True)]))


@needs_transformers
def test_wrong_sizes_are_named():
    with pytest.raises(PolicyError, match="valid: paper, tiny"):
        make("llava", preset="huge")
    with pytest.raises(PolicyError, match="cannot have text"):
        make("llava", text={"hidden_size": "wide"})
