"""Few labels, from scratch, in minutes: short rounds of SimCLR with labels inside, and labels propagated in between.

    python recipes/rapid.py --data cifar10 --labels 250 --minutes 60
    python recipes/rapid.py --data cifar10 --labels 250 --minutes 10 --resume auto

A wide and shallow net with whitened first filters, trained by Muon on crops of 20 and 24 px; after each round labels
spread over the averaged net's features, whitened within classes, and the next round learns from the surest of them too.
Where there is time, a second, wider net (--grown) begins anew with these labels, and goes on in rounds of its own; by
the clock, where its steps are quick, a net of half the width makes the first labels, or all. At the end labels spread
once more, and the head is refitted on them. `ssl_lab/ladder.py` has the rounds; `ssl-lab train --recipe rapid` goes
this way too. The nets' shape and optimizer come from speed-runs that were tuned on fully labeled CIFAR-10 (arXiv
2404.00498).

How labels spread (`features/beliefs.py`): of split 100's 44,750 unlabeled images, and of the surest 0.9 of them, right
(%) by features of the small net after six rounds and of the next one after ten, with mirror images; one run:

                                                       after six    after ten
    a probe of the labels                              61.1  64.3   68.4  71.9
    propagation (alpha 0.95)                           62.2  65.8   69.4  73.2
    both together                                      61.6  65.0   68.8  72.4
    propagation over whitened features                 62.5  66.2   70.6  74.5
    over those whitened within classes (0.99; now)     63.6  67.4   71.4  75.4
    the 20 nearest, by their true labels (6,000 images)             79.7

What was measured next had whitened anew by the labels so spread, twice more, which is not done: of these two nets it
has 63.8 and 71.5, of two that learned from such labels, with SimCLR and without, 67.9 and 68.2, as once alone has.

It is the net that gains, and its last head: in 460 steps of rapid_64_128_256 that begins anew with the surest 0.85 of
the labels after six rounds, the head and one refitted on the 250 labels are right on 63.7 and 63.9% of the validation
images by both together, on 66.1 and 66.2 by labels that spread within classes; fitted on labels that spread once more,
the last head has 66.6 and 67.6. The nets of seeds 3 and 4 after an hour (below), with that head in place of their own,
have 78.4 and 76.4% of the test images, where they had 76.0 and 74.4.

Nets that begin anew with such labels, and go on, learn from these alone, of one view of twice as many images, without
SimCLR: labels that spread over their features are right more often, after as many operations (in brackets, a head that
is fitted on these, of the 5,000 validation images under the mean with their mirror images; one run each):

                                                      SimCLR too     one view    and mixup     and 20 px
    rapid_64_128_256 anew, 460 steps                  67.9 (67.8)  68.4 (67.6)  68.5 (67.9)  68.4 (68.0)
    the one after ten rounds, 330 more                72.9 (73.1)  73.3 (73.4)  73.4 (73.4)  73.4 (73.7)
    rapid_64_256_512 anew after it, 620 steps         74.3 (74.2)  75.2 (74.2)

(Mixup is of two views; crops of 20 px are of 670 and 480 steps. Neither is done.) In the first of these, other things
changed little: two views without SimCLR 68.2, half the images in 1.8 times the steps 68.0, views of an area from 0.35
on 68.2, all labels believed 68.4, soft ones 68.2, --lr 0.05 68.0, rapid_64_256_256 68.1; labels that give
way to what the net says (temporal ensembling) 67.8.

By the clock this has been run in --minutes 6 --seed 100 --valid 5000 alone, on two cores of the CPU of 0.35 TFLOP/s
(below): the small net, valid 48.7 51.8 54.4 58.5 60.1 62.4, refitted 63.6, test 64.0 (1,529 steps, 0.068 PFLOP, 350 s);
before, its six rounds at the beginning of an hour had 46.4 50.5 51.9 56.3 59.3 60.4 (1,825 steps).

In what follows labels were those of both together, or of neighbors and the head where it says so, all rounds had
SimCLR, and the last head was refitted on the 250 labels.

CIFAR-10, 250 labels, six rounds of 380 steps (--steps 2280), accuracy (%) on 5,000 validation images of split 100 and,
at the end, on the test images; one run each, on one core of an Intel Xeon whose other core was busy:

                                     PFLOP  minutes  the rounds' nets                    refitted  test
    labels by neighbors and the head  0.29   20.6     52.6 55.6 57.9 61.1 62.8 64.2       67.1      66.4
    by neighbors and a probe          0.29   17.6     52.6 56.3 59.1 62.8 64.8 66.3       67.7      67.5
    the same, and believed to be of
    one class: no negatives (now)     0.29   22.0     52.6 57.2 60.1 64.5 66.4 68.1       68.9      68.3

On an NVIDIA H200, five to seven runs side by side on the card unless alone, in the seconds that their summaries tell;
mean and standard deviation over splits; at the commit that was nearest, while cuDNN still chose convolutions by time:

    labels         seeds   steps         PFLOP  seconds  commit   test accuracy
    CIFAR-10, 250  0 to 4  7,500         1.83   280      049abfb  78.1 77.7 74.3 78.2 76.2, hence 76.9 ± 1.7
    CIFAR-10, 250  0 to 4  2,280         0.29   115      93deec8  70.4 68.9 68.0 69.4 69.1, hence 69.1 ± 0.9
    CIFAR-10, 250  0       5,432         0.61   226      93deec8  73.9 (six rounds: 57.8 64.4 67.1 70.5 72.5 73.6)
    CIFAR-10, 250  0       --minutes 3   0.83   181      5b647f7  70.4, alone, in thirteen rounds (below)
    CIFAR-10, 40   0 to 2  2,280         0.29   93       049abfb  48.8 58.3 55.0, hence 54.0 ± 4.8
    MNIST, 40      0       --minutes 0.8 0.08   48       5b647f7  91.0, alone, --flip off (FixMatch has 99.2 in minutes)

The first line is the whole ladder of thirteen rounds, of nets that have on average 55.8 61.0 63.8 67.0 68.7 69.8, and,
wider and anew, 71.5 72.7 73.9 74.6 75.3 76.1 76.5; refitted 76.9. By its operations it is an hour of two cores of the
Xeon, which know bf16. The thirteen rounds of three minutes shared these by operations, so that the first net's had 17
to 73 steps, though there a step of either net takes about as long. They go by measured steps now; that was not run on
a GPU.

By the clock, --minutes 60 on both cores of a CPU that knows bf16: the Xeon (seed 0), an AMD EPYC of 0.91 TFLOP/s in
products of matrices (1 and 2) or an older one of 0.35 (3 and 4); of the five splits hence 75.8 ± 1.1, of the first
three 76.3 ± 1.1:

    seed  steps  PFLOP  seconds  the rounds' nets                                                              refitted
    0     7,165  1.78   3,481    55.7 61.8 64.2 67.2 68.8 70.8, 72.8 74.1 74.8 75.8 76.5 76.8 77.0             76.9
    1     8,147  1.96   3,516    57.9 63.3 64.7 67.7 69.4 70.8, 72.3 74.2 74.7 75.3 75.8 76.0 76.4             76.9
    2     8,043  1.94   3,519    55.8 60.3 62.6 65.6 67.2 68.4, 70.6 71.5 72.2 73.3 73.9 74.7 75.0             75.0
    3     5,924  1.06   3,557    51.6 55.1 57.9 62.0 63.5 64.7, 66.6 67.2 68.6 69.5, 71.0 72.6 73.2 74.6       76.0
    4     5,835  1.08   3,523    50.7 53.9 56.4 59.7 61.8 63.0, 65.8 67.3 68.5 69.6, 71.1 72.3 73.2 73.7 73.9  74.4

On the older one a step of the small net (below) took 0.42 to 0.48 of the other's, and it made the first six rounds.
By a script, nets whose weights are the mean of the last two, three or four rounds' have 74.5, 74.1 and 73.7% of 5,000
of seed 4's unlabeled images right, the last round's 74.8. Of the labels by its last net but one, the surest 0.9
are 79.1% right; 78.9 by features without those of mirror images, in half the time; likewise without, of images of 24,
28, 36 and 40 px, 77.6, 78.1, 78.5 and 79.2.

By the clock, --minutes 10 on both cores of the EPYC of 0.91 TFLOP/s, hence 68.4 ± 1.0:

    seed  steps  PFLOP  seconds  the rounds' nets                         refitted
    0     1,993  0.264  591      54.6 59.3 62.1 65.0 66.8 68.5            69.8
    1     3,379  0.222  592      51.8 56.5 58.5 62.1 63.4 65.2 67.7 69.2  69.0
    2     2,168  0.263  589      54.1 58.0 61.5 65.3 66.9                 67.3
    3     2,246  0.269  593      54.9 60.4 62.4 66.0 67.9                 68.5
    4     2,189  0.266  592      54.6 58.1 60.9 64.6 66.7                 67.6

A step of the small net there took half as long as one of the other; timed as a little less in seed 1 alone, it made
the first six rounds there. Labels before a round took 27 to 31 s, after the small net 12. On the same cores `ssl-lab
train cifar10 --labels 250 --minutes 28 --recipe rapid`, which goes this way by itself where no pretrained net is at
hand, has 74.2 (seed 0, one run, 27 minutes: 58.6 65.7 68.4 71.1 73.0 73.4; 7,095 steps of rapid_64_128_256, 0.77
PFLOP).

On both cores of an EPYC that knows no bf16 (0.11 TFLOP/s), one run each, test accuracy:

    minutes  seed  steps  PFLOP  the rounds' nets                                    refitted
    60       0     3,586  0.30   52.3 56.7 59.0 61.3 62.8 64.1, 67.3 68.8 69.5 71.0  71.7
    10       0     1,112  0.046  47.5 52.3 57.5 59.7                                 60.7
    10       1     1,002  0.043  49.0 52.1 56.5 59.0                                 58.7
    10       2     1,125  0.041  48.5 52.3 57.0                                      57.9 (of ten minutes 59.1 ± 1.5)

There the net of half the width made all rounds of ten minutes, and the first six of the hour, in 19 of its minutes.
Before that net was known, those 28 minutes gave 64.0 there (52.4 56.5 60.9 63.2; 932 steps of rapid_64_128_256, 0.13
PFLOP; 64.3 by the mean with their mirror images, `ssl-lab predict --mirror`); and --minutes 20 on one core of the
Xeon, which other work shared, 68.2 (1,712 steps, 0.23 PFLOP, seed 0).

1,633 pictures of 64 px in eight categories (npm's emoji-datasource-apple), --labels 80 --valid 500 --image-size 64
--minutes 10 on one core of the Xeon, by rapid_64_128_256, seed 0: valid 60.0, test 56.3; recipes/fixmatch.py --net
tiny_16 in the same time 46.8 and 43.4. With --minutes 8.5, on one core of the EPYC that other work shared: 44.6 and
41.9 by the net of half the width (--net auto; 320 steps), 24.2 and 25.7 by the other one (26 steps: evaluations took
most of its rounds, as they do no more; not run again). Likewise on a core of the EPYC with bf16: 57.8 and 57.2 in seven
rounds of --net auto (2,537 steps), where recipes/fixmatch.py has 58.4 and 53.5 (3,457 steps), by --net tiny_16 44.8 and
43.1.

More short rounds of the same net gain less and less: after those of the second line 68.2 69.3 69.8 69.9 70.6 71.2 (of
24 px, shares 0.85 and 0.9; 0.63 PFLOP, refitted 71.2, test 70.9). The wider net that began anew with the labels of the
ninth had 71.4 after 760 steps (a probe 70.8), 72.1 (72.8) and 73.0 (73.6) after two rounds of 380 more,
those without negatives of one class; 24 minutes of training.

Without one of its parts, a first round of 250 steps (0.02 PFLOP, 6 to 8 CPU minutes on a core of an EPYC, in fp32), of
5,000 validation images of split 100; one run each:

                                                               head  refitted
    all of it                                                  51.9  54.4
    --optimizer "sgd(lr=0.03)" in place of Muon                45.7  47.9
    filters of the first layer as they are drawn               47.5  50.9
    no labels within (SimCLR alone)                                  51.8
    no SimCLR (labels alone)                                   48.3  50.4
    tiny_48 in place of the net (4 minutes)                    48.4  49.2
    rapid_32_64_128 in its place, in 700 steps (6 minutes)     52.6  55.3

Of split 101, that last one has 55.4 and 57.3, and all of it 52.3 and 54.9. So where minutes are few, the net of half
the width does better, by the clock too: one core of an EPYC each, side by side (labels between rounds take it a third
of the time, hence there are more rounds); valid and test after refitting, one run each:

    --seed, --minutes  --net             PFLOP  the rounds' nets               valid  test
    100, 20            rapid_64_128_256  0.043  50.3 53.1                       56.5  55.8
                       rapid_32_64_128   0.040  45.8 49.3 53.0 56.5             58.1  57.2
    101, 40            rapid_64_128_256  0.093  51.9 55.9 60.4                  62.6  62.9
                       rapid_32_64_128   0.090  48.4 51.1 54.7 59.5 63.2 65.7   66.0  65.1

And it is a good beginning for the others. After that last run, by a script of such rounds, of crops of 24 px (PFLOP in
all; the net, refitted; of split 101's 5,000 validation images, one run each):

    600 more steps of it                                          0.12  67.2  67.3
    rapid_64_128_256 anew with its labels (share 0.85), 460       0.15  67.9  67.4
    380 more of that, with labels of its own (0.85)               0.21  68.5  69.5
    380 more (0.9)                                                0.26  69.6  70.3
    380 more (0.9)                                                0.32  70.8  72.1
    rapid_64_256_512 anew in its place, 760 steps                 0.31  69.5  70.0
    rapid_64_256_512 anew after all of these, 760 steps           0.55  73.0  73.6

The thirteen rounds have 71.5 on average, of test images, after 0.75 PFLOP, when the wider net's first round ends. So
--net auto goes this way by --minutes wherever a step of the small net takes at most half as long as one of the other,
as on this CPU (0.3 to 0.4): in 350 steps and more of each, with as many of the later rounds as there is time for. Where
there is no time for one of them, the small net stays alone. Where the first net begins, the thirteen rounds are cut to
what there is time for too (ten to twelve; not run by the clock), below ten to its own six, or fewer. Runs by --steps
are of thirteen rounds, or six.

What did not help its first round of 700 steps (split 100; head and refitted 52.6, 55.3), at as many operations: batches
of 128 images 49.9, 52.3, or of 512, 50.3, 53.4; crops of 16 px 48.3, 51.6; temperature 0.3, 50.8, 53.9; --lr 0.05,
52.9, 54.5, or 0.12, 50.5, 53.4; the labels' weight doubled 52.8, 54.8.

Of this split's other training images, after the first round, the head is right on 54.5%, the probe on 56.7 and
neighbors on 57.6; head and neighbors together on 56.2 and on 71.7 of the half that they are surest of, probe and
neighbors on 57.7 and on 73.3. Labels of two nets together (67.7) are no better than those of the better one (68.5; the
other 67.0): what is wrong is wrong in both. What did not help, in one round from scratch of as many rows (probe, 57.5
without): four or eight views of fewer images, 58.0 and 58.2; a bias of the first layer that learns changes nothing
(57.7 without it, and a step has 6% less to do). In one round after the twelfth (probe, 72.3): half of the rows believed
in place of nine in ten, 70.9; images of one class as negatives too, 71.7.
"""

from __future__ import annotations

from dataclasses import dataclass

import ssl_lab as sl
from ssl_lab.config import Quantity


@dataclass
class Settings(sl.Settings):
    net: str = "auto"
    """Of the first rounds; auto: rapid_64_128_256, and by --minutes, if quick, rapid_32_64_128 before it or alone."""
    grown: str = "rapid_64_256_512"
    """The net of the later rounds, where there is time for them; without any: --grown ''."""
    lr: Quantity = 0.08
    """Peak of the filters' learning rate in the first round; 0.4 of it in later ones."""
    projector_lr: Quantity = 0.02
    """The same of the projector."""


def main(settings: Settings) -> None:
    pool = sl.load(settings.data, **settings.reading()).split(**settings.split())
    rapid = sl.rapid.Rapid(settings.net, settings.grown, settings.lr, settings.projector_lr, settings.view,
                           settings.optimizer, settings.beginning())
    runtime = sl.Runtime.start(settings.device, settings.precision)
    _, summary = rapid.fit(pool, runtime, **settings.trainer() | {"out": settings.folder})
    print(sl.rounds.said(summary, settings.folder))


if __name__ == "__main__":
    sl.launch(main, Settings)
