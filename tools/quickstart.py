"""Trains several configs with the same seed, side by side, and prints their accuracies.

Each is one run of ``tools/train_net.py``, as anyone would start it::

    python tools/quickstart.py --seed 0 configs/quickstart/baseline.yml configs/quickstart/rib.yml

Its whole log is in ``logs/quickstart/<config>-seed<seed>/log.txt``; what goes to the terminal is a
line now and then. Then its neck is fitted to the training set, by ``export --embedding-dim``: the
second row of the table. The runs share the cores, one thread each where there are no more cores
than runs: at this size two threads are far from twice as fast as one.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
CONFIGS = [f"configs/quickstart/{name}.yml" for name in ("baseline", "rib")]
METRICS = ("mAP", "Rank-1", "mINP")

ENVIRONMENT = {
    # Threads that wait for work must not keep a core busy: the other runs need it.
    "OMP_WAIT_POLICY": "passive",
    # glibc gives large blocks back to the system as soon as they are free, and each step would pay
    # for 160 MB of fresh pages. Other C libraries do not read these.
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 31),
}
"""What the runs find set, unless it is set already: nothing but time depends on it."""

# FastReID's progress: "eta: 0:00:12  epoch/iter: 3/111  total_loss: 5.1  loss_cls: 4.9  ...  time:"
PROGRESS = re.compile(r"eta: (\S+)  epoch/iter: (\d+)/\d+  (.*?)  time:")


def train(config, seed):
    """Trains one config with progress on the terminal, and fits its neck.

    Args:
        config: path of a FastReID config.
        seed: the value of its key SEED.

    Returns:
        Two rows for the table, {name: FastReID's metrics over all queries of the first data set, in
        percent}: as it was trained, and with its neck fitted. None if something failed, which has
        been said.
    """
    name = Path(config).stem
    output_dir = REPOSITORY / "logs" / "quickstart" / f"{name}-seed{seed}"
    command = [sys.executable, str(REPOSITORY / "tools" / "train_net.py")]
    command += ["--config-file", str(config), "SEED", str(seed), "OUTPUT_DIR", str(output_dir)]
    print(f"{name}: {output_dir}{os.sep}log.txt", flush=True)

    text = _run(name, command)
    if text is None:
        return None
    rows = {name: next(iter(metrics(text).values()))}
    print(f"{name}: fitting the neck", flush=True)
    exported = output_dir / "exported"
    shutil.rmtree(exported, ignore_errors=True)  # of a run before
    export = [sys.executable, "-m", "fastreid_rib", "export", str(output_dir / "model_final.pth")]
    if _run(name, [*export, "--output", str(exported), "--embedding-dim", "0"]) is None:
        return None
    evaluate = [sys.executable, str(REPOSITORY / "tools" / "train_net.py"), "--eval-only"]
    evaluate += ["--config-file", str(exported / "config.yaml")]
    evaluate += ["MODEL.WEIGHTS", str(exported / "model_final.pth")]
    text = _run(name, [*evaluate, "OUTPUT_DIR", str(output_dir / "evaluated")])
    if text is None:
        return None
    return {**rows, f"{name}, neck fitted": next(iter(metrics(text).values()))}


def _run(name, command):
    """The lines that a command prints, its progress on the terminal; None if it failed."""
    text = []
    last = None
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        for line in process.stdout:
            text.append(line)
            progress = PROGRESS.search(line)
            # FastReID writes after the last step, and again after the last epoch.
            if progress and progress.groups() != last:
                last = progress.groups()
                eta, epoch, losses = last
                print(f"{name}: epoch {epoch}  {losses}  eta {eta}", flush=True)
    if process.returncode != 0:
        print("".join(text[-40:]) + f"\n{name}: failed, exit {process.returncode}")
        return None
    return text


def metrics(text):
    """Finds the last evaluation in what FastReID prints.

    For each data set it prints a table of a heading, a rule and a row; where it is known which
    queries are occluded, two more follow: "<data set> occluded" and "<data set> free".

    Args:
        text: lines.

    Returns:
        {data set: {metric of METRICS: percent}}, in order.
    """
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text if "|" in line]
    rows = [
        dict(zip(cells, table[i + 2])) for i, cells in enumerate(table) if cells[:1] == ["Dataset"]
    ]
    return {row["Dataset"]: {metric: float(row[metric]) for metric in METRICS} for row in rows}


def main():
    """Trains what the command line names and prints a table, a row for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("configs", nargs="*", default=CONFIGS, metavar="CONFIG")
    parser.add_argument("--seed", type=int, default=int(os.environ.get("SEED", "0")))
    args = parser.parse_args()
    names = [Path(config).stem for config in args.configs]
    if len(set(names)) < len(names):
        parser.error(f"output folders are called after the configs, and two of {names} are alike")
    os.environ.setdefault("FASTREID_DATASETS", str(REPOSITORY / "datasets"))
    threads = max(1, (os.cpu_count() or 1) // len(args.configs))
    for name, value in {"OMP_NUM_THREADS": str(threads), **ENVIRONMENT}.items():
        os.environ.setdefault(name, value)

    start = time.perf_counter()
    with ThreadPoolExecutor(len(args.configs)) as pool:
        found = list(pool.map(lambda config: train(config, args.seed), args.configs))
    minutes, seconds = divmod(round(time.perf_counter() - start), 60)

    print(f"\n{f'SEED {args.seed}':24}" + "".join(f"{metric:>8}" for metric in METRICS))
    for name, rows in zip(names, found):
        for row, results in (rows or {}).items():
            print(f"{row:24}" + "".join(f"{results[metric]:8.1f}" for metric in METRICS))
        if rows is None:
            print(f"{name:24}  failed")
    print(f"{minutes}:{seconds:02} minutes in all")
    sys.exit(None in found)


if __name__ == "__main__":
    main()
