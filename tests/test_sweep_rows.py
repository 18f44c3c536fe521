"""The rows and the map of a sweep's summary."""

import matplotlib.pyplot as plt
import numpy as np
from fabricated import one

from experiments.judge import scores
from experiments.kit import sweep_report


def row(setting, run):
    return sweep_report.Row(setting, run, scores.performances(run))


def test_a_row_tells_the_best_evaluation_and_who_is_stable():
    """Seed 1 learns up to step 60,000 and forgets all of it."""
    run = one(returns=lambda seed, t: 100 * (t if seed != 1 or t < 0.6 else 0.0) + seed)
    found = row({"eta": 0.5}, run)
    assert found.best == 102 and found.stable == 2


def test_a_map_has_every_setting_in_its_place():
    run, rows = one(), []
    for a in (1, 2):
        for b in (3, 4, 5):
            made = sweep_report.Row({"a": a, "b": b}, run, np.full(3, 10.0 * a + b))
            rows.append(made)
    figure, ax = plt.subplots()
    sweep_report._map(figure, ax, rows, ["a", "b"])
    np.testing.assert_allclose(np.asarray(ax.images[0].get_array()), [[13, 23], [14, 24], [15, 25]])
    plt.close(figure)
