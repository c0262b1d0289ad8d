"""AtomicVLA's thoughts: their grammar and loss, when it thinks, what becomes of bad ones, and how a policy tells its plan."""

import json
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from atomic_networks import HORIZON, LAYOUTS, PALIGEMMA, SIZES, SKILLS, VOCABULARY, act, batch_of, inputs_of, make
from torch.nn.functional import cross_entropy

from vla_ros.core.embodiment import load_embodiment
from vla_ros.core.errors import DataError, PolicyError
from vla_ros.core.types import Frame, Observation, Proprioception
from vla_ros.policies import load_policy
from vla_ros.policies.atomic_vla.network import AtomicVla
from vla_ros.policies.atomic_vla.plan import plan_text, read_plan
from vla_ros.policies.atomic_vla.policy import grow_checkpoint
from vla_ros.policies.atomic_vla.skills import Skill
from vla_ros.policies.checkpoint import CheckpointConfig, write_checkpoint
from vla_ros.policies.layout import layout_for
from vla_ros.policies.network import Batch
from vla_ros.policies.network_policy import make_network
from vla_ros.policies.text import build_tokenizer, encode

CHAIN = ("pick up the red block", "place the red block on the plate")
PICK, PLACE = plan_text(CHAIN, 0, "pick"), plan_text(CHAIN, 1, "place")
needs_transformers = pytest.mark.skipif(find_spec("transformers") is None, reason="transformers is not installed")
BACKBONES = [pytest.param(SIZES, id="convolutional"), pytest.param(PALIGEMMA, id="paligemma", marks=needs_transformers)]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


class Script:
    """Decides and writes what a test wants; what was asked of the reader is counted."""

    def __init__(self, network, decisions, thoughts):
        self.decisions, self.thoughts, self.readings, self.chosen = list(decisions), list(thoughts), 0, []
        self.reader, self.prefix = network.reader, network.reader.prefix
        network.reader.prefix, network.reader.write = self.read, self.write
        network.decode = lambda ids: ids[0]

    def read(self, *arguments):
        self.readings += 1
        found = self.prefix(*arguments)
        logits = found.logits.clone()
        for row, think in enumerate(self.decisions.pop(0)):
            logits[row, 0, self.reader.think], logits[row, 0, self.reader.act] = (1.0, 0.0) if think else (0.0, 1.0)
        return found._replace(logits=logits)

    def write(self, prefix, count, choose):
        logits = torch.zeros(40)
        logits[7] = 0.1
        self.chosen.append([choose(logits) for _ in range(20)])
        return [self.thoughts.pop(0)]


def test_a_plan_can_be_read_again():
    assert PLACE == "task chain pick up the red block, then place the red block on the plate, step 2/2, atomic skill place"
    plan = read_plan(PLACE)
    assert (plan.chain, plan.step, plan.skill, plan.text) == (CHAIN, 1, "place", PLACE)
    tokenizer = build_tokenizer([PICK, PLACE])
    ids = [int(index) for index in encode(tokenizer, PLACE, 30) if index]
    said = tokenizer.decode(ids)  # capitals and punctuation are gone
    assert (read_plan(said).chain, read_plan(said).step, read_plan(said).skill) == (CHAIN, 1, "place")


@pytest.mark.parametrize(
    "text",
    [
        "", "pick up the red block", PLACE.replace("2/2", "3/2"), PLACE.replace("2/2", "0/2"), PLACE.replace("2/2", "2/3"),
        PLACE.replace("skill place", "skill"), PLACE + " and more", PLACE.replace(" then", ""), "task chain , step 1/1, atomic skill pick",
        "task chain pick then , step 1/2, atomic skill pick", PLACE.replace("2/2", "two/2"),
    ],
)  # fmt: skip
def test_what_is_no_plan_is_not_read(text):
    assert read_plan(text) is None


@pytest.mark.parametrize(
    ("chain", "step", "skill"),
    [((), 0, "pick"), (CHAIN, 2, "pick"), (("pick then place",), 0, "pick"), (CHAIN, 0, "pick it"), (("",), 0, "pick")],
)
def test_a_plan_that_could_not_be_read_is_not_written(chain, step, skill):
    with pytest.raises(DataError, match="cannot be read again"):
        plan_text(chain, step, skill)


def test_it_thinks_first_and_when_it_wants_and_then_acts_on_the_same_reading():
    network = make()
    script = Script(network, [[False], [False], [True], [False]], [PICK, PLACE])
    inputs, found = inputs_of(), []
    with torch.no_grad():
        for fresh, skill in ((True, "pick"), (False, "pick"), (True, "place"), (False, "place")):
            actions = network.predict(inputs)
            found.append(actions)
            assert (network.fresh, [plan.skill for plan in network.plans]) == ([fresh], [skill])
            assert actions.shape == (1, HORIZON, 7) and actions.isfinite().all()
    assert script.readings == 4 and not script.thoughts  # one reading each, also where it thought and acted
    script.decisions = [[False]] * 3
    assert torch.equal(act(network, inputs, "pick"), found[0])  # the first noise of a rollout
    script.thoughts = [PLACE]
    network.reset()
    with torch.no_grad():
        assert not torch.equal(network.predict(inputs), found[0])  # it had to think anew
    assert network.plans[0].skill == "place"


def test_a_network_that_always_wants_to_think_acts_each_time():
    """The loop guard: a thought is followed by an act, whatever the decision."""
    network = make()
    script = Script(network, [[True]] * 5, [PICK] * 5)
    with torch.no_grad():
        for left in range(4, -1, -1):
            assert network.predict(inputs_of()).isfinite().all()
            assert len(script.thoughts) == left  # one thought each


def test_rollouts_of_a_batch_think_on_their_own():
    network = make()
    script = Script(network, [[False, False], [False, True]], [PICK, PICK, PLACE])
    with torch.no_grad():
        network.predict(inputs_of(2))
        network.predict(inputs_of(2))
    assert (network.fresh, [plan.skill for plan in network.plans]) == ([False, True], ["pick", "place"])
    script.decisions = [[False]]
    with pytest.raises(PolicyError, match="plans of 2 rollouts, now come 1: call reset"):
        network.predict(inputs_of(1))


def test_a_thought_that_is_no_plan_is_thought_once_more_in_other_words():
    network = make()
    script = Script(network, [[True]], ["pick it up", PLACE])
    with torch.no_grad():
        network.predict(inputs_of())
    assert network.plans[0].skill == "place"
    likeliest, drawn = script.chosen
    assert likeliest == [7] * 20 and len(set(drawn)) > 5  # the likeliest words again would be the same thought
    again = Script(make(), [[True]], ["pick it up", PLACE])
    network.reset()
    with torch.no_grad():
        network.reader.prefix, network.reader.write = again.read, again.write
        network.predict(inputs_of())
    assert again.chosen[1] == drawn  # by the seed


def test_two_that_are_no_plans_are_an_error():
    network = make()
    Script(network, [[True]], ["pick it up", "task chain of nothing"])
    with pytest.raises(PolicyError, match="two thoughts in a row are no plans: 'pick it up' and 'task chain of nothing'; expected"):
        network.predict(inputs_of())


def test_an_unknown_skill_is_an_error():
    network = make()
    script = Script(network, [[True]], [plan_text(("tuck it in",), 0, "tuck"), PICK])
    with pytest.raises(PolicyError, match=r"names the skill 'tuck'; .*pick"):
        network.predict(inputs_of())
    assert script.thoughts == [PICK]  # it is not thought again: no silent default
    with pytest.raises(PolicyError, match="did you mean 'pick'"):
        act(make(), inputs_of(), "pik")


def test_without_a_tokenizer_it_cannot_read_its_thoughts():
    with pytest.raises(PolicyError, match="no tokenizer"):
        make().predict(inputs_of())


@pytest.mark.parametrize("sizes", BACKBONES)
def test_what_is_written_goes_on_from_the_reading(sizes):
    """Ids one after the other out of the kept reading are those of a whole new reading with all of them behind it."""
    network = make(sizes)
    reader, inputs = network.reader, inputs_of()
    with torch.no_grad():
        prefix = network.context(inputs).prefix
        kept = [(key.clone(), value.clone()) for key, value in prefix.layers]
        seen = []

        def choose(logits):
            seen.append(logits)
            return 2 + len(seen)  # whatever is likeliest

        ids = reader.write(prefix, 5, choose)
        assert ids == [3, 4, 5, 6, 7]
        whole = network.context(inputs, torch.tensor([[reader.think, *ids]])).prefix
        assert (torch.stack(seen) - whole.logits[0, 1:6]).abs().max() < 1e-4
        for (key, value), (old_key, old_value), (with_text, _) in zip(prefix.layers, kept, whole.layers, strict=True):
            assert torch.equal(key, old_key) and torch.equal(value, old_value)
            assert (with_text - key).abs().max() < 1e-5  # and what is written is not seen by the observation
        assert reader.write(prefix, 5, lambda logits: reader.end) == []


@pytest.mark.parametrize("sizes", BACKBONES)
def test_the_loss_is_flow_and_a_twentieth_and_a_fiftieth(sizes):
    network = make(sizes)
    plan = torch.tensor([[5, 6, 0], [0, 0, 0], [7, 8, 9]])
    batch = batch_of([0, 1, 1], think=torch.tensor([True, False, True]), plan=plan)
    reader = network.reader
    torch.manual_seed(0)
    loss, parts, visual, hidden = network.loss(batch)
    torch.testing.assert_close(loss, parts["flow"] + parts["decision"] / 20 + parts["text"] / 50)
    assert visual.shape == (3, network.visual_size) and hidden.shape == (3, network.hidden_size)
    logits = network.context(batch, torch.nn.functional.pad(plan, (1, 0), value=reader.think)).prefix.logits
    pairs = logits[:, 0, [reader.act, reader.think]]
    torch.testing.assert_close(parts["decision"], cross_entropy(pairs, torch.tensor([1, 0, 1])))
    said = logits.log_softmax(-1)
    words = [(0, 1, 5), (0, 2, 6), (0, 3, reader.end), (2, 1, 7), (2, 2, 8), (2, 3, 9), (2, 4, reader.end)]
    torch.testing.assert_close(parts["text"], -sum(said[place] for place in words) / 7)
    loss.backward()
    without = {name for name, parameter in network.named_parameters() if parameter.grad is None}
    assert without == {name for name, _ in network.named_parameters() if ".turn." in name}  # no sample shows it


def test_no_plan_at_all_costs_nothing():
    parts = make().loss(batch_of([0, 1], plan=torch.zeros(2, 3, dtype=torch.long)))[1]
    assert parts["text"].item() == 0 and parts["decision"].item() > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"plan": None}, "a PlannedBatch with actions, skill, think and plan"),
        ({"skill": torch.tensor([0, 3])}, "skill 3 of a batch: there are 0 .. 2"),
        ({"think": torch.tensor([True])}, r"expected \[2, T, 7\], \[2\], \[2\]"),
        ({"plan": torch.ones(2, 25, dtype=torch.long)}, "up to 24"),
        ({"actions": torch.zeros(2, HORIZON, 6)}, r"expected \[2, T, 7\]"),
    ],
)
def test_wrong_batches_are_refused(changes, message):
    with pytest.raises(PolicyError, match=message):
        make().loss(batch_of([0, 1], **changes))


def test_a_batch_without_plans_is_refused():
    with pytest.raises(PolicyError, match="learns from a PlannedBatch"):
        make().loss(Batch(**vars(inputs_of(2)), actions=torch.zeros(2, HORIZON, 7)))
    with pytest.raises(PolicyError, match="did you mean 'franka'"):
        make().loss(batch_of([0, 1], embodiment="frnaka"))


STATISTICS = {
    "state": {"low": [-1.0] * 10, "high": [1.0] * 10},
    "action": {"low": [[-0.1] * 3 + [-0.4] * 3 + [-1.0]] * HORIZON, "high": [[0.1] * 3 + [0.4] * 3 + [1.0]] * HORIZON},
}
SENTENCES = ("put the red block on the plate", "put the plate away")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A checkpoint that has learnt by heart what to think and do of four observations."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer([*SENTENCES, PICK, PLACE, "open the drawer"])
    layouts = {"franka": layout_for(load_embodiment("franka"), ("front", "wrist"), STATISTICS)}
    sizes = {**SIZES, "vocabulary": VOCABULARY, "expert_width": 64, "writer_width": 32, "draws": 4}
    config = CheckpointConfig("atomic_vla", "tiny", layouts, {"width": 64, "height": 48}, HORIZON, 0.1, sizes)
    network = make_network(config, "test")
    plans = np.stack([encode(tokenizer, text, 24) for text in (PICK, PICK, PLACE, PLACE)])
    batch = batch_of([0, 0, 1, 1], think=torch.tensor([True, False, True, False]), plan=torch.from_numpy(plans))
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.0)
    for _ in range(150):
        optimizer.zero_grad()
        _, parts, _, _ = network.loss(batch)
        sum(parts.values()).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
    folder = tmp_path_factory.mktemp("atomic") / "checkpoint"
    write_checkpoint(folder, config, network.state_dict(), tokenizer)
    return folder, network.eval(), tokenizer, batch


def test_it_learns_one_batch_by_heart(trained):
    _, network, tokenizer, batch = trained
    network.decode = tokenizer.decode
    network.reset()
    with torch.no_grad():
        context = network.context(batch)
        reader = network.reader
        decisions = context.prefix.logits[:, 0, reader.think] > context.prefix.logits[:, 0, reader.act]
        assert decisions.tolist() == batch.think.tolist()
        thoughts = [network.think(context.prefix.row(i)) for i in range(4)]
        assert [(plan.chain, plan.step, plan.skill) for plan in thoughts] == [(CHAIN, 0, "pick")] * 2 + [(CHAIN, 1, "place")] * 2
        error = (network.predict(batch) - batch.actions).abs().mean()
    assert error < 0.25, error  # of targets uniform in -1 .. 1


def observe(stamp_ns, seed=0):
    rng = np.random.default_rng(seed)
    frames = {name: Frame(7, rng.integers(0, 255, (96, 128, 3), dtype=np.uint8), 0, name) for name in ("front", "wrist")}
    state = Proprioception(7, LAYOUTS["franka"].state, np.array([0.5, 0.1, 0.2, 3.1, 0.1, 0.0, 0.08]))
    return Observation(stamp_ns, frames, state, SENTENCES[0])


def test_a_policy_tells_its_plan_with_every_chunk(trained):
    policy = load_policy(str(trained[0]), load_embodiment("franka"))
    Script(policy._network, [[False], [False], [True]], [PICK, PLACE])
    first, second, third = (policy.infer(observe(stamp_ns)) for stamp_ns in (100, 200, 300))
    assert first.plan.task_chain == CHAIN and (first.plan.step, first.plan.skill, first.plan.text) == (0, "pick", PICK)
    assert (first.plan.stamp_ns, second.plan.stamp_ns, third.plan.stamp_ns) == (100, 100, 300)  # when it was thought
    assert (third.plan.step, third.plan.skill) == (1, "place") and second.chunk.stamp_ns == 200
    assert first.chunk.data.shape == (HORIZON, 7)


def test_a_grown_checkpoint_acts_as_before_and_has_the_skill(trained, tmp_path):
    folder, network, _, _ = trained
    skill = Skill("open", 20.0, "pull the drawer out")
    grow_checkpoint(folder, tmp_path / "grown", skill, start="shared")
    config = json.loads((tmp_path / "grown" / "config.json").read_text())
    assert [item["name"] for item in config["network"]["skills"]] == [*(item["name"] for item in SKILLS), "open"]
    grown = load_policy(str(tmp_path / "grown"), load_embodiment("franka"))._network
    inputs = inputs_of()
    for name in ("pick", "place", "turn"):
        assert torch.equal(act(grown, inputs, name), act(network, inputs, name))
    assert act(grown, inputs, "open").isfinite().all()
    with pytest.raises(PolicyError, match="'open' is there already"):
        grow_checkpoint(tmp_path / "grown", tmp_path / "again", skill)


def test_the_prompt_is_the_instruction():
    assert AtomicVla.prompt(LAYOUTS["franka"], "open the drawer", 16, 0.1) == "open the drawer"
