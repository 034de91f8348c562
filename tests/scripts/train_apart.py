"""As train_as_users_do.py, one process of several that are started one by one, each with its own
environment and arguments (as on machines that were set up apart):

    train_apart.py RANK SIZE PORT PATIENCE [--config-file FILE] KEY VALUE ...
"""

import os
import sys

if os.environ.get("ARM"):
    import fastreid_rib  # noqa: F401

from fastreid.engine import default_argument_parser
from fastreid.engine.launch import _distributed_worker  # what `launch` runs in each process
from train_as_users_do import main

if __name__ == "__main__":
    rank, size, port, patience = (float(value) for value in sys.argv[1:5])
    if os.environ.get("FASTREID_RIB_DISABLE") != "register":
        from fastreid_rib.integration.run import agreement

        agreement.PATIENCE = patience
    args = default_argument_parser().parse_args(sys.argv[5:])
    url = f"tcp://127.0.0.1:{int(port)}"
    _distributed_worker(0, main, int(size), 1, int(rank), url, (args,))
