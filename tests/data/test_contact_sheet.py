import numpy as np
from PIL import Image

from fastreid_rib.data.contact_sheet import contact_sheet, main
from fastreid_rib.data.synthetic_folder import QUERY, SyntheticSpec, picture, plan


def test_rows_end_with_the_queries_of_an_identity():
    spec = SyntheticSpec(num_train_ids=3, num_test_ids=2, height=32)
    sheet = contact_sheet(spec, rows=5, enlarge=2)
    small = sheet[::2, ::2]
    assert np.array_equal(sheet, small.repeat(2, axis=0).repeat(2, axis=1))
    assert small.shape == (2 * (32 + 2 + 2), 6 * (16 + 2 + 2) + 3 * (16 + 6 + 2), 3)
    queries = [shot for shot in plan(spec) if shot.subset == QUERY]
    assert len(queries) == 2 * 3
    assert np.array_equal(small[2:34, -18:-2], picture(spec, queries[2]))
    assert np.array_equal(small[-34:-2, -18:-2], picture(spec, queries[5]))


def test_command_writes_a_picture_fit_for_the_readme(tmp_path):
    main([str(tmp_path / "sheet.png")])
    assert Image.open(tmp_path / "sheet.png").size == (672, 816)
    assert (tmp_path / "sheet.png").stat().st_size < 300_000
