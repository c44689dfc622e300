"""Calls of `bi-ray` inside the test's process."""

import sys
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from bi_ray.cli import main as cli

ROOT = Path(__file__).parents[1]
QUICKSTART = ROOT / "configs" / "quickstart.yaml"


def call(*arguments, code=0, columns=200):
    """The output of a command, which must exit with ``code``."""
    result = CliRunner().invoke(
        cli.app, [str(argument) for argument in arguments], env={"COLUMNS": str(columns)}
    )
    assert result.exit_code == code, result.output
    return result.output


def error_of(*arguments):
    """The message of a command's error, which `bi-ray` prints in place of a traceback."""
    command = get_command(cli.app)
    with pytest.raises((ValueError, RuntimeError)) as caught:
        command.main([str(argument) for argument in arguments], standalone_mode=False)
    assert cli._explains_itself(caught.value)
    return str(caught.value)


def printed_error(monkeypatch, capsys, *arguments):
    """What the program `bi-ray` prints before it exits with code 2, line breaks removed."""
    monkeypatch.setattr(sys, "argv", ["bi-ray", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    return capsys.readouterr().out.replace("\n", "")
