"""Terms of weights and images: read, combined, and refused where only what is free will do."""

from __future__ import annotations

from pathlib import Path

import pytest
from weights_shelf import with_free_weights

from edgekit import models
from edgekit.errors import DataError, LicenceError
from edgekit.models import checkpoints, licences
from edgekit.models.licences import ANY, NON_COMMERCIAL, OWNER, UNKNOWN, Terms


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of shipped weights, with the shipped ones and one more that is free."""
    header = {"licence": "CC0 or public domain, and generated images", "use": "any", "trained_on": "built-in"}
    return with_free_weights(tmp_path / "weights", monkeypatch, header)


def test_shipped_weights_of_research_images_are_not_for_products() -> None:
    for name in ("dsunet-s", "dsunet-l"):
        terms = licences.of_weights(name)
        assert (terms.use, terms.clean, terms.trained_on) == (NON_COMMERCIAL, False, "CBSD432, T91")


@pytest.mark.parametrize(
    ("header", "use"),
    [
        ({"licence": "anything", "use": "any"}, ANY),
        ({"licence": "MIT", "use": "non-commercial"}, NON_COMMERCIAL),
        ({"licence": "CC0 or public domain, and generated images"}, ANY),
        ({"licence": "CC-BY-4.0"}, ANY),
        ({"licence": "CC-BY-NC-4.0"}, NON_COMMERCIAL),
        ({"licence": "as the owner of the images states"}, OWNER),
        ({"licence": "as the owner of the images states; non-commercial"}, NON_COMMERCIAL),
        ({"licence": "CC0; net.pth: not stated"}, UNKNOWN),
        ({"licence": "ask me", "use": "perhaps"}, UNKNOWN),
        ({}, UNKNOWN),
    ],
)
def test_what_a_header_allows(header: dict[str, str], use: str) -> None:
    assert licences.of_header(header).use == use


def test_the_most_restricted_part_decides() -> None:
    free, own, bad = Terms("CC0", ANY), Terms(licences.OWNERS_WORD, OWNER), Terms("BSDS", NON_COMMERCIAL)
    assert licences.combine(free, own) == Terms("CC0; as the owner of the images states", OWNER)
    assert licences.combine(bad, free, bad) == Terms("BSDS; CC0", NON_COMMERCIAL)


def test_terms_stand_beside_files_that_hold_none(tmp_path: Path) -> None:
    net = tmp_path / "net.onnx"
    net.write_bytes(b"")
    assert licences.of_weights(net).use == UNKNOWN
    (tmp_path / "net.onnx.licence.yaml").write_text("licence: MIT\nuse: any\n")
    assert licences.of_weights(net) == Terms("MIT", ANY)
    assert licences.of_images(tmp_path) == Terms(licences.OWNERS_WORD, OWNER)
    (tmp_path / "licence.yaml").write_text("licence: BSDS, research\nuse: non-commercial\n")
    assert licences.of_images(tmp_path) == Terms("BSDS, research", NON_COMMERCIAL)
    for wrong in ("use: maybe\nlicence: x", "licence: [", "CC0"):
        (tmp_path / "licence.yaml").write_text(wrong)
        with pytest.raises(DataError, match=r"licence.yaml states no terms: expected two lines, 'licence: CC-BY-4.0'"):
            licences.of_images(tmp_path)


def test_what_is_not_free_is_named_with_a_way_out(shelf: Path) -> None:
    parts = {"weights": ("dsunet-s-free", licences.of_weights("dsunet-s-free")), "data": ("a", Terms("", OWNER))}
    licences.check_clean(parts)
    parts["teacher"] = ("dsunet-l", licences.of_weights("dsunet-l"))
    expected = (
        r"license_clean: teacher 'dsunet-l' \(.*dsunet-l\.safetensors\) is for research or other non-commercial use "
        r"alone \(non-commercial research .*\): use dsunet-s-free, or weights that .*, or --teacher none"
    )
    with pytest.raises(LicenceError, match=expected):
        licences.check_clean(parts)
    with pytest.raises(LicenceError, match=r"data 'BSDS' is for .*: give images that are free for any use, or leave"):
        licences.check_clean({"data": ("BSDS", Terms("research", NON_COMMERCIAL))})
    with pytest.raises(LicenceError, match=r"weights 'w.pth' does not state .* write it into w.pth.licence.yaml"):
        licences.check_clean({"weights": ("w.pth", licences.of_weights("w.pth"))})


def test_a_file_beside_the_weights_says_what_their_header_does_not(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    models.save(path, models.create("dsunet-n"), {"licence": "w.pth: not stated", "use": "unknown", "trained_on": "x"})
    assert licences.of_weights(path).use == "unknown"
    (tmp_path / "w.safetensors.licence.yaml").write_text("licence: CC0\nuse: any\n")
    assert licences.of_weights(path) == Terms("CC0", "any", "x")
    # What it does say, a file beside it cannot take back.
    models.save(path, models.create("dsunet-n"), {"licence": "research", "use": "non-commercial"})
    assert licences.of_weights(path).use == "non-commercial"


def test_shipped_weights_may_have_a_name_beside_their_models(shelf: Path) -> None:
    assert checkpoints.preset("dsunet-s-free") == "dsunet-s"
    assert checkpoints.preset("dsunet-s") == "dsunet-s"
    assert checkpoints.preset("net.onnx") == "net.onnx"
    assert models.load("dsunet-s-free").config() == models.create("dsunet-s").config()


@pytest.mark.parametrize(
    ("licence", "use"),
    [
        ("CC0", "any"),
        ("CC-BY-4.0", "any"),
        ("MIT", "any"),
        ("CC0; Apache-2.0", "any"),
        ("MIT, not for commercial use", "non-commercial"),
        ("CC-BY-4.0, academic use only", "non-commercial"),
        ("CC-BY-NC-4.0", "non-commercial"),
        ("CC0; BSDS: non-commercial research and education", "non-commercial"),
        # Words after a licence's name may take back what it gives.
        ("Apache-2.0 for the code", "unknown"),
        ("ask us", "unknown"),
    ],
)
def test_what_the_words_of_a_licence_say(licence: str, use: str) -> None:
    assert licences.of_header({"licence": licence}).use == use


def test_noisy_images_alone_have_the_terms_of_their_pairs(tmp_path: Path) -> None:
    (tmp_path / "noisy").mkdir()
    (tmp_path / "licence.yaml").write_text("licence: BSDS\nuse: non-commercial\n")
    assert licences.of_images(tmp_path / "noisy").use == "non-commercial"
