"""collie.testing: results come in rank order, and whatever goes wrong in a rank reaches the test that started it."""

import gc
import os
import signal
import sys
import time
import unittest
import weakref

import pytest
import torch
import torch.distributed as dist

from collie.testing import RankError, golden, run_ranks, toy_llama_config, toy_moss_config


def _alive(pid):
    """Whether a process runs; a zombie does not."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _sum_of_ranks(offset):
    x = torch.tensor([dist.get_rank() + float(offset)])
    dist.all_reduce(x)
    return dist.get_rank(), x, os.environ["LOCAL_RANK"], torch.get_num_threads(), os.getpid()


@pytest.mark.parametrize("n", [1, 2, 3])
def test_results_in_rank_order_after_a_collective(ranks, n):
    results = ranks(n, _sum_of_ranks, 10, init=True)
    expected = sum(range(n)) + 10.0 * n
    assert [r[0] for r in results] == list(range(n))
    assert all(r[1].item() == expected and r[2] == str(i) and r[3] == 1 for i, r in enumerate(results))
    pids = {r[4] for r in results}
    assert len(pids) == n and os.getpid() not in pids
    assert not any(_alive(pid) for pid in pids)


def test_environment_is_set_in_ranks_only(ranks):
    def environment():
        assert not dist.is_initialized()
        dist.init_process_group("gloo", init_method="env://")  # what setup_distribution does
        return os.environ["RANK"], os.environ["WORLD_SIZE"], dist.get_world_size()

    before = dict(os.environ)
    assert ranks(2, environment) == [("0", "2", 2), ("1", "2", 2)]
    assert dict(os.environ) == before


def test_large_results_do_not_block(ranks):
    """More than a pipe's buffer from every rank, whichever rank is read first."""
    results = ranks(2, lambda: torch.arange(1_000_000) * int(os.environ["RANK"]))
    assert results[1][-1].item() == 999_999 and results[0].sum().item() == 0


def test_first_failure_is_the_one_raised(ranks):
    """Rank 1 fails; rank 0 then loses its peer inside a collective. The cause is reported, with its traceback."""

    def fail():
        if dist.get_rank() == 1:
            raise KeyError("tp_size")
        dist.all_reduce(torch.ones(1))

    with pytest.raises(RankError, match="rank 1 raised KeyError: 'tp_size'") as caught:
        ranks(2, fail, init=True)
    assert caught.value.rank == 1
    assert isinstance(caught.value.exception, KeyError)
    assert 'raise KeyError("tp_size")' in str(caught.value)


def test_every_rank_can_be_asked_for_its_error(ranks):
    def fail():
        raise ValueError(f"no: {os.environ['RANK']}")

    errors = ranks(2, fail, return_exceptions=True)
    assert [str(e.exception) for e in errors] == ["no: 0", "no: 1"]


@pytest.mark.parametrize(
    ("end", "sentence"), [(lambda: os.kill(os.getpid(), signal.SIGKILL), "SIGKILL"), (lambda: os._exit(7), "status 7")]
)
def test_a_rank_that_dies_is_named(ranks, end, sentence):
    def die():
        if os.environ["RANK"] == "1":
            end()

    with pytest.raises(RankError, match=f"rank 1 .*{sentence}"):
        ranks(2, die)


def test_sys_exit_is_a_failure(ranks):
    with pytest.raises(RankError, match="rank 0 raised SystemExit: 3"):
        ranks(1, sys.exit, 3)


def test_silent_ranks_are_named_and_ended(ranks, tmp_path):
    """At the timeout: who is silent, in which function it stands, and neither it nor its child lives on."""

    def sleeping_here():
        signal.pause()

    def hang():
        if os.environ["RANK"] == "1":
            child = os.fork()
            if child == 0:
                signal.pause()
            (tmp_path / "pids").write_text(f"{os.getpid()} {child}")
            sleeping_here()
        return "done"

    started = time.monotonic()
    with pytest.raises(RankError, match=r"rank 1 of 2 gave no result within 0.5 s \(1 did\)") as caught:
        ranks(2, hang, timeout=0.5)
    assert time.monotonic() - started < 5
    assert "sleeping_here" in str(caught.value)
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    deadline = time.monotonic() + 5
    while any(_alive(pid) for pid in pids) and time.monotonic() < deadline:
        os.sched_yield()
    assert not any(_alive(pid) for pid in pids)


def test_unpicklable_result_and_exception(ranks):
    class Local(Exception):
        pass

    def fail():
        raise Local("here")

    with pytest.raises(RankError, match=r"pickle"):
        ranks(1, lambda: lambda: None)
    with pytest.raises(RankError, match="Local: here"):
        ranks(1, fail)


def test_a_skip_in_a_rank_is_a_skip(ranks):
    def skip():
        raise unittest.SkipTest("nothing to see")

    with pytest.raises(unittest.SkipTest, match="nothing to see"):
        ranks(2, skip)


def test_no_ranks_is_refused():
    with pytest.raises(ValueError, match="n=0"):
        run_ranks(0, print)


def test_goldens(monkeypatch, tmp_path):
    (tmp_path / "llama3").mkdir()
    monkeypatch.setenv("COLLIE_GOLDENS", str(tmp_path))
    assert golden("llama3") == tmp_path / "llama3"
    with pytest.raises(FileNotFoundError, match=r"'lama3' is not in .*llama3"):
        golden("lama3")
    monkeypatch.setenv("COLLIE_GOLDENS", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="no folder"):
        golden("llama3")
    monkeypatch.delenv("COLLIE_GOLDENS")
    with pytest.raises(unittest.SkipTest, match="COLLIE_GOLDENS"):
        golden("llama3")


def test_toy_configurations():
    llama, moss = toy_llama_config(num_hidden_layers=3), toy_moss_config(n_layer=1)
    assert (llama.model_type, llama.num_hidden_layers, llama.num_key_value_heads) == ("llama", 3, 2)
    assert (moss.model_type, moss.n_layer, moss.n_embd % moss.n_head) == ("moss", 1, 0)


def test_a_parent_with_a_process_group_is_refused(ranks):
    """Not forked from: every rank would believe in the parent's group. The parent itself is put in a rank here."""

    def inherit():
        dist.init_process_group("gloo")
        with pytest.raises(RuntimeError, match="has a process group itself"):
            run_ranks(2, print)
        return "refused"

    assert ranks(1, inherit) == ["refused"]


def test_what_the_parent_left_behind_is_not_collected_in_a_rank(ranks):
    """A store in a reference cycle: collected in a child, its destructor would wait for a thread that did not fork."""

    class Holder:
        pass

    def collect():
        gc.collect()
        return alive() is not None

    holder = Holder()
    holder.store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    holder.itself = holder
    alive = weakref.ref(holder)
    gc.disable()
    try:
        del holder
        assert ranks(2, collect, timeout=20) == [True, True]
    finally:
        gc.enable()
    gc.collect()
    assert alive() is None  # it was garbage here
