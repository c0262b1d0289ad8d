"""`vla eval` without ROS: which episodes, how they add up, how the target is moved."""

import json
import math

import pytest
import synthetic_rollout as synthetic
from rich.console import Console

from vla_ros.cli import tally
from vla_ros.cli.episodes import plan_episodes, split_delays, split_executors
from vla_ros.cli.evaluation import Evaluation
from vla_ros.cli.target_shift import DESCENDED_M, LATEST_S, TargetShift
from vla_ros.core.errors import ConfigError, DeviceError
from vla_ros.core.executors import parse_executor
from vla_ros.training.phrasings import HELD_OUT_TEMPLATES, all_training_sentences

SETTINGS = {
    "rig": "franka_sim", "policy": "", "executor": "", "seed": 0, "instruction_set": "held-out", "move_target_m": 0.0, "time_limit_s": 20.0,
}  # fmt: skip


def episode(success, wrong_object=False, **more):
    figures = {"prediction_age_ms": {"p50": 100.0, "p99": 150.0}, "boundary_jump_rad": {"p50": 0.004, "p99": 0.02}}
    head = {"success": success, "wrong_object": wrong_object, "duration_s": 5.0, "outcome": "success" if success else "time_limit"}
    return {**head, **figures, **more}


class FakeClient:
    """Ends every episode by the list of words; "dead" is a rig that has died."""

    def __init__(self, words):
        self.words, self.resets, self.asked = list(words), [], []
        self.task_detail, self.tcp_height_m, self.feedback = "red block 0.41 m from the plate", 0.5, None

    def recover_robots(self):
        pass

    def move_object(self, dx_m, dy_m):
        raise AssertionError("nobody asked to move anything")

    def reset_scene(self, seed, task):
        self.resets.append((seed, task))

    def execute(self, instruction, time_limit_s, executor, *, task, seed, on_turn, inference_delay_s):
        self.asked.append((executor, inference_delay_s, seed))
        word = self.words.pop(0)
        if word == "dead":
            raise DeviceError("the rig ended by itself")
        return synthetic.outcome(word, instruction=instruction, seed=seed, executor=executor, wrong_object=word == "failure")


# Values of R's binom::binom.confint(method = "wilson").
@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"), [(45, 50, 0.7864, 0.9565), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (1, 2, 0.0945, 0.9055)]
)
def test_wilson(successes, trials, low, high):
    assert tally.wilson(successes, trials) == pytest.approx((low, high), abs=1e-4)


def test_wilson_bounds():
    assert tally.wilson(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="3 successes of 2"):
        tally.wilson(3, 2)


def test_tally():
    episodes = [episode(True, duration_s=4.0), episode(True, duration_s=8.0), episode(False, True, duration_s=20.0), episode(False)]
    total = tally.tally(episodes)
    assert total["success_rate"] == 0.5
    assert total["wrong_object_rate"] == 0.25
    assert total["success_duration_s"] == {"mean": 6.0, "median": 6.0}
    assert total["figures"]["prediction_age_ms"] == {"p50": 100.0, "p99": 150.0}
    assert total["figures"]["inference_ms"] is None


def test_tally_takes_the_largest_maximum_and_leaves_out_what_is_unknown():
    episodes = [episode(True, tick_late_ms={"p50": 1.0, "max": value}) for value in (3.0, 9.0, float("nan"), None)]
    assert tally.tally(episodes)["figures"]["tick_late_ms"] == {"max": 9.0, "p50": 1.0}


def test_tally_of_nothing():
    assert tally.tally([])["success_rate"] == 0.0
    assert tally.markdown([]) == ""


def test_groups_and_their_mean():
    groups = tally.by([episode(True, phrasing="a"), episode(False, phrasing="a"), episode(True, phrasing="b")], "phrasing")
    assert groups["a"]["success_rate"] == 0.5 and groups["a"]["episodes"] == 2
    assert tally.mean_rate(groups) == 0.75
    assert tally.mean_rate({}) is None


def test_markdown_of_a_sweep():
    rows = [tally.sweep_row("first", [episode(True), episode(False)]), tally.sweep_row("rtc", [episode(False, prediction_age_ms=None)])]
    lines = tally.markdown(rows).splitlines()
    assert lines[0].startswith("| executor | success |")
    assert lines[2].startswith("| `first` | 50% (9% to 91%) | 0% | 5.0 | 4.0 | 20.0 |")
    assert lines[3].endswith("| - |")
    assert len({line.count("|") for line in lines}) == 1


def test_episodes_are_drawn_from_their_seeds():
    plan = plan_episodes(1000, 12, "canonical")
    assert [episode.seed for episode in plan] == list(range(1000, 1012))
    assert len({episode.task for episode in plan}) == 6
    assert all(episode.task == episode.instruction for episode in plan)
    assert plan[5:] == plan_episodes(1005, 7, "canonical")


def test_held_out_wordings_come_in_turn_and_were_never_trained_on():
    plan = plan_episodes(0, 30, "held-out")
    assert {episode.phrasing for episode in plan} == set(HELD_OUT_TEMPLATES["place"])
    assert all(sum(e.phrasing == phrasing for e in plan) == 6 for phrasing in HELD_OUT_TEMPLATES["place"])
    assert not {e.instruction for e in plan} & set(all_training_sentences({e.task for e in plan}))


def test_training_wordings_are_training_sentences():
    plan = plan_episodes(0, 20, "train")
    assert all(e.instruction in set(all_training_sentences([e.task])) for e in plan)
    assert len({e.phrasing for e in plan}) > 3


def test_unknown_instruction_set():
    with pytest.raises(ConfigError, match="did you mean 'held-out'"):
        plan_episodes(0, 1, "heldout")


def test_split_executors():
    text = "first, chunk:execute_steps=8,ensemble:weighting=age,m=2,ensemble:weighting=adaptive,rtc"
    names = split_executors(text)
    assert names == ["first", "chunk:execute_steps=8", "ensemble:weighting=age,m=2", "ensemble:weighting=adaptive", "rtc"]
    assert parse_executor(names[2]) == {"name": "ensemble", "weighting": "age", "m": 2}
    for wrong in ("m=2,first", " , "):
        with pytest.raises(ConfigError, match="example"):
            split_executors(wrong)


def test_failures_do_not_end_an_evaluation(tmp_path):
    client = FakeClient(["success", "failure", "aborted", "time_limit", "success"])
    evaluation = Evaluation(Console(quiet=True), SETTINGS, [""], tmp_path / "eval.json", tmp_path)
    evaluation.run(client, "franka_sim", plan_episodes(7, 5, "held-out"))
    evaluation.finish()
    content = json.loads((tmp_path / "eval.json").read_text())
    assert content["success_rate"] == 0.4
    assert content["wrong_object_rate"] == 0.2
    assert [e["seed"] for e in content["episodes"]] == [7, 8, 9, 10, 11]
    assert len(content["phrasings"]) == 5
    assert content["phrasings_mean_success_rate"] == 0.4
    assert client.resets[0] == (7, content["episodes"][0]["task"])
    assert (tmp_path / "eval.png").stat().st_size > 10_000


def test_a_dead_rig_ends_it_and_the_results_so_far_are_kept(tmp_path):
    evaluation = Evaluation(Console(quiet=True), SETTINGS, [""], tmp_path / "eval.json", tmp_path)
    with pytest.raises(DeviceError):
        evaluation.run(FakeClient(["success", "dead"]), "franka_sim", plan_episodes(7, 5, "held-out"))
    assert json.loads((tmp_path / "eval.json").read_text())["success_rate"] == 1.0


def test_several_executors_run_the_same_seeds(tmp_path):
    client = FakeClient(["success", "success", "failure", "success"])
    evaluation = Evaluation(Console(quiet=True), SETTINGS, ["first", "rtc"], tmp_path / "eval.json", tmp_path)
    evaluation.run(client, "franka_sim", plan_episodes(7, 2, "canonical"))
    evaluation.finish()
    assert client.resets[:2] == client.resets[2:]
    table = (tmp_path / "executors.md").read_text().splitlines()
    assert "`first` | 100%" in table[2] and "`rtc` | 50%" in table[3]


def test_every_executor_meets_every_delay_on_the_same_seeds(tmp_path):
    client = FakeClient(["success"] * 5 + ["failure"] * 3)
    evaluation = Evaluation(Console(quiet=True), SETTINGS, ["first", "rtc"], tmp_path / "eval.json", tmp_path, [0.0, 250.0])
    evaluation.run(client, "franka_sim", plan_episodes(7, 2, "canonical"))
    evaluation.finish()
    assert client.asked == [(name, delay_s, seed) for name in ("first", "rtc") for delay_s in (0.0, 0.25) for seed in (7, 8)]
    table = (tmp_path / "executors.md").read_text().splitlines()
    assert table[0].startswith("| executor | delay (ms) | success |")
    starts = ["`first` | 0 | 100%", "`first` | 250 | 100%", "`rtc` | 0 | 50%", "`rtc` | 250 | 0%"]
    assert [line[2 : 2 + len(start)] for line, start in zip(table[2:], starts, strict=True)] == starts
    content = json.loads((tmp_path / "eval.json").read_text())
    assert content["settings"]["delays_ms"] == [0.0, 250.0]
    assert [row["delay (ms)"] for row in content["executors"]] == ["0", "250"] * 2
    assert [episode["inference_delay_ms"] for episode in content["episodes"]] == [0.0, 0.0, 250.0, 250.0] * 2
    assert (tmp_path / "delays.png").stat().st_size > 10_000, "also where a variant never succeeded"


def test_split_delays():
    assert split_delays("0, 100,400,100") == [0.0, 100.0, 400.0]
    for wrong, words in (("", "empty"), ("0,fast", "'fast' is no number"), ("5001", "5000"), ("-1", "5000"), ("nan", "5000")):
        with pytest.raises(ConfigError, match=words):
            split_delays(wrong)


class Reply:
    def __init__(self, success, message=""):
        self.success, self.message = success, message

    def done(self):
        return True

    def result(self):
        return self


class Table:
    """A simulation that accepts the n-th place."""

    def __init__(self, accepts=0):
        self.accepts, self.asked = accepts, []
        self.height_m, self.elapsed_s = 0.5, 0.0

    def move(self, dx_m, dy_m):
        self.asked.append((dx_m, dy_m))
        return Reply(len(self.asked) > self.accepts, "not on the table")

    def shift(self, seed=3):
        return TargetShift(0.06, seed, self.move, lambda: self.height_m, lambda: self.elapsed_s)


def test_target_moves_when_the_tcp_comes_down():
    table = Table()
    shift = table.shift()
    for table.elapsed_s, table.height_m in ((0.0, 0.1), (0.5, 0.5), (1.0, DESCENDED_M + 0.01)):
        shift.turn()
    assert not table.asked  # not before the policy drives, not while the hand is up
    table.elapsed_s, table.height_m = 1.4, DESCENDED_M - 0.01
    for _ in range(3):
        shift.turn()
    assert len(table.asked) == 1
    assert math.hypot(*table.asked[0]) == pytest.approx(0.06)
    assert shift.moved_m == table.asked[0] and shift.moved_at_s == 1.4


def test_target_moves_late_at_the_latest():
    table = Table()
    shift = table.shift()
    table.elapsed_s, table.height_m = LATEST_S, None
    shift.turn()
    shift.turn()
    assert shift.moved_m is not None


def test_target_takes_another_direction_where_there_is_no_place():
    table = Table(accepts=2)
    shift = table.shift()
    table.elapsed_s, table.height_m = 1.0, 0.1
    for _ in range(6):
        shift.turn()
    assert len(table.asked) == 3 and shift.moved_m == table.asked[2]
    first, second = (math.atan2(dy, dx) for dx, dy in table.asked[:2])
    assert (second - first) % (2 * math.pi) == pytest.approx(math.pi / 4)


def test_target_that_fits_nowhere_is_reported():
    table = Table(accepts=100)
    shift = table.shift()
    table.elapsed_s, table.height_m = 1.0, 0.1
    for _ in range(20):
        shift.turn()
    assert len(table.asked) == 8
    assert shift.moved_m is None and shift.message == "not on the table"


def test_direction_is_drawn_from_the_seed():
    def first(seed):
        table = Table()
        shift = table.shift(seed)
        table.elapsed_s, table.height_m = 1.0, 0.1
        shift.turn()
        return table.asked[0]

    assert first(3) == first(3) != first(4)
