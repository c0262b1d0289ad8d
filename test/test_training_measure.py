"""`vla_ros.training.measure` and `vla train`: what they ask for and what they write."""

import json

import pytest
import typer
from typer.testing import CliRunner

from vla_ros.cli.train import train
from vla_ros.core.errors import ConfigError
from vla_ros.training import measure as module
from vla_ros.training.closed_loop import Result
from vla_ros.training.config import load_training


def command(function):
    app = typer.Typer()
    app.command()(function)
    return app


def test_measure_varies_rows_age_and_phrasing_and_records_them(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps({"training": {"steps": 3}}))
    asked = []

    def check(config, source, folder, seeds, execute_steps=8, delay_steps=0, phrasing=None):
        asked.append((len(seeds), seeds[0], execute_steps, delay_steps, phrasing))
        return Result(len(seeds), 0.9, 0.0, 40.0, execute_steps, delay_steps)

    monkeypatch.setattr(module, "check_closed_loop", check)
    result = CliRunner().invoke(
        command(module.measure), [str(tmp_path), "--episodes", "7", "--phrasing-episodes", "3", "--seed", "50", "--record"]
    )
    assert result.exit_code == 0, result.output
    assert result.output.count("success 90.0%") == len(module.VARIATIONS) + 5
    assert {(rows, delay) for _, _, rows, delay, phrasing in asked if phrasing is None} >= {(8, 0), (4, 0), (2, 0), (4, 1)}
    assert [(count, phrasing) for count, _, _, _, phrasing in asked if phrasing is not None] == [(3, i) for i in range(5)]
    assert {first for _, first, *_ in asked} == {50}
    training = json.loads((tmp_path / "config.json").read_text())["training"]
    assert training["steps"] == 3 and training["fast_loop"]["canonical, 2 rows"]["success_rate"] == 0.9


def test_train_passes_its_options_on(tmp_path, monkeypatch):
    called = []

    def run(config, data, out, resume):
        called.append((config.optimisation.steps, config.sources[0].episodes, data.name, out.name, resume))
        return {"franka": Result(1, 1.0, 0.0, 40.0, 8, 0)}

    monkeypatch.setattr("vla_ros.training.train.train", run)
    arguments = [
        "robovlms_franka",
        "--data",
        str(tmp_path / "d"),
        "--out",
        str(tmp_path / "o"),
        "--steps",
        "9",
        "--episodes",
        "4",
        "--resume",
    ]
    result = CliRunner().invoke(command(train), arguments)
    assert result.exit_code == 0, result.output
    assert called == [(9, 4, "d", "o", True)]


def test_the_learning_rate_warms_up_and_ends_at_zero():
    options = load_training("robovlms_franka").optimisation
    rates = [options.rate(step) for step in range(options.steps + 1)]
    assert 0 < rates[0] < 0.05 and max(rates) == 1 and rates[-1] == 0
    assert rates[int(options.steps * (1 - options.decay_share)) - 1] == 1


@pytest.mark.parametrize(("text", "message"), [("steps: 10000", "steps"), ("first_seed: 500", "first_sed"), ("average: 0.998", "average")])
def test_mistakes_in_the_file_are_named_with_their_line(tmp_path, text, message):
    from vla_ros.core.embodiment import config_dir

    source = (config_dir() / "training" / "robovlms_franka.yaml").read_text()
    wrong = {"steps: 10000": "steps: 0", "first_seed: 500": "first_sed: 500", "average: 0.998": "average: 1.5"}[text]
    assert text in source
    path = tmp_path / "training.yaml"
    path.write_text(source.replace(text, wrong))
    with pytest.raises(ConfigError, match=rf"training\.yaml:\d+: .*{message}"):
        load_training(str(path))
