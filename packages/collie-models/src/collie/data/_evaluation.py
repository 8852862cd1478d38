"""The datasets that evaluators read: prompts to answer, and questions with a list of answers to choose from."""

from __future__ import annotations

from collie.data._dataset import CollieDatasetForTraining


class CollieDatasetForClassification(CollieDatasetForTraining):
    """Questions with candidate answers, for EvaluatorForClassfication.

    A row of `dataset` is {"input": str, "output": [str, …], "target": int}: the question, its candidates, and which of
    them is right (0 is the first).

    What `dataset[3]` is depends on `style`:
        "harness" (lm-evaluation-harness): each candidate is scored by the loss of its own tokens behind the input.
            {"input_ids": [[int, …], …], "attention_mask": [[int, …], …], "labels": [[int, …], …], "target": int}
            with one inner list a candidate: input and candidate joined, labels -100 over the input. The inner lists
            have the lengths of their candidates, and rows may have different numbers of candidates. No eos follows
            a candidate: the harness scores none.
        "helm" (Liang et al. 2022): the candidates are listed in the prompt as "A. …", "B. …", and the letter is
            to be predicted.
            {"input_ids": [int, …], "attention_mask": [int, …], "target": int}
            the prompt alone, which ends with "Answer:"; target is the index of the right candidate, 0 for A.
    """
