import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import Pictures, picture_loader

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA: nothing to repair")


def test_a_loader_still_prefetches_and_shuts_down():
    batches = iter(picture_loader())
    first = next(batches)
    assert first["images"].device.type == "cpu"
    assert first["images"][:, 0, 0, 0].tolist() == [0.0, 1.0, 2.0, 3.0]
    thread = batches.iter
    assert isinstance(thread, threading.Thread)
    batches.shutdown()
    assert not thread.is_alive()


def test_a_loader_with_an_end_ends():
    from fastreid.config import get_cfg
    from fastreid.data import build_reid_test_loader

    cfg = get_cfg()
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.TEST.IMS_PER_BATCH = 5
    loader, _ = build_reid_test_loader(cfg, test_set=Pictures(), num_query=1)
    assert [batch["targets"].tolist() for batch in loader] == [[0, 1, 2, 3, 4], [5, 6, 7]]


def test_reranking_searches_on_the_cpu():
    from fastreid.utils.compute_dist import build_dist, compute_jaccard_distance

    torch.manual_seed(0)
    # Two tight clusters far apart: jaccard distance 0..1, small within, 1 across.
    features = torch.cat([torch.randn(8, 4) * 0.01, torch.randn(8, 4) * 0.01 + 10.0])
    distance = compute_jaccard_distance(features, k1=4, k2=2)
    assert distance.shape == (16, 16)
    assert np.allclose(distance[:8, 8:], 1.0)
    assert distance[:8, :8].mean() < 0.9
    reranked = build_dist(features[:4], features[4:], "jaccard", k1=4, k2=2)
    assert np.array_equal(reranked, distance[:4, 4:])
    assert np.array_equal(compute_jaccard_distance(features, 4, 2, 3), distance)


def test_two_processes_train_and_evaluate_over_gloo(run_script, tmp_path):
    script = Path(__file__).parent / "two_processes.py"
    done = run_script(script, tmp_path)
    ranks = [torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1)]
    assert "mAP" in done.stdout
    assert ranks[0]["moved"] > 0
    assert ranks[0]["weights"] == ranks[1]["weights"]
    assert ranks[0]["images"] != ranks[1]["images"]
    # A second training fails in one process, in its last epoch: the other ends, and so does launch.
    assert "launch raised: rank 1 cannot go on" in done.stdout


LAUNCH = """
import fastreid_rib, atexit, os
from fastreid.engine import launch
from fastreid.utils import comm
import torch.distributed as dist

def main():
    atexit.register(lambda: say(f"in a group at exit: {dist.is_initialized()}"))
    say(f"ranks {comm.all_gather(comm.get_rank())}")

def say(line):
    os.write(1, f"{line}\\n".encode())  # whole: two processes write here

if __name__ == "__main__":
    launch(main, 2, dist_url="auto")
"""


def test_processes_leave_their_group_before_they_end(run_script, tmp_path):
    script = tmp_path / "launch.py"
    script.write_text(LAUNCH)
    done = run_script(str(script))
    assert done.stdout.count("ranks [0, 1]") == 2
    assert done.stdout.count("in a group at exit: False") == 2


EXIT = """
import fastreid_rib, sys
sys.path.insert(0, sys.argv[1])
from cases import Pictures, picture_loader
import torch

class Large(Pictures):
    def __getitem__(self, index):
        return {"images": torch.rand(3, 600, 600), "targets": index}

import cases
cases.Pictures = Large
batches = iter(picture_loader())
next(batches)  # the thread is in the middle of the following ones
print(batches.iter.is_alive())
"""


def test_a_busy_background_thread_does_not_abort_the_process(run_script):
    assert run_script("-c", EXIT, str(Path(__file__).parent)).stdout.split()[-1] == "True"


def test_a_config_for_a_gpu_says_what_to_write(make_cfg):
    from fastreid.engine import DefaultTrainer, default_setup

    cfg = make_cfg({"MODEL.DEVICE": "cuda:0"})
    for begin in (lambda: default_setup(cfg, None), lambda: DefaultTrainer.build_model(cfg)):
        with pytest.raises(ValueError, match="MODEL.DEVICE is cuda:0, .* write MODEL.DEVICE cpu"):
            begin()
