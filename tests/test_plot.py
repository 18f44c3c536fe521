"""Learning curves of any runs."""

import itertools
import json
import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from commands import call_other
from fabricated import put, text

from experiments import plot
from experiments.kit import curves, learning_curves, style
from preqn_jax.options import UserError


def fake_run(folder, algorithm, env="E-v1", seeds=(0, 1), **fields):
    config = {
        "algorithm": algorithm,
        "activation": "sin",
        "env": env,
        "seeds": list(seeds),
        "num_steps": 20,
        **fields,
    }
    lines = [
        {"step": s, "seed": k, "eval/return_mean": s * (k + 1.0), "critic/q_mean": 1.0}
        for s in (10, 20)
        for k in seeds
    ]
    with (put(folder, config, lines) / "metrics.jsonl").open("a") as file:
        file.write('{"step": 30, "se')
    return folder


def test_plot_draws_any_runs(tmp_path):
    runs = [
        fake_run(tmp_path / "a", "preqn"),
        fake_run(tmp_path / "b", "td3"),
        fake_run(tmp_path / "c", "td3", env="F-v1"),
    ]
    learning_curves.draw(runs, tmp_path / "deep" / "curve.png")
    assert (tmp_path / "deep" / "curve.png").stat().st_size > 10_000


@pytest.fixture
def rows(monkeypatch):
    """`(*runs) -> [(name, seeds, return)]`: the lines of a figure, read from its table. The picture
    is not written, which would take most of the time.
    """
    monkeypatch.setattr(learning_curves.output, "save_figure", lambda figure, *_: plt.close(figure))

    def read(*runs):
        cells = [
            re.split("  +", line) for line in learning_curves.draw(runs, Path("x.svg")).splitlines()
        ]
        return [(name, int(seeds), value) for _, name, seeds, _, _, value, *_ in cells[1:]]

    return read


def test_plot_joins_seeds_of_one_configuration_and_tells_configurations_apart(tmp_path, rows):
    assert rows(
        fake_run(tmp_path / "a", "preqn", seeds=(0,), eta=0.9),
        fake_run(tmp_path / "b", "preqn", seeds=(1,), eta=0.9),
        fake_run(tmp_path / "c", "preqn", eta=0.5),
    ) == [("preqn-sin, eta=0.9", 2, "30 +- 14.14"), ("preqn-sin, eta=0.5", 2, "30 +- 14.14")]


def test_labels_name_what_differs_within_an_environment_and_changes_the_numbers(tmp_path, rows):
    """Settings of a run's length, and of evaluating it, do not change the numbers."""
    found = rows(
        fake_run(tmp_path / "a", "preqn", eta=0.9, log_every=10, num_steps=20),
        fake_run(tmp_path / "b", "preqn", eta=0.9, log_every=5, num_steps=40, seeds=(2,)),
        fake_run(tmp_path / "c", "preqn", env="F-v1", eta=0.5, hidden_sizes=[8, 8]),
        fake_run(tmp_path / "d", "preqn", env="F-v1", eta=0.5, hidden_sizes=[4, 4]),
    )
    assert [(name, seeds) for name, seeds, _ in found] == [
        ("preqn-sin", 3),
        ("preqn-sin, hidden_sizes=8x8", 2),
        ("preqn-sin, hidden_sizes=4x4", 2),
    ]


def test_no_seed_counts_twice(tmp_path, capsys, rows):
    """A folder that is given twice counts once; if runs share seeds, each is drawn apart under its
    name, whatever their order.
    """
    first, second = fake_run(tmp_path / "a", "preqn"), fake_run(tmp_path / "b", "preqn", seeds=(1,))
    third = fake_run(tmp_path / "c", "preqn", seeds=(2,))
    assert rows(third, tmp_path / ".." / tmp_path.name / "c") == [("preqn-sin", 1, "60")]
    assert "is given twice, but is drawn once" in capsys.readouterr().err
    name = f"preqn-sin ({tmp_path.name}/{{}})".format
    told = [(name("a"), 2, "30 +- 14.14"), (name("b"), 1, "40"), (name("c"), 1, "60")]
    for runs in itertools.permutations([first, second, third]):
        assert sorted(rows(*runs)) == told
    assert "the same settings, and seed 1 more than once: each" in capsys.readouterr().err
    twins = [fake_run(tmp_path / root / "E-v1" / "preqn-sin", "preqn") for root in ("r1", "r2")]
    assert [name for name, *_ in rows(*twins)] == [
        f"preqn-sin ({root}/E-v1/preqn-sin)" for root in ("r1", "r2")
    ]


def of_seeds(*runs):
    """The records of each seed of these runs."""
    loaded = [curves.load(run) for run in runs]
    found = [curves.of_seeds(config["seeds"], lines).values() for config, lines in loaded]
    return [*itertools.chain(*found)]


def test_seeds_that_were_looked_at_at_other_steps_leave_no_teeth(tmp_path):
    """The mean would be a saw if it were over two seeds at one step, and over one of them at the
    next.
    """
    run = fake_run(tmp_path / "a", "preqn")
    dense = [{"step": s, "seed": 0, "critic/q_mean": 1.0} for s in (5, 10, 15, 20)]
    sparse = [{"step": s, "seed": 1, "critic/q_mean": 3.0} for s in (10, 20, 30)]
    (run / "metrics.jsonl").write_bytes(text(dense + sparse))
    steps, values = curves.at_common_steps(of_seeds(run), "critic/q_mean")
    np.testing.assert_array_equal(steps, [10, 20])  # at 30 the first has ended: no mean of one
    np.testing.assert_array_equal(values, [[1, 1], [3, 3]])
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 22, "seed": 0, "run/diverged": 1.0}) + "\n")
    steps, values = curves.at_common_steps(of_seeds(run), "critic/q_mean")
    np.testing.assert_array_equal(steps, [10, 20, 30])  # one that diverged holds none back
    np.testing.assert_array_equal(values, [[1, 1, np.nan], [3, 3, 3]])


def test_the_table_has_the_numbers_at_the_end(tmp_path):
    table = learning_curves.draw([fake_run(tmp_path / "a", "preqn")], tmp_path / "x.svg", (4, 3))
    head, row = table.splitlines()
    names = ["environment", "runs", "seeds", "diverged", "step", "return"]
    assert head.split()[:6] == names
    assert row.split() == [
        "E-v1",
        "preqn-sin",
        "2",
        "0",
        "20",
        "30",
        "+-",
        "14.14",
        "1",
        "+-",
        "0",
    ]  # of 20 and 40


def test_a_band_is_the_samples_deviation_of_the_seeds_that_are_there():
    values = np.array([[1.0, 1.0, 4.0], [2.0, np.nan, 4.0], [3.0, 5.0, np.nan]])
    found = style.deviation(values)
    np.testing.assert_allclose(found, [1.0, 8**0.5, 0.0], rtol=1e-12)
    assert style.deviation(values[:1]).tolist() == [0, 0, 0]


def test_the_table_is_of_the_seeds_that_go_on(tmp_path):
    """At the step of their last evaluation, even if other numbers come later."""
    run = fake_run(tmp_path / "a", "preqn")
    lines = [{"step": s, "seed": 0, "eval/return_mean": float(s)} for s in (10, 20, 30)]
    lines += [{"step": s, "seed": 0, "critic/q_mean": 1.0} for s in (10, 20, 30, 40)]
    lines += [{"step": 10, "seed": 1, "eval/return_mean": 500.0}]
    lines += [{"step": 15, "seed": 1, "critic/q_mean": None, "run/diverged": 1.0}]
    (run / "metrics.jsonl").write_bytes(text(lines))
    row = learning_curves.draw([run], tmp_path / "x.svg", (4, 3)).splitlines()[1]
    assert row.split() == ["E-v1", "preqn-sin", "2", "1", "30", "30", "1"]


def test_any_number_of_lines_look_different():
    looks = style.looks([str(i) for i in range(3 * len(style.COLOURS))])
    assert len({tuple(look.values()) for look in looks.values()}) == len(looks)


def test_a_title_says_what_the_mean_is_of_past_a_cross():
    figure, axes = plt.subplots(squeeze=False)
    axes[0, 0].plot([1], [1], label="a")
    style.finish(figure, axes, "Returns")
    assert figure.get_suptitle() == "Returns"
    style.crosses(axes[0, 0], np.array([1, 2]), np.array([[1.0, np.nan]]), "k")
    style.finish(figure, axes, "Returns")
    plt.close(figure)
    words = "Returns; x: diverged, from there on the mean of the others"
    assert " ".join(figure.get_suptitle().split()) == words


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_plot_says_what_is_no_run(name, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=name):
        learning_curves.draw([tmp_path / name], tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()


def test_plot_without_a_run_names_an_example():
    with pytest.raises(UserError, match="^no run given; name"):
        plot.main(["plot"])


def test_a_picture_too_small_for_its_panels_is_one_sentence(tmp_path):
    run, out = fake_run(tmp_path / "a", "preqn"), tmp_path / "x.png"
    with pytest.raises(UserError, match=r"do not fit into a picture of 1 x [\d.]+ inches"):
        learning_curves.draw([run], out, (1, 0))
    assert not list(tmp_path.glob("x*"))


def test_a_single_evaluation_is_a_dot_and_a_title_stays_within_its_figure():
    figure, axes = plt.subplots(1, 2, squeeze=False)
    for ax, count in zip(axes.flat, (1, 2), strict=True):
        style.spread(ax, np.arange(count), np.zeros((3, count)), color="red")
    assert [ax.lines[0].get_marker() for ax in axes.flat] == ["o", ""]
    style.finish(figure, axes, "words " * 40)
    width = figure.texts[0].get_window_extent().width
    assert width < figure.get_window_extent().width
    plt.close(figure)


def test_plot_needs_a_name_for_its_picture(monkeypatch):
    monkeypatch.setattr(plot.flags, "parse", lambda _: plot.PlotConfig(out="", format="png"))
    with pytest.raises(UserError, match="out is empty; name a picture"):
        plot.main(["plot", "a"])


def test_plot_writes_a_picture_of_the_kind_asked_for_and_a_table(tmp_path, capsys):
    run, out = fake_run(tmp_path / "a", "preqn"), tmp_path / "x.png"
    args = [str(run), f"--out={out}", "--format=svg", "--width=4", "--height=3"]
    assert call_other(plot, plot.PlotConfig, *args) == 0
    said = capsys.readouterr().out
    assert (tmp_path / "x.svg").read_text().startswith("<?xml") and not out.exists()
    assert said == (tmp_path / "x.txt").read_text() + f"{tmp_path}/x.svg\n"


@pytest.mark.parametrize("name", ["eta=0.9", "eta=0.97", "x.PNG", "x"])
def test_the_kind_is_put_in_the_place_of_no_part_of_a_name(name, tmp_path):
    run = fake_run(tmp_path / "a", "preqn")
    args = [str(run), f"--out={tmp_path / name}", "--format=svg", "--width=4", "--height=3"]
    assert call_other(plot, plot.PlotConfig, *args) == 0
    stem = name.removesuffix(".PNG")
    assert {path.name for path in tmp_path.iterdir()} == {"a", f"{stem}.svg", f"{stem}.txt"}


def test_an_agent_of_own_parts_goes_by_its_name(tmp_path, rows):
    """Its configuration has no activation."""
    run = fake_run(tmp_path / "a", "own_agent")
    config = json.loads((run / "config.json").read_text())
    del config["config"]["activation"]
    (run / "config.json").write_text(json.dumps(config))
    assert rows(run) == [("own_agent", 2, "30 +- 14.14")]


def test_a_field_that_an_earlier_version_had_not_tells_no_runs_apart(tmp_path, rows):
    now, before = (fake_run(tmp_path / n, "preqn", seeds=(i,)) for i, n in enumerate("ab"))
    config = json.loads((now / "config.json").read_text())
    config["config"]["eval_max_steps"] = 10_000
    (now / "config.json").write_text(json.dumps(config))
    assert rows(now, before) == [("preqn-sin", 2, "30 +- 14.14")]


def test_a_line_ends_where_the_first_seed_does(tmp_path):
    """If four of five seeds ended, a mean of what is left would look like a collapse."""
    short = fake_run(tmp_path / "a", "preqn", seeds=(0, 1, 2, 3))
    long = fake_run(tmp_path / "b", "preqn", seeds=(4,), num_steps=40)
    more = [(30, 0.0), (40, 0.0), (10, 5.0), (20, 5.0)]
    lines = [{"step": s, "seed": 4, "eval/return_mean": value} for s, value in more]
    (long / "metrics.jsonl").write_bytes(text(lines))
    steps, values = curves.at_common_steps(of_seeds(short, long), "eval/return_mean")
    assert steps.tolist() == [10, 20] and np.isfinite(values).all()


def test_the_table_says_where_the_last_numbers_are_not_finite(tmp_path):
    run = fake_run(tmp_path / "a", "preqn")
    lost = [{"step": 30, "seed": s, "eval/return_mean": None, "critic/q_mean": 5.0} for s in (0, 1)]
    whole = (run / "metrics.jsonl").read_bytes().rpartition(b"\n")[0] + b"\n"
    (run / "metrics.jsonl").write_bytes(whole + text(lost))
    head, row = learning_curves.draw([run], tmp_path / "x.svg").splitlines()
    assert row.split()[4] == "30" and row[head.index("return") :].startswith("not finite")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"format": "a/b"}, "unknown format 'a/b'"),
        ({"format": ".png"}, "unknown format '.png'"),
        ({"out": ".", "format": "png"}, "out is '.', a folder; name a picture"),
        ({"out": "x.pgf"}, "cannot write 'x.pgf': pictures end in"),
        ({"width": 1e9}, "width is 1000000000.0, but it must be at least 0 and below 200"),
        ({"width": 0.01}, "do not fit into a picture of 0.01 x"),
    ],
)
def test_a_picture_of_no_kind_or_size_is_one_sentence(tmp_path, monkeypatch, given, words):
    monkeypatch.chdir(tmp_path)
    fake_run(tmp_path / "a", "preqn")
    monkeypatch.setattr(plot.flags, "parse", lambda _: plot.PlotConfig(**given))
    with pytest.raises(UserError, match=words):
        plot.main(["plot", "a"])
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
