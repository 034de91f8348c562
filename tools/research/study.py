"""Trains settings over several seeds and prints a table: what helps, and how sure that is.

A study is a YAML file: for each row a name and what it changes, keys and values as on FastReID's
command line::

    base: configs/quickstart/rib.yml
    all: [SOLVER.MAX_EPOCH, 13]            # what every row changes; may be left out
    rows:
      no attention: []
      DCS: &dcs [MODEL.ATTENTION.NAME, DCS]
      DCS behind layer3: [*dcs, MODEL.ATTENTION.PLACEMENT, ('layer3',)]

A list in the place of a key stands for the keys and values in it.

    python tools/research/study.py tools/research/studies/attention.yml --seeds 0 1 2
    python tools/research/study.py FILE --seeds 0 1 2 --rows "no attention" --bfloat16 --jobs 2
    python tools/research/plot_study.py FILE --seeds 0 1 2 --output study.svg

Runs that have been made are kept in logs/study and not made again, so the same command resumes a
study that was interrupted; the runs that it interrupted start anew. Rows are compared with the
first one, or with --against, seed by seed, since seeds differ by more than settings do. After a
difference stands its standard error, where two seeds or more have both rows.
"""

import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml

sys.path.append(str(Path(__file__).resolve().parents[1]))
# isort: split
from quickstart import METRICS, REPOSITORY, metrics

INFORMATION = re.compile(r"mutual_information ([\d.]+)")
PARTS = ("occluded", "free")
"""The queries that the evaluation reports apart, as "<test set> occluded"."""

_running = set()  # processes that train


def folder(study, row, seed, script):
    """Where a run is kept; the arguments are those of :func:`run`."""
    runs = REPOSITORY / "logs" / "study" / study["name"] / Path(script).stem
    return runs / f"{_in_files(row)}-{seed}"


def _in_files(row):
    return re.sub(r"[^a-zA-Z0-9.]+", "-", row)


def changes(study, row):
    """What a row changes in the base: keys and values in turn, as text."""
    return [str(part) for part in study["all"] + study["rows"][row]]


def kept(study, row, seed, script):
    """What :func:`run` returned for the same changes before; None if it never did."""
    done = folder(study, row, seed, script) / "study.json"
    found = json.loads(done.read_text()) if done.exists() else {}
    return found["results"] if found.get("changes") == changes(study, row) else None


def run(study, row, seed, script):
    """Trains one row with one seed, unless that has been done.

    Args:
        study: as :func:`load` gives it.
        row: name of a row.
        seed: the value of SEED.
        script: path in the repository of what trains.

    Returns:
        "accuracy": {test set, or "<test set> occluded" and "<test set> free": {metric: percent}},
        and "information": I(F;Y) at the last refresh in nats (None without RIB); or None if the
        training failed, which has been said.
    """
    results = kept(study, row, seed, script)
    if results:
        return results
    output = folder(study, row, seed, script)
    command = [sys.executable, str(REPOSITORY / script)]
    command += ["--config-file", str(REPOSITORY / study["base"])]
    # No checkpoints before the last: a study would fill the disk. No workers: each a whole Python.
    command += ["SOLVER.CHECKPOINT_PERIOD", "1000", "DATALOADER.NUM_WORKERS", "0"]
    command += [*changes(study, row), "SEED", str(seed), "OUTPUT_DIR", str(output)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        _running.add(process)
        printed = process.communicate()[0]
        _running.discard(process)
    lines = printed.splitlines()
    if process.returncode != 0:
        print(f"{row}, seed {seed}: failed\n" + "\n".join(lines[-20:]), flush=True)
        return None
    information = INFORMATION.findall(printed)
    results = {
        "accuracy": metrics(lines),
        "information": float(information[-1]) if information else None,
    }
    made = {"changes": changes(study, row), "results": results}
    # In one step: a study that is killed here must not find half of a file when it is resumed.
    (output / "study.partial").write_text(json.dumps(made))
    os.replace(str(output / "study.partial"), str(output / "study.json"))
    for checkpoint in output.glob("*.pth"):
        checkpoint.unlink()
    told = ", ".join(f"{data} mAP {a['mAP']:.1f}" for data, a in results["accuracy"].items())
    print(f"{row}, seed {seed}: {told}", flush=True)
    return results


def test_sets(results):
    """The test sets of a study's results, without the parts of their queries, in order."""
    made = [result for found in results.values() for result in found.values() if result]
    names = dict.fromkeys(data for result in made for data in result["accuracy"])
    parts = {f"{data} {part}" for data in names for part in PARTS}
    return [data for data in names if data not in parts]


def by_seed(results, row, seeds, data, metric):
    """The accuracy of a row: {seed: percent}, for the seeds whose runs have it.

    Args:
        results: {row: {seed: what :func:`run` returned}}.
        row: name of a row.
        seeds: in order.
        data: a test set, or "<test set> occluded" or "<test set> free", which runs that are older
            than their evaluation do not have.
        metric: one of METRICS.
    """
    found = {seed: results[row].get(seed) for seed in seeds}
    return {
        seed: result["accuracy"][data][metric]
        for seed, result in found.items()
        if result and data in result["accuracy"]
    }


def differences(values, others):
    """Of two rows as :func:`by_seed` gives them, over the seeds that both have: {seed: points}."""
    return {seed: value - others[seed] for seed, value in values.items() if seed in others}


def mean_and_error(values):
    """Mean over the seeds and its standard error, None where one seed cannot tell.

    Args:
        values: {seed: number}, at least one.
    """
    numbers = list(values.values())
    error = statistics.stdev(numbers) / len(numbers) ** 0.5 if len(numbers) > 1 else None
    return statistics.mean(numbers), error


def table(results, seeds, data, against):
    """The Markdown table of a study, for one of its test sets.

    Args:
        results: {row: {seed: what :func:`run` returned}}.
        seeds: in the order of the last column but one.
        data: name of the test set.
        against: the row that the others are compared with.

    Returns:
        Lines: number of seeds, mean of each metric, of the differences in mAP and mINP from the
        other row with their standard errors, the same of mAP of the occluded and of the free
        queries where it is known, mAP of each seed, and I(F;Y). What fewer seeds of the row have
        says of how many it is.
    """

    def mean(row, of, metric, count):
        return _cell(by_seed(results, row, seeds, of, metric), count)

    def gain(row, of, metric, count):
        both = [by_seed(results, name, seeds, of, metric) for name in (row, against)]
        return "" if row == against else _cell(differences(*both), count, sign="+")

    columns = [(metric, mean, data, metric) for metric in METRICS]
    columns += [(f"{metric} - {against}", gain, data, metric) for metric in ("mAP", "mINP")]
    for part in PARTS:
        of = f"{data} {part}"
        if any(by_seed(results, row, seeds, of, "mAP") for row in results):
            columns.append((f"{part}: mAP", mean, of, "mAP"))
            columns.append((f"mAP - {against}", gain, of, "mAP"))
    heading = [data, "seeds", *[name for name, *_ in columns], "mAP by seed", "I(F;Y), nats"]
    lines = [f"| {' | '.join(heading)} |", f"| {' | '.join('---' for _ in heading)} |"]
    for row, found in results.items():
        percents = by_seed(results, row, seeds, data, "mAP")
        if not percents:
            continue
        count = len(percents)
        cells = [row, str(count), *[cell(row, *of, count) for _, cell, *of in columns]]
        cells.append(", ".join(f"{percent:.1f}" for percent in percents.values()))
        told = [found[seed]["information"] for seed in percents]
        told = [nats for nats in told if nats is not None]
        cells.append(f"{statistics.mean(told):.2f}" if told else "")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _cell(values, count, sign=""):
    """A mean in a table; with its standard error if it is a difference, which has a sign."""
    if not values:
        return ""
    mean, error = mean_and_error(values)
    text = f"{mean:{sign}.1f}"
    if sign and error is not None:
        text += f" ({error:.1f})"
    return text if len(values) == count else f"{text} of {len(values)}"


def load(path):
    """Reads a study.

    Returns:
        dict: ``name``, its folder, ``base``, and ``all`` and ``rows`` with keys and values in turn.

    Raises:
        SystemExit: not a study, or two rows whose runs would be kept in one folder; the message
            says what to change.
    """
    study = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    if not isinstance(study, dict) or not {"base", "rows"} <= set(study):
        sys.exit(f"study: {path} must hold 'base', a config, and 'rows', names and changes")
    names = {}
    for row in study["rows"]:
        other = names.setdefault(_in_files(row), row)
        if other != row:
            sys.exit(f"study: rows '{other}' and '{row}' differ in signs alone; rename one of them")
    return {
        "name": Path(path).stem,
        "base": study["base"],
        "all": _pairs("'all'", study.get("all", [])),
        "rows": {row: _pairs(f"row '{row}'", part) for row, part in study["rows"].items()},
    }


def _pairs(told, part):
    """What a part of a study changes, without lists in the place of keys; or an error."""
    flat = spliced(part) if isinstance(part, list) else [part]
    if len(flat) % 2:
        sys.exit(f"study: {told} must be a list of keys and values in turn, got {part}")
    return flat


def spliced(changes):
    """Keys and values in turn, where lists may stand in the place of keys."""
    flat = []
    for part in changes:
        # An even number so far: this is a key, or keys and values of their own.
        flat += spliced(part) if isinstance(part, list) and len(flat) % 2 == 0 else [part]
    return flat


def parse(parser, arguments=None):
    """Adds what all programs on studies take, and reads the command line.

    Args:
        parser: an ``argparse.ArgumentParser``.
        arguments: of the command line; None: this program's.

    Returns:
        The arguments: ``study`` as :func:`load` gives it, ``seeds``, ``rows`` and ``against``,
        which are rows of it, and ``script``, that trains.

    Raises:
        SystemExit: no study, or no rows of it; the message says what there is.
    """
    parser.add_argument("study", metavar="FILE", help="a YAML file")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="these only; else all")
    parser.add_argument("--against", metavar="ROW", help="what rows are compared with")
    parser.add_argument(
        "--bfloat16", action="store_true", help="by train_bfloat16.py, 1.6 times as fast"
    )
    args = parser.parse_args(arguments)
    path, args.study = args.study, load(args.study)
    args.rows = args.rows or list(args.study["rows"])
    unknown = [row for row in args.rows if row not in args.study["rows"]]
    if unknown:
        parser.error(f"no rows {unknown}; {path} has {list(args.study['rows'])}")
    if args.against not in (None, *args.rows):
        parser.error(f"--against must be one of the rows {args.rows}, got {args.against!r}")
    args.script = "tools/research/train_bfloat16.py" if args.bfloat16 else "tools/train_net.py"
    return args


def main():
    """Trains what is missing and prints the tables; exit status 1 if a training failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time (cores)")
    args = parse(parser)
    os.environ.setdefault("FASTREID_DATASETS", str(REPOSITORY / "datasets"))
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("OMP_NUM_THREADS", "1")

    results = make(args)
    for data in test_sets(results):
        print("\n" + "\n".join(table(results, args.seeds, data, args.against or args.rows[0])))
    sys.exit(any(result is None for found in results.values() for result in found.values()))


def make(args):
    """All runs of a study, several at a time.

    Args:
        args: what :func:`parse` gives, and ``jobs``.

    Returns:
        {row: {seed: what :func:`run` returned}}.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    results = {row: {} for row in args.rows}
    with ThreadPoolExecutor(args.jobs) as pool:
        # Seed by seed, so that a study that is cut short has all rows of the first ones.
        runs = {
            (row, seed): pool.submit(run, args.study, row, seed, args.script)
            for seed in args.seeds
            for row in args.rows
        }
        try:
            for (row, seed), done in runs.items():
                results[row][seed] = done.result()
        except BaseException:
            # A training that outlived the study would hold the folder that the next study needs.
            for waiting in runs.values():
                waiting.cancel()
            for process in list(_running):
                process.terminate()
            raise
    return results


if __name__ == "__main__":
    main()
