"""The scripts in benchmarks: what they compare is the same, and they say what is wrong."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from istn_monai import BSplineTransformation

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import common
import gpu
import speed


@pytest.mark.parametrize(
    "spatial_size, spacing, control_spacing",
    [
        ((33, 25, 17), 1.0, 8.0),  # whole cells: the lattice begins at a voxel
        ((32, 24, 16), 1.0, 8.0),  # half a voxel outside
        ((21, 18, 26), (1.0, 2.0, 1.5), (4.0, 10.0, 6.0)),
        ((19, 30), 0.5, (8.0, 3.0)),
    ],
)
def test_transposed_convolution_is_the_spline(spatial_size, spacing, control_spacing):
    bspline = BSplineTransformation(spatial_size, spacing, control_spacing, max_displacement=None)
    theta = common.random((2, bspline.num_parameters), "cpu")
    voxels_per_cell = bspline.voxels_per_cell.view(-1, *[1] * len(spatial_size))
    dense = speed.TransposedConvolution(bspline)(bspline.in_cells(theta) * voxels_per_cell)
    assert dense.shape == (2, len(spatial_size), *spatial_size)
    assert common.largest_difference(dense, bspline(theta)) < 1e-4


@pytest.mark.parametrize("size", [24, 25])
def test_candidates_agree_with_ours(size):
    sets = [
        speed.bspline_candidates(size, 8, "cpu"),  # with deepali, where it is installed
        speed.affine_candidates(size, "cpu"),
        speed.warp_candidates(size, "cpu"),
    ]
    for candidates in sets:
        assert all(candidate.error() < 1e-4 for candidate in candidates.values())


def test_candidates_take_turns_and_a_failing_one_is_named(monkeypatch):
    monkeypatch.setattr(common, "SLOW", 1e6)  # a busy machine repeats slow calls less often
    calls = []

    def candidate(name):
        parameter = torch.ones(3, requires_grad=True)

        def compute():
            calls.append(name)
            return 2 * parameter

        return common.Candidate(compute, [parameter], lambda: 0.0)

    def fail():
        raise RuntimeError("out of memory\nand more")

    other = common.Candidate(fail, [], lambda: 0.0)
    rows = common.compare("task", {common.OURS: candidate("a"), "b": candidate("b"), "c": other}, 3, "cpu")
    assert "".join(calls).endswith("ababab")
    assert rows[0] == {"what": "task", "candidate": "c", "failed": "out of memory"}
    assert {(row["what"], row["candidate"], row["n"]) for row in rows[1:]} == {
        (f"task, {part}", name, 3) for part in ("forward", "forward+backward") for name in (common.OURS, "b")
    }
    assert set(common.ratios(rows)) == {"task, forward", "task, forward+backward"}


@pytest.mark.parametrize("error", [2e-3, float("nan"), float("inf")])
def test_a_wrong_result_ends_the_script(error):
    row = {"what": "field", "candidate": "theirs", "error": 0.0, "tolerance": 1e-3}
    common.must_agree([row, row | {"error": 9.0, "tolerance": None}])
    with pytest.raises(SystemExit, match="field, theirs: off by"):
        common.must_agree([row, row | {"error": error}])


def test_peak_memory_of_a_call():
    peak = common.peak_mb(lambda: torch.ones(16, 2**20).add(1), "cpu")  # two tensors of 64 MiB
    assert peak is None or 120 < peak < 160


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_so(capsys):
    gpu.main()
    assert capsys.readouterr().out.startswith("no CUDA device: nothing to measure")
