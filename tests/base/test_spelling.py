"""The guess at what was meant."""

import pytest

from fastreid_rib.settings.declaration import did_you_mean


@pytest.mark.parametrize(
    ("written", "hint"),
    [
        ("crossentropylos", " Did you mean 'CrossEntropyLoss'?"),
        ("dcs", " Did you mean 'DCS'?"),
        ("nothing of the kind", ""),
        (7, ""),
    ],
)
def test_a_close_name_or_none(written, hint):
    assert did_you_mean(written, ("CrossEntropyLoss", "DCS", "RIB")) == hint
