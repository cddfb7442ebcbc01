"""Deal a dataset folder out to sites, each a dataset folder of its own, named as the site."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tutorial_utils lies one folder up

from tutorial_utils.data import SPLITS, read_dataset
from tutorial_utils.errors import TutorialError
from tutorial_utils.partition import ALPHA, count_labels, parse_alpha, split_dataset
from tutorial_utils.sites import parse_sites


def main() -> None:
    """Parse the command line, split, say who got what; a mistake ends with one sentence and exit code 1."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", metavar="DIR", help="a dataset folder, as data/download.py makes it")
    parser.add_argument("--sites", type=parse_sites, required=True, help="how many (3), or names (mercy,st-anne)")
    partition = parser.add_mutually_exclusive_group()
    partition.add_argument("--alpha", type=parse_alpha, default=ALPHA, help="small: the sites differ; or iid (0.3)")
    partition.add_argument("--labels-per-site", type=int, help="each site holds so many labels")
    partition.add_argument("--quantity-alpha", type=float, help="small: the sites' sizes differ; labels alike")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", help="the folder to make (default: beside DIR, named by sites, alpha, seed)")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    try:
        partition = {kind: getattr(args, kind) for kind in ("alpha", "labels_per_site", "quantity_alpha")}
        paths = split_dataset(args.folder, args.sites, **partition, seed=args.seed, out=args.out)
        for path in paths:
            site = read_dataset(path)
            labels = ", ".join(f"{name} {count}" for name, count in count_labels([path]).loc[path.name].items())
            sizes = ", ".join(f"{split} {site.counts[split]}" for split in SPLITS)
            logging.info("%s: %s; train by label: %s", site.site, sizes, labels)
    except TutorialError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("Stopped; nothing is left behind.")


if __name__ == "__main__":
    main()
