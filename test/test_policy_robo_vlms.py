"""RoboVLMs: formulations, heads, history, bins, embodiments; the backbones have test_policy_vlms.py."""

from importlib.util import find_spec

import numpy as np
import pytest
import torch

from vla_ros.core.errors import PolicyError
from vla_ros.policies.describe import describe
from vla_ros.policies.layout import Layout
from vla_ros.policies.network import Batch, Inputs
from vla_ros.policies.robo_vlms.bins import BINS, from_bins, to_bins
from vla_ros.policies.robo_vlms.heads import continuous_loss
from vla_ros.policies.robo_vlms.network import RoboVlms
from vla_ros.policies.robo_vlms.sizes import FORMULATIONS

POSE = ("tcp.x", "tcp.y", "tcp.z", "tcp.rx", "tcp.ry", "tcp.rz")
ARM = Layout("arm", ("front", "wrist"), (*POSE, "gripper.width"), (*POSE, "gripper.closed"), {})
JOINTS = Layout(
    "joints", ("front", "side"), ("j1.position", "j2.position", "gripper.width"), ("j1.position", "j2.position", "gripper.closed"), {}
)
LAYOUTS = {"arm": ARM}
HORIZON, WORDS, LENGTH = 3, 20, 6
CONVOLUTIONAL = {
    "backbone": "convolutional", "vocabulary": WORDS, "text_length": LENGTH, "text_width": 16, "hidden_size": 32, "blocks": 1,
    "keypoints": 4, "head_width": 32, "head_layers": 2, "head_heads": 4, "window": 0,
}  # fmt: skip
VLM = {
    "backbone": "llava", "vocabulary": WORDS, "text_length": LENGTH, "head_width": 32, "head_layers": 2, "head_heads": 4,
    "text": {"num_hidden_layers": 2}, "vision": {"num_hidden_layers": 2},
}  # fmt: skip
needs_transformers = pytest.mark.skipif(find_spec("transformers") is None, reason="transformers is not installed")


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def network(sizes=CONVOLUTIONAL, layouts=LAYOUTS, **changes):
    return RoboVlms(layouts, HORIZON, {**sizes, **changes})


def batch(count=2, window=None, layout=ARM, seed=0):
    random = torch.Generator().manual_seed(seed)
    lead = (count,) if window is None else (count, window)
    features = 10 if layout is ARM else 3
    actions = 2 * torch.rand(count, HORIZON, len(layout.channels), generator=random) - 1
    actions[..., -1] = torch.sign(actions[..., -1])
    tokens = torch.randint(2, WORDS, (count, LENGTH), generator=random)
    tokens[:, -2:] = 0
    images = 2 * torch.rand(*lead, 2, 3, 48, 64, generator=random) - 1
    return Batch(layout.embodiment, images, torch.randn(*lead, features, generator=random), tokens, actions=actions)


def at(inputs, step):
    return Inputs(inputs.embodiment, inputs.images[:, step], inputs.state[:, step], inputs.tokens)


def part(inputs, start, stop):
    return Inputs(inputs.embodiment, inputs.images[:, start:stop], inputs.state[:, start:stop], inputs.tokens)


COMBINATIONS = [
    *(pytest.param(CONVOLUTIONAL, formulation, head, id=f"convolutional-{formulation}-{head}")
      for formulation, heads in FORMULATIONS.items() if formulation != "interleaved" for head in heads),
    *(pytest.param(VLM, formulation, head, id=f"vlm-{formulation}-{head}", marks=needs_transformers)
      for formulation, head in (
          ("one_step_discrete", "discrete"), ("one_step_continuous", "mlp"), ("one_step_continuous", "expert"), ("interleaved", "mlp"),
          ("interleaved", "lstm"), ("interleaved", "transformer"), ("interleaved", "flow"), ("policy_head", "lstm"))),
]  # fmt: skip


@pytest.mark.parametrize(("sizes", "formulation", "head"), COMBINATIONS)
def test_learns_a_fixed_batch_and_predicts(sizes, formulation, head):
    window = 3 if formulation in ("interleaved", "policy_head") else 0
    trained = network(sizes, formulation=formulation, head=head, window=window, gripper_weight=0.5)
    samples = batch(window=2 if window else None)

    def loss():
        torch.manual_seed(1)  # a flow's noise too is the same before and after
        return trained.loss(samples)

    first = loss()[0].item()
    optimiser = torch.optim.Adam(trained.parameters(), lr=3e-3)
    for _ in range(30):
        optimiser.zero_grad()
        value, parts, visual, hidden = loss()
        value.backward()
        optimiser.step()
    assert loss()[0].item() < 0.8 * first
    assert visual.shape == (2, trained.visual_size) and hidden.shape == (2, trained.hidden_size) and parts
    with torch.no_grad():
        found = trained.eval().predict(samples)
    assert found.shape == samples.actions.shape and found.isfinite().all()


@pytest.mark.parametrize("head", ["mlp", "lstm", "transformer", "flow"])
def test_trains_in_bfloat16(head):
    trained = network(formulation="policy_head", head=head, window=2)
    with torch.autocast("cpu", torch.bfloat16):
        loss = trained.loss(batch())[0]
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite() and trained.backbone.lrn.grad.abs().sum() > 0


@needs_transformers
@pytest.mark.parametrize(
    ("formulation", "head"),
    [("policy_head", "lstm"), ("interleaved", "flow"), ("one_step_continuous", "expert"), ("one_step_discrete", "discrete")],
)
def test_runs_in_bfloat16_altogether(formulation, head):
    policy = network(VLM, formulation=formulation, head=head, flow_steps=2).to(torch.bfloat16).eval()
    with torch.no_grad():
        found = policy.predict(batch(count=1))
    assert found.dtype == torch.float32 and found.isfinite().all()


@pytest.mark.parametrize("head", ["mlp", "lstm", "transformer"])
def test_streaming_is_the_window_computed_anew(head):
    streamed = network(formulation="policy_head", head=head, window=3).eval()
    rollout = batch(count=1, window=6)
    with torch.no_grad():
        for step in range(6):
            found = streamed.predict(at(rollout, step))
            whole = streamed.predict(part(rollout, max(0, step - 2), step + 1))
            torch.testing.assert_close(found, whole, rtol=0, atol=1e-6)
            if step:  # the history is looked at: a single observation says something else
                assert (found - streamed.predict(part(rollout, step, step + 1))).abs().max() > 1e-4


@needs_transformers
def test_interleaved_streaming_is_the_window_computed_anew():
    streamed = network(VLM, formulation="interleaved", head="mlp", window=2).eval()
    rollout = batch(count=1, window=4)
    with torch.no_grad():
        for step in range(4):
            found = streamed.predict(at(rollout, step))
            torch.testing.assert_close(found, streamed.predict(part(rollout, max(0, step - 1), step + 1)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("head", ["lstm", "flow"])
def test_reset_forgets_history_and_noise(head):
    policy = network(formulation="policy_head", head=head, window=3).eval()
    rollout = batch(count=1, window=3)
    with torch.no_grad():
        fresh = policy.predict(at(rollout, 2))
        policy.predict(at(rollout, 0))
        later = policy.predict(at(rollout, 2))
        policy.reset()
        again = policy.predict(at(rollout, 2))
    assert torch.equal(fresh, again)
    assert not torch.equal(fresh, later)


def test_history_of_another_batch_is_refused():
    policy = network(formulation="policy_head", head="lstm", window=3).eval()
    policy.predict(batch(count=1))
    with pytest.raises(PolicyError, match=r"reset\(\)"):
        policy.predict(batch(count=2))


def test_bins_are_at_most_half_a_bin_off():
    values = torch.linspace(-1, 1, 10001)
    assert (from_bins(to_bins(values)) - values).abs().max() <= 1 / BINS + 1e-6
    assert torch.equal(to_bins(from_bins(torch.arange(BINS))), torch.arange(BINS))
    assert to_bins(torch.tensor([-3.0, 3.0])).tolist() == [0, BINS - 1]


def test_loss_is_regression_and_weighted_cross_entropy():
    raw = torch.tensor([[[0.5, -1.0, 0.0]]])
    actions = torch.tensor([[[0.0, 1.0, 1.0]]])
    grippers = torch.tensor([False, False, True])
    loss, parts = continuous_loss(raw, actions, grippers, "mse", 0.01)
    assert parts["motion"].item() == pytest.approx((0.25 + 4) / 2)
    assert parts["gripper"].item() == pytest.approx(np.log(2))
    assert loss.item() == pytest.approx(2.125 + 0.01 * np.log(2))
    assert continuous_loss(raw, actions, grippers, "l1", 0)[0].item() == pytest.approx(1.25)
    assert continuous_loss(raw, actions, grippers, "huber", 0)[0].item() == pytest.approx((0.125 + 1.5) / 2)


def test_one_set_of_weights_serves_two_embodiments():
    both = network(layouts={"arm": ARM, "joints": JOINTS}, formulation="one_step_continuous", head="mlp")
    for layout in (ARM, JOINTS):
        samples = batch(layout=layout)
        assert both.eval().predict(samples).shape == samples.actions.shape
    both.zero_grad()
    both.loss(batch(layout=JOINTS))[0].backward()
    front, wrist, side = both.backbone.cameras
    assert wrist.stem.weight.grad is None  # a camera that this robot lacks
    assert front.stem.weight.grad.abs().sum() > 0 and side.stem.weight.grad.abs().sum() > 0
    columns = both.head.layers[-1].weight.grad.unflatten(0, (HORIZON, 10))
    assert columns[:, :7].abs().sum() == 0 and columns[:, 7:].abs().sum() > 0
    with pytest.raises(PolicyError, match=r"made for others.*arm, joints"):
        both.predict(Inputs("nobody", samples.images, samples.state, samples.tokens))


def test_parameters_keep_their_names():
    """The shipped weights were trained with these."""
    names = set(network(formulation="one_step_continuous", head="mlp").state_dict())
    assert {"backbone.lrn", "backbone.text.query", "backbone.cameras.1.films.2.project.bias", "backbone.blocks.0.up.weight"} <= names
    assert {name for name in names if name.startswith("head.")} == {
        f"head.layers.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")
    }


def test_flow_continues_a_prefix():
    policy = network(formulation="policy_head", head="flow", window=2, flow_steps=5).eval()
    samples = batch(count=1)
    prefix = torch.full((1, 1, 7), 0.7)
    with torch.no_grad():
        free = policy.predict(samples)
        policy.reset()
        bound = policy.predict(Inputs("arm", samples.images, samples.state, samples.tokens, prefix, torch.ones(1)))
    assert (bound[:, :1] - prefix).abs().mean() < 0.5 * (free[:, :1] - prefix).abs().mean()


def test_expert_reads_the_proprioception():
    policy = network(formulation="one_step_continuous", head="expert", flow_steps=2).eval()
    samples = batch(count=1)
    with torch.no_grad():
        seen = policy._seen(*policy._encode(samples.images[:, None], samples.state[:, None], samples), samples.state, samples)
        other = policy._seen(*policy._encode(samples.images[:, None], samples.state[:, None], samples), samples.state + 1, samples)
        noise, tau = torch.randn(1, HORIZON, 7), torch.ones(1)
        assert not torch.equal(policy.head.velocity(seen)(noise, tau), policy.head.velocity(other)(noise, tau))


@pytest.mark.parametrize("backbone", ["convolutional", "idefics"])
def test_interleaved_needs_a_decoder_only_backbone(backbone):
    sizes = CONVOLUTIONAL if backbone == "convolutional" else {"backbone": "idefics", "text_length": LENGTH}
    with pytest.raises(PolicyError, match=f"{backbone} is not decoder-only: use policy_head"):
        network(sizes, formulation="interleaved", head="mlp")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": "kosmos"}, "did you mean 'kosmos2'"),
        ({"head": "lsmt"}, "did you mean 'lstm'"),
        ({"head": "discrete"}, "with formulation policy_head"),
        ({"formulation": "one_step_continuous", "head": "mlp", "window": 4}, "one_step_continuous reads one observation"),
        ({"windw": 4}, "did you mean 'window'"),
        ({"loss": "mae"}, "valid: huber, l1, mse"),
        ({"head_layers": 0}, "head_layers = 0, expected a whole number 1 .. 128"),
        ({"backbone": "os:system"}, "network.backbone = 'os:system'; valid"),
        ({"blocks": 10**9}, "blocks = 1000000000, expected a whole number 1 .. 128"),
        ({"vocabulary": "many"}, "vocabulary = 'many'"),
        ({"head": ["mlp"]}, "network.head = "),
        ({"head_heads": 5}, "no multiple of head_heads"),
        ({"head": "flow", "flow_tau": "uniform"}, "valid: beta, sigmoid_normal"),
    ],
)
def test_wrong_sizes_are_named(changes, message):
    with pytest.raises(PolicyError, match=message):
        network(**changes)


@needs_transformers
@pytest.mark.parametrize("text", [{"num_hidden_layers": 10**9}, {"hidden_size": -8}, [3]])
def test_wrong_sizes_of_a_language_model_are_named(text):
    with pytest.raises(PolicyError, match=r"network\.text.* expected"):
        network(VLM, text=text)


def test_missing_sizes_and_wrong_observations_are_named():
    with pytest.raises(PolicyError, match="lacks vocabulary, text_length"):
        network({"backbone": "convolutional"})
    single = network(formulation="one_step_continuous", head="mlp")
    with pytest.raises(PolicyError, match="reads one observation"):
        single.predict(batch(window=2))
    samples = batch()
    with pytest.raises(PolicyError, match="1 images, expected front, wrist"):
        single.predict(Inputs("arm", samples.images[:, :1], samples.state, samples.tokens))


def test_description_adds_up():
    lines = dict(describe(network(formulation="one_step_continuous", head="mlp"), depth=2))
    assert lines[""] == lines["backbone"] + lines["head"]
    assert lines["backbone"] == sum(count for name, count in lines.items() if name.startswith("backbone."))
    assert lines["backbone.(own)"] == 32
