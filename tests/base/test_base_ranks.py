"""The collectives' own process group; tests/losses/test_ranks.py has the collectives."""

import torch.distributed as dist

from fastreid_rib.base import ranks


def test_each_process_group_gets_a_group_of_its_own(tmp_path, monkeypatch):
    """A second run in one process, as in a notebook, must not meet over the first one's."""
    monkeypatch.setattr(dist, "get_backend", lambda: "nccl")
    made = []
    for run in range(2):
        meet = f"file://{tmp_path}/meet{run}"
        dist.init_process_group("gloo", init_method=meet, rank=0, world_size=1)
        try:
            made.append(ranks._host_group())
            assert ranks._host_group() is made[run], "it was made twice"
        finally:
            dist.destroy_process_group()
    assert made[0] is not made[1]
