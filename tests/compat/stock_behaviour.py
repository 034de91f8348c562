"""Run with FASTREID_RIB_DISABLE: what FastReID does where it is not repaired, as JSON."""

import json
import os
import stat
import sys
import tempfile
import threading
import warnings

SWITCHED_OFF = (
    "zero-grad",
    "zero-grad-swa",
    "cpu-loader",
    "cpu-model-loader",
    "cpu-rerank",
    "compile-ranking",
    "cuhk03-bool",
    "small-gallery",
    "image-tensors",
    "test-workers",
    "identity-batches",
    "empty-epoch",
    "one-identity",
    "cpu-ddp",
    "optimizer-pair",
    "sync-bn-message",
    "amp-message",
    "random-affine",
    "loader-errors",
    "set-reweight",
    "checkpoint-scalars",
    "checkpoint-code",
    "checkpoint-errors",
    "checkpoint-write",
    "lost-pictures",
    "nan-term",
    "regnet-configs",
    "aqe-gallery",
    "rerank-gallery",
    "cosine-warmup",
    "word-labels",
    "teacher-device",
    "visualizer-numbers",
)


def main(path):
    sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))
    import fastreid_rib  # noqa: F401  arms the hook

    warnings.simplefilter("ignore")
    import numpy as np
    import torch
    from cases import (
        affine,
        amp_trainer,
        annealed_after_a_long_warm_up,
        bool_of_cuhk03,
        ddp,
        drawn_ranks,
        empty_epoch,
        expanded_beyond_the_gallery,
        iterate_loader,
        killed_writer,
        learned,
        load_code,
        load_scalars,
        load_truncated,
        lost_folder,
        nan_of_a_rank,
        one_identity,
        pair_as_optimizer,
        regnet,
        reranked_beyond_the_gallery,
        small_gallery,
        sync_bn,
        teacher_of_another_device,
        words_and_numbers,
        words_of_a_test_set,
    )
    from fastreid.data.transforms.functional import to_tensor
    from fastreid.evaluation.rank_cylib import compile_helper
    from fastreid.utils.compute_dist import compute_jaccard_distance
    from PIL import Image

    from fastreid_rib import compat

    def outcome(case, *args):
        try:
            result = case(*args)
        except (Exception, SystemExit) as error:
            return f"{type(error).__name__}: {error}"
        return result

    def ends(call, seconds=3.0):
        """Whether `call` comes back; a daemon thread is left behind where it does not."""
        done = threading.Event()

        def body():
            try:
                call()
            except Exception as error:
                errors.append(repr(error))
            done.set()

        errors = []
        threading.Thread(target=body, daemon=True).start()
        return errors[0] if done.wait(seconds) and errors else done.is_set()

    def failing_make():
        """A machine where compiling fails: the first `make` of PATH does."""
        with tempfile.TemporaryDirectory() as folder:
            make = os.path.join(folder, "make")
            with open(make, "w") as file:
                file.write("#!/bin/sh\nexit 2\n")
            os.chmod(make, stat.S_IRWXU)
            os.environ["PATH"] = folder + os.pathsep + os.environ["PATH"]
            compile_helper()

    def sampler(name, *args):
        from fastreid.data import samplers

        return next(iter(getattr(samplers, name)(*args)))

    items = [("", pid, cam) for pid in range(3) for cam in (0, 1) for _ in range(2)]
    report = {
        "learned": outcome(learned),
        "loader": outcome(iterate_loader),
        "rerank": outcome(lambda: compute_jaccard_distance(torch.rand(12, 4), k1=4, k2=2).shape[0]),
        "compile": outcome(failing_make),
        "cuhk03": outcome(bool_of_cuhk03),
        "small_gallery": outcome(lambda: small_gallery(use_cython=False)),
        "image_1": outcome(lambda: str(to_tensor(Image.new("1", (4, 2), 1)).dtype)),
        "balanced": outcome(ends, lambda: sampler("BalancedIdentitySampler", items, 16, 4, 0)),
        "naive": outcome(ends, lambda: sampler("NaiveIdentitySampler", items, 16, 4, 0)),
        "reweight": outcome(ends, lambda: sampler("SetReWeightSampler", items, 8, 2, [1, 1], 0)),
        "empty_epoch": outcome(empty_epoch),
        "ddp": outcome(ddp),
        "pair": outcome(pair_as_optimizer),
        "sync_bn": outcome(sync_bn),
        "amp": outcome(amp_trainer),
        "affine": outcome(affine),
        "scalars": outcome(load_scalars),
        "code": outcome(load_code),
        "truncated": outcome(load_truncated),
        "killed_writer": outcome(killed_writer),
        "lost_folder": outcome(lost_folder),
        "nan": outcome(nan_of_a_rank),
        "one_identity": outcome(one_identity),
        "regnet": outcome(regnet),
        "aqe": outcome(expanded_beyond_the_gallery),
        "rerank_20": outcome(reranked_beyond_the_gallery),
        "rerank_6": outcome(reranked_beyond_the_gallery, 6),
        "cosine": outcome(annealed_after_a_long_warm_up),
        "teacher": outcome(teacher_of_another_device),
        "ranks": outcome(drawn_ranks),
        "words": outcome(words_of_a_test_set),
        "mixed": outcome(words_and_numbers),
        "numpy": np.__version__,
        "active": compat.active(),
    }
    with open(path, "w") as file:
        json.dump(report, file, default=str)
    os._exit(0)  # threads that hang are part of the report


if __name__ == "__main__":
    main(sys.argv[1])
