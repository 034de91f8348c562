"""Training and evaluation without a GPU: loaders, processes, messages."""

import os
import threading
import warnings
from pathlib import Path

import pytest
import torch
from small_uses import group_of_one, picture_loader, small_batch, small_model

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


def test_workers_of_the_test_loader(monkeypatch):
    from fastreid.config import get_cfg
    from fastreid.data import build_reid_test_loader

    cfg = get_cfg()
    for workers, cores, expected in ((0, 8, 0), (8, 2, 2), (8, 64, 4), (1, 64, 1)):
        monkeypatch.setattr(os, "cpu_count", lambda cores=cores: cores)
        cfg.DATALOADER.NUM_WORKERS = workers
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch counts the real cores
            loader, num_query = build_reid_test_loader(cfg, test_set=[0, 1], num_query=1)
        assert (loader.num_workers, num_query) == (expected, 1)
    explicit, _ = build_reid_test_loader([0, 1], 128, 1, num_workers=1)
    assert explicit.num_workers == 1


def test_an_unreadable_image_ends_the_training_with_its_error():
    for workers in (0, 1):
        with pytest.raises(OSError, match="image 6 is truncated"):
            batches = iter(picture_loader(broken=(6,), workers=workers))
            for _ in range(3):
                next(batches)


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
from small_uses import picture_loader

batches = iter(picture_loader(size=600))
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


def test_data_parallel_takes_a_model_on_the_cpu_and_torch_s_own_is_as_it_was():
    from fastreid.engine import defaults

    with group_of_one():
        made = defaults.DistributedDataParallel(small_model(), device_ids=[0])
        assert made(small_batch()[0]).shape == (16, 3)
    stock = torch.nn.parallel.DistributedDataParallel
    assert isinstance(made, stock) and type(made) is not stock


def test_sync_bn_says_what_to_write():
    from fastreid.layers import get_norm

    told = "write MODEL.BACKBONE.NORM BN and MODEL.HEADS.NORM BN"
    with group_of_one(), pytest.raises(ValueError, match=told):
        get_norm("syncBN", 3)(torch.rand(2, 3, 2, 2))
