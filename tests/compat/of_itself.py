"""What FastReID does of itself: cases that run in a process where their repairs are off."""

import json
import os
import subprocess
import sys
import threading
import warnings


def case(*repairs):
    """Marks a function that shows a defect, unless these repairs are at work."""

    def mark(function):
        function.repairs = repairs
        return function

    return mark


def cases_of(module):
    return [value for value in vars(module).values() if hasattr(value, "repairs")]


def outcome(function, *args):
    """What it returns, or the error that it ends in, as text."""
    try:
        return function(*args)
    except (Exception, SystemExit) as error:
        return f"{type(error).__name__}: {error}"


def ends(call, seconds=3.0):
    """Whether `call` comes back, or its error; a thread is left behind where it does not."""
    found = []
    thread = threading.Thread(target=lambda: found.append(outcome(call)), daemon=True)
    thread.start()
    thread.join(seconds)
    return found[0] if found and isinstance(found[0], str) else bool(found)


def report(module, folder, repaired=False):
    """{name of a case: its outcome} of the cases of a module, run in a process of its own."""
    path = folder / "report.json"
    off = () if repaired else {name for each in cases_of(module) for name in each.repairs}
    done = subprocess.run(
        [sys.executable, module.__file__, str(path)],
        env=dict(os.environ, FASTREID_RIB_DISABLE=",".join(off)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return json.loads(path.read_text())


def write_report():
    """In that process: runs the cases of the script, and ends."""
    warnings.simplefilter("ignore")
    cases = cases_of(sys.modules["__main__"])
    with open(sys.argv[1], "w") as file:
        json.dump({each.__name__: outcome(each) for each in cases}, file, default=str)
    os._exit(0)  # threads that hang are part of the report
