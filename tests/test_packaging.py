"""The wheel: what it asks for, what it installs, what it does at start, what it leaves behind."""

import re
import shutil
import subprocess
import sys
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]


def run(*command, **options):
    result = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        **options,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built by pip in isolation, where there is setuptools and neither torch nor FastReID."""
    source = tmp_path_factory.mktemp("source")
    for name in ("setup.py", "pyproject.toml", "LICENSE", "README.md"):
        if (REPOSITORY / name).exists():
            shutil.copy(str(REPOSITORY / name), str(source))
    shutil.copytree(str(REPOSITORY / "fastreid_rib"), str(source / "fastreid_rib"))
    directory = tmp_path_factory.mktemp("wheel")
    run(*PIP, "wheel", "--quiet", "--no-deps", "--wheel-dir", directory, source)
    (path,) = directory.glob("fastreid_rib-*.whl")
    return path


class Environment:
    """An environment without any package, so that only the wheel's own code can be at work."""

    def __init__(self, path):
        venv.create(str(path), with_pip=False)
        self.python = path / "bin" / "python"
        (self.site_packages,) = path.glob("lib/python*/site-packages")

    def pip(self, *arguments):
        run(*PIP, "--python", self.python, *arguments)

    def start(self, code="pass", *options, **environment):
        return run(self.python, *options, "-c", code, env=environment, cwd=str(self.site_packages))

    def files(self):
        return sorted(str(path) for path in self.site_packages.rglob("*"))


@pytest.fixture
def environment(tmp_path):
    return Environment(tmp_path / "environment")


@pytest.fixture
def installed(environment, wheel):
    environment.pip("install", "--quiet", "--no-deps", "--no-index", wheel)
    return environment


def metadata(wheel):
    with zipfile.ZipFile(str(wheel)) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return Parser().parsestr(archive.read(name).decode("utf-8"))


def test_version_is_the_packages_own(wheel):
    import fastreid_rib

    assert metadata(wheel)["Version"] == fastreid_rib.__version__


def test_it_can_change_neither_torch_nor_any_installed_version_downwards(wheel):
    requirements = metadata(wheel).get_all("Requires-Dist")
    names = {re.match(r"[\w.-]+", requirement).group(0) for requirement in requirements}
    assert names.isdisjoint({"torch", "torchvision", "fastreid"})
    for requirement in requirements:
        versions = requirement.split(";")[0]
        assert not re.search(r"[<=~!]", versions), f"{requirement} bounds the version from above"


def test_what_fastreid_imports_and_does_not_declare_is_brought(wheel):
    always = [r for r in metadata(wheel).get_all("Requires-Dist") if "extra ==" not in r]
    names = {re.match(r"[\w.-]+", requirement).group(0) for requirement in always}
    assert {"gdown", "matplotlib", "tqdm", "six"} <= names


def test_uninstalling_leaves_nothing_behind(environment, wheel):
    before = environment.files()
    environment.pip("install", "--quiet", "--no-deps", "--no-index", wheel)
    assert (environment.site_packages / "fastreid_rib.pth").is_file()
    assert (environment.site_packages / "fastreid_rib" / "py.typed").is_file()
    environment.start()  # writes bytecode
    environment.pip("uninstall", "--quiet", "--yes", "fastreid-rib")
    assert environment.files() == before


LOADED = "import sys; print('fastreid_rib' in sys.modules, [type(f) for f in sys.meta_path])"


def test_the_interpreter_starts_with_the_hook_armed_and_nothing_heavy_loaded(installed):
    # There is nothing in this environment to load: the hook needs the standard library alone.
    result = installed.start(LOADED)
    assert result.stdout.startswith("True") and "fastreid_rib" in result.stdout
    assert result.stderr == ""


def test_disabled_the_hook_stays_out(installed):
    result = installed.start(LOADED, FASTREID_RIB_DISABLE="1")
    assert "fastreid_rib" not in result.stdout and result.stderr == ""


@pytest.mark.parametrize("fault", ["gone", "half gone", "syntax error"])
def test_a_broken_package_never_breaks_the_interpreter(installed, fault):
    package = installed.site_packages / "fastreid_rib"
    if fault == "gone":
        shutil.rmtree(str(package))
    elif fault == "half gone":
        (package / "activation.py").unlink()
    else:
        (package / "__init__.py").write_text("def (", encoding="utf-8")
    result = installed.start("print('started')")
    assert (result.stdout, result.stderr) == ("started\n", "")
