"""A part is searched for the rows that end its worker, and every part comes to an end."""

from collections.abc import Collection

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.assignment import Assignment
from pipeline.driver import room_on
from pipeline.plan import Part
from pipeline.search import PIECES
from pipeline.sources import Split

ATTEMPTS = 3


def part(start: int, stop: int) -> Part:
    return Part("part-00000-0123456789.parquet", Split(0, "x", stop, {}), 0, start, stop)


def drive(assignment: Assignment, deadly: Collection[int], raising: Collection[int] = ()) -> tuple[int, int]:
    """Do what a driver and its workers do with rows that kill or raise; returns the deaths and the rows computed."""
    deaths = computed = 0
    while assignment.given_up is None:
        call = assignment.call
        for row in range(call.start, call.stop):
            computed += 1
            if row in deadly and row not in call.set_aside:
                deaths += 1
                assignment.died("killed", alone=True, attempts=ATTEMPTS)
                break
            if row in raising and row not in call.set_aside:
                assignment.raised("ValueError: no")
                break
        else:
            if not assignment.probing:
                break
            assignment.passed()
    return deaths, computed


@given(st.integers(0, 50), st.integers(0, 3000), st.data())
def test_exactly_the_rows_at_fault_are_set_aside(start: int, length: int, data: st.DataObject) -> None:
    rows = st.sets(st.integers(start, max(start, start + length - 1)), max_size=3 if length else 0)
    deadly, raising = data.draw(rows), data.draw(rows)
    assignment = Assignment(part(start, start + length))
    drive(assignment, deadly, raising)
    assert assignment.given_up is None
    assert assignment.part.set_aside.keys() == deadly | raising
    assert all("takes its worker down: killed" in assignment.part.set_aside[row] for row in deadly - raising)
    assert all(assignment.part.set_aside[row] == "ValueError: no" for row in raising - deadly)
    assert (assignment.call.start, assignment.call.stop) == (start, start + length)


@pytest.mark.parametrize("row", [0, 4999, 9999])
def test_a_row_among_ten_thousand_costs_few_deaths_and_its_part_little_more_than_twice(row: int) -> None:
    assignment = Assignment(part(0, 10_000))
    deaths, computed = drive(assignment, {row})
    assert deaths <= ATTEMPTS + 4
    assert computed <= 2 * 10_000 + ATTEMPTS * row + 2 * 10_000 // PIECES


def test_a_part_that_dies_though_every_row_passes_is_given_up() -> None:
    assignment = Assignment(part(0, 100))
    while assignment.given_up is None:
        if assignment.probing:
            assignment.passed()
        else:
            assignment.died("killed", alone=True, attempts=ATTEMPTS)
    assert assignment.given_up.startswith("took its worker down 3 times, and yet each of its rows passes alone")


def test_an_error_that_no_row_raises_gives_the_part_up() -> None:
    assignment = Assignment(part(0, 100))
    while assignment.given_up is None:
        if assignment.probing:
            assignment.passed()
        else:
            assignment.raised("ValueError: no")
    assert assignment.given_up == "ValueError: no (and yet each of its rows passes alone)"


def test_an_error_that_stays_though_the_rows_are_set_aside_gives_the_part_up() -> None:
    assignment = Assignment(part(0, 10))
    while assignment.given_up is None:
        assignment.raised("ValueError: always")
    assert len(assignment.part.set_aside) == 10


def test_one_death_of_a_row_alone_may_be_chance() -> None:
    assignment = Assignment(part(0, 1))
    for _ in range(ATTEMPTS + 1):
        assignment.died("killed", alone=True, attempts=ATTEMPTS)
    assert assignment.probing
    assignment.passed()
    assert not assignment.part.set_aside


def test_deaths_in_company_use_up_no_attempt() -> None:
    assignment = Assignment(part(0, 10))
    for _ in range(10):
        assignment.died("killed", alone=False, attempts=ATTEMPTS)
    assert assignment.suspect
    assert not assignment.probing


def test_rows_that_all_end_alike_give_the_part_up() -> None:
    assignment = Assignment(part(0, 1000))
    drive(assignment, range(1000))
    assert assignment.given_up is not None
    assert assignment.given_up.startswith(
        "8 rows one after the other, from 0 on: this row takes its worker down: killed"
    )


def test_the_death_of_a_neighbour_condemns_no_row() -> None:
    assignment = Assignment(part(0, 1))
    assignment.raised("ValueError: no")
    for _ in range(5):
        assignment.died("killed", alone=False, attempts=ATTEMPTS)
    assignment.passed()
    assert not assignment.part.set_aside


def test_a_worker_needs_all_that_it_takes_on_one_node() -> None:
    assert room_on([{"CPU": 1.0}, {"CPU": 1.0}], {"CPU": 2}) == 0
    assert room_on([{"CPU": 5.0}, {"CPU": 2.0}, {}], {"CPU": 2}) == 3
    assert room_on([{"CPU": 8.0, "GPU": 1.0}, {"CPU": 64.0}], {"CPU": 1, "GPU": 0.5}) == 2
