"""Places, memory and time are given to whoever does not make the others wait."""

import socket

import pytest

from mnistfast.web.visitors import BUSY, LATE, Visitors


@pytest.fixture
def visitor():
    """Returns a function that makes a connection."""
    made = []

    def make():
        made.extend(socket.socketpair())
        return made[-2]

    yield make
    for each in made:
        each.close()


def test_who_has_waited_longest_for_its_client_makes_room(visitor):
    visitors, (first, second, third, *more) = Visitors(3, 2, 100, 60), (visitor() for _ in range(6))
    assert all(map(visitors.admit, (first, second, third)))
    assert visitors.work(first)
    assert visitors.admit(more[0])
    assert [visitors.refusal(each) for each in (first, second, third)] == [None, BUSY, None]
    assert second.recv(1) == b""  # its thread finds that out
    assert not visitors.work(second)
    visitors.answer(second)
    assert second.send(b"x") == 1  # and can still say why
    assert visitors.admit(more[1])
    assert visitors.refusal(third) == BUSY
    visitors.answer(first)
    assert visitors.admit(more[2])
    assert visitors.refusal(more[0]) == BUSY  # the two that are answered have waited less
    assert second.send(b"x") == 1


def test_no_more_are_worked_on_than_leave_one_to_end(visitor):
    visitors, (first, second, third) = Visitors(3, 2, 100, 60), (visitor() for _ in range(3))
    assert all(map(visitors.admit, (first, second, third)))
    assert [visitors.work(each) for each in (first, second, third)] == [True, True, False]
    assert visitors.refusal(third) is None
    visitors.answer(first)
    assert visitors.work(third)


def test_a_crowd_that_does_not_leave_is_bounded(visitor):
    visitors = Visitors(2, 1, 100, 60)
    assert [visitors.admit(visitor()) for _ in range(6)] == [True] * 4 + [False] * 2
    assert len(visitors) == 4


def test_memory_goes_to_the_newest(visitor):
    visitors, (first, second, third, fourth) = Visitors(9, 8, 100, 60), (visitor() for _ in range(4))
    assert all(map(visitors.admit, (first, second, third, fourth)))
    assert visitors.hold(second, 60)
    assert visitors.hold(third, 60)
    assert [visitors.refusal(each) for each in (first, second, third)] == [None, BUSY, None]
    assert visitors.work(third)
    assert not visitors.hold(fourth, 60)  # what is worked on is kept
    assert visitors.hold(fourth, 40)
    visitors.leave(third)
    assert visitors.hold(first, 60)


def test_time_is_over_for_those_alone_that_wait_for_their_clients(visitor):
    now = 100.0
    visitors, (first, second, third) = Visitors(9, 8, 100, 60, lambda: now), (visitor() for _ in range(3))
    assert all(map(visitors.admit, (first, second, third)))
    assert visitors.work(first)
    visitors.answer(third)
    now += 60
    visitors.end_late()
    assert {visitors.refusal(each) for each in (first, second, third)} == {None}
    now += 1
    visitors.end_late()
    assert [visitors.refusal(each) for each in (first, second, third)] == [None, LATE, LATE]
    visitors.leave(second)
    visitors.leave(second)
    assert len(visitors) == 2
