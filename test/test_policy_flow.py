"""Flow matching: what the loss sees, exact Euler steps, seeds, and real-time chunking with the true Jacobian."""

import pytest
import torch

from vla_ros.core.errors import PolicyError
from vla_ros.policies.flow import (
    TAU_SAMPLERS,
    NoiseSource,
    channel_mean,
    flow_loss,
    guidance,
    guidance_scale,
    guided,
    interpolate,
    solve,
)

BATCH, ROWS, CHANNELS = 3, 5, 4


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


def chunk(seed, shape=(BATCH, ROWS, CHANNELS)):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def linear_net(seed=0):
    """v(Y, tau) = A vec(Y) + tau b, with every entry of A at work."""
    size = ROWS * CHANNELS
    matrix = 0.2 * chunk(seed, (size, size))
    bias = chunk(seed + 1, (size,))

    def velocity(rows, tau):
        return (rows.flatten(1) @ matrix.T + tau[:, None] * bias).unflatten(1, (ROWS, CHANNELS))

    return velocity, matrix


@pytest.mark.parametrize("steps", [1, 4, 10])
def test_euler_is_exact_on_a_straight_path(steps):
    actions, noise = chunk(0), chunk(1)
    seen = []

    def velocity(rows, tau):
        seen.append(float(tau[0]))
        torch.testing.assert_close(rows, interpolate(actions, noise, tau))  # every step lies on the path
        return noise - actions

    torch.testing.assert_close(solve(velocity, noise, steps), actions, atol=1e-12, rtol=0)
    assert seen == pytest.approx([1 - k / steps for k in range(steps)])


def test_euler_needs_a_step():
    with pytest.raises(PolicyError, match="steps = 0"):
        solve(lambda rows, tau: rows, chunk(0), 0)


def test_a_perfect_velocity_has_no_loss_and_a_wrong_one_its_mean_square():
    actions, noise, tau = chunk(0), chunk(1), torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64)
    assert float(flow_loss(lambda rows, tau: noise - actions, actions, tau, noise)) == pytest.approx(0)
    assert float(flow_loss(lambda rows, tau: noise - actions + 2, actions, tau, noise)) == pytest.approx(4, rel=1e-6)


def test_every_active_channel_weighs_the_same():
    errors = torch.zeros(2, 4, 3)
    mask = torch.zeros(2, 4, 3, dtype=torch.bool)
    mask[0, :, 0], errors[0, :, 0] = True, 1.0  # four rows of 1
    mask[0, 0, 1], errors[0, 0, 1] = True, 3.0  # one row of 3: the channels' mean is 2, that of the entries 1.4
    mask[1, :2, 2], errors[1, :2, 2] = True, 8.0
    errors[~mask] = float("nan")
    assert float(channel_mean(errors, mask)) == pytest.approx((2 + 8) / 2)


def test_a_sample_without_actions_is_refused():
    mask = torch.ones(2, 4, 3, dtype=torch.bool)
    mask[1] = False
    with pytest.raises(PolicyError, match="1 of 2 samples"):
        channel_mean(torch.zeros(2, 4, 3), mask)


def test_what_is_masked_neither_enters_nor_moves_anything():
    mask = torch.ones(BATCH, ROWS, CHANNELS, dtype=torch.bool)
    mask[..., 3], mask[1, 3:] = False, False
    layer = torch.nn.Linear(CHANNELS, CHANNELS, dtype=torch.float64)
    tau, noise = torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64), chunk(1)
    outputs = []

    def velocity(rows, tau):
        outputs.append(layer(rows))
        outputs[-1].retain_grad()
        return outputs[-1]

    losses = []
    for padding in (0.0, 7.0, float("nan")):
        losses.append(flow_loss(velocity, torch.where(mask, chunk(0), padding), tau, noise, mask))
        losses[-1].backward()
    assert torch.equal(losses[0], losses[1])
    assert torch.equal(losses[0], losses[2])
    assert (outputs[0].grad[~mask] == 0).all()
    assert (outputs[0].grad[mask] != 0).all()


def test_samplers_have_the_distributions_of_the_papers():
    generator = torch.Generator().manual_seed(0)
    beta = TAU_SAMPLERS["beta"](100_000, generator)
    expected = torch.tensor([0.1, 0.5, 0.9]) ** (1 / 1.5) * 0.999 + 0.001
    torch.testing.assert_close(beta.quantile(torch.tensor([0.1, 0.5, 0.9])), expected, atol=0.01, rtol=0)
    sigmoid = TAU_SAMPLERS["sigmoid_normal"](100_000, generator)
    expected = torch.special.ndtri(torch.tensor([0.1, 0.5, 0.9])).sigmoid()
    torch.testing.assert_close(sigmoid.quantile(torch.tensor([0.1, 0.5, 0.9])), expected, atol=0.01, rtol=0)
    for name, sampler in TAU_SAMPLERS.items():
        first, again = (sampler(8, torch.Generator().manual_seed(3)) for _ in range(2))
        assert torch.equal(first, again), name
        assert not torch.equal(first, sampler(8, torch.Generator().manual_seed(4))), name


def test_noise_is_that_of_its_seed_and_starts_anew():
    source = NoiseSource(seed=5)
    first, second = source.draw((2, 3)), source.draw((2, 3))
    assert not torch.equal(first, second)
    source.reset()
    assert torch.equal(source.draw((2, 3)), first)
    assert not torch.equal(NoiseSource(seed=6).draw((2, 3)), first)


@pytest.mark.parametrize("tau", [1.0, 0.75, 0.25])
def test_guidance_is_the_formula_with_the_true_jacobian(tau):
    velocity, matrix = linear_net()
    rows, prefix = chunk(2), chunk(3)
    weights = torch.tensor([1, 1, 0.5, 0.1, 0], dtype=torch.float64)
    times = torch.full((BATCH,), tau, dtype=torch.float64)
    found = guided(velocity, guidance(prefix, weights, rows.shape, beta=5.0))(rows, times)

    speed = velocity(rows, times)
    error = ((prefix - (rows - tau * speed)) * weights[:, None]).flatten(1)
    jacobian = torch.eye(ROWS * CHANNELS, dtype=torch.float64) - tau * matrix  # d(Y - tau v(Y)) / dY of the linear net
    t = 1 - tau  # the paper's time
    scale = 5.0 if t == 0 else min(5.0, (1 - t) / (t * ((1 - t) ** 2 / (t**2 + (1 - t) ** 2))))
    expected = speed - scale * (error @ jacobian).unflatten(1, (ROWS, CHANNELS))
    torch.testing.assert_close(found, expected)
    identity = speed - scale * error.unflatten(1, (ROWS, CHANNELS))
    assert (found - identity).abs().max() > 0.1


def test_the_scale_is_bounded_at_both_ends():
    tau = torch.tensor([1.0, 0.999, 0.5, 0.0])
    assert guidance_scale(tau, 5.0).tolist() == pytest.approx([5, 5, 2, 5])


def test_guidance_pulls_the_prefix_to_the_committed_rows():
    """A flow to a broad distribution (Y0 ~ N(m, 1) in every entry) has room to give: its exact velocity is known."""
    mean = chunk(4)

    def velocity(rows, tau):
        share = tau[:, None, None]
        variance = (1 - share).square() + share.square()
        clean = mean + (1 - share) / variance * (rows - (1 - share) * mean)
        noise = share / variance * (rows - (1 - share) * mean)
        return noise - clean

    prefix, noise = mean + 1, chunk(5)
    weights = torch.tensor([1, 1, 0, 0, 0], dtype=torch.float64)
    free = solve(velocity, noise, 20)
    held = solve(guided(velocity, guidance(prefix, weights, noise.shape)), noise, 20)
    before, after = ((rows - prefix)[:, :2].abs().mean() for rows in (free, held))
    assert after < 0.1 * before
    torch.testing.assert_close(held[:, 2:], free[:, 2:])  # these entries know nothing of one another


def test_a_short_narrow_prefix_leaves_the_rest_alone():
    wanted = guidance(chunk(0, (BATCH, 2, 3)), None, (BATCH, ROWS, CHANNELS))
    assert wanted.weights.sum() == 2 * 3
    assert (wanted.weights[:2, :3] == 1).all()
    assert (wanted.rows[:, 2:] == 0).all()


@pytest.mark.parametrize(
    ("shape", "weights"),
    [((BATCH, ROWS + 1, CHANNELS), None), ((BATCH, 2, CHANNELS + 1), None), ((1, 2, 2), None), ((BATCH, 2, 2), torch.ones(3))],
)
def test_a_prefix_that_does_not_fit_is_refused(shape, weights):
    with pytest.raises(PolicyError, match="prefix"):
        guidance(torch.zeros(shape), weights, (BATCH, ROWS, CHANNELS))


def test_guidance_works_without_gradients_and_says_so_where_it_cannot():
    velocity, _ = linear_net()
    bent = guided(velocity, guidance(chunk(3), None, (BATCH, ROWS, CHANNELS)))
    with torch.no_grad():
        assert not solve(bent, chunk(2), 2).requires_grad
    with torch.inference_mode(), pytest.raises(PolicyError, match="no_grad"):
        solve(bent, chunk(2), 2)
