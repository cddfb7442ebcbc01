"""The exercise of notebook 00: on whose test images is the global model worse?"""

from __future__ import annotations

import pandas as pd

from checks.reply import Reply, exercise, not_yet, right


@exercise('put the name of a site, such as "site-1", in answer.', "Put the name of a site in answer.")
def harder_site(answer: str, cross_site: pd.DataFrame) -> Reply:
    if not isinstance(answer, str) or answer not in cross_site.index:
        return not_yet(f"{answer!r:.40} is no site: choose one of {', '.join(cross_site.index)}.")
    column = cross_site["global"]
    if column[answer] > column.min():
        return not_yet("Look down the column named global: each row is one site's test images. Which is lower?")
    return right(f"The global model reaches {column.min():.1%} there, and up to {column.max():.1%} elsewhere.")
