"""The `edgewise` command."""

from edgewise.cli.main import main

__all__ = ["main"]
