"""The commands as a shell calls them, in this process: FastReID is loaded once."""

import pytest

from fastreid_rib.__main__ import main


@pytest.fixture
def command(capsys):
    """``command("doctor")`` gives the exit status and what was printed."""

    def run(*arguments):
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        return status, capsys.readouterr().out

    return run


@pytest.fixture
def config(make_cfg, tmp_path):
    """Writes the tiny config with keys changed; gives the arguments that name it."""

    def write(changes=None):
        path = tmp_path / "config.yml"
        path.write_text(make_cfg(changes).dump())
        return "--config-file", path

    return write
