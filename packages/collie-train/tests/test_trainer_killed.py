"""A short version of `nox -s resume`."""

from killed_runs import kill_and_resume


def test_killed_runs_go_on_bitwise(tmp_path, monkeypatch):
    """Three kills by SIGKILL of two ranks, at a random moment and while a checkpoint is written."""
    monkeypatch.setenv("COLLIE_RUNS", str(tmp_path / "runs"))
    tally = kill_and_resume(tmp_path, kills=3, seed=4)
    assert sum(tally.kills.values()) == 3
    assert tally.compared == 80 * tally.trainings
