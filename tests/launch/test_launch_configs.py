"""The launch files that come with the project."""

from __future__ import annotations

import pytest
from support.runs import ROOT

from launch.config import launch_config, launch_parser


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs" / "launch").glob("*.yaml")), ids=lambda path: path.stem
)
def test_is_a_valid_launch_file(path):
    config = launch_config(launch_parser().parse_args([f"--config={path}"]))
    assert config.processes >= 1
