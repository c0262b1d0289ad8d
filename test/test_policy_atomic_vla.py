"""AtomicVLA's experts: pi0 without them, only the selected one runs, old skills stay to the bit, what learns, the paper's sizes."""

import json
from importlib.util import find_spec

import pytest
import torch
from atomic_networks import HORIZON, LAYERS, LAYOUTS, PALIGEMMA, SIZES, SKILLS, STEPS, act, batch_of, inputs_of, make, shaken
from typer.testing import CliRunner

from vla_ros.cli.main import app
from vla_ros.core.errors import PolicyError
from vla_ros.policies.atomic_vla import expert as expert_module
from vla_ros.policies.atomic_vla import mixture
from vla_ros.policies.atomic_vla.expert import SwiGlu, shared_alone
from vla_ros.policies.atomic_vla.mixture import embedding, fused_mix
from vla_ros.policies.atomic_vla.network import AtomicVla
from vla_ros.policies.atomic_vla.skills import Skill, next_sigma, read_skills, with_skill
from vla_ros.policies.atomic_vla.stages import learn_everything, learn_skill
from vla_ros.policies.flow import solve

needs_transformers = pytest.mark.skipif(find_spec("transformers") is None, reason="transformers is not installed")
BACKBONES = [pytest.param(SIZES, id="convolutional"), pytest.param(PALIGEMMA, id="paligemma", marks=needs_transformers)]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def network():
    return make()


def close_gates(network):
    for gate in network.library.gates.values():
        torch.nn.init.zeros_(gate.weight)
        torch.nn.init.constant_(gate.bias, -1e4)


@pytest.mark.parametrize("sizes", BACKBONES)
def test_closed_gates_make_pi0(sizes):
    network, inputs = make(sizes), inputs_of(2)
    open_gates = act(network, inputs, "pick", "turn")
    close_gates(network)
    assert network.library.weight("pick").item() == 0
    context = network.context(inputs)
    rows, tau = torch.randn(2, HORIZON, 32), torch.tensor([0.3, 0.9])
    with torch.no_grad():
        pi0 = network.velocity(context, shared_alone)(rows, tau)
        assert torch.equal(network.velocity(context, network.library.blend(["pick", "turn"]))(rows, tau), pi0)
        found = act(network, inputs, "pick", "turn")
        network.library = None
        network.routing = "none"
        assert (found - act(network, inputs, "pick", "turn")).abs().max() < 1e-6
    assert (found - open_gates).abs().max() > 0.01


@needs_transformers
def test_without_skills_it_is_the_pi0_of_transformers():
    """An oracle from elsewhere: the same weights in both."""
    from transformers import PI0Config, PI0ForConditionalGeneration

    from vla_ros.policies.vlms.presets import configuration

    torch.manual_seed(0)
    network, inputs = AtomicVla(LAYOUTS, HORIZON, PALIGEMMA).eval(), inputs_of(2)
    reader, own = network.reader, shaken(network.expert)
    values = {"preset": "tiny", "vocabulary": PALIGEMMA["vocabulary"], "text": PALIGEMMA["text"], "vision": PALIGEMMA["vision"]}
    dit = {"model_type": "gemma", "hidden_size": 32, "num_hidden_layers": LAYERS, "intermediate_size": 48, "num_attention_heads": 4}
    dit |= {"num_key_value_heads": 1, "head_dim": 32, "hidden_act": "silu"}
    config = PI0Config(vlm_config=configuration("paligemma", values).to_dict(), dit_config=dit, chunk_size=HORIZON)
    pi0 = PI0ForConditionalGeneration(config).eval()
    pi0.model.vlm.load_state_dict(reader.vlm.state_dict())
    with torch.no_grad():
        copy_expert(own, pi0)
        features = reader._look(inputs.images)
        words = reader._embed(inputs.tokens)
        embeds = torch.cat([features.flatten(1, 2), words, reader.lrn.expand(2, 1, -1)], 1)
        mask = torch.cat([torch.ones(features.shape[0], features.shape[1] * features.shape[2]), inputs.tokens != 0, torch.ones(2, 1)], 1)
        mask = mask.long()
        rows, context = torch.randn(2, HORIZON, 32), network.context(inputs)
        # The fastest sinusoid turns 250 times until tau = 1, where float32 holds its phase to 2e-4 and the two round differently.
        for tau, tolerance in ((torch.tensor([0.004, 0.02]), 1e-5), (torch.tensor([0.3, 0.9]), 1e-3)):
            expected = pi0(
                state=context.state, noise=rows, timestep=tau, inputs_embeds=embeds, attention_mask=mask, pixel_values=inputs.images,
                position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
            ).logits  # fmt: skip
            assert expected.abs().max() > 0.1
            assert (own.velocity(context.prefix, context.state, rows, tau) - expected).abs().max() < tolerance


def copy_expert(own, pi0):
    """Our expert's weights into transformers' modules."""
    embed, dit = pi0.embed_action_time, pi0.model.dit
    pairs = [(own.read_state, embed.state_proj), (own.read_actions, embed.action_in_proj), (own.read_time[0], embed.action_time_mlp_in)]
    pairs += [(own.read_time[2], embed.action_time_mlp_out), (own.norm, dit.norm), (own.write_actions, pi0.action_out_proj)]
    for layer, theirs in zip(own.layers, dit.layers, strict=True):
        pairs += [(layer.norm, theirs.input_layernorm), (layer.norm_shared, theirs.post_attention_layernorm)]
        pairs += [(layer.output, theirs.self_attn.o_proj), (layer.shared.down, theirs.mlp.down_proj)]
        query, key, value = layer.qkv.weight.split((4 * 32, 32, 32))
        gate, up = layer.shared.gate_up.weight.chunk(2)
        for weight, module in ((query, "q"), (key, "k"), (value, "v")):
            getattr(theirs.self_attn, f"{module}_proj").weight.copy_(weight)
        theirs.mlp.gate_proj.weight.copy_(gate)
        theirs.mlp.up_proj.weight.copy_(up)
    for ours, theirs in pairs:
        theirs.load_state_dict(ours.state_dict())


def test_an_act_calls_one_expert_a_layer_and_step(network, monkeypatch):
    calls = []

    def counted(x, gate_up, down, activation):
        calls.append(gate_up.shape[0])
        return swiglu(x, gate_up, down, activation)

    swiglu = expert_module.swiglu
    monkeypatch.setattr(expert_module, "swiglu", counted)
    monkeypatch.setattr(mixture, "swiglu", counted)
    expected = act(network, inputs_of(), "place")
    assert calls == [4 * SIZES["expert_hidden"]] * (LAYERS * STEPS)  # shared and selected part in one
    calls.clear()
    for name in ("pick", "turn"):
        for parameter in network.library.experts[name].parameters():
            parameter.data.fill_(float("nan"))  # what is not selected is not even multiplied by zero
    assert torch.equal(act(network, inputs_of(), "place"), expected)


def test_training_runs_the_experts_of_the_batch_alone(network):
    calls = []
    for name, parts in network.library.experts.items():
        for part in parts:
            part.register_forward_hook(lambda *_, name=name: calls.append(name))
    network.loss(batch_of([0, 2, 0, 0]))
    assert sorted(calls) == ["pick"] * LAYERS + ["turn"] * LAYERS


def test_fused_is_the_definition_for_each_observation_of_a_batch(network):
    inputs, names = inputs_of(4), ["turn", "pick", "place", "turn"]
    context = network.context(inputs)
    rows, tau = torch.randn(4, HORIZON, 32), torch.rand(4)
    parts = {name: network.library.fuse(name, network.expert) for name in set(names)}
    with torch.no_grad():
        whole = network.velocity(context, network.library.blend(names))(rows, tau)
        assert (network.velocity(context, fused_mix(names, parts))(rows, tau) - whole).abs().max() < 1e-5
        for i, name in enumerate(names):
            one = context._replace(prefix=context.prefix.row(i), state=context.state[i : i + 1])
            alone = network.velocity(one, fused_mix([name], parts))(rows[i : i + 1], tau[i : i + 1])
            assert (alone - whole[i : i + 1]).abs().max() < 1e-5
    x = torch.randn(1, 3, 32)
    layer, weight = network.expert.layers[1], network.library.weight("turn")
    expected = (1 - weight) * layer.shared(x) + weight * network.library.experts["turn"][1](x)  # the paper's equation 3
    torch.testing.assert_close(network.library.blend(["turn"])(1, layer.shared, x), expected)


@pytest.mark.parametrize("sizes", BACKBONES)
def test_cached_is_uncached(sizes):
    network, inputs = make(sizes), inputs_of(2)
    network.reset()
    noise = network.noise.draw((2, HORIZON, 32))
    mix = network.library.blend(["place", "pick"])

    def whole(rows, tau):
        return network.velocity(network.context(inputs), mix)(rows, tau)

    with torch.no_grad():
        uncached = solve(whole, noise, STEPS)[..., :7]
    cached = act(network, inputs, "place", "pick")
    assert (cached - noise[..., :7]).abs().max() > 0.1
    assert (cached - uncached).abs().max() < 1e-5


@pytest.mark.parametrize("sizes", BACKBONES)
def test_it_looks_and_reads_and_feels_and_padding_is_nothing(sizes):
    network, inputs = make(sizes), inputs_of()
    actions = act(network, inputs, "pick")
    changes = {"images": -inputs.images, "tokens": inputs.tokens.flip(1), "state": -inputs.state}
    for name, value in changes.items():
        assert not torch.equal(act(network, type(inputs)(**{**vars(inputs), name: value}), "pick"), actions), name
    shorter = type(inputs)(**{**vars(inputs), "tokens": inputs.tokens[:, :-2]})
    assert (act(network, shorter, "pick") - actions).abs().max() < 1e-5
    assert not torch.equal(act(network, inputs, "turn"), actions)


def test_a_prefix_is_continued(network):
    inputs, prefix = inputs_of(), torch.full((1, HORIZON, 7), 0.3)
    free = act(network, inputs, "pick")
    held = act(network, inputs_of(prefix=prefix, prefix_weights=torch.tensor([1.0, 1.0, 0.5, 0.0, 0.0])), "pick")
    assert (held - prefix)[:, :2].abs().mean() < 0.7 * (free - prefix)[:, :2].abs().mean()


@pytest.mark.parametrize("start", mixture.STARTS)
def test_an_added_skill_learns_and_the_old_ones_do_not_change_by_a_bit(network, start):
    inputs = inputs_of(2)
    before = {name: act(network, inputs, name, name) for name in ("pick", "place", "turn")}
    old = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network.add_skill(Skill("open", next_sigma(network.skills)), start)
    with torch.no_grad():
        pi0 = network.velocity(network.context(inputs), shared_alone)(before["pick"].new_zeros(2, HORIZON, 32), torch.ones(2))
        new = network.velocity(network.context(inputs), network.library.blend(["open"] * 2))(torch.zeros(2, HORIZON, 32), torch.ones(2))
    assert ((new - pi0).abs().max() < 1e-6) == (start == "shared")
    learn_skill(network, "open")
    untrained = act(network, inputs, "open", "open")
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2, weight_decay=0.5)
    batch = batch_of([3, 3])
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        torch.manual_seed(0)
        loss, parts, _, _ = network.train().loss(batch)
        loss.backward()
        optimizer.step()
        losses.append(parts["flow"].item())
    moved = {name for name, parameter in network.named_parameters() if parameter.grad is not None and parameter.grad.abs().sum() > 0}
    expected = {name for name, _ in network.named_parameters() if name.startswith(("library.experts.open.", "library.gates.open."))}
    assert moved == expected and len(moved) == 2 * LAYERS + 2
    network.eval()
    for name, actions in before.items():
        assert torch.equal(act(network, inputs, name, name), actions), name
    assert all(torch.equal(network.state_dict()[name], tensor) for name, tensor in old.items())
    assert losses[-1] < losses[0] and not torch.equal(act(network, inputs, "open", "open"), untrained)
    with pytest.raises(PolicyError, match="a batch shows pick, but open alone learns"):
        network.loss(batch_of([3, 0]))
    learn_everything(network)
    network.loss(batch_of([3, 0]))[0].backward()
    assert all(parameter.grad is not None for parameter in network.expert.parameters())


def test_the_writer_may_learn_along_where_acting_does_not_read_it(network):
    before = act(network, inputs_of(), "pick")
    learn_skill(network, "turn", writer=True)
    assert {name.split(".")[1] for name, parameter in network.named_parameters() if parameter.requires_grad} == {
        "writer", "experts", "gates",
    }  # fmt: skip
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    network.loss(batch_of([2, 2]))[0].backward()
    optimizer.step()
    assert torch.equal(act(network, inputs_of(), "pick"), before)
    with pytest.raises(PolicyError, match="did you mean 'turn'"):
        learn_skill(network, "trun")


@needs_transformers
def test_a_backbone_that_writes_itself_does_not_learn_along():
    with pytest.raises(PolicyError, match="leave the writer out"):
        learn_skill(make(PALIGEMMA), "turn", writer=True)


def test_weights_that_change_are_fused_anew(network):
    inputs = inputs_of()
    context = network.context(inputs)
    with torch.no_grad():
        network.reset()
        first = network.act(context, ["pick"], inputs)
        kept = network._fused["pick"]
        network.act(context, ["pick"], inputs)
        assert network._fused["pick"] is kept
        network.act(context, ["turn"], inputs)
        assert list(network._fused) == ["turn"]
        shaken(network.library.experts["pick"])
        assert not torch.equal(act(network, inputs, "pick"), first)


def test_tokens_choose_for_themselves_in_the_ablation():
    network = make(routing="token")
    chosen = set()
    for name, parts in network.library.experts.items():
        parts[0].register_forward_hook(lambda *_, name=name: chosen.add(name))
    loss, parts, _, _ = network.train().loss(batch_of([0, 0, 0, 0]))
    assert len(chosen) > 1  # although all have one skill
    assert set(parts) == {"flow", "decision", "text", "balance"} and 0 < parts["balance"].item() <= len(SKILLS)
    torch.testing.assert_close(loss, parts["flow"] + parts["decision"] / 20 + parts["text"] / 50 + 0.01 * parts["balance"])
    loss.backward()
    assert all(router.weight.grad.abs().sum() > 0 for router in network.library.routers)
    with torch.no_grad():
        assert torch.equal(act(network.eval(), inputs_of(), "pick"), act(network, inputs_of(), "turn"))
        x = torch.randn(1, 3, 32)
        found = network.library.mix(0, network.expert.layers[0].shared, x)
        chances = network.library.routers[0](x).softmax(-1)[0]
        for token, row in enumerate(chances):
            k = int(row.argmax())
            own = network.library.experts[SKILLS[k]["name"]][0](x[:, token])
            expected = (1 - row[k]) * network.expert.layers[0].shared(x[:, token]) + row[k] * own
            torch.testing.assert_close(found[:, token], expected)
    with pytest.raises(PolicyError, match="routing 'token'"):
        network.add_skill(Skill("open", 20.0))
    without = make(routing="none")
    assert without.library is None and without.loss(batch_of([0, 1]))[0].isfinite()


@pytest.mark.parametrize("routing", ["skill", "token", "none"])
def test_it_trains_in_bfloat16(routing):
    network = make(routing=routing).train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = network.loss(batch_of([0, 1, 2, 0]))[0]
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters() if parameter.grad is not None)


@needs_transformers
def test_all_of_it_runs_in_bfloat16():
    network, inputs = make(PALIGEMMA), inputs_of()
    expected = act(network, inputs, "pick")
    with torch.autocast("cpu", torch.bfloat16):
        found = act(network.to(torch.bfloat16), inputs, "pick")
        network.reader.write(network.context(inputs).prefix, 3, lambda logits: int(logits.argmax()))
    assert (found - expected).abs().mean() < 0.1 * expected.abs().mean()


def test_levels_and_their_embeddings_are_apart():
    skills = list(read_skills(SKILLS))
    while len(skills) < 20:
        skills.append(Skill(f"skill{len(skills)}", next_sigma(skills)))
    assert len({skill.sigma for skill in read_skills([vars(skill) for skill in skills])}) == 20
    places = torch.stack([embedding(skill.sigma, 128) for skill in skills])
    assert (torch.cdist(places, places) + 10 * torch.eye(20)).min() > 0.5
    assert next_sigma([]) == 10 and next_sigma(skills[:1]) == pytest.approx(100)
    grown = with_skill(SIZES, Skill("open", 20.0, "pull it out"))
    assert grown["skills"][-1] == {"name": "open", "sigma": 20.0, "text": "pull it out"} and len(SIZES["skills"]) == 3


def describe_paper():
    result = CliRunner().invoke(app, ["policy", "describe", "atomic_vla", "--preset", "paper", "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@needs_transformers
def test_the_paper_s_network_has_the_paper_s_size():
    described = describe_paper()
    modules = described["modules"]
    names = ("pick", "place", "open", "close", "turn")
    for name in names:
        assert modules[f"library.experts.{name}"] == pytest.approx(226.5e6, rel=0.005)
    one, gate = modules["library.experts.pick"], modules["library.gates.pick"]
    pi0 = modules["reader"] + modules["expert"]
    assert pi0 == pytest.approx(3.24e9, rel=0.005)  # the paper's table 10, without experts
    assert described["parameters"] == pi0 + len(names) * (one + gate) and gate == 1025


def test_each_skill_adds_exactly_one_expert_and_a_gate():
    one = sum(parameter.numel() for parameter in SwiGlu(32, 48, "silu").parameters()) * LAYERS + 33
    sizes = [
        sum(parameter.numel() for parameter in AtomicVla(LAYOUTS, HORIZON, {**SIZES, "skills": SKILLS[:k]}).parameters()) for k in (1, 2, 3)
    ]
    assert sizes[1] - sizes[0] == sizes[2] - sizes[1] == one


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"skills": []}, "a list of 1 .. 256 skills"),
        ({"skills": "pick"}, "network.skills = 'pick'"),
        ({"skills": [{"name": "pick"}]}, "expected name, sigma"),
        ({"skills": [*SKILLS, {"name": "pick", "sigma": 50.0}]}, "'pick' is there already"),
        ({"skills": [*SKILLS, {"name": "open", "sigma": 10.0}]}, "sigma 10 belongs to 'pick'; .* is free"),
        ({"skills": [{"name": "open", "sigma": 9.0}]}, "sigma 9.0, expected 10 .. 100"),
        ({"skills": [{"name": "open", "sigma": float("nan")}]}, "sigma nan"),
        ({"skills": [{"name": "Pick it", "sigma": 20.0}]}, "'Pick it': expected one word"),
        ({"skills": [{"name": "train", "sigma": 20.0}]}, "no attribute of a torch module"),
        ({"routing": "skil"}, "did you mean 'skill'"),
        ({"expert_activation": "relu"}, "network.expert_activation = 'relu'"),
        ({"expert_heads": 5, "expert_key_heads": 2}, "multiple of expert_key_heads"),
        ({"writer_heads": 3}, "multiple of writer_heads"),
        ({"expert_width": 33}, "must be even"),
        ({"channels": 4}, "franka has 7"),
        ({"backbone": "kosmos2"}, "network.backbone = 'kosmos2'"),
        ({"expert_layer": 3}, "did you mean 'expert_layers'"),
    ],
)
def test_wrong_sizes_are_refused(sizes, message):
    with pytest.raises(PolicyError, match=message):
        AtomicVla(LAYOUTS, HORIZON, {**SIZES, **sizes})


@needs_transformers
@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"expert_layers": 3}, r"are \(3, 1, 32, 10000.0\); .* model with \(2, 1, 32, 10000.0\)"),
        ({"text": {"num_hidden_layers": 2, "vocab_size": 31}}, "3 are reserved"),
    ],
)
def test_an_expert_that_does_not_fit_the_language_model_is_refused(sizes, message):
    with pytest.raises(PolicyError, match=message):
        AtomicVla(LAYOUTS, HORIZON, {**PALIGEMMA, **sizes})
