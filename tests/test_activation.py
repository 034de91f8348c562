"""The import hook: what it costs, when it acts, how it is switched off."""

import pytest

pytestmark = pytest.mark.published


@pytest.fixture
def python(run_script):
    return lambda code, **env: run_script("-c", code, env=env).stdout


def test_arming_loads_nothing_heavy(python):
    code = (
        "import sys; before = set(sys.modules)\n"
        "import fastreid_rib\n"
        "print(sorted(set(sys.modules) - before))"
    )
    loaded = python(code)
    allowed = {"fastreid_rib", "fastreid_rib.activation", "fastreid_rib.base", "__future__"}
    assert set(eval(loaded)) <= allowed


@pytest.mark.parametrize("module", ["fastreid.config", "fastreid.engine"])
def test_registers_whichever_module_comes_first(python, module):
    code = (
        "import fastreid_rib\n"
        f"import {module}\n"
        "from fastreid.config import get_cfg\n"
        "from fastreid.data.datasets import DATASET_REGISTRY\n"
        "cfg = get_cfg(); cfg.MODEL.LOSSES.RIB.BETA; cfg.SEED\n"
        "DATASET_REGISTRY.get('SyntheticReID')\n"
        "print('ready')"
    )
    assert "ready" in python(code)


def test_importing_the_plugin_late_registers_at_once(python):
    code = (
        "import fastreid.engine, fastreid.modeling\n"
        "from fastreid.engine import DefaultTrainer\n"
        "from fastreid.config import get_cfg\n"
        "assert 'SEED' not in get_cfg()\n"
        "import fastreid_rib\n"
        "cfg = get_cfg()\n"
        "cfg.merge_from_list(['MODEL.LOSSES.NAME', ('RIB',), 'MODEL.DEVICE', 'cpu',\n"
        "                     'MODEL.HEADS.NUM_CLASSES', 3])\n"
        "print(type(DefaultTrainer.build_model(cfg).rib).__name__)\n"
        "from fastreid.engine import default_setup\n"
        "print(default_setup.__wrapped__.__module__)"
    )
    # What keeps FastReID from being loaded at all must be repaired first on today's stack: arm the
    # hook with registration off, and take the hook away again.
    prelude = (
        "import os, sys; os.environ['FASTREID_RIB_DISABLE'] = 'register'\n"
        "import fastreid_rib, fastreid.data, fastreid.evaluation\n"
        "import fastreid.engine\n"
        "sys.meta_path[:] = [f for f in sys.meta_path if 'rib' not in type(f).__module__]\n"
        "for name in [n for n in sys.modules if n.startswith('fastreid_rib')]:\n"
        "    del sys.modules[name]\n"
        "os.environ['FASTREID_RIB_DISABLE'] = ''\n"
    )
    printed = python(prelude + code)
    assert "RIBLoss" in printed
    assert "fastreid.engine.defaults" in printed


def test_switched_off(python):
    code = (
        "import sys, fastreid_rib\n"
        "from fastreid.config import get_cfg\n"
        "print('SEED' in get_cfg(), any('rib' in type(f).__module__ for f in sys.meta_path))"
    )
    assert "False False" in python(code, FASTREID_RIB_DISABLE="1")
    assert "False True" in python(code, FASTREID_RIB_DISABLE="register")
    assert "True True" in python(code)


def test_modules_keep_their_real_loader():
    import inspect

    import fastreid.config.defaults as defaults

    assert "fastreid_rib" not in type(defaults.__spec__.loader).__module__
    assert "_C.MODEL" in inspect.getsource(defaults)


def test_the_package_says_what_it_has():
    import fastreid_rib

    assert set(fastreid_rib.__all__) <= set(dir(fastreid_rib))
    assert fastreid_rib.RIBLoss.__name__ == "RIBLoss"
    with pytest.raises(AttributeError, match="no attribute 'RIBLos'"):
        fastreid_rib.RIBLos  # noqa: B018
