"""Metrics of texts against the libraries that define them, over generated rows, Chinese ones among them."""

import random
from types import SimpleNamespace

import pytest
from rouge_score import rouge_scorer
from sacrebleu.metrics import BLEU, CHRF

from collie.config import CollieConfig
from collie.interfaces import ConfigError, DataError
from collie.metrics import BleuMetric, ChrfMetric, ExactMatchMetric, RougeMetric, TokenF1Metric
from collie.metrics._words import characters
from collie.parallel import Topology, setup_distribution
from collie.testing import run_ranks

ENGLISH = ["the", "a", "cat", "sat", "on", "mat,", "dogs;", "running", "Runs", "ran:", "quick-brown", "fox's", "3.14"]
CHINESE = ["今天", "天气", "很", "好", "，", "我们", "去", "公园", "散步", "。", "模型", "训练", "GPU", "8", "卡", "！"]
CASES = 60


def _text(draw: random.Random, words: list[str], space: str) -> str:
    return space.join(draw.choice(words) for _ in range(draw.randint(0, 14)))


def _rows(seed: int, chinese: bool, most: int = 3) -> list[tuple[str, list[str]]]:
    """One to `most` references a row; some predictions and references are empty, some equal a reference."""
    draw, words = random.Random(seed), CHINESE if chinese else ENGLISH
    rows = []
    for number in range(draw.randint(1, 6)):
        references = [_text(draw, words, "" if chinese else " ") for _ in range(draw.randint(1, most))]
        text = _text(draw, words, "" if chinese else " ")
        rows.append((["", references[0]][number % 2] if draw.random() < 0.3 else text, references))
    return rows


def _value(metric, rows, batch=2):
    """The metric over rows in batches of two."""
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        metric.update({"pred": [text for text, _ in part], "target": [references for _, references in part]})
    return metric.get_metric()


def _columns(rows):
    """References as sacreBLEU wants them: a column for each place, None where a row has fewer."""
    most = max(len(references) for _, references in rows)
    return [[each[at] if at < len(each) else None for _, each in rows] for at in range(most)]


@pytest.mark.parametrize(("tokenize", "chinese"), [("13a", False), ("intl", False), ("zh", True), ("char", True)])
@pytest.mark.parametrize("smooth", ["exp", "none", "floor", "add-k"])
def test_bleu_is_sacrebleu_s(tokenize, chinese, smooth):
    for seed in range(CASES):
        rows = _rows(seed, chinese)
        metric, reference = BleuMetric(smooth=smooth, tokenize=tokenize), BLEU(smooth_method=smooth, tokenize=tokenize)
        expected = reference.corpus_score([text for text, _ in rows], _columns(rows)).score
        assert _value(metric, rows) == {"bleu": expected}
        assert metric.signature == str(reference.get_signature())


@pytest.mark.parametrize("chinese", [False, True])
@pytest.mark.parametrize("word_order", [0, 2])
def test_chrf_is_sacrebleu_s(chinese, word_order):
    for seed in range(CASES):
        rows = _rows(seed, chinese)
        metric, reference = ChrfMetric(word_order=word_order), CHRF(word_order=word_order)
        expected = reference.corpus_score([text for text, _ in rows], _columns(rows)).score
        assert _value(metric, rows) == {"chrf": expected}
        assert metric.signature == str(reference.get_signature())


@pytest.mark.parametrize("use_stemmer", [False, True])
def test_rouge_is_the_mean_of_rouge_score_s(use_stemmer):
    kinds = ["rouge1", "rouge2", "rougeL"]
    scorer = rouge_scorer.RougeScorer(kinds, use_stemmer=use_stemmer)
    for seed in range(CASES):
        rows = _rows(seed, chinese=False)
        scores = [scorer.score_multi(references, text) for text, references in rows]
        expected = {kind: sum(score[kind].fmeasure for score in scores) / len(rows) for kind in kinds}
        assert _value(RougeMetric(use_stemmer=use_stemmer), rows) == pytest.approx(expected, abs=1e-12)


def test_rouge_gives_the_numbers_that_were_asked_for():
    rows = _rows(3, chinese=False)
    scorer = rouge_scorer.RougeScorer(["rouge3", "rougeLsum"])
    scores = [scorer.score_multi(references, text) for text, references in rows]
    got = _value(RougeMetric(metrics=["rouge-3", "rougeLsum"], stats=["f", "r", "p"]), rows)
    assert list(got) == ["rouge3", "rouge3_r", "rouge3_p", "rougeLsum", "rougeLsum_r", "rougeLsum_p"]
    for kind in ("rouge3", "rougeLsum"):
        for name, field in ((kind, "fmeasure"), (f"{kind}_r", "recall"), (f"{kind}_p", "precision")):
            assert got[name] == pytest.approx(sum(getattr(score[kind], field) for score in scores) / len(rows))


@pytest.mark.parametrize("tokenizer", ["jieba", "char"])
def test_chinese_rouge_is_rouge_chinese_s(tokenizer):
    """rouge-chinese counts words that it gets parted by spaces; it adds 1e-8 below the fraction."""
    rouge_chinese = pytest.importorskip("rouge_chinese")
    from collie.metrics._words import jieba_words

    split = jieba_words if tokenizer == "jieba" else characters
    reference = rouge_chinese.Rouge(metrics=["rouge-1", "rouge-2", "rouge-l"], stats=["f"], exclusive=False)
    compared = 0
    for seed in range(CASES):
        rows = [(text, [each]) for text, (each, *_) in _rows(seed, chinese=True)]
        rows = [(text, each) for text, each in rows if split(text) and split(each[0])]  # it raises where one is empty
        if not rows:
            continue
        words = [(" ".join(split(text)), " ".join(split(each))) for text, (each,) in rows]
        scores = reference.get_scores([one for one, _ in words], [other for _, other in words], avg=True)
        expected = {f"rouge{kind[6:].upper()}": scores[kind]["f"] for kind in scores}
        assert _value(RougeMetric(tokenizer=tokenizer), rows) == pytest.approx(expected, abs=1e-6)
        compared += len(rows)
    assert compared > 100


def test_rouge_signature():
    metric = RougeMetric(use_stemmer=True)
    assert metric.signature is None
    _value(metric, [("a", ["a"]), ("b", ["b"])])
    assert metric.signature == "nrefs:1|stemmer:yes|tok:default|agg:mean|version:rouge_score-0.1.2"
    metric.update({"pred": ["c"], "target": [["c", "d"]]})
    metric.get_metric()
    assert metric.signature.startswith("nrefs:var|")


def test_rouge_warns_where_its_tokenizer_sees_nothing():
    with pytest.warns(UserWarning, match="jieba"):
        assert _value(RougeMetric(), [("你好", ["你好"])])["rouge1"] == 0.0
    assert _value(RougeMetric(tokenizer="char"), [("你好", ["你好"])])["rougeL"] == 1.0


def test_an_own_split_fn_takes_the_tokenizer_s_place_and_shows_in_the_signature():
    rows = [("a b c d e", ["a b c d e"]), ("x", ["y"])]
    bleu = BleuMetric(split_fn=list, ngram=2)
    expected = BLEU(tokenize="none", max_ngram_order=2, force=True)
    spaced = [" ".join(text) for text, _ in rows], [[" ".join(each) for _, (each,) in rows]]
    assert _value(bleu, rows)["bleu"] == expected.corpus_score(*spaced).score
    assert bleu.signature == f"{expected.get_signature()}|split_fn:list"
    rouge = RougeMetric(split_fn=str.split)
    assert _value(rouge, [("A.", ["a"])])["rouge1"] == 0.0  # rouge-score's own would see one word, "a"
    assert "tok:str.split" in rouge.signature


def test_exact_match_of_squad():
    rows = [("The Cat!", ["a cat"]), ("cats", ["cat"]), ("", ["the"]), ("x y", ["no", "x  y."])]
    assert _value(ExactMatchMetric(), rows) == {"exact_match": 0.75}
    assert _value(ExactMatchMetric("none"), rows) == {"exact_match": 0.0}
    assert _value(ExactMatchMetric("zh"), [("北京 市。", ["北京市"]), ("上海", ["北京"])]) == {"exact_match": 0.5}


@pytest.mark.parametrize(("language", "normalise"), [("en", "squad"), ("zh", "zh")])
def test_answers_are_judged_as_by_mlqa_s_own_evaluation(language, normalise):
    """Its English is SQuAD's. Where neither side has a word, F1 is 1 as in SQuAD 2.0, and 0 there."""
    mlqa = pytest.importorskip("lm_eval.tasks.mlqa.utils")
    for seed in range(CASES):
        rows = _rows(seed, chinese=language == "zh")
        exact, f1 = [], []
        for text, references in rows:
            same = [mlqa.exact_match_score(text, each, language) for each in references]
            empty = not mlqa.normalize_answer(text, language)
            exact.append(max(same))
            f1.append(
                max(
                    float(one) if empty else mlqa.f1_score(text, each, language)
                    for each, one in zip(references, same, strict=True)
                )
            )
        assert _value(ExactMatchMetric(normalise), rows)["exact_match"] == pytest.approx(sum(exact) / len(rows))
        assert _value(TokenF1Metric(normalise), rows)["f1"] == pytest.approx(sum(f1) / len(rows))


def test_token_f1_by_hand():
    """Two of three words found, one of them twice in the reference: 2·(2/3)·(2/4)/(2/3 + 2/4) = 4/7."""
    assert _value(TokenF1Metric(), [("red red blue", ["Red, green. the red grey"])])["f1"] == pytest.approx(4 / 7)
    assert _value(TokenF1Metric(), [("", ["a"]), ("", ["b"]), ("c", ["!"])])["f1"] == pytest.approx(1 / 3)
    assert _value(TokenF1Metric("zh"), [("北京大学。", ["北京 2024"])])["f1"] == pytest.approx(2 * 2 / (4 + 3))
    assert _value(TokenF1Metric("zh", "char"), [("北京大学。", ["北京 2024"])])["f1"] == pytest.approx(2 * 2 / (4 + 3))
    pytest.importorskip("jieba")
    assert _value(TokenF1Metric("zh", "jieba"), [("我们去公园。", ["我们 回家"])])["f1"] == pytest.approx(2 / (3 + 2))


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (BleuMetric, "bleu"),
        (ChrfMetric, "chrf"),
        (RougeMetric, "rouge1"),
        (TokenF1Metric, "f1"),
        (ExactMatchMetric, ""),
    ],
)
def test_ranks_see_what_one_process_sees(make, name):
    """Three ranks with one, two and no rows of the same six, gathered at each batch or exchanged at the end: equal."""
    rows = _rows(8, chinese=False) + _rows(9, chinese=False)[:3]
    whole = _value(make(), rows)
    assert all(value > 0 for key, value in whole.items() if key == name)

    def rank(gather: bool):
        topology = setup_distribution(CollieConfig())
        metric = make(gather_result=gather)
        metric.construct(SimpleNamespace(tokenizer=None, topology=topology))
        for start in range(0, len(rows), 3):
            part = rows[start : start + 3][slice(0, 1) if topology.rank == 0 else slice(1, 3)]
            part = [] if topology.rank == 2 else part
            result = {"pred": [text for text, _ in part], "target": [references for _, references in part]}
            metric.update(metric.gather(result) if gather else result)
        return metric.get_metric(), metric.signature

    for results in (run_ranks(3, rank, True), run_ranks(3, rank, False)):
        assert [value for value, _ in results] == [whole] * 3
        assert len({signature for _, signature in results}) == 1


def test_ids_are_decoded_by_the_evaluator_s_tokenizer(letters):
    metric = BleuMetric(tokenize="char", ngram=2)
    metric.construct(SimpleNamespace(tokenizer=letters, topology=Topology()))
    metric.update({"pred": [[3, 4, 5, 2]], "target": [[[3, 4, 6], [3, 4, 5]]]})
    assert metric.get_metric() == {"bleu": pytest.approx(100)}


@pytest.mark.parametrize(
    ("result", "sentence"),
    [
        ({"pred": ["a"]}, r"needs pred and target .* which has pred: use EvaluatorForGeneration"),
        ({"pred": ["a", "b"], "target": ["a"]}, "2 rows of pred and 1 rows of target"),
        ({"pred": ["a"], "target": [None]}, "row 0 of the batch has no target"),
        ({"pred": ["a"], "target": [[]]}, "row 0 of the batch has no target"),
        ({"pred": [[1, 2]], "target": ["a"]}, "no tokenizer"),
        ({"pred": [0.5], "target": ["a"]}, "got a row float"),
    ],
)
def test_bad_rows_get_a_sentence(result, sentence):
    for metric in (BleuMetric(), ChrfMetric(), RougeMetric(), ExactMatchMetric(), TokenF1Metric()):
        with pytest.raises(DataError, match=sentence):
            metric.update(result)
        with pytest.raises(DataError, match="0 rows"):
            metric.get_metric()


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: BleuMetric(average="macro"), "corpus's score"),
        (lambda: BleuMetric(smooth="nltk_smooth2"), "add-k"),
        (lambda: BleuMetric(smooth="most"), "exp, floor"),
        (lambda: BleuMetric(tokenize="latin"), "13a"),
        (lambda: BleuMetric(ngram=0), "1 or more"),
        (lambda: BleuMetric(split_fn=list, tokenize="zh"), "not both"),
        (lambda: ChrfMetric(char_order=0), "at least 1, 0 and 1"),
        (lambda: RougeMetric(metrics=["rouge-w"]), "rouge-w"),
        (lambda: RougeMetric(stats=["g"]), "f, p, r"),
        (lambda: RougeMetric(tokenizer="spm"), "jieba"),
        (lambda: RougeMetric(tokenizer="char", split_fn=list), "not both"),
        (lambda: RougeMetric(tokenizer="char", use_stemmer=True), "Porter"),
        (lambda: ExactMatchMetric("all"), "squad, zh, none"),
        (lambda: TokenF1Metric(tokenizer="space"), "jieba"),
    ],
)
def test_options_that_do_not_exist_are_refused_when_the_metric_is_made(make, sentence):
    with pytest.raises(ConfigError, match=sentence):
        make()


def test_upstream_s_names_of_smoothing():
    rows = _rows(5, chinese=False)
    assert _value(BleuMetric(smooth="no_smooth"), rows) == _value(BleuMetric(smooth="none"), rows)
    assert _value(BleuMetric(smooth="smooth1"), rows) == _value(BleuMetric(smooth="floor"), rows)
