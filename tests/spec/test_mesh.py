from __future__ import annotations

import pytest

from behemoth.base.errors import Invalid
from behemoth.base.ids import Rank
from behemoth.spec.mesh import DENSE_AXES, EXPERT_AXES, Mesh, check_axes, complete_axes, parse_mesh

MESH = Mesh(tp=2, cp=3, dp=2, pp=2, etp=3, ep=2, edp=2)


def test_coordinates_of_each_mesh_name_a_rank() -> None:
    for axes in (DENSE_AXES, EXPERT_AXES):
        places = {tuple(MESH.coordinate(Rank(rank), axis) for axis in axes) for rank in range(MESH.num_ranks)}
        assert len(places) == MESH.num_ranks == 24


def test_ranks_are_numbered_with_tensor_axes_innermost() -> None:
    for rank in range(MESH.num_ranks):
        tp, cp, dp, pp = (MESH.coordinate(Rank(rank), axis) for axis in DENSE_AXES)
        assert rank == ((pp * 2 + dp) * 3 + cp) * 2 + tp
        etp, ep, edp, pp = (MESH.coordinate(Rank(rank), axis) for axis in EXPERT_AXES)
        assert rank == ((pp * 2 + edp) * 2 + ep) * 3 + etp


def test_coordinates_of_all_ranks_are_those_of_each() -> None:
    for axis in (*DENSE_AXES, *EXPERT_AXES):
        assert MESH.coordinates(axis) == [MESH.coordinate(Rank(rank), axis) for rank in range(MESH.num_ranks)]


def test_several_axes_count_as_one_the_first_innermost() -> None:
    assert (MESH.size(("cp", "dp")), MESH.size(("etp", "edp", "pp"))) == (6, 12)
    for rank in map(Rank, range(MESH.num_ranks)):
        cp, dp = MESH.coordinate(rank, "cp"), MESH.coordinate(rank, "dp")
        assert MESH.coordinate(rank, ("cp", "dp")) == cp + 3 * dp
        assert MESH.coordinate(rank, DENSE_AXES) == MESH.coordinate(rank, EXPERT_AXES) == rank


@pytest.mark.parametrize(("cp", "dp", "used"), [(2, 3, ("cp", "dp")), (6, 1, "cp"), (1, 6, "dp"), (1, 1, "dp")])
def test_without_idle_axes_ranks_keep_their_places(cp: int, dp: int, used: object) -> None:
    mesh = Mesh(tp=2, cp=cp, dp=dp, edp=2 * cp * dp)
    axes = mesh.without_idle(("cp", "dp"))
    assert axes == used
    for rank in map(Rank, range(mesh.num_ranks)):
        assert mesh.coordinate(rank, axes) == mesh.coordinate(rank, ("cp", "dp"))
    assert mesh.without_idle("cp") == "cp"


@pytest.mark.parametrize("axes", [("dp", "cp"), ("cp", "cp"), ("cp", "edp"), ("cp", "rank"), (), ["cp", "dp"], "xp"])
def test_axes_in_no_order_of_a_mesh_are_refused_with_it(axes: object) -> None:
    with pytest.raises(Invalid, match="bucket: expected an axis, or a tuple of several in the order") as caught:
        check_axes(axes, name="bucket")  # type: ignore[arg-type]
    assert "tp, cp, dp, pp, or etp, ep, edp, pp; ('cp', 'dp')" in caught.value.hint


@pytest.mark.parametrize("size", [0, -1, True, 1.0, "2"])
def test_a_size_that_is_no_positive_integer_is_refused(size: object) -> None:
    with pytest.raises(Invalid, match=r"mesh\.tp: expected an integer >= 1"):
        Mesh(tp=size)  # type: ignore[arg-type]


def test_dense_and_expert_axes_cover_the_same_ranks() -> None:
    with pytest.raises(Invalid, match="got 4 and 2 ranks per stage"):
        Mesh(dp=4, ep=2)


def test_expert_replicas_are_filled_in_only_where_no_expert_axis_is_written() -> None:
    assert complete_axes({"tp": 2, "dp": 3, "pp": 5}) == {"tp": 2, "dp": 3, "pp": 5, "edp": 6}
    assert complete_axes({"dp": 4, "ep": 2}) == {"dp": 4, "ep": 2}


def test_a_mesh_is_read_from_text_with_the_defaults_of_a_run_file() -> None:
    assert parse_mesh("tp=4, pp=2,dp=3") == Mesh(tp=4, pp=2, dp=3, edp=12)
    assert parse_mesh("dp=4,ep=2,edp=2") == Mesh(dp=4, ep=2, edp=2)


@pytest.mark.parametrize("text", ["", "tp", "tp=", "tp=x", "tp=4,tp=4", "xp=4", "tp=-1", "tp=99999999", "tp=4;pp=2"])
def test_rubbish_is_no_mesh(text: str) -> None:
    with pytest.raises(Invalid, match=r"--restore-mesh: expected each axis once") as caught:
        parse_mesh(text, name="--restore-mesh")
    assert "tp=4,pp=8" in caught.value.hint


def test_sizes_that_do_not_agree_are_refused_under_the_name_of_the_text() -> None:
    with pytest.raises(Invalid, match=r"--restore-mesh: mesh: expected tp x cp x dp to equal .*, got 4 and 9"):
        parse_mesh("tp=4,ep=3,edp=3", name="--restore-mesh")


def test_a_mesh_of_more_ranks_than_a_run_can_have_is_refused_before_anybody_counts_them() -> None:
    assert parse_mesh("tp=64,dp=100000").num_ranks == 6_400_000
    with pytest.raises(Invalid, match=r"--mesh: expected at most 6400000 ranks, got 6400064"):
        parse_mesh("tp=64,dp=100001", name="--mesh")
