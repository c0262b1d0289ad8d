"""MoL-MSM VLA: what learns in which stage, the formulas of a block, seeds, and what the memory tells a chunk."""

import dataclasses
import hashlib

import pytest
import torch

from vla_ros.core.embodiment import load_embodiment
from vla_ros.core.errors import ConfigError, PolicyError
from vla_ros.policies.layout import layout_for
from vla_ros.policies.mol_msm.head import Block
from vla_ros.policies.mol_msm.network import MolMsm
from vla_ros.policies.network import Batch, Inputs

HORIZON, LENGTH, VOCABULARY = 6, 8, 20
LAYOUT = layout_for(load_embodiment("piper"), ("front", "wrist"))
SIZES = {
    "backbone": "layered", "vocabulary": VOCABULARY, "text_length": LENGTH, "text_width": 16, "hidden_size": 32, "layers": 3, "heads": 2,
    "keypoints": 4, "queries": 3, "head_heads": 4, "memory": 12, "retrieved": 4, "seed": 0,
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


def make(**changes):
    """A network whose weights are moved, so that nothing is hidden behind one that starts as zero or one."""
    torch.manual_seed(0)
    network = MolMsm({"piper": LAYOUT}, HORIZON, SIZES | changes)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return network.train()


@pytest.fixture
def network():
    return make()


def batch_of(size=4, seed=0, episode=None):
    torch.manual_seed(seed)
    tokens = torch.randint(1, VOCABULARY, (size, LENGTH))
    tokens[0, 5:] = 0
    images, actions = (torch.rand(size, *shape) * 2 - 1 for shape in ((2, 3, 32, 48), (HORIZON, 7)))
    episode = torch.arange(size) if episode is None else torch.tensor(episode)
    return Batch("piper", images, torch.randn(size, LAYOUT.feature_count), tokens, actions=actions, episode=episode)


def filled(network, seed=1):
    """Its memory full of the entries of other batches, episodes 100 and up."""
    for number in range(3):
        batch = batch_of(4, seed + number)
        network.memory.push(network.key(network.read(batch)), batch.actions, batch.episode + 100 + number)
    return network


def predicted(network, batch):
    network.reset()
    with torch.no_grad():
        return network.predict(Inputs(batch.embodiment, batch.images, batch.state, batch.tokens))


def fingerprint(module):
    state = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        state.update(name.encode() + tensor.numpy().tobytes())
    return state.hexdigest()


def train(network, steps=3):
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-2)
    for step in range(steps):
        torch.manual_seed(step)
        loss = network.loss(batch_of(seed=step, episode=[4 * step + i for i in range(4)]))[0]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def test_in_the_stage_skills_the_backbone_is_untouched_and_the_queries_learn(network):
    frozen, queries = fingerprint(network.backbone), network.queries.clone()
    train(network)
    assert fingerprint(network.backbone) == frozen
    assert all(parameter.grad is None for parameter in network.backbone.parameters())
    assert network.queries.grad.abs().min() > 0 and not torch.equal(network.queries, queries)
    assert all(parameter.grad.norm() > 0 for parameter in network.skills.parameters())
    without_gradient = [name for name, parameter in network.head.named_parameters() if parameter.grad is None]
    assert not without_gradient


def test_in_the_stage_pretrain_the_backbone_learns_and_nothing_is_remembered(network):
    network.configure_stage("pretrain")
    before = fingerprint(network.backbone)
    train(network)
    assert fingerprint(network.backbone) != before and not len(network.memory)
    assert all(parameter.grad is not None for parameter in network.backbone.parameters())
    with pytest.raises(ConfigError, match="did you mean 'skills'"):
        network.configure_stage("skill")


def test_queries_are_seen_by_nothing_else_so_keys_stay_what_they_were(network):
    batch = batch_of()
    before = network.read(batch)
    key = network.key(before)
    with torch.no_grad():
        network.queries.mul_(-2)
    after = network.read(batch)
    assert torch.equal(network.key(after), key)
    assert all(torch.equal(one, two) for one, two in zip(before.seen, after.seen, strict=True))
    assert not torch.allclose(before.queries[0], after.queries[0])
    assert key.shape == (4, 3 * 32) and not key.requires_grad


def test_padding_is_no_part_of_a_key(network):
    batch = batch_of()
    shorter = dataclasses.replace(batch, tokens=batch.tokens[:, :5])
    longer = dataclasses.replace(batch, tokens=torch.where(torch.arange(LENGTH) < 5, batch.tokens, 0))
    torch.testing.assert_close(network.key(network.read(shorter)), network.key(network.read(longer)), rtol=0, atol=1e-5)
    assert (network.key(network.read(batch)) - network.key(network.read(longer)))[1:].abs().max() > 1e-3


def test_a_block_is_the_paper_s_three_branches():
    """O1 over [Q; state] as it is, its scores times g per head; O2 over V, times alpha; O3 over the chunk; all from one query."""
    torch.manual_seed(0)
    block = Block(8, 2)
    x, context, visual = torch.randn(1, 3, 8), torch.randn(1, 4, 8), torch.randn(1, 5, 8)
    assert torch.equal(block.factors(context), torch.ones(1, 2)) and block.alpha.item() == 1
    with torch.no_grad():
        block.gate[-1].weight.normal_()
        block.alpha.fill_(0.7)
    rows, told, seen = block.norm(x), block.read_context(context), block.read_visual(visual)
    query, g = block.query(rows), block.gate(told.mean(1))
    (seen_key, seen_value), (own_key, own_value) = block.visual(seen).chunk(2, -1), block.own(rows).chunk(2, -1)
    branches = []
    for key, value, factor in ((told, told, g), (seen_key, seen_value, block.alpha.expand(1, 2)), (own_key, own_value, torch.ones(1, 2))):
        heads = []
        for head in range(2):
            part = slice(4 * head, 4 * head + 4)
            scores = factor[0, head] * query[0, :, part] @ key[0, :, part].T / 2
            heads.append(scores.softmax(-1) @ value[0, :, part])
        branches.append(torch.cat(heads, -1))
    expected = x[0] + block.output(torch.cat(branches, -1))
    expected = expected + block.mlp(block.norm_mlp(expected))
    torch.testing.assert_close(block(x, context, visual)[0], expected, rtol=0, atol=1e-5)


def test_each_block_reads_its_own_layer_and_without_the_mixture_the_last():
    for mixture in (True, False):
        network = make(mixture=mixture, memory=0)
        batch = batch_of()
        states = network.read(batch)
        noise = torch.randn(4, HORIZON, 7)
        whole = network.act(states, batch.state, noise)
        for layer in range(3):
            for name in ("queries", "seen"):
                other = list(getattr(states, name))
                other[layer] = torch.randn_like(other[layer])
                changed = network.act(states._replace(**{name: tuple(other)}), batch.state, noise)
                assert torch.equal(changed, whole) == (not mixture and layer < 2), (mixture, layer, name)


def test_an_empty_memory_and_a_module_that_writes_nothing_are_no_memory(network):
    batch = batch_of()
    without = make(memory=0)
    without.load_state_dict({name: tensor for name, tensor in network.state_dict().items() if not name.startswith("skills.")})
    assert without.memory is None and without.skills is None
    plain = predicted(without, batch)
    assert torch.equal(predicted(network, batch), plain)
    filled(network)
    assert not torch.allclose(predicted(network, batch), plain, atol=1e-4)
    with torch.no_grad():
        network.skills.output.weight.zero_()
    assert torch.equal(predicted(network, batch), plain)


def test_what_is_remembered_reaches_the_chunk_row_by_row(network):
    filled(network)
    batch = batch_of()
    first = predicted(network, batch)
    network.memory.chunks[:, 0] += 1
    assert not torch.allclose(predicted(network, batch), first, atol=1e-4)


def test_training_never_retrieves_from_the_own_episode(network):
    batch = batch_of(episode=[5, 6, 7, 8])
    network.loss(batch)
    assert len(network.memory) == 4
    found = network.memory.nearest(network.key(network.read(batch)), 4, batch.episode)
    assert not (found.episodes == batch.episode[:, None])[found.distances.isfinite()].any()
    assert found.distances.isfinite().sum(1).tolist() == [3, 3, 3, 3]
    free = network.memory.nearest(network.key(network.read(batch)), 4)
    assert free.episodes[:, 0].tolist() == [5, 6, 7, 8] and free.distances[:, 0].max() < 1e-4  # without it, the label itself

    alone = make()
    torch.manual_seed(3)
    first = alone.loss(dataclasses.replace(batch, episode=torch.full((4,), 5)))[0]
    torch.manual_seed(3)
    second = alone.loss(dataclasses.replace(batch, episode=torch.full((4,), 5)))[0]
    assert len(alone.memory) == 8 and torch.equal(first, second)  # all it knows is of the episode itself: as if it knew nothing
    second.backward()
    assert all(parameter.grad.isfinite().all() for parameter in alone.parameters() if parameter.grad is not None)
    with pytest.raises(PolicyError, match="without `episode`"):
        network.loss(dataclasses.replace(batch, episode=None))


def test_only_training_fills_the_memory(network):
    network.eval()
    network.loss(batch_of())
    predicted(network, batch_of())
    assert not len(network.memory)


def test_the_loss_is_the_mean_distance_to_the_chunk(network):
    batch = batch_of()
    torch.manual_seed(7)
    loss, parts, visual, hidden = network.loss(batch)
    same = make()
    torch.manual_seed(7)
    made = same.act(same.read(batch), batch.state, torch.randn_like(batch.actions))
    assert loss.item() == pytest.approx((made - batch.actions).abs().mean().item(), abs=1e-6) and parts["action"] is loss
    assert visual.shape == (4, network.visual_size) and hidden.shape == (4, network.hidden_size)


def test_the_seed_decides_and_a_rollout_starts_it_anew(network):
    batch = batch_of()
    inputs = Inputs(batch.embodiment, batch.images, batch.state, batch.tokens)
    first = predicted(network, batch)
    with torch.no_grad():
        second = network.predict(inputs)
    assert torch.equal(predicted(network, batch), first) and not torch.equal(second, first)
    assert not torch.equal(predicted(make(seed=1), batch), first)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": "layerd"}, "did you mean 'layered'"),
        ({"memori": 3}, "did you mean 'memory'"),
        ({"memory": 3}, "holds fewer than retrieved = 4"),
        ({"memory": -1}, "network.memory = -1, expected a whole number 0"),
        ({"mixture": 1}, "network.mixture = 1, expected true or false"),
        ({"head_heads": 5}, "32, is no multiple"),
        ({"heads": 3}, "network.heads = 3"),
        ({"layers": 100_000}, "network.layers = 100000"),
    ],
)
def test_wrong_sizes_are_named(changes, message):
    with pytest.raises(PolicyError, match=message):
        make(**changes)


def test_other_robots_and_shapes_are_named(network):
    batch = batch_of()
    two = {"piper": LAYOUT, "franka": layout_for(load_embodiment("franka"), ("front", "wrist"))}
    with pytest.raises(PolicyError, match="one robot, found piper, franka"):
        MolMsm(two, HORIZON, SIZES)
    for changes, message in (
        ({"embodiment": "pipr"}, "did you mean 'piper'"),
        ({"images": batch.images[:, :1]}, r"expected \[B, 2, 3, H, W\] of front, wrist"),
        ({"actions": batch.actions[:, :5]}, r"expected \(4, 6, 7\)"),
        ({"actions": None}, "shape None"),
    ):
        with pytest.raises(PolicyError, match=message):
            network.loss(dataclasses.replace(batch, **changes))
