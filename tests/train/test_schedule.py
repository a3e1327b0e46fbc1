"""The order of training."""

from collections import Counter

from unet.train.schedule import samples_of_step, share


def test_each_pass_shows_every_row_once() -> None:
    draws = [draw for step in range(21) for draw in samples_of_step(step, seed=0, rows=14, batch=4)]
    for pass_index in range(6):
        assert Counter(d.row for d in draws if d.pass_index == pass_index) == Counter(range(14))


def test_passes_have_different_orders_and_seeds_too() -> None:
    def order(seed: int, first: int) -> list[int]:
        steps = range(first, first + 5)
        return [draw.row for step in steps for draw in samples_of_step(step, seed=seed, rows=50, batch=10)]

    assert len({tuple(order(0, 0)), tuple(order(0, 5)), tuple(order(1, 0))}) == 3


def test_any_step_can_be_entered_at_any_time() -> None:
    late = samples_of_step(1000, seed=3, rows=7, batch=5)
    for step in range(1000):
        samples_of_step(step, seed=3, rows=7, batch=5)
    assert samples_of_step(1000, seed=3, rows=7, batch=5) == late


def test_shares_of_all_ranks_are_a_partition() -> None:
    for world in range(1, 9):
        parts = [share(range(7), rank, world) for rank in range(world)]
        assert [item for part in parts for item in part] == list(range(7))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
