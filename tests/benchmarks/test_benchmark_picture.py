from __future__ import annotations

import numpy as np

from benchmarks import picture
from edgekit.train.builtin import FREE_IMAGES


def test_difference_is_amplified_around_gray() -> None:
    a, b = np.array([[[100]]], np.uint8), np.array([[[97]]], np.uint8)
    assert picture.difference(a, b, 8).item() == 128 + 24
    assert picture.difference(b, a, 8).item() == 128 - 24
    assert picture.difference(a, np.array([[[0]]], np.uint8), 8).item() == 255


def test_panels_stand_side_by_side_below_their_labels() -> None:
    red, blue = (np.full((20, 30, 3), color, np.uint8) for color in ((255, 0, 0), (0, 0, 255)))
    sheet = np.asarray(picture.compose([("one", red), ("two", blue)]))
    assert sheet.shape == (20 + 24, 2 * 30 + 6, 3)
    np.testing.assert_array_equal(sheet[24:, :30], red)
    np.testing.assert_array_equal(sheet[24:, 36:], blue)
    assert (sheet[:24] < 128).any(), "the labels"


def test_the_image_is_free_and_not_trained_on() -> None:
    (chelsea,) = [image for image in FREE_IMAGES if image.function == "chelsea"]
    assert chelsea.held_out
    assert "CC0" in chelsea.terms
    assert picture.part(picture._chelsea()).shape == (208, 208, 3)
