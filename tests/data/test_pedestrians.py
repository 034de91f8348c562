import numpy as np

from fastreid_rib.data.pedestrians import Pedestrian


def test_people_differ_and_stay_themselves():
    people = [Pedestrian.random(np.random.RandomState(seed)) for seed in range(50)]
    assert len(set(people)) == 50
    assert people[7] == Pedestrian.random(np.random.RandomState(7))
