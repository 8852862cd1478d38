"""The format of event files: a frozen sample, and what a reader forgives."""

import json
import math
from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest

from collie.events import (
    Alert,
    Bye,
    Checkpoint,
    Eval,
    Event,
    Hello,
    Log,
    Metric,
    Phase,
    Prompt,
    Record,
    Sample,
    Step,
    decode,
    encode,
)

SAMPLE = (Path(__file__).parent / "data" / "events-1.0.jsonl").read_text(encoding="utf-8").splitlines()
NAN = float("nan")
EVENTS: list[Event] = [
    Hello(
        host="gpu07",
        pid=4711,
        process_start=1763999990.5,
        world_size=8,
        dp=1,
        tp=1,
        pp=0,
        dp_size=2,
        tp_size=2,
        pp_size=2,
        device="cuda:3 NVIDIA H200",
        versions={"collie-config": "0.1.0", "torch": "2.13.0"},
    ),
    Step(loss=2.5, lr=0.001, tokens=512, seconds=0.25, total=200, grad_norm=NAN, memory=1 << 30),
    Step(loss=None, lr=None, tokens=512, seconds=0.25),
    Metric("tgs", 2048.0, "tokens/s"),
    Eval("EvaluatorForPerplexity", {"ppl": math.inf, "low": -math.inf, "acc": 0.5}, seconds=1.5, rows=8),
    Sample("Collie is a python package for ", "finetuning large language models."),
    Log("info", "第一步 done"),
    Checkpoint("/models/tiny", 0.5, 4096),
    Alert("warning", "events_dropped", "3 events were dropped."),
    Prompt("01764000003000000000-0a1b2c3d", "Hello", True, tokens=5, seconds=0.5),
    Bye("stopped", "Stopped after step 1: somebody asked."),
    Phase("evaluating"),
]


def test_the_sample_is_read_as_it_was_meant():
    """Every line of the frozen file gives the event above and its envelope."""
    records = [decode(line) for line in SAMPLE]
    assert [repr(record.event) for record in records] == [repr(event) for event in EVENTS]  # repr: nan is not nan
    assert [record.seq for record in records] == list(range(12))
    assert records[1] == Record("1.0", 1, 1764000001.25, 3, 1, 0, records[1].event)
    assert [record.step for record in records] == [None, 0, 1, 1, 1, 1, None, 1, 1, 1, 1, 1]


def test_the_sample_is_written_as_it_stands():
    """A writer of this version writes these very bytes, so that readers of it stay able to read."""
    for line, event in zip(SAMPLE, EVENTS, strict=True):
        record = decode(line)
        assert encode(Record("1.0", record.seq, record.t, 3, 1, record.step, event)) == line


def test_the_sample_has_every_kind():
    assert {json.loads(line)["kind"] for line in SAMPLE} == {cls.kind for cls in get_args(Event)}


def test_no_field_hides_one_of_the_envelope():
    envelope = {field.name for field in fields(Record)} | {"kind"}
    for cls in get_args(Event):
        assert not envelope & {field.name for field in fields(cls)}, cls


def test_lines_are_valid_json_even_with_nan():
    line = encode(Record("1.0", 0, 0.0, 0, 0, 0, Step(NAN, math.inf, 1, -math.inf)))
    values = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert (values["loss"], values["lr"], values["seconds"]) == ("nan", "inf", "-inf")
    step = decode(line).event
    assert math.isnan(step.loss) and step.lr == math.inf and step.seconds == -math.inf


def test_text_that_looks_like_a_number_stays_text():
    event = Log("info", "nan")
    assert decode(encode(Record("1.0", 0, 0.0, 0, 0, None, event))).event == event


def changed(number: int, **values) -> str:
    return json.dumps(json.loads(SAMPLE[number]) | values)


def test_a_later_minor_version_is_read():
    """Another minor version, unknown fields and missing optional ones change nothing that was known."""
    values = json.loads(changed(1, v="1.7", colour="red", grad_norm=3))
    del values["memory"], values["total"]
    assert decode(json.dumps(values)).event == Step(2.5, 0.001, 512, 0.25, grad_norm=3.0)
    values = json.loads(SAMPLE[9])
    del values["error"], values["tokens"], values["seconds"]
    assert decode(json.dumps(values)).event == Prompt("01764000003000000000-0a1b2c3d", "Hello", True)


def test_an_unknown_kind_is_nothing():
    assert decode(changed(3, kind="hologram")) is None


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("", "Expecting value"),
        ("[1]", "not a JSON object"),
        (SAMPLE[3][:-5], "Expecting|Unterminated|delimiter"),
        (changed(3, v="2.0"), "version '2.0'"),
        (changed(3, v=None), "not a string"),
        (changed(3, value="high"), "not a number"),
        (changed(3, value=True), "not a number"),
        (changed(3, value=10**400), "too large"),
        (changed(3, name=5), "not a string"),
        (changed(1, tokens=1.5), "not a whole number"),
        (changed(1, tokens=False), "not a whole number"),
        (changed(4, results=[1]), "not an object"),
        (changed(4, results={"ppl": "great"}), "not a number"),
        (changed(9, done="yes"), "neither true nor false"),
        (changed(3, seq=None), "not a whole number"),
        (changed(3, step="one"), "not a whole number"),
        ("[" * 100_000, "nested too deeply"),
        (json.dumps({k: v for k, v in json.loads(SAMPLE[3]).items() if k != "value"}), "lacks 'value'"),
    ],
)
def test_a_bad_line_says_why(line, reason):
    with pytest.raises(ValueError, match=reason):
        decode(line)


class Zero:
    """Stands for a 0-d tensor."""

    def item(self):
        return NAN


def test_numbers_of_other_packages_become_pythons():
    assert math.isnan(decode(encode(Record("1.0", 0, 0.0, 0, 0, 0, Metric("loss", Zero())))).event.value)


def test_what_json_has_no_word_for_is_refused():
    with pytest.raises(TypeError, match="cannot hold a object"):
        encode(Record("1.0", 0, 0.0, 0, 0, 0, Log("info", object())))


def test_signatures_of_an_evaluation_travel_where_there_are_any():
    """A field that came after the first version: lines without it are what they were."""
    signed = Eval("held-out", {"bleu#bleu": 31.5}, seconds=1.5, rows=8, signatures={"bleu": "nrefs:1|tok:zh"})
    line = encode(Record("1.0", 0, 1.0, 0, 0, 1, signed))
    assert decode(line).event == signed
    assert decode(line.replace(',"signatures":{"bleu":"nrefs:1|tok:zh"}', "")).event.signatures == {}
