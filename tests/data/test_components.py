"""Objects in a mask: found exactly, whatever their shape, and drawn again by another program to the same pixels."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import ROOT
from unet.data import components
from unet.data.components import find_components, to_map
from unet.data.geotiff import encode_geotiff, georeference_of, placement_of
from unet.data.image import Array, open_image
from unet.data.labels import read_labels

rasterio = pytest.importorskip("rasterio")
features = pytest.importorskip("rasterio.features")

Rows = list[dict[str, Any]]


def found(mask: Array, min_area: int = 1) -> Rows:
    rows: Rows = find_components(mask, np.full_like(mask, 255), 1, "car", min_area)[0].to_pylist()
    return rows


def drawn(rows: Rows, shape: tuple[int, ...], name: str = "polygon", **given: Any) -> Array:
    """What rasterio makes of the polygons: the number of each, from 1."""
    shapes = [({"type": "Polygon", "coordinates": row[name]}, number) for number, row in enumerate(rows, 1)]
    image: Array = features.rasterize(shapes, out_shape=shape, dtype="int32", **given)
    return image


def box(row: dict[str, Any]) -> tuple[int, ...]:
    return tuple(row[f"box_{name}"] for name in ("x", "y", "width", "height"))


def signed_area(ring: list[list[int]]) -> float:
    """Above 0: clockwise as displayed, where y goes down."""
    x, y = np.array(ring).T
    return float(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]) / 2)


def shapes() -> Array:
    """A rectangle in the corner, a disc, a ring with an island, two that touch in a corner, one pixel at the border."""
    mask = np.zeros((60, 80), np.uint8)
    mask[:5, :7] = 1
    y, x = np.mgrid[:60, :80]
    distance = np.hypot(y - 30, x - 20)
    mask[distance < 10] = 1
    mask[10:30, 50:70] = 1
    mask[14:26, 54:66] = 0
    mask[18:20, 58:61] = 1
    mask[40:44, 50:54] = mask[44:48, 54:58] = 1
    mask[59, 79] = 1
    return mask


def test_shapes_are_found_exactly() -> None:
    mask = shapes()
    rows = found(mask)
    assert [box(row) for row in rows] == [
        (0, 0, 7, 5),
        (50, 10, 20, 20),
        (58, 18, 3, 2),
        (11, 21, 19, 19),
        (50, 40, 4, 4),
        (54, 44, 4, 4),
        (79, 59, 1, 1),
    ]
    assert [row["area"] for row in rows] == [35, 256, 6, int(mask[21:40, 11:30].sum()), 16, 16, 1]
    centroids = [(row["centroid_x"], row["centroid_y"]) for row in rows]
    assert centroids == [(3.5, 2.5), (60, 20), (59.5, 19), (20.5, 30.5), (52, 42), (56, 46), (79.5, 59.5)]
    assert {(row["class"], row["confidence"]) for row in rows} == {("car", 1)}
    assert np.array_equal(drawn(rows, mask.shape) > 0, mask == 1)


def test_rings_run_anticlockwise_around_objects_and_clockwise_around_their_holes_and_are_closed() -> None:
    for row in found(shapes()):
        outer, *inner = row["polygon"]
        assert signed_area(outer) < 0 < min(map(signed_area, inner), default=1)
        assert -sum(map(signed_area, row["polygon"])) == row["area"]
        assert all(ring[0] == ring[-1] for ring in row["polygon"])
        assert len(inner) == (row["area"] == 256)


@pytest.mark.parametrize("rows_at_a_time", [1, 3, 1000])
def test_noise_is_drawn_again_to_the_same_pixels(rows_at_a_time: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(rows_at_a_time)
    for share in np.linspace(0.05, 0.98, 40):
        shape = tuple(rng.integers(1, 40, 2))
        monkeypatch.setattr(components, "BAND_PIXELS", rows_at_a_time * shape[1])
        mask = (rng.random(shape) < share).astype(np.uint8)
        if not mask.any():
            continue
        rows = found(mask)
        expected = [*features.shapes(mask, mask=mask == 1, connectivity=4)]
        numbers = drawn(rows, shape)
        assert len(rows) == len(expected)
        assert np.array_equal(numbers > 0, mask == 1)
        assert np.array_equal(np.bincount(numbers.reshape(-1))[1:], [row["area"] for row in rows])
        for number, row in enumerate(rows, 1):
            y, x = np.nonzero(numbers == number)
            assert box(row) == (x.min(), y.min(), int(np.ptp(x)) + 1, int(np.ptp(y)) + 1)
            assert (row["centroid_x"], row["centroid_y"]) == pytest.approx((x.mean() + 0.5, y.mean() + 0.5))
            for ring in row["polygon"]:
                assert len({tuple(point) for point in ring}) == len(ring) - 1, "a ring meets itself"


def test_small_pieces_other_classes_and_pixels_without_data_are_left_out_and_the_first_counted() -> None:
    mask, confidence = shapes(), np.zeros((60, 80), np.uint8)
    mask[50:55, 20:30] = 2
    holes = np.zeros(mask.shape, bool)
    holes[:, :5] = True
    confidence[:5, 5] = 255
    table, left_out = find_components(mask, confidence, 1, "car", 10, holes)
    rows = table.to_pylist()
    assert left_out == 2
    assert box(rows[0]) == (5, 0, 2, 5)
    assert [row["confidence"] for row in rows] == [0.5, 0, 0, 0, 0]
    assert find_components(mask, confidence, 3, "tree")[0].to_pylist() == []


def test_a_mask_of_noise_is_refused_before_its_polygons_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(components, "MAX_CORNERS", 20)
    with pytest.raises(MemoryError, match="car have over 20 corners; raise --min-area"):
        found(shapes())
    assert len(found(shapes()[:9])) == 1


@pytest.mark.parametrize("tags", [{}, {"AREA_OR_POINT": "Point"}])
@pytest.mark.parametrize("turned", [0, 30])
def test_polygons_lie_on_the_map_where_rasterio_says(tmp_path: Path, tags: dict[str, str], turned: float) -> None:
    mask = shapes()
    affine = rasterio.Affine(10, 0, 500_000, 0, -10, 5_400_000) @ rasterio.Affine.rotation(turned)
    profile = {"count": 1, "dtype": "uint8", "height": 60, "width": 80, "crs": "EPSG:32632", "transform": affine}
    with rasterio.open(tmp_path / "image.tif", "w", driver="GTiff", **profile) as file:
        file.update_tags(**tags)
        file.write(mask, 1)
    with rasterio.open(tmp_path / "image.tif") as file:
        transform = file.transform
    placement, crs = placement_of(georeference_of(open_image((tmp_path / "image.tif").read_bytes())))
    assert crs == "EPSG:32632"
    assert placement is not None
    assert np.allclose(placement, tuple(transform)[:6], rtol=0, atol=1e-6)
    table, _ = find_components(mask, mask, 1, "car")
    rows = [{"map": polygon} for polygon in to_map(table["polygon"].combine_chunks(), placement).to_pylist()]
    assert np.array_equal(drawn(rows, mask.shape, "map", transform=transform) > 0, mask == 1)
    assert all(signed_area(row["map"][0]) > 0 for row in rows)  # anticlockwise, as y goes up


def test_a_reference_system_with_a_name_in_another_script_is_written_too(tmp_path: Path) -> None:
    named = rasterio.crs.CRS.from_epsg(31467).to_wkt().replace("Gauss-Kruger", "Gauß-Krüger")
    profile = {"count": 1, "dtype": "uint8", "height": 60, "width": 80, "transform": rasterio.Affine(1, 0, 9, 0, -1, 7)}
    profile["crs"] = rasterio.crs.CRS.from_wkt(named.replace(',AUTHORITY["EPSG","31467"]', ""))
    with rasterio.open(tmp_path / "image.tif", "w", driver="GTiff", **profile) as file:
        file.write(shapes(), 1)
    georeference = georeference_of(open_image((tmp_path / "image.tif").read_bytes()))
    assert "ü".encode() in b"".join(value for *_, value, _ in georeference if isinstance(value, bytes))
    mask = encode_geotiff(shapes(), read_labels("voc"), georeference=georeference)
    (tmp_path / "mask.tif").write_bytes(mask)
    assert georeference_of(open_image(mask)) == georeference
    with rasterio.open(tmp_path / "image.tif") as before, rasterio.open(tmp_path / "mask.tif") as after:
        assert (after.crs, after.transform) == (before.crs, before.transform)


def test_an_image_that_lies_nowhere_has_no_place_on_a_map() -> None:
    assert placement_of(()) == (None, None)
    citation_alone = ((34735, 3, 8, (1, 1, 0, 1, 1024, 0, 1, 1), True),)
    assert placement_of(citation_alone) == (None, None)


LARGE = """
import time
from pathlib import Path
import numpy as np
from unet.data.components import find_components
disc = (np.hypot(*np.mgrid[-45:45, -45:45]) < 30).astype(np.uint8)
mask = np.tile(disc, (134, 100))[:12_000, :9_000]
began = time.process_time()
rows, _ = find_components(mask, mask, 1, "disc", min_area=20)
seconds = time.process_time() - began
print(len(rows), seconds, int(Path('/proc/self/status').read_text().partition('VmHWM:')[2].split()[0]) << 10)
"""


@pytest.mark.slow
def test_thousands_of_objects_of_108_million_pixels_take_seconds_and_little_more_than_their_labels() -> None:
    said = subprocess.run([sys.executable, "-c", LARGE], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    count, seconds, size = map(float, said.split())
    print(f"{count:.0f} objects in {seconds:.1f} CPU seconds, {size / 1e9:.2f} GB in all")
    assert count == 133 * 100 + 100
    assert seconds < 60
    assert size < 1.5e9
