"""The command line, run in this process."""

from __future__ import annotations

import pytest

from swcheck.run.command_line import main as command_line


@pytest.fixture
def run(capfd):
    """Run the command line in this process; gives exit code, stdout and stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        try:
            code = command_line.main([str(argument) for argument in arguments])
        except SystemExit as done:
            code = int(done.code or 0)
        return (code, *capfd.readouterr())

    return call
