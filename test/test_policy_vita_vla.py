"""VITA-VLA: what learns in which stage, the teacher's part in it, one action token, streaming and its eviction."""

import hashlib
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_vita_vla import (
    HORIZON,
    INTERNVL,
    LENGTH,
    SENTENCE,
    STUDENT,
    TOKENIZER,
    WINDOW,
    at,
    batch,
    config,
    layout,
    learns,
    network,
    part,
    stream,
    teacher_in,
    write,
)  # fmt: skip

from vla_ros.core.embodiment import load_embodiment
from vla_ros.core.errors import ConfigError, PolicyError
from vla_ros.core.types import Frame, Observation, Proprioception
from vla_ros.policies import load_policy
from vla_ros.policies.text import build_tokenizer
from vla_ros.policies.vita_vla.backbones import InternVlQwen
from vla_ros.policies.vita_vla.stages import STAGES, configure_stage

BACKBONES = pytest.mark.parametrize("sizes", [STUDENT, INTERNVL], ids=["convolutional", "internvl"])


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return teacher_in(tmp_path_factory.mktemp("teachers"))


@pytest.fixture
def student(folder):
    return network("vita_vla", STUDENT, teacher=folder).eval()


def digest(tensors):
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in tensors.values())).hexdigest()


def learning(policy):
    return {name.split(".")[0] for name, parameter in policy.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("stage", STAGES)
def test_each_stage_trains_its_own_parts_and_never_the_vision(student, stage):
    configure_stage(student, stage)
    parts = {"align": {"state", "token", "mapper"}, "frozen": {"state", "token", "mapper", "decoder"}}
    assert learning(student) == parts.get(stage, {"state", "token", "mapper", "decoder", "backbone"})
    student.loss(batch())[0].backward()
    for name, parameter in student.named_parameters():
        moved = parameter.grad is not None and parameter.grad.abs().max() > 0
        spared = "embed_tokens" in name  # words that the batch does not say
        assert moved == parameter.requires_grad or spared, name
    assert not any(parameter.requires_grad for parameter in student.backbone.vision.parameters())
    with pytest.raises(ConfigError, match=r"stage 'aling'.*align"):
        configure_stage(student, "aling")


@pytest.mark.parametrize("stage", STAGES)
def test_each_stage_lowers_its_loss(student, stage):
    configure_stage(student, stage)
    first, last = learns(student, batch())
    assert last < 0.85 * first
    with torch.no_grad():
        found = student.predict(batch())
    assert found.shape == batch().actions.shape and found.abs().max() <= 1


@BACKBONES
@pytest.mark.parametrize("name", ["piper", "aloha_piper"])
def test_it_drives_poses_and_two_arms(sizes, name):
    policy, samples = network("vita_vla", sizes, name).eval(), batch(name=name)
    first, last = learns(policy, samples, steps=15)
    assert last < first and policy.predict(samples).shape == samples.actions.shape


def test_the_teacher_never_changes_and_is_no_part_of_the_student(student, folder):
    configure_stage(student, "align", TOKENIZER)
    teacher = student._teacher[0].network
    before, ours, decoder = digest(teacher.state_dict()), dict(student.backbone.vision.state_dict()), student.decoder.state_dict()
    vision = {name: tensor.clone() for name, tensor in ours.items()}
    learns(student, batch(), steps=3)
    configure_stage(student, "finetune")
    learns(student, batch(), steps=3)
    assert digest(teacher.state_dict()) == before
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in teacher.parameters())
    assert all(torch.equal(tensor, vision[name]) for name, tensor in student.backbone.vision.state_dict().items())
    own = {id(parameter) for parameter in student.parameters()}
    assert own.isdisjoint(id(parameter) for parameter in teacher.parameters())
    assert not any("teacher" in name for name in student.state_dict())
    assert not torch.equal(decoder["arm.weight"], teacher.state_dict()["decoder.arm.weight"])  # stage 2 has gone on with its own


@pytest.mark.parametrize("stage", ["align", "only_ft"])
def test_it_starts_with_the_teacher_s_decoder_heads_and_eyes(student, stage):
    configure_stage(student, stage)
    teacher = student._teacher[0].network
    assert digest(student.decoder.state_dict()) == digest(teacher.decoder.state_dict())
    assert digest(student.backbone.vision["tower"].state_dict()) == digest(teacher.eyes.state_dict())
    kept = digest(student.decoder.state_dict())
    configure_stage(student, "finetune")  # and stage 2 takes nothing over again
    assert digest(student.decoder.state_dict()) == kept


def test_with_exact_alignment_it_acts_like_the_teacher(student):
    configure_stage(student, "align")
    teacher, samples = student._teacher[0].network, batch()
    wanted = teacher.action_states(samples)[:, -1]
    student.mapper.forward = lambda states: wanted
    with torch.no_grad():
        assert (student.predict(samples) - teacher.predict(samples)).abs().max() < 1e-6
        student.mapper.forward = lambda states: teacher.action_states(samples)
        assert student.loss(samples)[1]["align"].item() < 1e-12


def test_the_action_tokens_are_copies_of_one_parameter(student):
    copies = student._acting(2)
    assert copies.shape == (2, HORIZON, student.hidden_size) and copies.untyped_storage().data_ptr() == student.token.data_ptr()
    inputs = []
    student.backbone.language.register_forward_pre_hook(
        lambda module, given, named: inputs.append(named["inputs_embeds"]), with_kwargs=True
    )
    student.predict(batch())
    acting = inputs[0][:, -HORIZON:]
    assert torch.equal(acting, student.token.expand_as(acting))
    configure_stage(student, "finetune")
    student.loss(batch())[0].backward()
    assert student.token.grad.shape == (student.hidden_size,) and student.token.grad.abs().sum() > 0
    assert "token" in dict(student.named_parameters()) and student.token.ndim == 1


@BACKBONES
def test_nobody_sees_an_action_token(sizes):
    policy, samples, seen = network("vita_vla", sizes).eval(), batch(), []
    run = policy.backbone.run
    policy.backbone.run = lambda *given: seen.append(run(*given)) or seen[-1]
    with torch.no_grad():
        for change in (0.0, 5.0):
            policy.token += change
            policy.action_states(samples.images, samples.state, samples, everywhere=True)
    changed = (seen[0] - seen[1]).abs().amax((0, 2)) > 1e-6
    each = changed.view(WINDOW, -1)
    assert each[:, -HORIZON:].all() and not each[:, :-HORIZON].any()


@BACKBONES
def test_what_comes_later_changes_nothing_before(sizes):
    policy, samples = network("vita_vla", sizes).eval(), batch()
    images = samples.images.clone()
    images[:, -1] = images[:, -1].flip(-1)
    with torch.no_grad():
        first = policy.action_states(samples.images, samples.state, samples, everywhere=True)
        second = policy.action_states(images, samples.state, samples, everywhere=True)
    assert torch.equal(first[:, :-1], second[:, :-1]) and (first[:, -1] - second[:, -1]).abs().max() > 1e-5


@BACKBONES
def test_streaming_is_a_full_pass(sizes):
    policy, samples = network("vita_vla", sizes).eval(), batch()
    found = stream(policy, samples, WINDOW)
    for step, rows in enumerate(found):
        with torch.no_grad():
            assert (rows - policy.predict(part(samples, 0, step + 1))).abs().max() < 1e-6
    assert (found[0] - found[-1]).abs().max() > 1e-4


@BACKBONES
def test_evicting_is_a_pass_over_the_rollout_in_which_each_step_sees_the_window(sizes):
    """And not a pass over the last observations alone, see `stream`."""
    steps = WINDOW + 3
    policy, samples = network("vita_vla", sizes).eval(), batch(window=steps)
    found = stream(policy, samples, steps)[-1]
    with torch.no_grad():
        states = policy.action_states(samples.images, samples.state, samples)[:, -1]
        whole = policy.channels.actions(*policy.decoder(policy.mapper(states)), samples.embodiment)
        alone = policy.predict(samples)
    assert (found - whole).abs().max() < 1e-6
    assert (found - alone).abs().max() > 1e-5
    kept = policy._stream._cache.layers[0].keys.shape[2]
    assert kept == policy._stream._mask.shape[1] == (WINDOW - 1) * (kept // (WINDOW - 1))  # never more, however long the rollout


def test_what_has_left_the_window_is_no_longer_seen_by_a_single_layer():
    shallow = {**STUDENT, "text": {**STUDENT["text"], "num_hidden_layers": 1}}
    policy, samples = network("vita_vla", shallow).eval(), batch(window=WINDOW + 2)
    assert (stream(policy, samples, WINDOW + 2)[-1] - policy.predict(samples)).abs().max() < 1e-6


def test_a_window_of_one_has_no_history():
    policy, samples = network("vita_vla", STUDENT, window=1).eval(), batch(window=3)
    last = stream(policy, samples, 3)[-1]
    assert (last - policy.predict(part(samples, 2, 3))).abs().max() < 1e-6


def test_reset_forgets_and_another_rollout_needs_it(student):
    samples = batch()
    first = stream(student, samples, 2)
    again = stream(student, samples, 1)
    assert (again[0] - first[0]).abs().max() > 1e-5
    student.reset()
    assert torch.equal(stream(student, samples, 1)[0], first[0])
    with pytest.raises(PolicyError, match=r"2 x piper_joints, now come 1 .* reset"):
        student.predict(at(batch(count=1), 0))


def test_padding_does_not_count(student):
    samples = batch()
    longer = replace(samples, tokens=torch.cat([samples.tokens, torch.zeros(2, 4, dtype=torch.long)], 1))
    network_for_more = network("vita_vla", STUDENT, text_length=LENGTH + 4).eval()
    state = {name: tensor for name, tensor in student.state_dict().items() if not name.endswith("text.position")}
    network_for_more.load_state_dict(state, strict=False)
    position = "backbone.vision.tower.text.position"
    network_for_more.state_dict()[position][:LENGTH] = student.state_dict()[position]
    with torch.no_grad():
        assert torch.allclose(student.predict(samples), network_for_more.predict(longer), atol=1e-5)


def test_two_pictures_of_200_px_are_98_tokens():
    sizes = {**InternVlQwen.SIZES, "preset": "paper", "vocabulary": 151674}
    with torch.device("meta"):
        backbone = InternVlQwen(("front", "wrist"), sizes)
        tokens = backbone.look(torch.empty(1, 2, 3, 480, 640), torch.empty(1, 8, dtype=torch.long), ("front", "wrist"))
    assert tokens.shape == (1, 2 * 49, 3584)


def edited(folder, tmp_path, change):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    values = json.loads((copy / "config.json").read_text())
    change(values)
    (copy / "config.json").write_text(json.dumps(values))
    return str(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(system="robovlms"), r"system 'robovlms', a teacher is a 'seer'"),
        (lambda c: c["layouts"].update(piper=c["layouts"].pop("piper_joints")), r"a teacher for piper, the student drives piper_joints"),
        (
            lambda c: c["layouts"]["piper_joints"]["cameras"].reverse(),
            r"cameras \['wrist', 'front'\], the student has",
        ),
        (lambda c: c["layouts"]["piper_joints"]["channels"].pop(0), r"layouts.piper_joints.channels"),
        (lambda c: c["layouts"]["piper_joints"]["normalization"]["state"]["low"].__setitem__(0, -0.2), r"normalization is not that of"),
        (lambda c: c.update(horizon=4), r"horizon 4, the student needs 3"),
        (lambda c: c["network"].update(width=32), r"teacher_width\) 32, the student needs 24"),
        (lambda c: c["network"].update(window=5), r"network.window 5, the student needs 3"),
        (lambda c: c["network"].update(vocabulary=99), r"network.vocabulary 99, the student needs"),
        (lambda c: c["network"].update(text_length=9), r"network.text_length 9, the student needs 6"),
    ],
)
@pytest.mark.parametrize("stage", ["align", "only_ft"])
def test_a_teacher_of_something_else_is_refused(folder, tmp_path, change, message, stage):
    policy = network("vita_vla", STUDENT, teacher=edited(folder, tmp_path, change))
    with pytest.raises(PolicyError, match=rf"copy/config.json: .*{message}"):
        configure_stage(policy, stage)


def test_no_teacher_other_words_other_pictures_and_other_eyes_are_refused(student, folder, tmp_path):
    with pytest.raises(PolicyError, match=r"network.teacher is empty"):
        configure_stage(network("vita_vla", STUDENT), "align")
    with pytest.raises(PolicyError, match=r"checkpoint 'seeer': no such folder"):
        configure_stage(network("vita_vla", STUDENT, teacher="seeer"), "only_ft")
    with pytest.raises(PolicyError, match=r"tokenizer.json: other words"):
        configure_stage(student, "align", build_tokenizer([SENTENCE, "blue"]))
    with pytest.raises(PolicyError, match=r"eyes do not fit"):
        configure_stage(network("vita_vla", STUDENT, teacher=folder, keypoints=8), "align")
    configure_stage(student, "align")
    with pytest.raises(PolicyError, match=r"'width': 64, 'height': 48.* 32 x 24 px"):
        student.loss(replace(batch(), images=batch().images[..., ::2, ::2]))
    student._teacher.clear()
    with pytest.raises(PolicyError, match=r"align without a teacher"):
        student.loss(batch())


def test_its_checkpoint_drives_without_the_teacher(student, tmp_path):
    sizes = {**STUDENT, "teacher": str(tmp_path / "gone")}
    path = write(tmp_path / "student", config("vita_vla", sizes), student)
    policy = load_policy(path, load_embodiment("piper_joints"))
    rng = np.random.default_rng(0)
    frames = {name: Frame(7, rng.integers(0, 255, (480, 640, 3), dtype=np.uint8), 0, name) for name in ("front", "wrist")}
    state = Proprioception(7, layout().state, np.array([0.0, 0.1, 0.2, 0.0, 0.1, 0.2, 0.05]))
    chunks = [policy.infer(Observation(1, frames, state, SENTENCE)).chunk.data for _ in range(2)]
    policy.reset()
    again = policy.infer(Observation(1, frames, state, SENTENCE)).chunk.data
    assert chunks[0].shape == (HORIZON, 7) and np.array_equal(again, chunks[0]) and not np.array_equal(chunks[0], chunks[1])


@pytest.mark.parametrize(
    ("sizes", "changes", "message"),
    [
        (STUDENT, {"backbone": "qwen"}, r"network.backbone = 'qwen'.*internvl_qwen2_5"),
        (STUDENT, {"teacher_width": ...}, r"lacks teacher_width"),
        (STUDENT, {"teacher": 3}, r"network.teacher = 3, expected a name or a folder"),
        (INTERNVL, {"image_size": 56}, r"image_size = 56: 7 patches of 8 px a side, expected a multiple of 2"),
        (INTERNVL, {"text": {"num_hidden_layers": 1000}}, r"text.num_hidden_layers = 1000, expected 0 .. 256"),
    ],
)
def test_wrong_sizes_are_named(sizes, changes, message):
    with pytest.raises(PolicyError, match=message):
        network("vita_vla", sizes, **changes)


def test_it_runs_in_bfloat16(student):
    configure_stage(student, "align")
    with torch.autocast("cpu", torch.bfloat16):
        loss = student.loss(batch())[0]
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite()
    whole = network("vita_vla", INTERNVL).to(torch.bfloat16).eval()
    assert all(rows.isfinite().all() for rows in stream(whole, batch(), WINDOW))
