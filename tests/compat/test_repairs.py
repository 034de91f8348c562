"""The repairs as a whole: what is declared, where they act, what happens where one does not fit."""

import dataclasses
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastreid_rib import activation, compat
from fastreid_rib.compat import repairs, training


def of_fastreid():
    """The repairs that act on FastReID, and not only on a project beside it."""
    return [r for r in compat.REPAIRS if any(m.startswith("fastreid.") for m in r.modules)]


def test_every_repair_is_named_once_and_says_what_it_mends():
    names = [repair.name for repair in compat.REPAIRS]
    assert len(set(names)) == len(names) >= 56
    for repair in compat.REPAIRS:
        assert {module.partition(".")[0] for module in repair.modules} <= activation.ROOTS
        assert re.fullmatch(r"[A-Z`].*\.", repair.instead), repair.name
        assert repair.defect and repair.where and not repair.defect.endswith("."), repair.name


def test_a_second_time_changes_nothing():
    import fastreid.data.build as build
    import fastreid.engine  # noqa: F401
    from fastreid.data.data_utils import DataLoaderX

    before = build.build_reid_test_loader, DataLoaderX.__init__
    compat.repair_loaded()
    assert (build.build_reid_test_loader, DataLoaderX.__init__) == before


@pytest.fixture
def anew(monkeypatch):
    """The repairs as they are before any has acted or failed."""
    fresh = [dataclasses.replace(each, acted=False, failed=False) for each in compat.REPAIRS]
    monkeypatch.setattr(repairs, "REPAIRS", fresh)


def test_an_essential_repair_that_does_not_fit_ends_the_run(anew, monkeypatch):
    """Without it FastReID would go on with wrong numbers."""
    from fastreid.engine import hooks
    from fastreid.evaluation import rank

    monkeypatch.setattr(rank, "evaluate_rank", lambda distances, queries: 0)
    monkeypatch.setenv("FASTREID_RIB_DISABLE", "loader-exit")
    for _ in range(2):  # in a notebook the same cell may be run again
        with pytest.raises(compat.RepairError) as error:
            compat.repair_loaded()
        assert str(error.value) == (
            "fastreid-rib: the repair small-gallery does not fit this FastReID, and without it a "
            "gallery of fewer than 50 identities ends the ranking in Python in an error, and gives "
            "the compiled one wrong numbers at high ranks. Expected "
            "fastreid.evaluation.rank:evaluate_rank(distmat, q_pids, g_pids, q_camids, g_camids, "
            "max_rank, ...), found (distances, queries, ...). If this FastReID is free of that "
            "defect, switch the repair off: write FASTREID_RIB_DISABLE=loader-exit,small-gallery "
            "before the command."
        )
    monkeypatch.setenv("FASTREID_RIB_DISABLE", "loader-exit,small-gallery")
    compat.repair_loaded()
    monkeypatch.delattr(hooks, "LayerFreeze")  # of a repair that looks for more than one thing
    with pytest.raises(compat.RepairError, match="frozen-layers .*found AttributeError"):
        compat.repair_loaded()


def test_an_optimizer_of_another_form_ends_the_run():
    """It could be over flat parameters, and learn nothing."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.1)
    for built in (optimizer, (optimizer, "flat"), (optimizer, [], 3)):
        with pytest.raises(compat.RepairError, match="zero-grad .*Expected build_optimizer to ret"):
            training.zero_grad(lambda cfg, model, built=built: built, None, None)


def test_the_real_fastreid_with_a_change_in_its_source(tmp_path, run_script):
    import fastreid

    copy = tmp_path / "fastreid"
    shutil.copytree(Path(fastreid.__file__).parent, copy)
    rank = copy / "evaluation" / "rank.py"
    rank.write_text(rank.read_text().replace("def evaluate_rank(", "def rank_all("))
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import fastreid_rib\n"
        "import fastreid.evaluation.rank; print(fastreid.__file__)"
    )
    failed = run_script("-c", code, check=False)
    assert failed.returncode == 1
    assert "RepairError: fastreid-rib: the repair small-gallery does not fit" in failed.stdout
    off = re.search("FASTREID_RIB_DISABLE=(.*) before", failed.stdout).group(1)
    done = run_script("-W", "ignore", "-c", code, env={"FASTREID_RIB_DISABLE": off})
    assert done.stdout.startswith(str(tmp_path))


def test_another_repair_that_does_not_fit_is_one_warning(anew, monkeypatch, caplog):
    from fastreid.data import data_utils

    monkeypatch.delattr(data_utils, "read_image")
    compat.repair_loaded()
    compat.repair_loaded()
    (said,) = (r.getMessage() for r in caplog.records if "does not fit" in r.getMessage())
    assert said.startswith(
        "fastreid-rib: the repair lost-pictures does not fit this FastReID, which is left as it "
        "is: expected fastreid.data.data_utils:read_image, found AttributeError("
    )
    assert "lost-pictures" not in compat.active() and "loader-errors" in compat.active()


LATE = """
import contextlib, os
from fastreid_rib import compat
from fastreid_rib.compat import libraries
# FastReID is imported as an older Python would import it.
with contextlib.contextmanager(libraries.lost_names)():
    import fastreid.engine
    from fastreid.solver import build_optimizer
    from fastreid.engine import defaults
    stock = defaults.build_optimizer
assert compat.active() == [], compat.active()
del os.environ["FASTREID_RIB_DISABLE"]
compat.repair_loaded()
assert defaults.build_optimizer is not stock
assert __import__("sys").modules["__main__"].build_optimizer is defaults.build_optimizer
print("mended", " ".join(compat.active()))
"""


def test_modules_that_were_loaded_before_are_mended(run_script):
    # `import fastreid_rib` arms the hook; "all" keeps it from doing so in this process.
    env = {"FASTREID_RIB_DISABLE": "all,torch-six"}
    said = run_script("-W", "ignore", "-c", LATE, env=env).stdout
    assert "FASTREID_RIB_DISABLE names torch-six, which is no repair" in said
    # The first evaluation loads the one, the demo the next, get_cfg() the last.
    later = {"evaluation.rank", "utils.visualizer", "config.defaults"}
    assert said.split("mended")[1].split() == [
        repair.name
        for repair in of_fastreid()
        if not repair.surrounds and repair.modules.isdisjoint(f"fastreid.{name}" for name in later)
    ]


def test_repairs_can_be_switched_off(monkeypatch):
    for value in ("1", "all", "zero-grad, all"):
        monkeypatch.setenv("FASTREID_RIB_DISABLE", value)
        assert repairs._wanted("fastreid.data.build") == []
    monkeypatch.setenv("FASTREID_RIB_DISABLE", "register, test-workers")
    names = [repair.name for repair in repairs._wanted("fastreid.data.build")]
    assert "test-workers" not in names and "cpu-model-loader" in names


def test_importing_the_repairs_loads_neither_torch_nor_numpy():
    code = (
        "import sys; sys.modules['fastreid_rib'] = p = type(sys)('fastreid_rib');"
        f"p.__path__ = [{compat.__path__[0].rsplit('/', 1)[0]!r}];"
        "import fastreid_rib.compat;"
        "print({'torch', 'numpy', 'fastreid', 'torchvision'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert done.stdout.strip() == "set()"
