"""Callbacks: each event reaches each callback, in order; what would never be called is refused when it is given."""

import pytest

from collie.callbacks import Callback, CallbackManager, prepare_callback
from collie.interfaces import ConfigError

EVENTS = {
    "on_setup_parallel_model": (),
    "on_after_trainer_initialized": (),
    "on_train_begin": (),
    "on_train_end": (),
    "on_train_epoch_begin": (),
    "on_train_epoch_end": (),
    "on_train_batch_begin": ({"input_ids": [1]},),
    "on_train_batch_end": (0.5,),
    "on_save_model": (),
    "on_load_model": (),
    "on_save_checkpoint": (),
    "on_load_checkpoint": ({},),
    "on_evaluate_begin": (),
    "on_evaluate_end": ({"ppl": 2.0},),
}


def _recorder(event, calls):
    """A callback that overrides one event and writes down what it gets."""

    def method(self, *arguments):
        calls.append((self, event, arguments))

    return type("Recorder", (Callback,), {event: method})()


@pytest.mark.parametrize("event", EVENTS)
def test_each_event_reaches_each_callback_in_order(event):
    calls = []
    callbacks = [_recorder(event, calls), Callback(), _recorder(event, calls)]
    trainer = object()
    getattr(CallbackManager(callbacks), event)(trainer, *EVENTS[event])
    assert [call[0] for call in calls] == [callbacks[0], callbacks[2]]
    arguments = (None,) if event == "on_load_checkpoint" else EVENTS[event]
    assert all(call[1:] == (event, (trainer, *arguments)) for call in calls)


def test_there_are_no_other_events():
    for owner in (Callback, CallbackManager):
        assert {name for name in dir(owner) if name.startswith("on_")} == set(EVENTS)


def test_one_several_or_none():
    one, two = Callback(), Callback()
    assert prepare_callback(None) == CallbackManager().callbacks == []
    assert prepare_callback(one) == [one]
    assert prepare_callback((one, two)) == prepare_callback(iter([one, two])) == [one, two]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("on_train_batch_ends", r"did you mean on_train_batch_end\?"),
        ("on_evaluation_end", r"did you mean on_evaluate_end\?"),
        ("on_zzz", "the events are on_setup_parallel_model, .*on_evaluate_end"),
    ],
)
def test_a_misspelled_event_is_refused(name, sentence):
    class Base(Callback):
        pass

    setattr(Base, name, lambda self, trainer: None)

    class Mine(Base):
        pass

    with pytest.raises(ConfigError, match=rf"^Mine\.{name} is no event .*{sentence}"):
        CallbackManager([Callback(), Mine()])


def test_other_methods_and_values_are_yours():
    class Mine(Callback):
        on_hand = 3

        def one_more(self):
            """No event: it does not begin with on_."""

        @property
        def on_top(self):
            raise AssertionError("a property is not read")

        @staticmethod
        def on_train_end(trainer):
            trainer.append("static")

    trainer = []
    CallbackManager(Mine()).on_train_end(trainer)
    assert trainer == ["static"]


def test_an_event_that_cannot_be_called_is_refused_before_training():
    class NoLoss(Callback):
        def on_train_batch_end(self, trainer):
            pass

    class Wide(Callback):
        def on_train_batch_end(self, trainer, loss, scale=1.0, **more):
            pass

    with pytest.raises(
        ConfigError, match=r"NoLoss.on_train_batch_end takes \(trainer\), .* called with \(trainer, loss\)"
    ):
        CallbackManager(NoLoss())
    CallbackManager(Wide()).on_train_batch_end(None, 1.0)


def test_what_is_no_callback():
    with pytest.raises(ConfigError, match=r"the class Callback: give an instance"):
        CallbackManager(Callback)
    with pytest.raises(ConfigError, match=r"has a function, which is no Callback"):
        CallbackManager([Callback(), lambda trainer: None])
    with pytest.raises(ConfigError, match="has a int"):
        CallbackManager(3)


def test_what_a_callback_raises_ends_the_run():
    class Stop(Callback):
        def on_train_begin(self, trainer):
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        CallbackManager(Stop()).on_train_begin(None)


class _Counter(Callback):
    def __init__(self, count):
        self.count = count

    def on_save_checkpoint(self, trainer):
        return {"count": self.count}

    def on_load_checkpoint(self, trainer, states):
        self.count = states and states["count"]


def test_states_go_into_a_checkpoint_and_come_back_by_name():
    class Named(_Counter):
        @property
        def callback_name(self):
            return "mine"

    assert _Counter(1).callback_name == "_Counter"
    states = CallbackManager([_Counter(1), Callback(), Named(2), _Counter(3)]).on_save_checkpoint(None)
    assert states == {"_Counter": {"count": 1}, "mine": {"count": 2}, "_Counter#2": {"count": 3}}
    later = [Named(0), _Counter(0), _Counter(0), _Counter(0)]
    CallbackManager(later).on_load_checkpoint(None, states)
    assert [callback.count for callback in later] == [2, 1, 3, None]
