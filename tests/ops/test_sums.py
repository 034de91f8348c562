"""Sums by group."""

import pytest
import torch

from fastreid_rib.ops import sums as module
from fastreid_rib.ops.sums import group_sum


def test_group_sum_by_hand():
    values = torch.tensor([[1.0, 10.0], [2.0, 20.0], [4.0, 40.0]])
    sums = group_sum(values, torch.tensor([2, 0, 2]), 4)
    assert sums.tolist() == [[2, 20], [0, 0], [5, 50], [0, 0]]
    assert group_sum(values[:0], torch.tensor([]).long(), 2).tolist() == [[0, 0]] * 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_gives_the_sums_of_the_cpu_and_the_same_bits_each_time(monkeypatch):
    monkeypatch.setattr(module, "_ONE_HOT_ELEMENTS", 100)  # several chunks
    values, groups = torch.randn(1000, 17), torch.randint(0, 9, (1000,))
    sums = [group_sum(values.cuda(), groups.cuda(), 9).cpu() for _ in range(3)]
    assert torch.allclose(sums[0], group_sum(values, groups, 9), atol=1e-4)
    assert torch.equal(sums[0], sums[1])
    assert torch.equal(sums[0], sums[2])
