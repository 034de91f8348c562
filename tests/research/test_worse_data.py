"""Training sets that studies make worse."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytestmark = pytest.mark.all_only


def items(counts):
    return [
        (f"{identity}/{picture}.png", f"id_{identity}", picture % 2)
        for identity, count in enumerate(counts)
        for picture in range(count)
    ]


@given(
    counts=st.lists(st.integers(1, 9), min_size=2, max_size=6),
    pictures=st.integers(0, 10),
    wrong=st.floats(0, 1),
)
def test_what_is_kept_and_what_is_wrong(counts, pictures, wrong):
    import worse_data

    whole = items(counts)
    made = worse_data.worse(whole, pictures, wrong)
    assert made == worse_data.worse(whole[::-1], pictures, wrong), "whatever the order of the files"
    truth = {path: (identity, camera) for path, identity, camera in whole}
    kept = Counter(truth[path][0] for path, *_ in made)
    assert len({path for path, *_ in made}) == len(made)
    assert all(truth[path][1] == camera for path, _, camera in made)
    assert kept == {f"id_{i}": min(pictures or count, count) for i, count in enumerate(counts)}
    mistaken = [identity for path, identity, _ in made if truth[path][0] != identity]
    assert len(mistaken) == round(wrong * len(made))
    assert set(mistaken) <= {identity for _, identity, _ in whole}


def test_the_trainer_learns_from_it(make_cfg):
    import train_bfloat16
    from fastreid.config import CfgNode

    cfg = make_cfg()
    cfg.STUDY = CfgNode({"PICTURES": 2, "WRONG_LABELS": 0.0})
    few = train_bfloat16.Trainer.build_train_loader(cfg).dataset.img_items
    cfg.STUDY.PICTURES = 0
    whole = train_bfloat16.Trainer.build_train_loader(cfg).dataset.img_items
    assert set(Counter(item[1] for item in few).values()) == {2}
    assert set(few) < set(whole)
