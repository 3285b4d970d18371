"""TAKD (Mirzadeh et al. 2020, arXiv 1902.03393): a net of a size in between learns first, and then teaches."""

from __future__ import annotations

from ssl_lab.methods.distillation.kd import KD


class TeacherAssistant(KD):
    """L = labeled * H(y, p(x)) + weight * T^2 KL(softmax(z_t / T) || softmax(z_s / T)): KD's, on each rung of a ladder.

    The ladder is a run for each net, from the largest to the smallest, for the paper trains an assistant to the end
    before it teaches, with a learning rate schedule of its own:

        python recipes/distill.py --method teacher_assistant --teacher runs/teacher --net tiny_16 --out runs/assistant
        python recipes/distill.py --method teacher_assistant --teacher runs/assistant --net tiny_8 --out runs/student

    All arguments are those of KD. The paper searches T and the weights by pair of nets.

    >>> pool = sl.load("digits").split(labels=10)
    >>> teacher = sl.net("tiny_6", classes=10, style=pool.style, seed=9)
    >>> method = sl.TeacherAssistant(sl.net("tiny_4", classes=10, style=pool.style), teacher)
    >>> batch = sl.Feed(pool, method.views, 4, 12, seed=0)(sl.At(0, 100))
    >>> loss = method(batch, sl.At(0, 100))
    >>> isinstance(method, sl.KD), sorted(loss.terms)
    (True, ['distilled', 'labeled'])
    """

    name = "teacher_assistant"
    paper = "Improved Knowledge Distillation via Teacher Assistant"
    arxiv = "1902.03393"
