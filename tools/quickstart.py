"""Trains several configs with the same seed, one after the other, and prints their accuracies.

Each is one run of ``tools/train_net.py``, as anyone would start it::

    python tools/quickstart.py --seed 0 configs/quickstart/baseline.yml configs/quickstart/rib.yml

Its whole log is in ``logs/quickstart/<config>-seed<seed>/log.txt``; what goes to the terminal is a
line now and then.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
CONFIGS = ["configs/quickstart/baseline.yml", "configs/quickstart/rib.yml"]
METRICS = ("mAP", "Rank-1", "mINP")

# FastReID's progress: "eta: 0:00:12  epoch/iter: 3/111  total_loss: 5.1  loss_cls: 4.9  ...  time:"
PROGRESS = re.compile(
    r"eta: (?P<eta>\S+)\s+epoch/iter: (?P<epoch>\d+)/\d+\s+(?P<losses>.*?)\s+time:"
)


def train(config, seed):
    """Trains one config with progress on the terminal.

    Args:
        config: path of a FastReID config.
        seed: the value of its key SEED.

    Returns:
        FastReID's metrics of the last evaluation, in percent: a dict that holds METRICS.

    Raises:
        SystemExit: the training failed; its last lines have been printed.
    """
    name = Path(config).stem
    output_dir = REPOSITORY / "logs" / "quickstart" / f"{name}-seed{seed}"
    command = [sys.executable, str(REPOSITORY / "tools" / "train_net.py")]
    command += ["--config-file", str(config), "SEED", str(seed), "OUTPUT_DIR", str(output_dir)]
    print(f"\n{name}: {output_dir}{os.sep}log.txt", flush=True)

    # Its text is kept for the case that it fails, since not all of it is in the log.
    text = []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        for line in process.stdout:
            text.append(line)
            progress = PROGRESS.search(line)
            if progress:
                print(
                    "{name}: epoch {epoch}  {losses}  eta {eta}".format(
                        name=name, **progress.groupdict()
                    ),
                    flush=True,
                )
    if process.returncode != 0:
        sys.exit("".join(text[-40:]) + f"\n{name}: training failed, exit {process.returncode}")

    # FastReID appends to this file: the last evaluation is this run's.
    lines = (output_dir / "metrics.json").read_text(encoding="utf-8").splitlines()
    return [scalars for scalars in map(json.loads, lines) if METRICS[0] in scalars][-1]


def main():
    """Trains what the command line names and prints a table, a row for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("configs", nargs="*", default=CONFIGS, metavar="CONFIG")
    parser.add_argument("--seed", type=int, default=int(os.environ.get("SEED", "0")))
    args = parser.parse_args()
    os.environ.setdefault("FASTREID_DATASETS", str(REPOSITORY / "datasets"))

    rows = []
    for config in args.configs:
        start = time.perf_counter()
        results = train(config, args.seed)
        rows.append((Path(config).stem, results, time.perf_counter() - start))

    print(
        f"\n{f'SEED {args.seed}':20}" + "".join(f"{metric:>8}" for metric in METRICS) + "    time"
    )
    for name, results, seconds in rows:
        print(
            f"{name:20}"
            + "".join(f"{results[metric]:8.1f}" for metric in METRICS)
            + f"{seconds:6.0f} s"
        )


if __name__ == "__main__":
    main()
