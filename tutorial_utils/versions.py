"""Which FLARE this package fits: one sentence, before an import of FLARE's fails.

Whatever makes, runs or deploys a job imports this module first. The learner, what ships with it and the test drive do
not: they work from FLARE 2.4 on, and a site's process pays nothing.
"""

from __future__ import annotations

import re
import warnings
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from tutorial_utils.errors import VersionError

# Of FLARE. pyproject.toml, the README and CONTRIBUTING agree: tests/test_versions.py.
LEARNER, OLDEST, NEWEST = (2, 4), (2, 8), (2, 9)
FITS = f'pip install "nvflare>={OLDEST[0]}.{OLDEST[1]},<{NEWEST[0]}.{NEWEST[1] + 1}"'


def needs_flare(oldest: tuple[int, int] = OLDEST, what: str = "This") -> None:
    """Say in one sentence that the installed FLARE does not fit, and what to type.

    A newer one than was tested only draws a UserWarning: nothing is known of it, and it may well do.

    Raises: VersionError where it is older than `oldest`, or missing.
    """
    wanted = " or ".join(f"{OLDEST[0]}.{minor}" for minor in range(oldest[1], NEWEST[1] + 1))
    fits = FITS.replace(f"{OLDEST[0]}.{OLDEST[1]}", f"{oldest[0]}.{oldest[1]}")
    try:
        installed = version("nvflare")
    except PackageNotFoundError:
        if find_spec("nvflare"):  # from its source, say, or a nightly build: it does not say which it is
            return
        raise VersionError(f"{what} needs FLARE {wanted}, and none is installed: {fits}") from None
    if not (found := re.match(r"(\d+)\.(\d+)", installed)):
        return
    number = (int(found[1]), int(found[2]))
    if number < oldest:
        rest = " (the learner and its test drive work with yours, too)" if LEARNER <= number < OLDEST else ""
        raise VersionError(f"{what} needs FLARE {wanted}, and {installed} is installed: {fits}{rest}")
    if number > NEWEST:
        warnings.warn(
            f"{what} is tested with FLARE {wanted}, and {installed} is installed: if a run fails or stands still, "
            f"try one that is tested: {fits}",
            stacklevel=2,
        )


needs_flare()
