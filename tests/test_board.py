from servekit.board import LIVE_SECONDS, Board


def test_whoever_holds_the_fewest_is_next() -> None:
    board = Board(workers=2)
    board.join(1)
    board.note(3, now=100.0)
    assert board.is_least(3, now=100.0) and not board.is_least(4, now=100.0)
    board.join(2)
    board.note(1, now=100.0)
    assert board.is_least(1, now=100.0) and not board.is_least(2, now=100.0)


def test_a_worker_that_is_silent_or_has_left_does_not_count() -> None:
    board = Board(workers=1)
    board.join(5)
    board.note(0, now=100.0)
    assert not board.is_least(1, now=100.0 + LIVE_SECONDS / 2)
    assert board.is_least(1, now=100.0 + LIVE_SECONDS)
    board.note(0, now=200.0)
    board.leave()
    assert board.is_least(1, now=200.0)
