import torch
from hypothesis import given
from hypothesis import strategies as st

from fastreid_rib.ops.layout import aligned_rows, empty_rows, pitch, with_contiguous_rows


@given(rows=st.integers(0, 5), columns=st.integers(1, 5000))
def test_rows_are_aligned_and_never_at_a_power_of_two(rows, columns):
    matrix = empty_rows(torch.zeros(1), rows, columns)
    assert matrix.shape == (rows, columns) and matrix.stride(1) == 1
    # 64-byte lines, an odd number of them, and at most two more than the numbers need.
    assert matrix.stride(0) % 32 == 16
    assert columns <= matrix.stride(0) < columns + 32


def test_an_aligned_copy_holds_the_same_numbers():
    matrix = torch.arange(21.0).reshape(3, 7)
    copy = aligned_rows(matrix)
    assert torch.equal(copy, matrix)
    assert copy.stride() == (16, 1)
    copy[0, 0] = 5
    assert matrix[0, 0] == 0


def test_pitch_of_a_single_row_is_not_below_its_length():
    assert pitch(torch.zeros(9, 4)[::9]) >= 4
    assert pitch(torch.zeros(1, 4).as_strided((1, 4), (0, 1))) == 4
    assert pitch(torch.zeros(3, 10)[:, :4]) == 10


def test_only_what_does_not_fit_is_copied():
    matrix = torch.arange(12.0).reshape(3, 4)
    for fits in (matrix, matrix[:, :3], matrix[::2], matrix[:0]):
        assert with_contiguous_rows(fits) is fits
    transposed, repeated = matrix.t(), matrix[:1].expand(3, 4)
    for copied in (transposed, repeated):
        result = with_contiguous_rows(copied)
        assert result.is_contiguous() and torch.equal(result, copied)
