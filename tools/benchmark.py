"""What RIB and attention cost.

    python tools/benchmark.py kernels                 the bound four ways: speed, memory, GPU work
    python tools/benchmark.py kernels --device cuda   the same on a GPU
    python tools/benchmark.py training                the training step and the refresh
    python tools/benchmark.py attention               attention modules, and their training steps
    python tools/benchmark.py refresh                 K-means of the refresh against faiss
    python tools/benchmark.py scaling                 step, refresh and memory for many identities
    python tools/benchmark.py search                  the training step of a supernet

One process, interleaved, medians: on a busy machine only ratios mean something.
"""

import argparse
import json
from pathlib import Path

from benchmarks import harness


def main():
    """Measures, prints tables, and writes the numbers if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "what",
        choices=("kernels", "training", "attention", "refresh", "scaling", "search"),
    )
    parser.add_argument("--json", metavar="FILE", help="write all numbers there")
    parser.add_argument(
        "--pairs", type=int, default=5, help="pairs of training steps, rounds of refresh (5)"
    )
    parser.add_argument(
        "--seconds", type=float, default=6, help="kernels, attention: for each comparison (6)"
    )
    parser.add_argument(
        "--operations", type=float, default=1e13, help="scaling: largest refresh measured (1e13)"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="kernels: where")
    parser.add_argument(
        "--threads", type=int, nargs="+", default=[1, 2], help="kernels: numbers of threads (1 2)"
    )
    args = parser.parse_args()

    about = harness.about()
    print("  ".join(f"{key} {value}" for key, value in about.items()))
    if args.what == "kernels":
        from benchmarks import kernels

        threads = args.threads if args.device == "cpu" else args.threads[:1]
        results = kernels.measure(args.seconds, args.device, threads)
    elif args.what == "attention":
        from benchmarks import attention

        results = attention.measure(args.seconds, args.pairs)
    elif args.what == "refresh":
        from benchmarks import refresh

        results = refresh.measure(args.pairs)
    elif args.what == "scaling":
        from benchmarks import scaling

        results = scaling.measure(args.operations)
    elif args.what == "search":
        from benchmarks import search

        results = search.measure(args.pairs)
    else:
        from benchmarks import training

        results = training.measure(args.pairs)
    if args.json:
        Path(args.json).write_text(json.dumps({"about": about, args.what: results}, indent=1))


if __name__ == "__main__":
    main()
