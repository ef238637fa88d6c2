"""Fano's inequality against a channel for which it is an equality."""

import numpy as np
import pytest

from research_stack.metrics.information import fano_bits


@pytest.mark.exact
def test_fano_is_the_information_of_a_channel_whose_errors_are_all_alike():
    """There the inequality is an equality: I = sum p(x) p(y|x) log2 p(y|x) / p(y)."""
    for num_values in (2, 3, 16):
        for exact in (0.0, 0.05, 0.5, 0.9, 1.0):
            channel = np.full((num_values, num_values), (1 - exact) / (num_values - 1))
            np.fill_diagonal(channel, exact)
            with np.errstate(divide="ignore", invalid="ignore"):
                information = np.nansum(channel / num_values * np.log2(channel * num_values))
            expected = information if exact > 1 / num_values else 0.0
            assert fano_bits(exact, num_values) == pytest.approx(expected, abs=1e-12)


def test_bounds():
    for exact, num_values in ((-0.1, 2), (1.1, 2), (0.5, 1)):
        with pytest.raises(ValueError, match="exact=|num_values="):
            fano_bits(exact, num_values)
