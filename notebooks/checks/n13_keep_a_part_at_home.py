"""The exercise of notebook 13: which way names the most images rightly, by the sites' validation images alone?"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from checks.reply import Reply, exercise_function, not_yet, right

WAYS, IMAGES = ("FedAvg", "FedPer", "FedBN", "alone"), {"site-1": 100, "site-2": 400, "site-3": 1500}
DRAWS = (77, 78, 79, 80)  # in which every mistake below names other ways than the right one


def scores(draw: int) -> pd.DataFrame:
    """Three sites of very different size, two seeds; a tenth as many test images. The rows lie in no order."""
    rng = np.random.default_rng(draw)
    rows = [
        (way, site, seed, split, round(rng.uniform(0.3, 0.7), 3), images if split == "valid" else images // 10)
        for way in WAYS
        for site, images in IMAGES.items()
        for seed in (0, 1)
        for split in ("valid", "test")
    ]
    frame = pd.DataFrame(rows, columns=["way", "site", "seed", "split", "accuracy", "images"])
    return frame.sample(frac=1, random_state=draw, ignore_index=True)


def of(frame: pd.DataFrame, split: str) -> pd.DataFrame:
    return frame[frame["split"] == split]


def shares(frame: pd.DataFrame, *by: str) -> pd.Series:
    """The part of the images that is named rightly, by way and what else is named."""
    counted = frame.assign(right=frame["accuracy"] * frame["images"]).groupby(["way", *by])[["right", "images"]].sum()
    return counted["right"] / counted["images"]


def voted(frame: pd.DataFrame) -> str:
    best = shares(frame, "site").unstack("site").idxmax()
    return best.value_counts().sort_index().idxmax()


MISTAKES: dict[str, Callable[[pd.DataFrame], str]] = {
    "You look at the test images: what was chosen by them can no longer be judged by them. Choose by valid.": (
        lambda frame: shares(of(frame, "test")).idxmax()
    ),
    "The rows of test are among yours: take those of valid alone.": lambda frame: shares(frame).idxmax(),
    "You count every site alike: a site with ten times the images has ten times the say.": (
        lambda frame: of(frame, "valid").groupby("way")["accuracy"].mean().idxmax()
    ),
    "You take the best of the seeds, which luck decides: take the mean over them.": (
        lambda frame: shares(of(frame, "valid"), "seed").groupby("way").max().idxmax()
    ),
    "One seed is not enough: all of them count.": (
        lambda frame: shares(of(frame, "valid").query("seed == 0")).idxmax()
    ),
    "You take the highest single accuracy, of one site and one seed: add up over both.": (
        lambda frame: of(frame, "valid").set_index("way")["accuracy"].idxmax()
    ),
    "You let each site cast one vote: count images, not sites.": lambda frame: voted(of(frame, "valid")),
    "That serves the worst site best, a good aim, too. Asked was for the most images of all.": (
        lambda frame: shares(of(frame, "valid"), "site").groupby("way").min().idxmax()
    ),
    "That is the way with the fewest images named rightly: take the largest.": (
        lambda frame: shares(of(frame, "valid")).idxmin()
    ),
}
OTHERWISE = "Of the rows of valid: add up accuracy times images for each way, and name the way with the largest sum."


@exercise_function(
    "choose_way(scores)", "It gets a table with the columns way, site, seed, split, accuracy and images."
)
def choose_way(answer: Callable[[pd.DataFrame], str]) -> Reply:
    frames = [scores(draw) for draw in DRAWS]
    made = [answer(frame.copy()) for frame in frames]
    if not all(isinstance(name, str) and name in WAYS for name in made):
        return not_yet(f"It returns {made[0]!r:.40}: return the name of a way, such as 'FedPer'.")
    if made == [shares(of(frame, "valid")).idxmax() for frame in frames]:
        return right("The test images have had no part in it, so they can still judge what you chose.")
    if len(set(made)) == 1:
        return not_yet("It names the same way whatever it gets: use its argument, and no name of the notebook.")
    known = (hint for hint, mistake in MISTAKES.items() if made == [mistake(frame) for frame in frames])
    return not_yet(next(known, OTHERWISE))
