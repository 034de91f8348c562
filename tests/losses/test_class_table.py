"""Sums of soft assignments by label, from which the class table is made."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastreid_rib.losses.table import Rows, sums_of_labels
from fastreid_rib.ops import sums as module


@pytest.mark.published
@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 30),
    clusters=st.integers(1, 40),
    labels=st.integers(1, 9),
    beta=st.sampled_from([0.5, 60.0]),
    dtype=st.sampled_from([torch.float32, torch.float16]),
    chunk=st.sampled_from([1, 100, 10_000]),
    seed=st.integers(0, 1000),
)
def test_sums_are_those_of_the_definition(n, clusters, labels, beta, dtype, chunk, seed):
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(n, 6, generator=generator)
    embeddings = (embeddings / embeddings.norm(dim=1, keepdim=True)).to(dtype)
    centroids = torch.randn(clusters, 6, generator=generator) / 6**0.5
    of_images = torch.randint(labels, (n,), generator=generator)  # often not all of them
    rows = Rows(embeddings, of_images, None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_CHUNK_ELEMENTS", chunk)
        sums, negentropy = sums_of_labels(rows, labels, centroids, beta)
    distances = (embeddings.double()[:, None] - centroids.double()).square().sum(2)
    log_phi = (-beta * distances).log_softmax(1)
    expected = torch.zeros(labels, clusters, dtype=torch.float64)
    expected.index_add_(0, of_images, log_phi.exp())
    assert sums.dtype == torch.float32
    assert torch.allclose(sums.double(), expected, atol=2e-5)
    assert torch.allclose(negentropy, (log_phi.exp() * log_phi).sum(), atol=2e-5 * n)
