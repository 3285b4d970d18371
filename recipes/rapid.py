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

By the clock of both cores of an older AMD EPYC (family 25, model 17; 0.40 TFLOP/s in products of matrices in bf16),
test accuracy (%) of the rounds' nets and, in the end, of the refitted head:

    --minutes  seed  steps  PFLOP  seconds
    60         0     6,277  1.18   3,537    50.7 55.5 59.5 63.5 65.0 66.5, 69.0 71.4 73.2 74.5, 76.2 76.6 78.1 78.9 80.1
                                            and 80.9
    60         1     6,320  1.15   3,533    53.0 58.2 60.8 64.4 66.1 67.7, 70.3 71.5 73.7 74.4, 75.6 77.1 77.8 79.0 80.0
                                            and 81.5
    60         2     6,277  1.16   3,533    49.6 54.0 57.5 62.3 64.4 65.6, 67.9 69.2 70.4 72.0, 73.9 74.2 75.4 76.2 77.4
                                            and 79.7
    60         3     6,363  1.12   3,536    49.8 55.1 58.2 63.3 65.3 66.8, 68.2 69.3 71.0 71.9, 76.0 76.0 77.2 78.0
                                            and 80.2
    60         4     6,209  1.10   3,519    50.9 55.7 58.2 62.6 64.7 65.9, 68.4 69.5 71.1 72.3, 74.2 75.5 76.6 77.7
                                            and 79.7
    10         0     3,584  0.141   589     52.3 56.7 60.2 63.5 66.3 68.9 and 70.2
    10         1     3,696  0.143   594     50.5 56.7 60.3 65.3 67.8 69.2 and 69.8
    10         2     3,557  0.133   597     52.4 57.1 60.9 64.6 66.0 67.1 and 68.4
    10         3     3,568  0.135   596     49.6 56.8 61.1 65.0 66.9 68.3 and 69.5
    10         4     3,528  0.131   594     52.3 57.9 61.6 64.8 66.8 67.8 and 69.2

The hour's mean is 80.4 ± 0.8, that of ten minutes 69.4 ± 0.7. The hours are from before threads looked whether others
were ready before they slept (`ssl_lab/exits.py`; until 52b31e9), by which a step of the small net takes a fifth to a
quarter less: ten minutes had 68.0 ± 1.0 then (69.3 68.2 67.2 68.4 66.8, of some 2,700 steps).

--labels 40 there, as it is now: 65.9 in an hour (seed 0; the small net's rounds have 36.3 to 51.0, the next one's 53.1
to 56.9, the last one's 59.2 to 63.9), 57.5 ± 2.5 in ten minutes (seeds 0 to 2: 55.0 60.0 57.4; the first of
rapid_64_128_256, by how its steps were timed; why is not known).

In gray, --minutes 10 --seed 100 --valid 5000, valid and test, beside recipes/fixmatch.py with these (one run each): of
CIFAR-10, as an .npz of its images as Pillow makes them gray, 250 labels, 64.6, 64.4 (0.135 PFLOP in 577 s; the rounds'
nets 43.7 49.3 52.7 57.3 59.6 61.6 63.3 of valid) and FixMatch 52.1, 52.5 (14,582 steps of tiny_16, 701 s); of MNIST, 40
labels, 96.9, 97.5 (0.149 PFLOP in 581 s; 81.2 87.9 90.2 92.3 94.7 95.3; the small net first, 97.0, 97.6) and 99.2, 99.4
(17,074 steps, 689 s). With --seed 0, rapid has 98.8 of MNIST's test images. So `ssl-lab train` and `ssl-lab advise` go
this way with gray images too, unless these are plain: where the nearest of the labeled ones, by pixels, tells the class
(`ssl_lab/advise.py`).

Before labels spread within classes (until b9e79bb): 75.8 ± 1.1 (seeds 0 to 4: 76.9 76.9 75.0 76.0 74.4; an Intel Xeon,
an AMD EPYC of 0.91 TFLOP/s for seeds 1 and 2, and the older one for 3 and 4) and, in 10 minutes of that of 0.91,
68.4 ± 1.0 (69.8 69.0 67.3 68.5 67.6). What follows is of those days unless it says otherwise; one run each unless it
tells the seeds.

On other machines, test accuracy:

    an NVIDIA H200, --steps 7500, seeds 0 to 4   76.9 ± 1.7 (78.1 77.7 74.3 78.2 76.2) in 280 s, five to seven runs
                                                 side by side; --steps 2280: 69.1 ± 0.9 in 115 s; --minutes 3 alone:
                                                 70.4; 40 labels (seeds 0 to 2, 2,280 steps): 54.0 ± 4.8
    an EPYC without bf16 (0.11 TFLOP/s)          --minutes 60: 71.7 (seed 0); 10, seeds 0 to 2: 59.1 ± 1.5
    an EPYC of 0.91, 28 minutes (seed 0)         74.2, with --recipe rapid of the word train

The H200's longer run is the whole ladder of thirteen rounds, of nets that have on average 55.8 61.0 63.8 67.0 68.7
69.8, and, wider and anew, 71.5 72.7 73.9 74.6 75.3 76.1 76.5. 1,633 pictures of 64 px in eight categories (npm's
emoji-datasource-apple), --labels 80 --valid 500 --image-size 64 --minutes 8.5, on one core of the EPYC of 0.91: 57.2,
where recipes/fixmatch.py has 53.5.

By the method as it is now, on CIFAR-10's split 100 with 5,000 validation images, one run each:

How labels spread (`features/beliefs.py`): of the 44,750 unlabeled images, and of the surest 0.9 of them, right (%) by
features of the small net after six rounds and of the next one after ten, with mirror images:

                                                       after six    after ten
    a probe of the labels                              61.1  64.3   68.4  71.9
    propagation (alpha 0.95)                           62.2  65.8   69.4  73.2
    both together (before)                             61.6  65.0   68.8  72.4
    propagation over whitened features                 62.5  66.2   70.6  74.5
    over those whitened within classes (0.99; now)     63.6  67.4   71.4  75.4
    the 20 nearest, by their true labels (6,000 images)             79.7

The last head: 460 steps of rapid_64_128_256 that begins anew with the labels after six rounds have 67.6% of the
validation images with a head fitted on labels that spread once more, 66.2 with one refitted on the 250. (The nets of
the hours before, of seeds 3 and 4, would have had 78.4 and 76.4 in place of 76.0 and 74.4.)

Ten minutes of two cores of the older EPYC: three rounds of rapid_64_128_256 (--net names it) have 68.8% of the
validation images, six of the small net 68.2 (both before 52b31e9).

Nets that begin anew, and go on, learn from labels alone, of one view of twice as many images, without SimCLR: labels
that spread over their features are right more often, after as many operations (in brackets, a head that is fitted on
these, of the validation images under the mean with their mirror images):

                                                      SimCLR too     one view    and mixup     and 20 px
    rapid_64_128_256 anew, 460 steps                  67.9 (67.8)  68.4 (67.6)  68.5 (67.9)  68.4 (68.0)
    the one after ten rounds, 330 more                72.9 (73.1)  73.3 (73.4)  73.4 (73.4)  73.4 (73.7)
    rapid_64_256_512 anew after it, 620 steps         74.3 (74.2)  75.2 (74.2)

(Mixup is of two views; crops of 20 px are of 670 and 480 steps. Neither is done.) Other things changed little there:
two views 68.2, half the images in 1.8 times the steps 68.0, views of an area from 0.35 on 68.2, all labels believed
68.4, soft ones 68.2, --lr 0.05 68.0, temporal ensembling 67.8, whitening by labels so spread, twice more, 67.9.

A first round of 250 steps without one of its parts, of the validation images, the last head fitted on the 250 labels,
as in what follows (6 to 8 minutes of a core in fp32):

                                                               head  refitted
    all of it                                                  51.9  54.4
    --optimizer "sgd(lr=0.03)" in place of Muon                45.7  47.9
    filters of the first layer as they are drawn               47.5  50.9
    no labels within (SimCLR alone)                                  51.8
    no SimCLR (labels alone)                                   48.3  50.4
    tiny_48 in place of the net (4 minutes)                    48.4  49.2
    rapid_32_64_128 in its place, in 700 steps (6 minutes)     52.6  55.3

Images that are believed to be of one class are no negatives of each other: six rounds of 380 steps have 68.9, refitted,
in place of 67.7. The small net first: by the clock of one core of an EPYC each, side by side, valid and test:

    --seed, --minutes  --net             PFLOP  the rounds' nets               valid  test
    100, 20            rapid_64_128_256  0.043  50.3 53.1                       56.5  55.8
                       rapid_32_64_128   0.040  45.8 49.3 53.0 56.5             58.1  57.2
    101, 40            rapid_64_128_256  0.093  51.9 55.9 60.4                  62.6  62.9
                       rapid_32_64_128   0.090  48.4 51.1 54.7 59.5 63.2 65.7   66.0  65.1

And it is a good beginning for the others: after that last run, 460 steps of rapid_64_128_256 anew with its labels have
67.4, 760 of rapid_64_256_512 70.0; after three more rounds of the former (72.1), 760 of the latter 73.6. So --net auto
goes this way by --minutes wherever a step of the small net takes at most half as long as one of the other: in 350 steps
and more of each, with as many of the later rounds as there is time for. Where there is no time for one of them, the
small net stays alone. Where the first net begins, the thirteen rounds are cut to what there is time for too, below ten
to its own six, or fewer. Runs by --steps are of thirteen rounds, or six.

What did not help the first round of 700 steps (split 100; refitted 55.3), at as many operations: batches of 128 images
52.3, or of 512, 53.4; crops of 16 px 51.6; temperature 0.3, 53.9; --lr 0.05, 54.5, or 0.12, 53.4; the labels' weight
doubled 54.8; nor labels of two nets together: what is wrong is wrong in both.
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
