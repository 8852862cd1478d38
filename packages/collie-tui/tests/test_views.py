"""The views of evaluations and of prompts: what a person sees of a run's past, and of the model in training."""

import time

import pytest
from dashboard import SIZES, screen, watch
from run_files import write_events
from textual.widgets import Input

from collie.events import Bye, Eval, Prompt, RunFolder, Sample
from collie.tui._widgets import EvaluationTable

pytestmark = pytest.mark.timeout(90)


def history(now):
    """Two evaluations, of which the second answers one of two prompts differently."""
    events = []
    for step, ppl, answer in ((4, 3.5, "a dog."), (9, 3.25, "training models.")):
        events += [
            (Eval("ppl", {"ppl": ppl}, 1.0, 32), step, now - 50 + step),
            (Sample("Collie is for", answer, "fine-tuning."), step, now - 50 + step),
            (Sample("One and one is", "two.", None), step, now - 50 + step),
        ]
    return events


@pytest.mark.parametrize("size", SIZES)
def test_evaluations_over_the_steps(runs, make_run, size):
    """How each number changed, the texts of a step, and what stood there before where it was another."""
    make_run("night", "running", extra={0: history(time.time())})

    async def scenario(pilot, see):
        await see("night")
        await pilot.press("4")
        await see("ppl 3.250 ↓0.2500", "ppl 3.500", "training models.", "fine-tuning.")
        text = screen(pilot.app)
        assert "texts of step 10, and of step 5 where they differ" in text
        assert text.count("a dog.") == 1 and text.count("two.") == 1
        assert max(map(len, text.splitlines())) <= size[0]
        await pilot.press("down")
        await see("step 5   a dog.")
        assert "training models." not in screen(pilot.app)
        assert pilot.app.screen.query_one(EvaluationTable).key == "5"

    watch(runs, scenario, size)


@pytest.mark.parametrize("size", SIZES)
def test_the_model_is_asked_and_answers(runs, make_run, size):
    """Typed letters are the question's; the answer comes in pieces, with what it cost; and can be cancelled."""
    run = make_run("night", "running")

    async def scenario(pilot, see):
        await see("night")
        await pilot.press("5")
        await see("Ask the model what it has learnt so far.")
        await pilot.press(*"quit s5", "enter")
        await see("> quit s5", "waiting for the end of a step")
        (asked,) = run.pending()
        assert (asked.kind, asked.arguments) == ("prompt", {"text": "quit s5"})
        assert len(pilot.app.screen_stack) == 2, "no letter did what it does elsewhere"
        now = time.time()
        write_events(run, 0, [(Prompt(asked.id, "half an ", done=False), 9, now)])
        await see("half an  …")
        await pilot.press("ctrl+g")
        deadline = time.monotonic() + 20
        while [request.kind for request in run.pending()] != ["prompt", "cancel"]:
            assert time.monotonic() < deadline
            await pilot.pause(0.02)
        write_events(run, 0, [(Prompt(asked.id, "answer", done=True, tokens=3, seconds=0.25), 9, now)])
        await see("half an answer", "at step 10  3 tokens, 250ms")
        write_events(run, 0, [(Prompt("other", "", done=True, error="it is too long."), 9, now)])
        await see("(asked elsewhere)", "it is too long.")
        assert max(map(len, screen(pilot.app).splitlines())) <= size[0]

    watch(runs, scenario, size)


def test_a_run_that_has_ended_is_not_asked(runs, make_run):
    """And says so, with what was answered before."""
    make_run(
        "done",
        extra={0: [(Prompt("r", "before the end", done=True), 9, time.time()), (Bye("finished"), 9, time.time())]},
    )

    async def scenario(pilot, see):
        await see("done")
        await pilot.press("5")
        await see("(asked elsewhere)", "before the end")
        assert pilot.app.screen.query_one(Input).disabled

    watch(runs, scenario)
    assert not RunFolder(next(runs.glob("*-done-*"))).pending()
