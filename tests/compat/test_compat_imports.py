import collections
import sys

import pytest

from fastreid_rib.compat import imports

pytestmark = pytest.mark.published


@pytest.mark.skipif(not imports.collections_lack_mapping(), reason="collections has Mapping here")
def test_mapping_is_lent_and_taken_back():
    with imports.mapping_in_collections():
        from collections.abc import Mapping

        assert isinstance({}, Mapping)
    assert not hasattr(collections, "Mapping")


@pytest.mark.skipif(not imports.torch_lacks_six(), reason="torch has _six here")
def test_torch_six_is_lent_and_taken_back():
    with imports.torch_six():
        from torch._six import string_classes

        assert isinstance("", string_classes)
    assert "torch._six" not in sys.modules


@pytest.mark.skipif(not imports.collections_lack_mapping(), reason="collections has Mapping here")
def test_without_the_repair_the_import_fails(run_script):
    failed = run_script(
        "-c",
        "import fastreid_rib, fastreid.evaluation",
        env={"FASTREID_RIB_DISABLE": "collections-mapping"},
        check=False,
    )
    assert "cannot import name 'Mapping' from 'collections'" in failed.stdout


@pytest.mark.skipif(not imports.torch_lacks_six(), reason="torch has _six here")
def test_nothing_is_left_behind_after_fastreid_is_loaded():
    import fastreid.data
    import fastreid.evaluation  # noqa: F401

    assert "torch._six" not in sys.modules
    assert not hasattr(collections, "Mapping")


def test_a_missing_dependency_says_what_to_install():
    install = pytest.raises(ModuleNotFoundError, match="python -m pip install faiss-cpu")
    with install as raised, imports.undeclared_dependencies():
        raise ModuleNotFoundError("No module named 'faiss'", name="faiss")
    assert raised.value.name == "faiss"


def test_other_missing_modules_are_reported_as_they_were():
    as_it_was = pytest.raises(ModuleNotFoundError, match="^No module named 'mine'$")
    with as_it_was, imports.undeclared_dependencies():
        raise ModuleNotFoundError("No module named 'mine'", name="mine")
