"""CUHK03 with its new protocol, in the layout that the protocol's authors published.

FastReID's own ``CUHK03`` makes the same split from ``cuhk-03.mat``, for which it needs h5py, scipy
and imageio. Importing this module registers these.
"""

from fastreid_rib.data.layouts import MarketLayout
from fastreid_rib.data.registering import register


@register
class CUHK03NP(MarketLayout):
    """CUHK03, new protocol, persons as a detector found them.

    ``cuhk03-np/detected/{bounding_box_train,query,bounding_box_test}/0001_c1_1.png``. 767
    identities train, 700 test; 7365 training pictures, 1400 queries, 5332 in the gallery. Two
    cameras; Market-1501's evaluation.

    Source: Li et al., DeepReID, CVPR 2014; protocol: Zhong et al., Re-ranking Person
    Re-identification with k-reciprocal Encoding, CVPR 2017
    (github.com/zhunzhong07/person-re-ranking, CUHK03-NP).
    """

    dataset_name = "cuhk03np"
    folders = ("cuhk03-np/detected", "cuhk03np/detected", "CUHK03-NP/detected")
    published = {"train": 7365, "query": 1400, "gallery": 5332}


@register
class CUHK03NPLabeled(MarketLayout):
    """The same persons, cut out by hand, in ``cuhk03-np/labeled``: 7368, 1400, 5328 pictures."""

    dataset_name = "cuhk03np_labeled"
    folders = ("cuhk03-np/labeled", "cuhk03np/labeled", "CUHK03-NP/labeled")
    published = {"train": 7368, "query": 1400, "gallery": 5328}
