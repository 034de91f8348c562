"""The benchmarks of occluded and partial persons, in the layouts that they were published in.

Importing this module registers them with FastReID.
"""

from typing import List

from fastreid_rib.data.layouts import OCCLUDED, WHOLE, MarketLayout, SidesLayout
from fastreid_rib.data.registering import register

_ZHUO = "ICME2018_Occluded-Person-Reidentification_datasets"  # what its publishers call the folder


@register
class OccludedDuke(MarketLayout):
    """Occluded-DukeMTMC: DukeMTMC-reID split anew, so that all queries are occluded.

    ``Occluded_Duke/{bounding_box_train,query,bounding_box_test}/0001_c2_f0046182.jpg``, as the
    publishers' script makes it from DukeMTMC-reID. Cameras 1 to 8; Market-1501's evaluation.
    15618 training pictures of 702 identities, 2210 queries, 17661 in the gallery.

    Source: Miao et al., Pose-Guided Feature Alignment for Occluded Person Re-Identification, ICCV
    2019; lists and script at github.com/lightas/Occluded-DukeMTMC-Dataset.
    """

    dataset_name = "occludedduke"
    folders = ("Occluded_Duke", f"{_ZHUO}/Occluded_Duke", "Occluded-DukeMTMC-reID")
    published = {"train": 15618, "query": 2210, "gallery": 17661}

    @property
    def occluded_queries(self) -> List[str]:
        """Paths of the queries: all of them."""
        return [item[0] for item in self.query]


@register
class OccludedREID(SidesLayout):
    """Occluded-REID: 200 identities by a mobile camera, five occluded and five whole pictures each.

    ``Occluded_REID/{occluded_body_images,whole_body_images}/001/001_01.tif``. A test set: results
    are published of models trained on Market-1501, with the occluded pictures as queries and all
    whole ones as gallery. There are no cameras; the two sides count as two.

    Source: Zhuo et al., Occluded Person Re-identification, ICME 2018 (arXiv 1804.02792); layout at
    github.com/tinajia2012/ICME2018_Occluded-Person-Reidentification_datasets, protocol as in Gao et
    al., Pose-guided Visible Part Matching, CVPR 2020 (github.com/hh23333/PVPM).
    """

    dataset_name = "occludedreid"
    folders = ("Occluded_REID", f"{_ZHUO}/Occluded_REID", "OccludedREID")
    published = {"query": 1000, "gallery": 1000}


@register
class PartialREID(SidesLayout):
    """Partial-REID: 60 identities, five pictures of a part of the body and five whole ones each.

    ``Partial_REID/{partial_body_images,whole_body_images}/001_001.jpg``. A test set: results are
    published of models trained on Market-1501, with the partial pictures as queries and all whole
    ones as gallery. There are no cameras; the two sides count as two.

    Source: Zheng et al., Partial Person Re-Identification, ICCV 2015; protocol as in He et al.,
    Deep Spatial Feature Reconstruction, CVPR 2018 (projects/PartialReID of FastReID, whose data set
    of the same name is taken in place of this one there). The release has occluded_body_images,
    too, which others (PVPM) take for queries: `PartialREIDOccluded`.
    """

    dataset_name = "partialreid"
    folders = ("Partial_REID", "Partial-REID_Dataset", "PartialREID")
    sides = ("partial_body_images", WHOLE)
    published = {"query": 300, "gallery": 300}


@register
class PartialREIDOccluded(PartialREID):
    """Partial-REID with its occluded pictures, not cut to the visible part, as queries."""

    sides = (OCCLUDED, WHOLE)


@register
class POccludedDuke(SidesLayout):
    """P-DukeMTMC-reID: identities of DukeMTMC-reID with occluded and with whole pictures.

    ``P-DukeMTMC-reid/{train,test}/{occluded_body_images,whole_body_images}/0001/0001_c2_f01.jpg``.
    12927 training pictures of 665 identities, occluded and whole; 2163 occluded queries, 9053 whole
    pictures of 634 identities as gallery. The two sides count as two cameras, in place of Duke's:
    whole pictures by the query's camera are right answers, as in the published results.

    Source: Zhuo et al., Occluded Person Re-identification, ICME 2018 (arXiv 1804.02792); layout at
    github.com/tinajia2012/ICME2018_Occluded-Person-Reidentification_datasets, protocol as in Gao et
    al., Pose-guided Visible Part Matching, CVPR 2020 (github.com/hh23333/PVPM).
    """

    dataset_name = "poccludedduke"
    folders = ("P-DukeMTMC-reid", "P-DukeMTMC-reID", f"{_ZHUO}/P-DukeMTMC-reid")
    sides = (f"test/{OCCLUDED}", f"test/{WHOLE}")
    train_sides = (f"train/{OCCLUDED}", f"train/{WHOLE}")
    published = {"train": 12927, "query": 2163, "gallery": 9053}
