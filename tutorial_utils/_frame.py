"""A table as it is dealt out: its texts as they stand, the class of each row, and whose row it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from tutorial_utils._split import name_sites
from tutorial_utils.errors import PartitionError
from tutorial_utils.folder import expand, explained

MOST_CLASSES, FEWEST_ROWS = 20, 10  # beyond these a number counts something, and names no class
Sites = int | Sequence[str] | Mapping[Any, str] | None


class Whole(NamedTuple):
    """A table twice: as it will be written, and with the types that pandas finds in it."""

    text: pd.DataFrame
    typed: pd.DataFrame


class Labels(NamedTuple):
    """The class of each row [N], the classes' names, and whether they are the quarters of a measured number."""

    codes: np.ndarray
    names: tuple[str, ...]
    measured: bool = False


def read_whole(table: pd.DataFrame | str | Path) -> Whole:
    """The table; DataError where it cannot be read, PartitionError where its columns have no names of their own."""
    if isinstance(table, pd.DataFrame):
        named = [name for name in table.index.names if name is not None]
        with explained("The frame's index cannot become a column", "use reset_index first"):
            table = table.reset_index() if named else table.reset_index(drop=True)
        whole = Whole(table, table)
    else:
        path = expand(table)
        with explained(f"{path} cannot be read", "give a CSV file with a header, or a pandas frame"):
            # as text a value stays as it stands: "007" is no 7, and "NA" may be a country
            whole = Whole(pd.read_csv(path, dtype=str, keep_default_na=False), pd.read_csv(path, low_memory=False))
            if not isinstance(whole.text.index, pd.RangeIndex):
                raise ValueError("its rows have more values than its header has names")
    columns = list(whole.text.columns)
    if not all(isinstance(name, str) and name.isprintable() for name in columns) or len(set(columns)) < len(columns):
        raise PartitionError(f"The columns are {columns!r:.80}: each must have a name of its own, a text.")
    return whole


def find_labels(whole: Whole, label: str | None) -> Labels:
    """Texts and whole numbers are classes. A number that is measured has none, and its quarters stand for them.

    A whole number is measured, too, where it has more than MOST_CLASSES values with fewer than FEWEST_ROWS rows each.
    """
    if label is None:
        return Labels(np.zeros(len(whole.text), int), ("rows",))
    values = _column(whole.typed, label, "label")
    if pd.api.types.is_float_dtype(values) and not np.isfinite(values).all():
        raise PartitionError(f"{label!r} (label) holds infinite numbers: mend them, or leave these rows out.")
    number = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
    if number:
        if (values % 1 != 0).any() or len(values) < FEWEST_ROWS * values.nunique() > FEWEST_ROWS * MOST_CLASSES:
            edges = np.unique(np.quantile(values, [0.25, 0.5, 0.75]))
            names = [f"quarter {k}, to {edge:.4g}" for k, edge in enumerate(edges, 1)] + [f"above {edges[-1]:.4g}"]
            return Labels(np.searchsorted(edges, values), tuple(names), measured=True)
        values = values.astype("int64") if pd.api.types.is_float_dtype(values) else values
    names = [str(value) for value in (sorted(set(values)) if number else sorted(set(values.map(str))))]
    return Labels(pd.Categorical(values.map(str), categories=names).codes.astype(int), tuple(names))


def find_groups(whole: Whole, by: str, sites: Sites) -> tuple[tuple[str, ...], list[np.ndarray]]:
    """The sites that a column names, and the rows of each."""
    _column(whole.typed, by, "by")
    if sites is not None and not isinstance(sites, Mapping):
        raise PartitionError(
            f"The column {by!r} says who the sites are: leave sites out, or give a dict of its values."
        )
    values = whole.text[by].map(str)
    found = sorted(set(values))
    place = {value: value for value in found} if sites is None else {str(key): name for key, name in sites.items()}
    if other := sorted(set(found) ^ set(place)):
        raise PartitionError(
            f"sites must name a site for each value of {by!r} and no other: see {', '.join(other):.200}."
        )
    try:
        names = name_sites(list(dict.fromkeys(place.values())))
    except PartitionError as error:
        advice = f'give a dict of the values of {by!r}, such as sites={{"Mercy Hospital": "mercy"}}'
        raise PartitionError(f"{str(error).rstrip('.')}; {advice}.") from error
    holder = values.map(place)
    return names, [np.flatnonzero(holder == name) for name in names]


def _column(frame: pd.DataFrame, name: str, what: str) -> pd.Series:
    if not isinstance(name, str) or name not in frame:
        raise PartitionError(
            f"There is no column {name!r:.40} ({what}): the table has {', '.join(frame.columns):.200}."
        )
    if lack := int(frame[name].isna().sum()):
        raise PartitionError(f"{lack} rows have no {name!r} ({what}): fill it in, or leave these rows out.")
    return frame[name]
