"""What studies are made with lies in tools/research; nothing that users run needs it."""

from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"


@pytest.fixture(autouse=True)
def tools(monkeypatch):
    """The folder of the tools, which can be imported from."""
    monkeypatch.syspath_prepend(str(TOOLS / "research"))
    return TOOLS
