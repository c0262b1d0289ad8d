"""`python -m vla_ros.cli` is `vla`."""

from vla_ros.cli.main import main

main()
