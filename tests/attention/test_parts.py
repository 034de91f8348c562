"""Attention to parts: what it computes, what it is for, and what becomes of a fit."""

import copy
import io

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from fastreid_rib.attention import PartAttention, parts
from fastreid_rib.losses import gaussian_bottleneck


def people(seed, identities=60, images=6):
    """Maps (N, 16, 4, 1): two rows of clothes above, two below; some show a box in place of these.

    Returns:
        The maps, and the identities, (N,).
    """
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(identities).repeat_interleave(images)
    wear = torch.randn(identities, 2, 5, generator=draw)[labels]
    maps = torch.zeros(len(labels), 16, 4, 1)
    maps[:, :5, :2, 0] = wear[:, 0, :, None]
    maps[:, 5:10, 2:, 0] = wear[:, 1, :, None]
    maps[:, 10, :2], maps[:, 11, 2:] = 6, 6  # what tells the parts of a person apart
    maps += 0.3 * torch.randn(maps.shape, generator=draw)
    hidden = torch.rand(len(labels), generator=draw) < 0.4
    box = 2 * torch.randn(int(hidden.sum()), 16, 1, 1, generator=draw)
    box[:, 12] = 6
    maps[hidden, :, 2:] = box
    return maps, labels


def fitted(maps, labels, **settings):
    attention = PartAttention(**settings)
    attention.find_parts(maps)
    attention.fit(attention.pool(maps), labels)
    return attention


def retrieved(rows, labels):
    """The share of images whose nearest one is of their identity."""
    alike = F.normalize(rows) @ F.normalize(rows).t()
    nearest = alike.fill_diagonal_(-2).argmax(dim=1)
    return float((labels[nearest] == labels).float().mean())


@pytest.mark.parametrize("seed", range(3))
def test_people_who_are_partly_hidden_are_told_apart(seed):
    """Others than it was fitted to: 5 to 9 of 100 more than by the whole map."""
    maps, labels = people(seed, identities=120)
    seen, new = labels < 60, labels >= 60
    whole = maps.mean(dim=(2, 3))
    mean, projection = gaussian_bottleneck(whole[seen], labels[seen])
    of_whole = retrieved((whole[new] - mean) @ projection, labels[new])
    of_parts = fitted(maps[seen], labels[seen])(maps[new])
    assert retrieved(of_parts, labels[new]) > of_whole + 0.03


@given(st.integers(0, 100), st.sampled_from([1, 2, 5]), st.booleans())
def test_it_is_the_plain_pytorch_of_its_docstring(seed, number, pooled):
    maps, labels = people(seed, identities=12)
    attention = fitted(maps, labels, parts=number, beta=3.0)
    whole = maps.amax(dim=(2, 3)) if pooled else None
    found = attention(maps[:4], whole if whole is None else whole[:4])
    for i in range(4):
        rows = maps[i].flatten(1).t()
        z = F.normalize(rows - attention.mean, dim=1)
        distances = (z[:, None] - attention.centroids).square().sum(dim=2)
        phi = torch.softmax(-3.0 * distances, dim=1)
        vectors = [rows.mean(dim=0) if whole is None else whole[i]]
        vectors += [(phi[:, k, None] * rows).sum(0) / phi[:, k].sum() for k in range(number)]
        shares = [torch.ones(()), *phi.mean(dim=0)]
        expected = [
            share.sqrt() * F.normalize((vector - mean) @ projection, dim=0)
            for vector, share, mean, projection in zip(
                vectors, shares, attention.means, attention.projections
            )
        ]
        assert torch.allclose(found[i], torch.cat(expected), atol=3e-3)
    assert found.shape == (4, (1 + number) * 16) and found.dtype == torch.float32
    assert torch.allclose(found.norm(dim=1), torch.full((4,), 2.0).sqrt(), atol=1e-4)


def test_half_precision_is_computed_in_float32():
    maps, labels = people(1, identities=12)
    attention = fitted(maps, labels)
    with torch.autocast("cpu", torch.bfloat16):
        found = attention(maps)
    assert found.dtype == torch.float32
    assert torch.allclose(found, attention(maps), atol=1e-5)
    for dtype, rounding in ((torch.float16, 0.02), (torch.bfloat16, 0.2), (torch.float64, 1e-5)):
        found = copy.deepcopy(attention).to(dtype)(maps.to(dtype))
        assert found.dtype == torch.float32
        assert torch.allclose(found, attention(maps), atol=rounding)


def test_no_images():
    maps, labels = people(1, identities=12)
    assert fitted(maps, labels)(maps[:0]).shape == (0, 5 * 16)


def test_the_same_maps_give_the_same_parts(monkeypatch):
    maps, labels = people(2)
    monkeypatch.setattr(parts, "_POSITIONS", 500)  # of 1440
    one = fitted(maps, labels)
    torch.manual_seed(5)
    other = fitted(maps, labels)
    for name, value in other.state_dict().items():
        assert torch.equal(one.state_dict()[name], value)
    assert one.projections.shape == (5, 16, 16)


def test_a_fit_is_saved_loaded_copied_and_forgotten():
    maps, labels = people(3, identities=8)
    attention = fitted(maps, labels)
    expected = attention(maps)
    file = io.BytesIO()
    torch.save(attention.state_dict(), file)
    file.seek(0)
    loaded = PartAttention()
    assert not loaded.fitted and not loaded.state_dict()
    loaded.load_state_dict(torch.load(file))
    assert torch.equal(loaded(maps), expected)
    assert torch.equal(copy.deepcopy(attention)(maps), expected)
    assert attention.double().float().projections.dtype == torch.float32

    loaded.forget()
    assert not loaded.fitted and not loaded.state_dict() and "fitted=False" in repr(loaded)
    loaded.load_state_dict({})  # strict: nothing is missing
    attention.load_state_dict({})
    assert not attention.fitted


@pytest.mark.parametrize("settings", [{"parts": 0}, {"beta": 0.0}, {"beta": float("nan")}])
def test_settings_out_of_their_range(settings):
    with pytest.raises(ValueError, match="parts must be >= 1 and beta > 0, got"):
        PartAttention(**settings)


def test_what_it_needs_first():
    maps, labels = people(0, identities=8)
    attention = PartAttention()
    with pytest.raises(ValueError, match="call find_parts first"):
        attention(maps)
    attention.find_parts(maps)
    with pytest.raises(ValueError, match="call fit first"):
        attention(maps)
    with pytest.raises(ValueError, match="two identities or more, got 1"):
        attention.fit(attention.pool(maps), torch.zeros_like(labels))
    with pytest.raises(ValueError, match=r"two positions or more, got \(48, 16, 1, 1\)"):
        attention.find_parts(maps[:, :, :1])
