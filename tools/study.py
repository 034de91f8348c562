"""Trains settings over several seeds and prints a table: what helps, and how sure that is.

A study is a YAML file: for each row a name and what it changes, keys and values as on FastReID's
command line::

    base: configs/quickstart/rib.yml
    all: [SOLVER.MAX_EPOCH, 13]            # what every row changes; may be left out
    rows:
      no attention: []
      DCS behind layer3: [MODEL.ATTENTION.NAME, DCS, MODEL.ATTENTION.PLACEMENT, ('layer3',)]

    python tools/study.py tools/studies/attention.yml --seeds 0 1 2
    python tools/study.py FILE --seeds 0 1 2 --rows "no attention" --bfloat16

Runs that have been made are kept in logs/study and not made again. Rows are compared with the first
one seed by seed, since seeds differ by more than settings do.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml
from quickstart import METRICS, REPOSITORY, metrics

INFORMATION = re.compile(r"mutual_information ([\d.]+)")


def run(study, row, seed, script):
    """Trains one row with one seed, unless that has been done.

    Args:
        study: dict with the keys ``base``, ``rows``, perhaps ``all``, and ``name``, its folder.
        row: name of a row.
        seed: the value of SEED.
        script: file in ``tools`` that trains.

    Returns:
        "accuracy": {data set: {metric: percent}}, and "information": I(F;Y) at the last refresh in
        nats (None without RIB); or None if the training failed, which has been said.
    """
    folder = REPOSITORY / "logs" / "study" / study["name"] / Path(script).stem
    folder = folder / f"{re.sub(r'[^a-zA-Z0-9.]+', '-', row)}-{seed}"
    changes = [str(part) for part in study.get("all", []) + study["rows"][row]]
    done = folder / "study.json"
    if done.exists():
        found = json.loads(done.read_text())
        if found["changes"] == changes:
            return found["results"]
    command = [sys.executable, str(REPOSITORY / "tools" / script)]
    command += ["--config-file", str(REPOSITORY / study["base"])]
    # No checkpoints before the last: a study would fill the disk. No workers: each a whole Python.
    command += ["SOLVER.CHECKPOINT_PERIOD", "1000", "DATALOADER.NUM_WORKERS", "0"]
    command += [*changes, "SEED", str(seed), "OUTPUT_DIR", str(folder)]
    trained = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    lines = trained.stdout.splitlines()
    if trained.returncode != 0:
        print(f"{row}, seed {seed}: failed\n" + "\n".join(lines[-20:]), flush=True)
        return None
    information = INFORMATION.findall(trained.stdout)
    results = {
        "accuracy": metrics(lines),
        "information": float(information[-1]) if information else None,
    }
    done.write_text(json.dumps({"changes": changes, "results": results}))
    for checkpoint in folder.glob("*.pth"):
        checkpoint.unlink()
    told = ", ".join(f"{data} mAP {a['mAP']:.1f}" for data, a in results["accuracy"].items())
    print(f"{row}, seed {seed}: {told}", flush=True)
    return results


def table(results, seeds, data):
    """The Markdown table of a study, for one of its test sets.

    Args:
        results: {row: {seed: what :func:`run` returned}}.
        seeds: in the order of the columns.
        data: name of the test set.

    Returns:
        Lines: mean of each metric, of the differences in mAP from the first row over the seeds that
        both have, with their standard error, mAP of each seed, and I(F;Y).
    """
    lines = [
        f"| {data} | {' | '.join(METRICS)} | mAP - first row's | mAP by seed | I(F;Y), nats |",
        f"| --- {'| --- ' * (len(METRICS) + 3)}|",
    ]
    first = None
    for row, found in results.items():
        found = {seed: found[seed] for seed in seeds if found.get(seed)}
        if not found:
            continue
        accuracy = {seed: result["accuracy"][data] for seed, result in found.items()}
        cells = [f"{statistics.mean(a[m] for a in accuracy.values()):.1f}" for m in METRICS]
        gain = ""
        if first is None:
            first = accuracy
        else:
            gains = [a["mAP"] - first[seed]["mAP"] for seed, a in accuracy.items() if seed in first]
            gain = f"{statistics.mean(gains):+.1f}" if gains else ""
            if len(gains) > 1:
                gain += f" ({statistics.stdev(gains) / len(gains) ** 0.5:.1f})"
        told = [r["information"] for r in found.values() if r["information"] is not None]
        cells += [gain, ", ".join(f"{a['mAP']:.1f}" for a in accuracy.values())]
        cells.append(f"{statistics.mean(told):.2f}" if told else "")
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return lines


def load(path):
    """Reads a study.

    Raises:
        SystemExit: not a study; the message says what is missing.
    """
    study = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    if not isinstance(study, dict) or not {"base", "rows"} <= set(study):
        sys.exit(f"study: {path} must hold 'base', a config, and 'rows', names and changes")
    for row, changes in study["rows"].items():
        if not isinstance(changes, list) or len(changes) % 2:
            sys.exit(f"study: row '{row}' must be a list of keys and values in turn, got {changes}")
    return dict(study, name=Path(path).stem)


def main():
    """Trains what is missing and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", help="a YAML file")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", nargs="+", metavar="NAME", help="these only; else all")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time (cores)")
    parser.add_argument(
        "--bfloat16", action="store_true", help="by tools/train_bfloat16.py, 1.6 times as fast"
    )
    args = parser.parse_args()
    study = load(args.study)
    rows = args.rows or list(study["rows"])
    unknown = [row for row in rows if row not in study["rows"]]
    if unknown:
        parser.error(f"no rows {unknown}; {args.study} has {list(study['rows'])}")
    os.environ.setdefault("FASTREID_DATASETS", str(REPOSITORY / "datasets"))
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    script = "train_bfloat16.py" if args.bfloat16 else "train_net.py"

    results = {row: {} for row in rows}
    with ThreadPoolExecutor(args.jobs) as pool:
        # Seed by seed, so that a study that is cut short has all rows of the first ones.
        runs = {
            (row, seed): pool.submit(run, study, row, seed, script)
            for seed in args.seeds
            for row in rows
        }
        for (row, seed), done in runs.items():
            results[row][seed] = done.result()
    made = [result for found in results.values() for result in found.values() if result]
    for data in made[0]["accuracy"] if made else ():
        print("\n" + "\n".join(table(results, args.seeds, data)))


if __name__ == "__main__":
    main()
