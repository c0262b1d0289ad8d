"""YAML files: what is right is read, what is wrong is an error with file, line, key and fix."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from vla_ros.core import yaml
from vla_ros.core.devices import load_device
from vla_ros.core.embodiment import config_dir, load_embodiment
from vla_ros.core.errors import ConfigError, NotInstalled
from vla_ros.core.rig import load_rig, node_specs

EMBODIMENT = (config_dir() / "embodiments" / "franka.yaml").read_text()
RIG = (config_dir() / "rigs" / "franka_sim.yaml").read_text()


@dataclass(frozen=True)
class Wheel:
    radius_m: float
    spokes: int = 8


@dataclass(frozen=True)
class Cart:
    kind: Literal["hand", "horse"]
    wheels: dict[str, Wheel]
    size_m: tuple[float, float] = (1.0, 2.0)
    owner: str | None = None
    free: object = field(default_factory=dict)


def write(folder: Path, text: str, name: str = "cart.yaml") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_reads_typed_values(tmp_path: Path) -> None:
    text = "kind: horse\nwheels: {left: {radius_m: 1}, right: {radius_m: 0.5, spokes: 6}}\nsize_m: [2, 3.5]\nfree: {a: [1, x]}\n"
    cart = yaml.load(write(tmp_path, text), Cart)
    assert cart == Cart("horse", {"left": Wheel(1.0), "right": Wheel(0.5, 6)}, (2.0, 3.5), None, {"a": [1, "x"]})
    assert isinstance(cart.wheels["left"].radius_m, float)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kind: horse\nwheels: {}\ncolour: red", r"cart.yaml:3: colour: unknown key; valid: free, kind, owner, size_m, wheels"),
        ("kind: horse\nwhels: {}", r"cart.yaml:2: whels: unknown key; did you mean 'wheels'\?"),
        ("kind: horse", r"cart.yaml:1: wheels: the key is missing"),
        ("kind: horze\nwheels: {}", r"cart.yaml:1: kind: 'horze' is unknown; did you mean 'horse'\?"),
        ("kind: hand\nwheels:\n  left:\n    radius_m: wide", r"cart.yaml:4: wheels.left.radius_m: 'wide', expected a number"),
        ("kind: hand\nwheels:\n  left:\n    radius_m: 1e-3", r"cart.yaml:4: .*write 1.0e-3"),
        ("kind: hand\nwheels:\n  left: {radius_m: 1, spokes: 2.5}", r"cart.yaml:3: wheels.left.spokes: 2.5, expected a whole number"),
        ("kind: hand\nwheels:\n  left: {radius_m: true}", r"cart.yaml:3: wheels.left.radius_m: True, expected a number"),
        ("kind: hand\nwheels: [1]", r"cart.yaml:2: wheels: a list, expected `key: value` lines"),
        ("kind: hand\nwheels: {}\nsize_m: 3", r"cart.yaml:3: size_m: 3, expected a list"),
        ("kind: hand\nwheels: {}\nsize_m: [1, 2, 3]", r"cart.yaml:3: size_m: 3 values, expected 2"),
        ("kind: hand\nwheels: {}\nsize_m:\n  - 1\n  - x", r"cart.yaml:5: size_m\[1\]: 'x', expected a number"),
        ("kind: hand\nwheels: {}\nkind: hand", r"cart.yaml:3: kind: the key is there twice, first on line 1"),
        ("kind: &a hand\nwheels: {}\nowner: *a", r"cart.yaml:3: .*alias \*a: anchors are not allowed"),
        ("kind: hand\nwheels: {", r"cart.yaml:2: not valid YAML"),
        ("kind: !!python/object:os.system hand\nwheels: {}", r"cart.yaml:1: not valid YAML: could not determine a constructor"),
        ("- hand", r"cart.yaml:1: expected `key: value` lines, found a list"),
        ("", r"cart.yaml:1: kind: the key is missing"),
        ("1: hand", r"cart.yaml:1: key 1 is not text"),
    ],
)
def test_each_mistake_names_file_line_and_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        yaml.load(write(tmp_path, text), Cart)


def test_missing_file() -> None:
    with pytest.raises(ConfigError, match=r"nowhere.yaml: cannot be read \(No such file"):
        yaml.load("nowhere.yaml", Cart)


def test_shipped_embodiment() -> None:
    franka = load_embodiment("franka")
    arm = franka.robots["arm"]
    assert (arm.name, len(arm.joints), arm.base_frame, arm.tcp_frame) == ("arm", 7, "base_link", "tcp")
    assert Path(arm.urdf) == config_dir().parent / "urdf" / "franka.urdf.xacro"
    assert franka.prefix("arm") == ""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("2.7437, 1.7837, 2.9007, -0.1518,", "2.7437, 1.7837, 2.9007,", "robots.arm.position_max_rad: 6 values, expected 7 (one a joint)"),
        ("[-2.7437, -1.7837", "[3.0, -1.7837", "robots.arm.position_min_rad: fr3_joint1: 3.0 is not below position_max_rad = 2.7437"),
        ("home_rad: [0.0,", "home_rad: [9.0,", "robots.arm.home_rad: fr3_joint1: 9.0 lies outside -2.7437 .. 2.7437"),
        ("fr3_joint2,", "fr3_joint1,", "each named once"),
        ("workspace_min_m: [0.20,", "workspace_min_m: [0.90,", "robots.arm.workspace_min_m: x: 0.9 is not below workspace_max_m = 0.85"),
        ("tcp_step_max_m: 0.25", "tcp_step_max_m: 0", "robots.arm.tcp_step_max_m: 0.0, expected > 0"),
        ("width_min_m: 0.0", "width_min_m: 0.1", "robots.arm.gripper.width_min_m: 0.1 is not below width_max_m = 0.08"),
        ("mode: tcp_pose", "mode: tcp_poses", "control.mode: 'tcp_poses' is unknown; did you mean 'tcp_pose'?"),
        ("rate_hz: 50", "rate_hz: 0", "control.rate_hz: 0.0, expected 1 .. 1000"),
        ("  arm:  ", "  lift: ", None),
        ("velocity_max_rad_s", "velocity_max", "did you mean 'velocity_max_rad_s'?"),
        ("[front, wrist]", "[front, front]", "cameras: front, front: a camera is named twice"),
    ],
)
def test_embodiment_mistakes(tmp_path: Path, old: str, new: str, message: str | None) -> None:
    assert old in EMBODIMENT
    text = EMBODIMENT.replace(old, new, 1)
    path = write(tmp_path, text, "franka.yaml")
    if message is None:
        assert list(load_embodiment(path).robots) == ["lift"]
        return
    with pytest.raises(ConfigError, match=re.escape(message)) as error:
        load_embodiment(path)
    line = int(re.search(r"franka\.yaml:(\d+): ", str(error.value)).group(1))
    assert line == text[: text.index(new)].count("\n") + 1


def test_two_arms_are_left_and_right(tmp_path: Path) -> None:
    head, _, tail = EMBODIMENT.partition("  arm: ")
    arm, _, cameras = tail.partition("cameras:")
    text = f"{head}  left: {arm}  right: {arm}    tcp_frame: other_tcp\ncameras:{cameras}"
    pair = load_embodiment(write(tmp_path, text, "pair.yaml"))
    assert [pair.prefix(name) for name in pair.robots] == ["left", "right"]
    assert (pair.robots["left"].tcp_frame, pair.robots["right"].tcp_frame) == ("left_tcp", "other_tcp")
    assert pair.robots["left"].joint_prefix == "left_"
    with pytest.raises(ConfigError, match="expected one arm, or the two arms left and right"):
        load_embodiment(write(tmp_path, text.replace("  right: ", "  wrong: "), "pair.yaml"))


def test_unknown_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'frnka' is not in config/embodiments; did you mean 'franka'\?"):
        load_embodiment("frnka")
    with pytest.raises(ConfigError, match=r"did you mean 'franka_sim'\?"):
        load_rig("franka_sin")
    with pytest.raises(ConfigError, match="there is no such file"):
        load_rig("/no/such/rig.yaml")


def test_shipped_rig_and_its_nodes() -> None:
    rig = load_rig("franka_sim")
    assert rig.embodiment.name == "franka" and rig.frozen_after_s() == {"front": None, "wrist": None}
    specs = {spec.name: spec for spec in node_specs(rig, policy="script", executor="ensemble:weighting=age")}
    assert list(specs) == ["simulation", "arm", "front", "wrist", "proprioception", "policy"]
    assert {spec.parameters["rig"] for spec in specs.values()} == {str(config_dir() / "rigs" / "franka_sim.yaml")}
    assert (specs["front"].executable, specs["front"].namespace, specs["front"].parameters["device"]) == ("camera_node", "/camera", "front")
    assert specs["policy"].parameters["checkpoint"] == "script"
    assert specs["policy"].parameters["executor"] == "ensemble:weighting=age"
    assert [specs[name].nice for name in ("simulation", "arm", "front", "policy")] == [0, 0, 5, 0]
    assert "policy" not in [spec.name for spec in node_specs(rig, with_policy=False)]
    with pytest.raises(ConfigError, match="did you mean 'ensemble'"):
        node_specs(rig, executor="ensembel")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "embodiment: franka",
            "embodiment: frank",
            r"rig.yaml:2: embodiment: 'frank' is not in config/embodiments; did you mean 'franka'\?",
        ),
        ("  wrist:", "  rist:", r"rig.yaml:\d+: cameras.rist: embodiment franka has no such entry; did you mean 'wrist'\?"),
        ("  arm:", "  left:", r"rig.yaml:8: robots.left: embodiment franka has no such entry"),
        (
            "executor: {name: ensemble, weighting: age}",
            "executor: {name: fist}",
            r"rig.yaml:\d+: policy.executor: executor 'fist' is unknown; did you mean 'first'",
        ),
        ("executor: {name: ensemble, weighting: age}", "executor: {}", r"policy.executor: the key name is missing"),
        ("inference_hz: 10", "inference_hz: 0", r"policy.inference_hz: 0.0, expected above 0"),
        ("seed: 0", "sed: 0", r"rig.yaml:6: simulation.sed: unknown key; did you mean 'seed'"),
        (
            '{address: "{address}", ',
            "{address: null, ",
            r"rig.yaml:10: robots.arm.options.address: null.* set rig.robots.arm.options.address in .*site.yaml",
        ),
    ],
)
def test_rig_mistakes(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in RIG
    with pytest.raises(ConfigError, match=message):
        load_rig(write(tmp_path, RIG.replace(old, new, 1), "rig.yaml"))


def test_every_arm_and_camera_must_be_there(tmp_path: Path) -> None:
    text = "embodiment: franka\nrobots: {arm: {driver: franka}}\ncameras:\n  front: {driver: mujoco}\n"
    with pytest.raises(ConfigError, match=r"rig.yaml:3: cameras.wrist: the key is missing: embodiment franka has it"):
        load_rig(write(tmp_path, text, "rig.yaml"))
    rig = load_rig(write(tmp_path, text + "  wrist: {driver: mujoco}\n", "rig.yaml"))
    assert rig.simulation is None and rig.cameras["front"].frozen_after_s == 0.35
    assert [spec.nice for spec in node_specs(rig, policy="script")] == [0] * 5
    with pytest.raises(ConfigError, match="no policy section"):
        node_specs(rig)


def test_real_rig_needs_the_site_file(tmp_path: Path) -> None:
    path = write(tmp_path, (config_dir() / "rigs" / "franka.yaml").read_text(), "rigs/franka.yaml")
    message = (
        rf"franka.yaml:6: robots.arm.options.address: null.* set franka.robots.arm.options.address in {re.escape(str(tmp_path))}/site.yaml"
    )
    with pytest.raises(ConfigError, match=message):
        load_rig(path)
    example = (config_dir() / "site.example.yaml").read_text()
    write(tmp_path, example, "site.yaml")
    rig = load_rig(path)
    assert rig.robots["arm"].options == {"address": "172.16.0.2"}
    assert {name: camera.driver for name, camera in rig.cameras.items()} == {"front": "realsense", "wrist": "realsense"}
    assert rig.cameras["wrist"].options["serial"] == "123456789012"
    assert [spec.name for spec in node_specs(rig) if spec.executable == "camera_node"] == ["front", "wrist"]
    external = path.read_text().replace("driver: realsense", "driver: external")
    write(tmp_path, external, "rigs/franka.yaml")
    assert not [spec for spec in node_specs(load_rig(path)) if spec.executable == "camera_node"], "those have nodes of their own"
    write(tmp_path, example.replace("robots:", "robotss:"), "site.yaml")
    with pytest.raises(ConfigError, match=r"site.yaml:3: robotss: unknown key; did you mean 'robots'\?"):
        load_rig(path)


def test_devices_are_looked_up_lazily() -> None:
    table = {"path": "pathlib:Path", "gone": "vla_ros.core.gone:Gone", "wrong": "pathlib:Pth", "sdk": "vla_ros_test_needs_sdk:Robot"}
    assert load_device(table, "path") is Path
    assert load_device({}, "pathlib:Path") is Path
    for name, message in [
        ("pth", r"'pth' is unknown; did you mean 'path'\?"),
        ("gone", "there is no module vla_ros.core.gone"),
        ("wrong", r"pathlib has no 'Pth'; did you mean 'Path'\?"),
        ("no_such_package.module:Class", "there is no module no_such_package"),
    ]:
        with pytest.raises(ConfigError, match=message):
            load_device(table, name)


def test_a_missing_sdk_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "import some_robot_sdk\n", "vla_ros_test_needs_sdk.py")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(NotInstalled, match="'sdk' needs the Python module some_robot_sdk"):
        load_device({"sdk": "vla_ros_test_needs_sdk:Robot"}, "sdk")
