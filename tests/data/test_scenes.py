import numpy as np

from fastreid_rib.data.figures import Pedestrian
from fastreid_rib.data.scenes import Camera, photograph

CAMERA = Camera.random(np.random.RandomState(3))
WHO = Pedestrian.random(np.random.RandomState(4))


def shot(camera=CAMERA, who=WHO, occluded=False, height=64, seed=5):
    return photograph(np.random.RandomState(seed), camera, who, occluded, height).astype(int)


def test_one_state_gives_one_picture():
    assert np.array_equal(shot(), shot())
    assert not np.array_equal(shot(), shot(seed=6))


def test_the_scene_is_the_same_at_every_height():
    camera = CAMERA._replace(noise=0, blur=0)
    fine = shot(camera, height=128)
    halved = (fine[::2, ::2] + fine[1::2, ::2] + fine[::2, 1::2] + fine[1::2, 1::2]) / 4
    assert abs(halved - shot(camera)).mean() < 2


def test_camera_casts_its_colour():
    neutral = CAMERA._replace(gain=(256, 256, 256))
    cast = shot(neutral._replace(gain=(256, 256, 180))).mean(axis=(0, 1))
    plain = shot(neutral).mean(axis=(0, 1))
    assert np.allclose(cast[:2], plain[:2], atol=1)
    assert cast[2] < 0.85 * plain[2]


def test_noise_has_the_size_of_the_camera():
    quiet = shot(CAMERA._replace(noise=0))
    error = shot(CAMERA._replace(noise=6)) - quiet
    assert 8 < abs(error).max() <= 2 * 6  # the sum of two draws
    assert abs(error.mean()) < 0.5


def test_occluder_hides_a_part_and_leaves_the_rest_alone():
    sharp = CAMERA._replace(blur=0)
    pairs = [(shot(sharp, seed=s), shot(sharp, occluded=True, seed=s)) for s in range(30)]
    hidden = [(clear != covered).any(axis=2).mean() for clear, covered in pairs]
    assert min(hidden) > 0.03
    assert max(hidden) < 0.75
    assert 0.15 < np.mean(hidden) < 0.5
