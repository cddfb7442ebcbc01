"""Make the dataset folder: CIFAR-10 from a copy that you name or its own site; offline, the digits."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # tutorial_utils lies one folder up

from tutorial_utils.data import SPLITS, prepare
from tutorial_utils.errors import TutorialError


def main() -> None:
    """Parse the command line and prepare the data; a mistake ends with one sentence and exit code 1."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", help="a copy of CIFAR-10: a folder or the archive (else $CIFAR10_SOURCE)")
    parser.add_argument("--dataset", choices=("auto", "cifar10", "digits"), default="auto")
    parser.add_argument("--out", help="the folder to make (default: cifar10 or digits, beside this script)")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    try:
        data = prepare(args.dataset, source=args.source, out=args.out, root=HERE)
    except TutorialError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("Stopped; nothing is left behind.")
    counts = ", ".join(f"{data.counts[split]} {split}" for split in SPLITS)
    logging.info("%s (%s): %s images in %s", data.title, data.source, counts, data.folder)


if __name__ == "__main__":
    main()
