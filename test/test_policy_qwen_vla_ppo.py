"""PPO for Qwen-VLA: probabilities that can be computed again, advantages and objective by hand, a value head that pushes nobody."""

import math

import pytest
import torch

from vla_ros.core.errors import PolicyError
from vla_ros.policies.flow import NoiseSource, solve
from vla_ros.policies.qwen_vla.ppo import ValueHead, advantages, normalized, objective, parameter_groups
from vla_ros.policies.qwen_vla.sde import log_prob, sample, transition

BATCH, ROWS, CHANNELS, STEPS, LEVEL = 4, 3, 5, 4, 0.3
MASK = torch.tensor([True, True, True, False, False]).expand(ROWS, CHANNELS)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return torch.nn.Linear(CHANNELS + 1, CHANNELS)


def velocity_of(net):
    return lambda rows, tau: net(torch.cat([torch.where(MASK, rows, 0.0), tau[:, None, None].expand(-1, ROWS, 1)], -1))


def drawn(net, seed=0, **more):
    noise = NoiseSource(7).draw((BATCH, ROWS, CHANNELS))
    with torch.no_grad():
        return sample(velocity_of(net), noise, MASK, STEPS, LEVEL, NoiseSource(seed), **more)


def test_the_same_trajectory_has_the_same_probability_again(net):
    denoising = drawn(net)
    for step in range(STEPS):
        assert torch.equal(log_prob(velocity_of(net), denoising, step).detach(), denoising.log_probs[step])


def test_other_weights_mean_another_probability(net):
    denoising = drawn(net)
    with torch.no_grad():
        net.bias += 0.1
    again = log_prob(velocity_of(net), denoising, 1)
    assert (again.detach() - denoising.log_probs[1]).sum(-1).abs().min() > 1e-3
    again.sum().backward()
    assert (net.bias.grad[:3] != 0).all()
    assert (net.bias.grad[3:] == 0).all()  # of channels that are not the robot's


def test_a_step_is_the_gaussian_of_the_formula(net):
    denoising, step = drawn(net), 2
    tau, length = 0.5, 0.25
    rows, after = denoising.states[step], denoising.states[step + 1]
    speed = velocity_of(net)(rows, torch.full((BATCH,), tau)).detach()
    spread = LEVEL * math.sqrt(tau / (1 - tau))
    mean = rows - length * (speed + spread**2 / (2 * tau) * (rows + (1 - tau) * speed))
    normal = torch.distributions.Normal(mean, spread * math.sqrt(length))
    expected = normal.log_prob(after)[..., :3].sum(-1)
    torch.testing.assert_close(denoising.log_probs[step], expected)
    assert (denoising.actions[..., 3:] == 0).all()


def test_the_noise_is_that_of_its_seed_and_temperature(net):
    assert torch.equal(drawn(net).states, drawn(net).states)
    assert not torch.equal(drawn(net).actions, drawn(net, seed=1).actions)
    noise = NoiseSource(7).draw((BATCH, ROWS, CHANNELS))
    mean, _ = transition(velocity_of(net), torch.where(MASK, noise, 0.0), 0, STEPS, LEVEL)
    torch.testing.assert_close(drawn(net, temperature=0.0).states[1], torch.where(MASK, mean.detach(), 0.0))


def test_the_sde_has_the_marginals_of_the_flow():
    """From N(m, 0.5^2) in each entry, whose exact velocity is known, both end in the same distribution."""
    mean, deviation = 0.7, 0.5

    def velocity(rows, tau):
        share = tau[:, None, None]
        variance = ((1 - share) * deviation).square() + share.square()
        surplus = rows - (1 - share) * mean
        return share / variance * surplus - mean - (1 - share) * deviation**2 / variance * surplus

    noise = NoiseSource(1).draw((4000, ROWS, CHANNELS))
    free = solve(velocity, noise, 100)
    found = sample(velocity, noise, torch.ones(ROWS, CHANNELS, dtype=torch.bool), 100, 0.5, NoiseSource(2)).actions
    assert (found - free).abs().mean() > 0.1
    for actions in (free, found):
        assert float(actions.mean()) == pytest.approx(mean, abs=0.02)
        assert float(actions.std()) == pytest.approx(deviation, abs=0.02)


@pytest.mark.parametrize(("steps", "level"), [(0, 0.3), (4, 0.0)])
def test_no_steps_or_no_noise_have_no_probability(net, steps, level):
    with pytest.raises(PolicyError, match="above 0"):
        sample(velocity_of(net), torch.zeros(BATCH, ROWS, CHANNELS), MASK, steps, level, NoiseSource())
    with pytest.raises(PolicyError, match=r"step 4; the trajectory has 0 \.\. 3"):
        log_prob(velocity_of(net), drawn(net), 4)


def test_advantages_by_hand():
    rewards = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    values = torch.tensor([[0.5, 0.2], [0.6, 0.4], [0.7, 0.3]])
    ended = torch.tensor([[False, False], [False, True], [False, False]])
    found, returns = advantages(rewards, values, ended, torch.tensor([0.9, 0.8]), gamma=0.9, trace=0.5)
    # environment 0 goes on: d2 = 1 + .9*.9 - .7 = 1.11, d1 = .9*.7 - .6 = .03, d0 = .9*.6 - .5 = .04
    first = [0.04 + 0.45 * (0.03 + 0.45 * 1.11), 0.03 + 0.45 * 1.11, 1.11]
    # environment 1 ends after step 1: d1 = 1 - .4 = .6, d0 = .9*.4 - .2 = .16, then anew d2 = .9*.8 - .3 = .42
    second = [0.16 + 0.45 * 0.6, 0.6, 0.42]
    torch.testing.assert_close(found, torch.tensor([first, second]).T)
    torch.testing.assert_close(returns, found + values)


def test_the_objective_by_hand():
    ratio = torch.tensor([1.5, 1.5, 0.5, 0.5, 1.1])
    advantage = torch.tensor([1.0, -1.0, 1.0, -1.0, 2.0])
    log_probs = ratio.log().requires_grad_()
    values, old_values = torch.tensor([0.5, 0.5, 0.5, 0.5, 0.5]).requires_grad_(), torch.tensor([0.5, 0.5, 0.5, 0.0, 1.0])
    returns = torch.tensor([0.5, 1.0, 0.5, 1.0, 0.0])
    found = objective(log_probs, torch.zeros(5), advantage, values, old_values, returns, epsilon=0.2)
    found.loss.backward()
    found = type(found)(*[part.detach() for part in found])
    # min(r A, clip(r) A): 1.2, -1.5, 0.5, -0.8, 2.2
    assert float(found.actor) == pytest.approx(-(1.2 - 1.5 + 0.5 - 0.8 + 2.2) / 5)
    # max of the plain and the clipped square: 0, .25, 0, max(.25, (.2 - 1)^2) = .64, max(.25, .8^2) = .64
    assert float(found.value) == pytest.approx((0 + 0.25 + 0 + 0.64 + 0.64) / 5)
    assert float(found.loss) == pytest.approx(float(found.actor + found.value))
    assert float(found.clipped) == pytest.approx(4 / 5)
    assert float(found.divergence) == pytest.approx(float((ratio - 1 - ratio.log()).mean()))
    # where the clip holds there is no gradient: the first and the fourth
    assert [bool(gradient) for gradient in log_probs.grad] == [False, True, True, False, True]
    assert [bool(gradient) for gradient in values.grad] == [False, True, False, False, False]


def test_unchanged_weights_have_the_plain_policy_gradient():
    log_probs = torch.zeros(3, requires_grad=True)
    advantage = normalized(torch.tensor([1.0, 2.0, 6.0]))
    assert float(advantage.mean()) == pytest.approx(0, abs=1e-6)
    assert float(advantage.std(correction=0)) == pytest.approx(1, abs=1e-5)
    objective(log_probs, torch.zeros(3), advantage, *torch.zeros(3, 3)).actor.backward()
    torch.testing.assert_close(log_probs.grad, -advantage / 3)
    assert (normalized(torch.ones(3)) == 0).all()


def test_the_value_head_learns_and_pushes_nobody():
    head = ValueHead(6)
    torch.nn.init.normal_(head.line.weight)
    sequence = torch.randn(2, 4, 6, requires_grad=True)
    mask = torch.tensor([[True, True, False, False], [True, True, True, True]])
    values = head(sequence, mask)
    torch.testing.assert_close(values[0], head.line(sequence[0, :2].mean(0)).squeeze())
    values.sum().backward()
    assert sequence.grad is None
    assert (head.line.weight.grad != 0).all()


def test_the_value_head_has_a_rate_of_its_own(net):
    net.bias.requires_grad_(False)
    actor, value = parameter_groups(net, ValueHead(6))
    assert (actor["lr"], value["lr"]) == (5e-6, 1e-4)
    assert [id(parameter) for parameter in actor["params"]] == [id(net.weight)]
