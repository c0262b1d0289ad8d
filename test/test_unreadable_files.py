"""What the parsers themselves choke on must still end in a message that names the file."""

import pytest

from vla_ros.core import yaml
from vla_ros.core.errors import ConfigError, PolicyError
from vla_ros.policies.checkpoint import read_config


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 5000, "9" * 5000, "{"])
def test_config_json(tmp_path, text: str):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(PolicyError, match=r"config\.json: not JSON"):
        read_config(tmp_path)


@pytest.mark.parametrize("content", [b"a: " + b"[" * 2000, b"a: " + b"9" * 5000, b"a: 2026-13-45", b"a: \xff"])
def test_yaml(tmp_path, content: bytes):
    (tmp_path / "rig.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=r"rig\.yaml"):
        yaml.read(tmp_path / "rig.yaml")
