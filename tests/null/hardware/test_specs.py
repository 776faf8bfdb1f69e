# SPDX-License-Identifier: Apache-2.0
"""The registry of devices, links and model shapes."""

from __future__ import annotations

import pytest

from ziggurat.errors import ConfigError
from ziggurat.hardware.models import find_model, model_shapes
from ziggurat.hardware.specs import devices, find_device, find_link, find_spec, links


def test_every_constant_has_a_value_a_unit_a_source_and_a_confidence() -> None:
    for spec in (*devices(), *links()):
        assert spec.constants
        for constant in spec.constants.values():
            assert constant.value > 0 and constant.unit and constant.source
            assert constant.confidence in ("published", "unconfirmed")


def test_names_and_aliases_are_unique() -> None:
    names = [name for spec in (*devices(), *links()) for name in (spec.name, *spec.aliases)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("name", ["a100", "A100", "a100_80gb", "A100 80GB", "a100-80g-sxm"])
def test_aliases_in_any_spelling(name: str) -> None:
    assert find_device(name).name == "a100-80g-sxm"


def test_an_unknown_name_says_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'h100'"):
        find_device("h10")
    with pytest.raises(ConfigError, match="unknown link 'nvme-gen9'"):
        find_link("nvme-gen9")
    with pytest.raises(ConfigError, match="unknown model shape 'llama9'"):
        find_model("llama9")


def test_a_constant_that_nobody_gives() -> None:
    with pytest.raises(ConfigError, match="a40 has no fp8_tflops"):
        find_spec("a40").value("fp8_tflops")


@pytest.mark.parametrize(
    ("name", "billions"),
    [("llama2-7b", 6.6), ("llama2-70b", 68.7), ("llama3-8b", 7.5), ("bloom-176b", 176.2), ("opt-175b", 174.6)],
)
def test_weights_of_published_models(name: str, billions: float) -> None:
    """Parameters without the input embedding, from the publications' counts."""
    shape = find_model(name)
    assert shape.weight_bytes / 2e9 == pytest.approx(billions, rel=0.02)


def test_shapes_divide() -> None:
    for shape in model_shapes():
        assert shape.hidden % shape.num_heads == 0 and shape.num_heads % shape.num_kv_heads == 0
