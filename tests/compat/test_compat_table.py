import subprocess
import sys

import pytest

from fastreid_rib import activation, compat


def of_fastreid():
    """The repairs that act on FastReID, and not only on a project beside it."""
    return [r for r in compat.REPAIRS if any(m.startswith("fastreid.") for m in r.modules)]


def test_every_repair_is_named_once_and_can_act():
    names = [repair.name for repair in compat.REPAIRS]
    assert len(set(names)) == len(names)
    for repair in compat.REPAIRS:
        assert (repair.around is None) != (repair.after is None), repair.name
        assert all(module.startswith(activation.BEGINNINGS) for module in repair.modules)


def test_repairs_act_where_their_defect_is_and_nowhere_else():
    import fastreid.config.defaults
    import fastreid.engine
    import fastreid.evaluation.rank
    import fastreid.utils.visualizer  # noqa: F401

    expected = [repair.name for repair in of_fastreid() if repair.present()]
    assert compat.active() == expected


def test_every_repair_says_where_its_defect_is():
    from fastreid_rib.compat.repairs import _always

    for repair in compat.REPAIRS:
        assert repair.defect and repair.instead and repair.where
        assert not any(text.endswith(".") for text in repair[1:3]), repair.name
        assert repair.present is _always or repair.where != "everywhere", repair.name


def test_a_second_time_changes_nothing():
    import fastreid.data.build as build
    from fastreid.data.data_utils import DataLoaderX

    before = build.build_reid_test_loader, DataLoaderX.__init__
    compat.repair_loaded()
    assert (build.build_reid_test_loader, DataLoaderX.__init__) == before


def test_a_repair_that_does_not_fit_leaves_fastreid_usable(monkeypatch, caplog):
    def fails(module):
        raise AttributeError("DataLoaderX")

    import fastreid.data.data_utils  # noqa: F401

    odd = compat.Repair("odd", "", "", ("fastreid.data.data_utils",), lambda: True, after=fails)
    monkeypatch.setattr(compat, "REPAIRS", (odd,))
    compat.repair_loaded()
    compat.repair_loaded()
    assert [r.getMessage() for r in caplog.records if "odd" in r.getMessage()] == [
        "fastreid-rib: repair odd does not fit this FastReID (AttributeError('DataLoaderX')); "
        "left as it is."
    ]
    assert compat.active() == []


LATE = """
import os, warnings
warnings.simplefilter("ignore")
os.environ["FASTREID_RIB_DISABLE"] = "all"
from fastreid_rib import compat
with compat.repairing("fastreid.data.build"):
    pass
assert compat.active() == [], compat.active()
# FastReID is imported with the repairs of its imports only, as an older Python would import it.
del os.environ["FASTREID_RIB_DISABLE"]
with compat.imports.mapping_in_collections() if compat.imports.collections_lack_mapping() \\
        else compat.imports.undeclared_dependencies(), \\
        compat.imports.torch_six() if compat.imports.torch_lacks_six() \\
        else compat.imports.undeclared_dependencies():
    import fastreid.engine
    from fastreid.solver import build_optimizer
    from fastreid.engine import defaults
    stock = defaults.build_optimizer
compat.repair_loaded()
assert defaults.build_optimizer is not stock
assert __import__("sys").modules["__main__"].build_optimizer is defaults.build_optimizer
print(" ".join(compat.active()))
"""


def test_modules_that_were_loaded_before_are_mended(run_script):
    # `import fastreid_rib` arms the hook; "all" keeps it from doing so in this process.
    late = run_script("-c", LATE, env={"FASTREID_RIB_DISABLE": "all"}).stdout.split()
    expected = [
        repair.name
        for repair in of_fastreid()
        if repair.after and repair.present()
        # The first evaluation loads the one, the demo the next, get_cfg() the last.
        if repair.modules
        not in (
            ("fastreid.evaluation.rank",),
            ("fastreid.utils.visualizer",),
            ("fastreid.config.defaults",),
        )
    ]
    assert late == expected


@pytest.mark.parametrize("value", ["1", "all", "zero-grad, all"])
def test_everything_can_be_switched_off(monkeypatch, value):
    monkeypatch.setenv("FASTREID_RIB_DISABLE", value)
    assert compat._wanted("fastreid.data.build") == []


def test_one_repair_can_be_switched_off(monkeypatch):
    monkeypatch.setenv("FASTREID_RIB_DISABLE", "register, test-workers")
    names = [repair.name for repair in compat._wanted("fastreid.data.build")]
    assert "test-workers" not in names
    assert "cpu-model-loader" in names


def test_importing_the_table_loads_neither_torch_nor_numpy():
    code = (
        "import sys; sys.modules['fastreid_rib'] = p = type(sys)('fastreid_rib');"
        f"p.__path__ = [{compat.__path__[0].rsplit('/', 1)[0]!r}];"
        "import fastreid_rib.compat;"
        "print({'torch', 'numpy', 'fastreid', 'torchvision'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert done.stdout.strip() == "set()"
