"""What a script finds, in a process of its own and with some repairs switched off."""

import json
import os
import subprocess
import sys


def report(script, folder, off=(), timeout=300):
    """What the script writes as JSON to the path that it is given."""
    path = folder / "report.json"
    done = subprocess.run(
        [sys.executable, str(script), str(path)],
        env=dict(os.environ, FASTREID_RIB_DISABLE=",".join(off)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return json.loads(path.read_text())
