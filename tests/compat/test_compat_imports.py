import collections
import sys
from contextlib import contextmanager

import pytest

from fastreid_rib.compat import imports

pytestmark = pytest.mark.published

taken_away = pytest.mark.skipif(sys.version_info < (3, 10), reason="collections has Mapping here")
without_six = pytest.mark.skipif(not imports.torch_lacks_six(), reason="torch has _six here")


def lent(repair):
    return contextmanager(repair)()


@taken_away
@without_six
def test_names_are_lent_and_taken_back():
    import fastreid.data
    import fastreid.evaluation  # noqa: F401

    with lent(imports.collections_mapping), lent(imports.torch_six):
        from collections.abc import Mapping

        from torch._six import string_classes

        assert isinstance({}, Mapping) and isinstance("", string_classes)
    assert "torch._six" not in sys.modules
    assert not hasattr(collections, "Mapping")


@taken_away
def test_without_the_repair_the_import_fails(run_script):
    failed = run_script(
        "-c",
        "import fastreid_rib, fastreid.evaluation",
        env={"FASTREID_RIB_DISABLE": "collections-mapping"},
        check=False,
    )
    assert "cannot import name 'Mapping' from 'collections'" in failed.stdout


def test_a_missing_dependency_says_what_to_install():
    for name, told in (("faiss", "python -m pip install faiss-cpu"), ("mine", "^No module named")):
        with pytest.raises(ModuleNotFoundError, match=told) as raised, lent(imports.dependencies):
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)
        assert raised.value.name == name


def test_evaluate_rank_is_where_the_demo_looks_for_it():
    import fastreid.evaluation
    from fastreid.evaluation import evaluate_rank
    from fastreid.evaluation.rank import evaluate_rank as original

    assert evaluate_rank is original
    with pytest.raises(AttributeError, match="no attribute 'evaluate_rnak'"):
        fastreid.evaluation.evaluate_rnak  # noqa: B018
