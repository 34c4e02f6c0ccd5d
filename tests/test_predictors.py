"""Tests of experiments/predictors.py."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from experiments import predictors


def test_rank_correlation_is_that_of_scipy_for_each_row():
    x, y = np.random.default_rng(1).integers(0, 6, size=(2, 5, 8))  # with ties
    found = predictors.rank_correlation(x, y)
    assert found == pytest.approx([spearmanr(*pair).statistic for pair in zip(x, y, strict=True)])


def test_the_interval_is_narrow_for_agreeing_ranks_and_wide_for_few_random_ones():
    x = np.arange(10.0)
    assert predictors.interval(x, np.exp(x)) == pytest.approx((1, 1))
    low, high = predictors.interval(x, np.random.default_rng(0).random(10))
    assert low < 0 < high


def test_a_point_has_the_end_of_its_pretraining_and_the_mean_of_its_detectors():
    end = {"acc_right": 0.5, "gain": 0.25, "i2t": 0.125, "t2i": 0.0625, "pictures": 512}
    names = "pre-all", "short-CAE+BCL", "share-25"
    labels = "100 photographs", "CAE + BCL", "25%"
    rows = [
        {"label": label, "values": {"pre-trained": {"0": 10.0 * k, "1": 10.0 * k + 2}}}
        for k, label in enumerate(labels)
    ]
    points = predictors.read_points(
        {
            "pretraining": {name: {"stage 0": {}, "stage 1": {"synth": end}} for name in names},
            "tables": {"a": [rows[0]], "b": [rows[1]], "c": [rows[2]]},
        }
    )
    del end["pictures"]
    assert points == {name: {**end, "f": 10.0 * k + 1} for k, name in enumerate(names)}


def test_the_table_has_a_row_for_each_quantity(capsys):
    predictors.main([])
    assert capsys.readouterr().out.count("| `") == len(predictors.PREDICTORS)
