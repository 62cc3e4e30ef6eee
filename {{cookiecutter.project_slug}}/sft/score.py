"""How good an answer is: the one number to choose a model by. Edit it for your task.

`python evaluate.py` shows it beside the usual metrics; with `metric_for_best_model: score` it picks
the best checkpoint.
"""

from sacrebleu import sentence_chrf


def score(answer: str, row: dict) -> float:
    """From 0.0 to 1.0: chrF, the letters that answer and reference share (in any language).

    Args:
        answer: of the model.
        row: with the texts `prompt` and `reference`.

    Another task has another score. Of GSM8K only the number after #### counts:

        return float(answer.split("####")[-1].strip() == row["reference"].split("####")[-1].strip())
    """
    return sentence_chrf(answer, [row["reference"]]).score / 100
