"""AtomicVLA at the paper's widths, one layer each of tower, language model and expert (all are alike, and 18 do not fit this time).

`measure_act`: a chunk with 12 skills against one skill, and against computing all experts and masking them, as the paper does.
`measure_think`: a thought and an act on one reading of the observation against a reading for each.
Each figure is the least disturbed of alternating rounds on one CPU core.
    python benchmarks/atomic_vla.py
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

SKILLS, STEPS, ROWS, TOKENS = 12, 10, 50, 2 * 256 + 49
EXPERT = {"width": 1024, "layers": 1, "hidden": 4096, "heads": 8, "key_heads": 1, "head_size": 256, "activation": "silu"}
WORDS, VOCABULARY = 40, 2048  # of a plan; of the language model, whose table of words has no part in this
ACT_ROUNDS, THINK_ROUNDS = 4, 3
ACT_LIMIT, DENSE_LIMIT, THINK_LIMIT = 1.05, 0.3, 0.75


def measure_act() -> dict[str, float]:
    """Returns milliseconds of a chunk out of a kept reading, and their ratios."""
    import torch

    from vla_ros.policies.atomic_vla.expert import ActionExpert, Mix, Prefix
    from vla_ros.policies.atomic_vla.mixture import SkillLibrary, fused_mix
    from vla_ros.policies.atomic_vla.skills import Skill
    from vla_ros.policies.flow import solve
    from vla_ros.policies.qwen_vla.rope import text_positions

    torch.manual_seed(0)
    expert = ActionExpert(**EXPERT, channels=32, state_width=32, theta=10_000.0)
    skills = [Skill(f"skill{i}", 10 * 10 ** (i / (SKILLS - 1))) for i in range(SKILLS)]
    many, one = SkillLibrary(expert, skills), SkillLibrary(expert, skills[:1])
    one.load_state_dict({name: tensor for name, tensor in many.state_dict().items() if ".skill0." in name})
    mask = torch.ones(1, TOKENS, dtype=torch.bool)
    key, value = torch.randn(2, 1, 1, TOKENS, EXPERT["head_size"])
    prefix = Prefix(((key, value),), mask, text_positions(mask), *(torch.empty(0),) * 3)
    state, noise = torch.randn(1, 32), torch.randn(1, ROWS, 32)

    def act(mix: Mix) -> torch.Tensor:
        return solve(lambda rows, tau: expert.velocity(prefix, state, rows, tau, mix), noise, STEPS)

    def dense(layer: int, shared: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        own = torch.stack([parts[layer](x) for parts in many.experts.values()])
        chosen = torch.zeros(SKILLS, 1, 1, 1)
        chosen[0] = 1
        return torch.lerp(shared(x), (chosen * own).sum(0), weight)

    with _one_thread(), torch.no_grad():
        weight = many.weight("skill0")
        fused = {name: fused_mix(["skill0"], {"skill0": library.fuse("skill0", expert)}) for name, library in (("k12", many), ("k1", one))}
        runs = {"k1": lambda: act(fused["k1"]), "k12": lambda: act(fused["k12"]), "dense_k12": lambda: act(dense)}
        if (difference := float((runs["k12"]() - runs["dense_k12"]()).abs().max())) > 1e-4:
            raise RuntimeError(f"selected and dense actions differ by {difference}")
        spent = _alternate(runs | {"fuse": lambda: many.fuse("skill0", expert)}, ACT_ROUNDS)
    figures = {f"{name}_ms": value for name, value in spent.items()}
    return figures | {"k12_over_k1": spent["k12"] / spent["k1"], "selected_over_dense": spent["k12"] / spent["dense_k12"]}


def measure_think() -> dict[str, float]:
    """Returns milliseconds of a thought of `WORDS` ids and an act after it, on a shared reading and on two, and their ratio."""
    import torch

    from vla_ros.core.embodiment import load_embodiment
    from vla_ros.policies.atomic_vla.network import AtomicVla
    from vla_ros.policies.layout import layout_for
    from vla_ros.policies.network import Inputs

    torch.manual_seed(0)
    sizes = {
        "backbone": "paligemma", "preset": "paper", "use_state": False, "text_length": 48, "skills": [{"name": "pick", "sigma": 10.0}],
        "text": {"num_hidden_layers": 1, "vocab_size": VOCABULARY}, "vision": {"num_hidden_layers": 1}, "euler_steps": STEPS,
        **{f"expert_{key}": value for key, value in EXPERT.items()},
    }  # fmt: skip
    network = AtomicVla({"franka": layout_for(load_embodiment("franka"), ("front", "wrist"))}, ROWS, sizes).eval()
    inputs = Inputs("franka", torch.rand(1, 2, 3, 224, 224) * 2 - 1, torch.zeros(1, 10), torch.randint(2, 1000, (1, 48)))

    def think(context: object) -> None:
        network.reader.write(context.prefix, WORDS, lambda logits: int(logits[:1000].argmax()))

    def shared() -> None:
        context = network.context(inputs)
        think(context)
        network.act(context, ["pick"], inputs)

    def twice() -> None:
        think(network.context(inputs))
        network.act(network.context(inputs), ["pick"], inputs)

    with _one_thread(), torch.no_grad():
        shared()
        spent = _alternate({"shared": shared, "two_readings": twice}, THINK_ROUNDS)
    return {"shared_ms": spent["shared"], "two_readings_ms": spent["two_readings"], "ratio": spent["shared"] / spent["two_readings"]}


@contextmanager
def _one_thread() -> Iterator[None]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _alternate(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Returns the least milliseconds of each."""
    least = dict.fromkeys(runs, float("inf"))
    for _ in range(rounds):
        for name, run in runs.items():
            start_s = time.perf_counter()
            run()
            least[name] = min(least[name], (time.perf_counter() - start_s) * 1e3)
    return least


if __name__ == "__main__":
    act, think = measure_act(), measure_think()
    for figures in (act, think):
        print(", ".join(f"{name} {value:.3g}" for name, value in figures.items()))
    sys.exit(act["k12_over_k1"] > ACT_LIMIT or act["selected_over_dense"] > DENSE_LIMIT or think["ratio"] > THINK_LIMIT)
