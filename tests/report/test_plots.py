"""The plots: round ticks, nothing that is not finite in the drawing, and points that stay few."""

import math

import numpy as np
import pytest

from unet.report.plots import MAX_POINTS, ReferenceLine, bar_plot, line_plot, matrix_plot, ticks


@pytest.mark.parametrize(
    ("low", "high", "whole", "expected"),
    [
        (0, 1, False, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 2.2, False, [0, 0.5, 1, 1.5, 2]),
        (1, 20, True, [5, 10, 15, 20]),
        (1, 3, True, [1, 2, 3]),
        (7, 7, True, [7]),
        (0, 3e-6, False, [0, 1e-6, 2e-6, 3e-6]),
    ],
)
def test_ticks_are_few_and_round(low: float, high: float, whole: bool, expected: list[float]) -> None:
    assert ticks(low, high, whole=whole) == pytest.approx(expected)


@pytest.mark.parametrize("values", [[math.nan], [0.0], [math.inf, 1.0], [1e-9, 1e9], [0.0, math.nan, 0.0]])
def test_a_line_of_any_values_can_be_drawn(values: list[float]) -> None:
    drawn = line_plot(
        "Loss", [("training", list(enumerate(values)))], x_name="epoch", vertical=ReferenceLine(0, "best")
    )
    assert "nan" not in drawn
    assert "inf" not in drawn


def test_a_long_line_has_few_points_and_its_last() -> None:
    drawn = line_plot("Loss", [("training", [(x, float(x)) for x in range(100_001)])], x_name="epoch")
    points = drawn.split('points="')[1].split('"')[0].split()
    assert len(points) <= MAX_POINTS + 1
    assert points[-1].startswith("548.0,")


def test_bars_without_height_can_be_drawn() -> None:
    assert bar_plot("Images", [0, 0.5, 1], [0, 0], x_name="mean IoU").count('height="0.0"') == 2


def test_a_matrix_names_and_numbers_classes_as_long_as_there_is_room() -> None:
    few, many = (matrix_plot("M", np.eye(n), [f"<{i}>" for i in range(n)]) for n in (3, 200))
    assert few.count(">100<") == 3
    assert few.count("&lt;0&gt;") == 2
    assert "&lt;0&gt;" not in many
