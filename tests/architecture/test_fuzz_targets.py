"""The fuzz targets hold for the stored forms that they start from."""

from __future__ import annotations

import pytest
from fuzz.seeds import SEEDS
from fuzz.targets import TARGETS


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_a_target_holds_for_its_seeds_and_any_part_of_them(name: str) -> None:
    seeds = list(SEEDS[name]())
    assert seeds
    for seed in seeds:
        for end in range(len(seed) + 1):
            TARGETS[name](seed[:end])
