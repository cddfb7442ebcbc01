"""The exercises: left open they pass, the hidden solutions are right, and wrong answers get the hint that helps.

An exercise must work after the notebook's first two code cells and what `room` gives, in the fast settings.
"""

from __future__ import annotations

import ast
import importlib
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from nbformat import NotebookNode

from checks.reply import Reply
from tutorial_utils.data import Dataset
from tutorial_utils.settings import FAST

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def of_classes(accuracy: str) -> str:
    """01: a function of labels y and predictions p; k is a class."""
    return f"lambda y, p, classes: [{accuracy} for k in range(len(classes))]"


def of_shares(measure: str) -> str:
    """02: a function of a table of counts: a method of the differences of the two sites' shares."""
    return f"lambda counts: counts.div(counts.sum(axis=1), axis=0).diff().iloc[1].{measure}"


def of_names(mean: str) -> str:
    """03: a function of updates u; k is a name."""
    return f"lambda u: {{k: {mean} for k in u[0][0]}}"


def in_place(mean: str) -> str:
    """03: the same, written over the arrays of the first site."""
    return f"lambda u: [p.update({{k: {mean} for k in p}}) for p, _ in u[:1]] and u[0][0]"


def mine(methods: str) -> str:
    """04: the shipped learner with other methods, as an expression."""
    return f"type('Mine', (CIFAR10ModelLearner,), dict({methods}))"


def planned(steps: str) -> str:
    """04: it reports steps that it has not counted."""
    meta = f"dict(NUM_STEPS_CURRENT_ROUND={steps})"
    return f"train=lambda s, m: (lambda r: FLModel(params=r.params, meta={meta}))(CIFAR10ModelLearner.train(s, m))"


TRAINING = "make_loader(self.images.train, self.batch_size, self.seed_of_round())"
TO_THE_END = f"local_train=lambda self: train(self.net, {TRAINING})"  # and says only then that it was stopped
ASKED_ONCE = f"local_train=lambda self: 0 if self.is_aborted() else train(self.net, {TRAINING})"
HALF = "FLModel(params=self.params(), meta=dict(NUM_STEPS_CURRENT_ROUND=1))"
WATCHED = f"local_train=lambda self: train(self.net, self.watched({TRAINING}))"


def stopped(answer: str) -> str:
    """04: it stops as it should, and answers otherwise."""
    return f"train=lambda self, m: (lambda result: {answer})(CIFAR10ModelLearner.train(self, m))"


def asked(**other: list[str]) -> str:
    """07: the right plan with other lists, as an expression."""
    right = {
        "train": ["load_params", "local_validate valid", "train"],
        "evaluate": ["load_params", "local_validate test"],
        "submit_model": ["get_model"],
    }
    return repr({f"is_{request}": calls for request, calls in (right | other).items()})


def joining(site: str = "", researcher: str = "", more: str = "") -> str:
    """10: the right two participants, with other entries or one more, as an expression."""
    ours = "'org': 'hospital_c'"
    one = f"{{'name': 'site-3', 'type': 'client', {ours}, {site}}}"
    two = f"{{'name': 'researcher@hospital-c.org', 'type': 'admin', {ours}, 'role': 'lead', {researcher}}}"
    return f"[{one}, {two}, {more}]"


def of_own(gap: str) -> str:
    """06: a function of a matrix; o holds the n sites' own models, found by name."""
    return f"lambda m: (lambda o, n: {gap})(m[m.index].to_numpy(), len(m))"


WINE = (ROOT / "code/own/wine.py").read_text(encoding="utf-8")
WORK = "rows, growers = load_wine"  # where what the script does begins
GUARD = 'if __name__ == "__main__":'
MENDED = {
    "import": lambda text: "".join(
        [text.partition(WORK)[0], GUARD, textwrap.indent(f"\n{WORK}{text.partition(WORK)[2]}", "    ")]
    ),
    "scaler": lambda text: text.replace("fit(np.concatenate([train, test]))", "fit(train)"),
    "net": lambda text: text.replace("__init__()\n", "__init__()\n        self.width, self.dropout = width, dropout\n"),
}


def moved(condition: str) -> str:
    """09: a function of update u, before b and limit; d is the change of the array k."""
    return f"lambda u, b, limit: [k for k in u for d in [u[k] - b[k]] if {condition}]"


KEPT = "\n        self.width = width"
MAIN = f"""def main() -> None:
{textwrap.indent(WINE[WINE.index(WORK) :], "    ")}

{GUARD}
    main()
"""


def wine(*mended: str, old: str = "", new: str = "") -> str:
    """11: the text of the script with these traps mended, and something else written otherwise, as an expression."""
    text = WINE
    for trap in mended:
        text = MENDED[trap](text)
    assert old in text
    return repr(text.replace(old, new))


def by_seed(gain: str) -> str:
    """08: a function of a frame f and two models a and b; t is the frame with a row a seed, a column a model."""
    return f"lambda f, a, b: (lambda t: {gain})(f.pivot(index='seed', columns='model', values='accuracy'))"


def of_valid(way: str, split: str = "valid") -> str:
    """13: a function of a table; v are its rows of one split, t the share named rightly by way, site and seed."""
    share = "lambda d, *by: d.assign(r=d.accuracy * d.images).groupby([*by]).pipe(lambda g: g.r.sum() / g.images.sum())"
    return f"lambda s: (lambda v, t: {way})(s[s.split == '{split}'], {share})"


def chosen(
    cost: str = "epsilon(n, r)",
    seeds: str = "min",
    best: str = "w[k]",
    otherwise: str = "None",
) -> str:
    """12: a function of trials t, the most epsilon e and the least accuracy a; w is what the seeds of a pair k make."""
    worst = f"t.groupby(['noise', 'rounds'])['accuracy'].{seeds}()"
    fits = f"[k for k in w.index if (lambda n, r: {cost})(*k) <= e and w[k] >= a]"
    return f"lambda t, e, a: (lambda w: max({fits}, key=lambda k: {best}, default={otherwise}))({worst})"


NO_FLOOR = "max([k for k in w.index if epsilon(*k) <= e], key=w.get, default=None)"
SORTED = "t.groupby(['noise', 'rounds'], as_index=False)['accuracy'].min().sort_values('accuracy').to_numpy()"

# By notebook: what a reader might answer (an expression), and a word of the hint to it.
WRONG: dict[str, list[tuple[str, str]]] = {
    "00_see_a_federation": [
        ("'site-9'", "choose one of site-1, site-2"),
        ("1", "no site"),
        ("run.cross_site['global'].idxmax()", "column named global"),
        ("run.cross_site['global'].min()", "no site"),
        ("run.cross_site['global']", "no site"),
    ],
    "01_train_on_one_machine": [
        ("lambda labels, predicted, classes: (labels == predicted).mean()", "one number for each name"),
        ("lambda labels, predicted, classes: [(labels == predicted).mean()] * len(classes)", "all images together"),
        (of_classes("(y[p == k] == k).mean()"), "how often a class is predicted"),
        (of_classes("((y == k) & (p == k)).mean()"), "number of all images"),
        (of_classes("((y == k) & (p == k)).sum() / max(1, (y == k).sum())"), "so nan"),
        (of_classes("((y == k) & (p == k)).sum()"), "divide by how many images"),
        (of_classes("(p[y == k] != k).mean()"), "recognised"),
        (of_classes("100 * (p[y == k] == k).mean()"), "no factor of 100"),
        ("lambda y, p, classes: [(p[y == k] == k).mean() for k in range(10)]", "one number for each name"),
        ("lambda y, p, classes: {classes[k]: (p[y == k] == k).mean() for k in set(y)}", "KeyError"),
    ],
    "02_split_the_data_across_sites": [
        ("lambda counts: counts.diff().iloc[1].abs().sum() / 2", "divide each row by its own sum"),
        ("lambda counts: (counts / counts.sum()).diff().iloc[1].abs().sum() / 2", "divide each row by its own sum"),
        ("lambda counts: (counts / counts.to_numpy().sum()).diff().iloc[1].abs().sum() / 2", "by its own sum"),
        (of_shares("sum() / 2"), "absolute value"),
        (of_shares("abs().sum()"), "Take half"),
        (of_shares("abs().max()"), "add up over the classes"),
        (of_shares("abs().mean()"), "a mean over the classes"),
        (of_shares("pow(2).sum() / 2"), "You square"),
        (of_shares("pow(2).sum() ** 0.5"), "take the root"),
        (of_shares("abs().sum() * 50"), "no factor of 100"),
        ("lambda counts: counts.div(counts.sum(axis=1), axis=0).min().sum()", "in common"),
        ("lambda counts: 0.37", "use its arguments"),
        ("lambda counts: counts.div(counts.sum(axis=1), axis=0).diff().abs()", "TypeError"),
    ],
    "03_average_models_by_hand": [
        (of_names("sum(p[k] for p, _ in u) / len(u)"), "every site alike"),
        (of_names("sum(p[k] * n for p, n in u)"), "add up to 100"),
        (of_names("sum(p[k] * n for p, n in u) / len(u)"), "the number of sites"),
        (of_names("sum(p[k] for p, _ in u)"), "do not divide"),
        (of_names("(u[0][0][k] * u[0][1] + u[1][0][k] * u[1][1]) / (u[0][1] + u[1][1])"), "after two sites"),
        (of_names("sum(p[k] / n for p, n in u) / sum(1 / n for _, n in u)"), "counts most"),
        (of_names("u[-1][0][k] * u[-1][1] / sum(n for _, n in u)"), "the last site alone"),
        (of_names("np.average([p[k] for p, _ in u], axis=0, weights=[n for _, n in u], out=0)"), "TypeError"),
        ("lambda u: [sum(p[k] * n for p, n in u) / 100 for k in u[0][0]]", "returns a list"),
        ("lambda u: u[0][0]", "multiply each site's array"),
        (in_place("sum(p[k] * n for p, n in u) / sum(n for _, n in u)"), "a dict of your own"),
    ],
    "04_convert_the_script_to_a_learner": [
        ("CIFAR10ModelLearner(str(sites[0].parent))", "the class itself"),
        (mine("train=lambda self, model: {'weights': model.params}"), "train() must return an FLModel"),
        (mine("train=lambda self, model: None"), "train() must return an FLModel"),
        (mine("validate=lambda self, model: FLModel(metrics={'acc': 0.5})"), "must report"),
        (mine("load_params=lambda self, params, partly=False: None"), "must load model.params"),
        (mine("get_shareable_header=lambda self, key: None"), "on the validation images"),
        (mine("get_shareable_header=lambda self, key: ValidateType.BEFORE_TRAIN_VALIDATE"), "the test images then"),
        (mine("seed_of_round=lambda self: self.seed"), "differ from round 1 on"),
        (mine("local_train=lambda self: 1"), "gives back the weights that it received"),
        (mine("local_train=lambda self: 1 / 0"), "ZeroDivisionError"),
        (mine("train=lambda s, m: FLModel(params=CIFAR10ModelLearner.train(s, m).params)"), "reports 0 steps"),
        (mine(planned("7")), "NUM_STEPS_CURRENT_ROUND"),
        (mine("params=lambda self: dict(self.net.state_dict())"), "numpy arrays"),
        (mine("get_model=lambda self, name: None"), "must return an FLModel with params"),
        (mine("get_model=lambda self, name: FLModel(params=self.params())"), "did best on the validation images"),
        (mine("is_aborted=lambda self: False"), "goes on after an abort"),
        (mine(TO_THE_END), "goes on after an abort"),
        (mine(ASKED_ONCE), "goes on after an abort"),
        (mine(stopped(f"result if isinstance(result, FLModel) else {HALF}")), "half a training"),
    ],
    "05_create_the_job": [
        ("IntimeModelSelector()", "does not report"),
        ("IntimeModelSelector(validation_metric_name='loss', negate_key_metric=True)", "which argument names"),
        ("IntimeModelSelector(key_metric='accuracy', negate_key_metric=True)", "which argument names the metric"),
        ("IntimeModelSelector(key_metric='val_loss', negate_key_metric=True)", "no 'val_loss'"),
        ("IntimeModelSelector(key_metric='loss')", "WORST model"),
        (
            "IntimeModelSelector(validation_metric_name='loss', key_metric='loss', negate_key_metric=True)",
            "leave validation_metric_name alone",
        ),
        ("IntimeModelSelector", "no model selector"),
        ("{'key_metric': 'loss', 'negate_key_metric': True}", "no model selector"),
        ("type('Same', (), {'key_metric': 'loss', 'negate_key_metric': True})()", "no model selector"),
        ("FedJob(name='smallest-loss', min_clients=2)", "no model selector"),
    ],
    "06_run_and_judge_the_federation": [
        ("lambda m: np.diag(m[m.index]).mean()", "subtract the mean away"),
        (of_own("o.sum() / (n * n - n) - np.trace(o) / n / (1 - 1 / n)"), "The sign"),
        ("lambda m: np.diag(m).mean() - m.to_numpy()[~np.eye(*m.shape, dtype=bool)].mean()", "another order"),
        (
            "lambda m: (lambda o: np.diag(o).mean() - o[~np.eye(len(o), dtype=bool)].mean())"
            "(m[[k for k in m if k.startswith('site')]].to_numpy())",
            "another order",
        ),
        (
            "lambda m: np.diag(m[m.index]).mean() - np.mean([m.loc[s, k] for s in m.index for k in m if k != s])",
            "no site's model",
        ),
        (of_own("np.diag(o).mean() - o.mean()"), "the mean of all cells"),
        (of_own("2 * np.trace(o) - o.sum()"), "You subtract sums"),
        (of_own("np.median(np.diag(o)) - np.median(o[~np.eye(n, dtype=bool)])"), "medians"),
        (of_own("100 * (np.trace(o) / n - (o.sum() - np.trace(o)) / (n * n - n))"), "no factor of 100"),
        ("lambda m: m.loc['site-1', 'site-1'] - m.loc['site-2', 'site-1']", "minus mean of the others"),
        ("lambda m: m - m.mean()", "TypeError"),
    ],
    "07_choose_how_to_write_the_client": [
        (asked(train=[]), "once"),
        (asked(train=["train"]), "wants metrics too"),
        (asked(train=["load_params", "local_validate valid"]), "was trained"),
        (asked(train=["local_validate valid", "train"]), "What must come first"),
        (asked(train=["load_params", "train", "local_validate valid"]), "not the one that came in"),
        (asked(train=["load_params", "local_validate test", "train"]), "take valid"),
        (asked(train=["load_params", "local_validate valid", "train", "get_model"]), "another question"),
        (asked(evaluate=["local_validate test"]), "the received model"),
        (asked(evaluate=["load_params", "local_validate valid"]), "on the test images"),
        (asked(evaluate=["load_params", "train", "local_validate test"]), "would change the model"),
        (asked(submit_model=["train"]), "the best model"),
        (asked(submit_model=[]), "the best model"),
        (asked(submit_model=["best_model"]), "no call 'best_model'"),
        ("['load_params']", "must be a dict"),
        ("{'is_train': ['load_params', 'local_validate valid', 'train']}", "list of calls for each"),
    ],
    "08_train_when_sites_differ": [
        (by_seed("(f[f.model == a].accuracy.to_numpy() - f[f.model == b].accuracy.to_numpy()).min()"), "one order"),
        (by_seed("(np.sort(f[f.model == a].accuracy) - np.sort(f[f.model == b].accuracy)).min()"), "by themselves"),
        (by_seed("(t[a].sort_values().to_numpy() - t[b].sort_values().to_numpy()).min()"), "different seeds meet"),
        (by_seed("(f[f.model == a].accuracy - f[f.model == b].accuracy).min()"), "the index of both"),
        (by_seed("t[a].min() - t[b].max()"), "the best of the other"),
        (by_seed("t[a].min() - t[b].min()"), "the smallest accuracies"),
        (by_seed("(t[a] - t[b]).mean()"), "the mean of the gains"),
        (by_seed("(t[a] - t[b]).median()"), "the median of the gains"),
        (by_seed("(t[a] - t[b]).max()"), "the largest of the gains"),
        (by_seed("(t[b] - t[a]).min()"), "The sign"),
        (by_seed("(t[a] - t[b]).abs().min()"), "no absolute value"),
        (by_seed("(t[a] - t[b]).idxmin()"), "the seed of the smallest gain"),
        (by_seed("100 * (t[a] - t[b]).min()"), "no factor of 100"),
        (by_seed("t[a] - t[b]"), "TypeError"),
        (by_seed("(t[a] > t[b]).all()"), "For each seed subtract"),
    ],
    "09_break_the_federation": [
        (moved("np.abs(u[k]).max() > limit"), "not at the weights"),
        (moved("np.linalg.norm(d) > limit"), "no norm"),
        (moved("np.abs(d).sum() > limit"), "no sum"),
        (moved("not np.all(np.abs(d) <= limit * np.abs(b[k]))"), "against the weights themselves"),
        (moved("(np.abs(d) / np.abs(b[k]) > limit).any()"), "against the weights themselves"),
        (moved("np.linalg.norm(d) / np.linalg.norm(b[k]) > limit"), "against the weights themselves"),
        (moved("np.abs(d).mean() > limit"), "no mean"),
        (moved("(d > limit).any()"), "absolute value"),
        (moved("np.abs(d).max() >= limit"), "just the limit"),
        (moved("np.abs(d).max() > limit"), "NaN slips through"),
        (moved("np.nanmax(np.abs(d)) > limit"), "NaN slips through"),
        (moved("np.abs(d[np.isfinite(d)]).max(initial=0) > limit or np.isnan(d).any()"), "infinite number"),
        ("lambda u, b, limit: [k for k in u if not np.abs(u[k] - b[k]).max() <= limit][:1]", "name each of them"),
        ("lambda u, b, limit: [k for k in u for d in (u[k] - b[k]) if not abs(d) <= limit]", "more than once"),
        ("lambda u, b, limit: any(np.abs(u[k] - b[k]).max() > limit for k in u)", "return a list of names"),
        ("lambda u, b, limit: [k for k in u if np.abs(u - b).max() > limit]", "TypeError"),
    ],
    "10_move_to_real_sites": [
        ("{'name': 'site-3'}", "a list of dicts"),
        ("[{'name': 'site-3', 'type': 'client', 'org': 'hospital_c'}]", "researcher@hospital-c.org must get a kit"),
        (joining(more="{'name': 'site-1', 'type': 'client', 'org': 'hospital_a'}"), "Only the two newcomers"),
        (joining(site="'type': 'site'"), "FLARE's word"),
        (joining(researcher="'type': 'client'"), "of the type admin"),
        (joining(site="'org': 'hospital-c'"), "letters, digits and _"),
        (joining(researcher="'org': 'coordinator'"), "Both belong to"),
        (joining(site="'role': 'lead'"), "A site has no role"),
        (joining(researcher="'role': 'project_admin'"), "more than was asked"),
        (joining(researcher="'role': 'member'"), "row submit_job"),
        (joining(researcher="'role': 'boss'"), "no role"),
    ],
    "14_keep_a_federation_running": [
        ("joined", "must be a dict"),
        ("{'min_sites': 2}", "two institutes' work is lost"),
        ("{'resume_from': joined}", "the first loss ends the job"),
        ("{'resume_from': joined, 'min_sites': 3}", "the first loss ends the job"),
        ("{'resume_from': joined, 'min_sites': 1}", "from one site alone"),
        ("{'resume_from': joined, 'min_sites': 0}", "between 1 and"),
        ("{'resume_from': joined, 'min_sites': True}", "a whole number"),
        ("{'resume_from': joined, 'min_sites': '2'}", "a whole number"),
        ("{'resume_from': joined.folder.parent, 'min_sites': 2}", "Go on from the run of all three"),
        ("{'resume_from': 7, 'min_sites': 2}", "Go on from the run of all three"),
        ("{'checkpoint': joined, 'min_sites': 2}", "no argument 'checkpoint'"),
    ],
    "11_bring_your_own_script": [
        (wine(), "still trains when it is imported (20 steps)"),
        (wine("scaler", "net"), "still trains when it is imported"),
        (wine("import", "net"), "still fitted on all rows"),
        (wine("import", "scaler"), "does not keep its argument width"),
        (wine("import", "scaler", old="super().__init__()", new=f"super().__init__(){KEPT}"), "argument dropout"),
        (wine("import", "scaler", "net", old="transform(test)", new="fit_transform(test)"), "a second fit"),
        (wine("import", "scaler", "net", old="scaler.transform(train)", new="train"), "scale scales nothing"),
        (wine("import", "scaler", "net", old="scaler.transform(train)", new="train / train.std(0)"), "mean 0"),
        (wine("import", "scaler", "net", old="def scale(", new="def scaled("), "no scale(train, test)"),
        (wine("import", "scaler", "net", old="class Net(", new="class Network("), "no Net any more"),
        (wine("import", "scaler", "net", old=GUARD, new=f"print(torch.__version__)\n{GUARD}"), "prints when"),
        (wine("import", "scaler", "net", old=GUARD, new=f"net = Net()\n{GUARD}"), "It makes net when"),
        (wine("import", "scaler", "net", old=GUARD, new="if False:"), "trains no more"),
        (wine("import", "scaler", "net", old="def fit(", new="def fit"), "no Python"),
        ("Path('../code/own/wine.py')", "still trains"),
        ("'../code/own/before.py'", "no scale(train, test)"),
        ("'mine.py'", "FileNotFoundError"),
    ],
    "13_keep_a_part_at_home": [
        (of_valid("t(v, 'way').idxmax()", split="test"), "can no longer be judged"),
        (of_valid("t(s, 'way').idxmax()"), "The rows of test are among yours"),
        (of_valid("v.groupby('way').accuracy.mean().idxmax()"), "You count every site alike"),
        (of_valid("t(v, 'way', 'seed').groupby('way').max().idxmax()"), "the best of the seeds"),
        (of_valid("t(v[v.seed == 0], 'way').idxmax()"), "One seed is not enough"),
        (of_valid("v.loc[v.accuracy.idxmax(), 'way']"), "highest single accuracy"),
        (of_valid("t(v, 'way', 'site').unstack('way').idxmax(axis=1).mode()[0]"), "one vote"),
        (of_valid("t(v, 'way', 'site').groupby('way').min().idxmax()"), "the worst site best"),
        (of_valid("t(v, 'way').idxmin()"), "take the largest"),
        (of_valid("t(v, 'way').max()"), "return the name of a way"),
        (of_valid("t(v, 'way')"), "return the name of a way"),
        ("lambda s: 'FedPer'", "the same way whatever it gets"),
        ("lambda s: s.groupby('way').accuracy.median().idxmax()", "add up accuracy times images"),
        ("lambda s: s.query('split == valid')", "UndefinedVariableError"),
    ],
    "12_guard_what_leaves_a_site": [
        (chosen("epsilon(n, 1)"), "epsilon of one round"),
        (chosen("r * epsilon(n, 1)"), "far above what they cost together"),
        (chosen(seeds="mean"), "mean of the seeds hides"),
        (chosen(seeds="max"), "The best seed is luck"),
        (chosen(otherwise=NO_FLOOR), "to no accuracy"),
        (chosen("0"), "to no epsilon"),
        (chosen(best="-epsilon(*k)"), "most private of what is allowed"),
        ("lambda t, e, a: (1.0, int(e))", "take the lowest accuracy of its seeds"),
        ("lambda trials, most_epsilon, least_accuracy: (2.0, 3)", "the same whatever it gets"),
        ("lambda trials: (2.0, 3)", "TypeError"),
    ],
}
# By notebook: right answers that are not written as the solution is.
ALSO_RIGHT: dict[str, list[str]] = {
    "00_see_a_federation": [
        "min(run.cross_site.index, key=lambda site: run.cross_site.loc[site, 'global'])",
        "str(run.cross_site.sort_values('global').index[0])",
    ],
    "01_train_on_one_machine": [
        of_classes("(p[y == k] == k).mean() if (y == k).any() else float('nan')"),
        of_classes("float('nan') if not (y == k).sum() else ((y == k) & (p == k)).sum() / (y == k).sum()"),
        "lambda y, p, c: pd.Series(y == p, name='r').groupby(np.array(c)[y]).mean().reindex(sorted(c, reverse=True))",
        "lambda y, p, c: torch.tensor([np.mean(p[y == k] == k) for k in range(len(c))])",
    ],
    "02_split_the_data_across_sites": [
        "lambda counts: 1 - counts.div(counts.sum(axis=1), axis=0).min().sum()",
        "lambda counts: counts.div(counts.sum(axis=1), axis=0).diff().iloc[1].clip(lower=0).sum()",
        "lambda counts: np.abs(np.subtract(*(row / row.sum() for row in counts.to_numpy()))).sum() / 2",
    ],
    "03_average_models_by_hand": [
        of_names("np.average([p[k] for p, _ in u], axis=0, weights=[n for _, n in u])"),
        of_names("np.sum([p[k] * (n / sum(m for _, m in u)) for p, n in u], axis=0)"),
        "__import__('fl.by_hand').by_hand.average",
    ],
    "04_convert_the_script_to_a_learner": [mine(""), mine(WATCHED)],
    "05_create_the_job": [
        "IntimeModelSelector(False, None, 'initial_metrics', 'loss', True)",
        "IntimeModelSelector(negate_key_metric=1, key_metric='loss', weigh_by_local_iter=True)",
    ],
    "06_run_and_judge_the_federation": [
        of_own("np.diag(o).mean() - o[~np.eye(n, dtype=bool)].mean()"),
        "lambda m: np.mean([m.loc[s, s] - m.loc[[x for x in m.index if x != s], s].mean() for s in m.index])",
        "lambda m: np.mean([m.loc[s, s] - m.loc[s, [x for x in m.index if x != s]].mean() for s in m.index])",
    ],
    "07_choose_how_to_write_the_client": [
        asked(train=["train", "load_params", "local_validate valid"]),
        asked(train=["load_params", "local_validate valid", "load_params", "train"]),
        asked(submit_model=["load_params", "get_model"]),
    ],
    "08_train_when_sites_differ": [
        by_seed("min(t[a][seed] - t[b][seed] for seed in t.index)"),
        "lambda f, a, b: (lambda g: (g.get_group(a).set_index('seed').accuracy"
        " - g.get_group(b).set_index('seed').accuracy).min())(f.groupby('model'))",
        "lambda f, a, b: (lambda m: (m.accuracy_x - m.accuracy_y).min())"
        "(f[f.model == a].merge(f[f.model == b], on='seed'))",
    ],
    "09_break_the_federation": [
        moved("not (np.abs(d) <= limit).all()"),
        moved("np.isnan(d).any() or np.abs(d).max() > limit"),
        moved("not np.allclose(u[k], b[k], rtol=0, atol=limit)"),
        "lambda u, b, limit: {k for k in u if not np.max(np.abs(u[k] - b[k])) <= limit}",
    ],
    "11_bring_your_own_script": [
        wine("import", "scaler", old="__init__()\n", new=f"__init__()\n{KEPT}; self._dropout = dropout\n"),
        wine("scaler", "net", old=WINE[WINE.index(WORK) :], new=MAIN),
        wine(
            "import",
            "net",
            old="StandardScaler().fit(np.concatenate([train, test]))",
            new="StandardScaler().fit(train)",
        ),
    ],
    "10_move_to_real_sites": [f"list(reversed({joining()}))", f"tuple({joining()})"],
    "14_keep_a_federation_running": [
        "dict(min_sites=2, resume_from=str(joined.folder))",
        "{'resume_from': joined.folder, 'min_sites': 2, 'name': 'tomorrow', 'progress': False}",
    ],
    "13_keep_a_part_at_home": [
        of_valid("t(v, 'way').idxmax()"),
        of_valid("max(set(v.way), key=lambda way: (v.accuracy * v.images)[v.way == way].sum())"),
        "lambda s: s[s.split == 'valid'].groupby('way')[['accuracy', 'images']]"
        ".apply(lambda g: np.average(g.accuracy, weights=g.images)).sort_values().index[-1]",
        of_valid("t(v, 'way', 'seed').groupby('way').mean().idxmax()"),
    ],
    "12_guard_what_leaves_a_site": [
        chosen(),
        f"lambda t, e, a: ([None] + [(n, r) for n, r, x in {SORTED} if epsilon(n, int(r)) <= e and x >= a])[-1]",
    ],
}
LIBRARIES = {"np": np, "pd": pd, "torch": torch}
START = """os.chdir(next(Path().glob("notebooks"), "."))  # if the kernel was started in the folder above
sys.path.insert(0, "../code")  # the folder of dl/ and fl/
"""
ODD = (
    "-1.5",
    "float('nan')",
    "'nonsense'",
    "[]",
    "{}",
    "print",
    "object()",
    "lambda *given: 1 / 0",
    "lambda *given: exit(1)",
    "pd.DataFrame({'a': [1, 2]})",
    "np.zeros(3)",
    "[None]",
    "{'a': {}}",
)

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
every_wrong_answer = pytest.mark.parametrize(
    ("path", "answer", "word"),
    [(path, *case) for path in NOTEBOOKS for case in WRONG.get(path.stem, [])],
    ids=lambda value: value.stem if isinstance(value, Path) else value.splitlines()[0][:40],
)

every_other_answer = pytest.mark.parametrize(
    ("path", "answer"),
    [(path, answer) for path in NOTEBOOKS for answer in ALSO_RIGHT.get(path.stem, [])],
    ids=lambda value: value.stem if isinstance(value, Path) else value[:40],
)

Room = Callable[[Path], dict[str, Any]]


@pytest.fixture(scope="session")
def copy(tmp_path_factory: pytest.TempPathFactory, digits: Dataset, sites: list[Path], runs: Path) -> Path:
    """A folder notebooks/ with the reader's folders beside it: what an answer writes lands here."""
    root = tmp_path_factory.mktemp("copy")
    without = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
    for name in ("code", "notebooks"):
        shutil.copytree(ROOT / name, root / name, ignore=without)
    (root / "data").symlink_to(digits.folder.parent)  # split already, see `sites`
    (root / "runs").symlink_to(runs)
    return root / "notebooks"


@pytest.fixture(scope="session")
def rooms() -> dict[Path, dict[str, Any]]:
    """What each notebook has after its first two code cells: they run once."""
    return {}


@pytest.fixture
def room(
    rooms: dict[Path, dict[str, Any]],
    copy: Path,
    digits: Dataset,
    sites: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> Room:
    """Called with a notebook: the names an exercise finds, after the import cell and the settings cell."""
    monkeypatch.chdir(copy)
    monkeypatch.setenv("TUTORIAL_FAST", "1")
    monkeypatch.setattr(sys, "path", list(sys.path))  # import cells add to it

    def enter(path: Path) -> dict[str, Any]:
        if path not in rooms:
            names = {"__name__": "notebook", "sites": sites, "dataset": digits, "settings": FAST}
            if "run." in tagged(path, "check"):
                names["run"] = request.getfixturevalue("run")
            if "joined" in tagged(path, "check"):  # a third site has come
                run = request.getfixturevalue("run")
                names["joined"] = replace(run, sites=(*run.sites, "site-3"))
            for cell in [cell for cell in read(path) if cell.cell_type == "code"][:2]:
                execute(cell.source, names)
            rooms[path] = names
        return dict(rooms[path])

    return enter


def read(path: Path) -> list[NotebookNode]:
    return nbformat.read(path, as_version=4).cells


def tagged(path: Path, tag: str) -> str:
    (cell,) = [cell for cell in read(path) if tag in cell.metadata.get("tags", [])]
    return cell.source


def execute(source: str, names: dict[str, Any]) -> Any:
    """Run code as a notebook's cell does: the value of an expression that stands last comes back."""
    tree = ast.parse(source)
    last = ast.Expression(tree.body.pop().value) if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "<cell>", "exec", dont_inherit=True), names)
    return eval(compile(last, "<cell>", "eval", dont_inherit=True), names) if last else None


def check(path: Path, names: dict[str, Any]) -> Reply:
    reply = execute(tagged(path, "check"), names)
    assert isinstance(reply, Reply), f"End the check of {path.name} with a Reply as its last expression."
    assert reply.text.strip().endswith((".", "?")), f"Let the check of {path.name} speak in sentences."
    return reply


@every_notebook
def test_an_open_exercise_passes(path: Path, room: Room) -> None:
    names = room(path)
    execute(tagged(path, "exercise"), names)
    reply = check(path, names)
    assert reply.right is None, f"An open exercise in {path.name} must be None, not {reply!r}"
    assert repr(reply).startswith("Not attempted yet: ")


@every_notebook
def test_the_hidden_solution_is_right(path: Path, room: Room) -> None:
    names = room(path)
    fence = re.search(r"```python\n(.*?)```", tagged(path, "solution"), re.DOTALL)
    assert fence, f"Put the solution of {path.name} in a ```python fence."
    execute(fence[1], names)
    reply = check(path, names)
    assert reply.right is True, f"The solution of {path.name} must be right, not {reply!r}"


@every_other_answer
def test_a_right_answer_need_not_be_written_as_the_solution_is(path: Path, answer: str, room: Room) -> None:
    names = room(path)
    names["answer"] = execute(answer, names | LIBRARIES)
    reply = check(path, names)
    assert reply.right is True, f"{answer} is right in {path.name}, but the check says {reply!r}"


@every_wrong_answer
def test_a_wrong_answer_gets_the_hint_that_helps(path: Path, answer: str, word: str, room: Room) -> None:
    names = room(path)
    names["answer"] = execute(answer, names | LIBRARIES)
    reply = check(path, names)
    assert reply.right is False, f"{answer} is wrong in {path.name}, but the check says {reply!r}"
    assert word in reply.text


@every_notebook
def test_an_odd_answer_is_not_right_and_never_raises(path: Path, room: Room) -> None:
    names = room(path)
    for odd in ODD:
        names["answer"] = execute(odd, names | LIBRARIES)
        reply = check(path, names)
        assert reply.right is False, f"{odd} is no answer in {path.name}, but the check says {reply!r}"


@every_notebook
def test_a_check_that_is_content_has_changed_nothing_that_it_was_given(path: Path, room: Room) -> None:
    """A reader tries the cell more than once."""
    names = room(path)
    names["answer"] = execute(ALSO_RIGHT[path.stem][0], names | LIBRARIES)
    assert repr(check(path, names)) == repr(check(path, names))


@every_notebook
def test_three_wrong_answers_and_another_right_one_are_tried(path: Path) -> None:
    assert len(WRONG.get(path.stem, [])) >= 3, f"Add the likeliest wrong answers of {path.stem} to WRONG, with hints."
    assert ALSO_RIGHT.get(path.stem), f"Add a right answer of {path.stem} to ALSO_RIGHT, written otherwise."


@every_notebook
def test_every_mistake_that_a_check_knows_is_tried(path: Path) -> None:
    known = getattr(importlib.import_module(f"checks.n{path.stem}"), "MISTAKES", ())
    hints = {hint if isinstance(hint, str) else hint[0] for hint in known}
    untried = [hint for hint in hints if not any(word in hint for _, word in WRONG[path.stem])]
    assert not untried, f"Add the wrong answer of {path.stem} that gets this hint to WRONG: {untried[0]}"


def test_answers_belong_to_notebooks() -> None:
    assert set(WRONG) | set(ALSO_RIGHT) <= {path.stem for path in NOTEBOOKS}


# Where a kernel starts


@every_notebook
def test_every_import_cell_finds_its_folder_in_the_same_way(path: Path) -> None:
    cell = next(cell for cell in read(path) if cell.cell_type == "code").source
    assert START in cell, f"Let the import cell of {path.name} find its folder as the others do: {START}"
    assert f"from checks import n{path.stem} as checks\n" in cell


@pytest.mark.parametrize("start", ["notebooks", "."])
def test_a_kernel_may_start_in_the_root(copy: Path, start: str) -> None:
    """As those of some editors do: data, runs and checks are found all the same, also when the cell runs again."""
    cell = next(cell for cell in read(NOTEBOOKS[0]) if cell.cell_type == "code").source
    where = "print(Path.cwd().relative_to(Path.cwd().parents[0]), checks.__file__, Path('../data').is_dir())"
    program = "\n".join([cell, cell, where])
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=copy.parent / start, check=True, capture_output=True, text=True
    )
    assert done.stdout.split() == ["notebooks", str(copy / "checks/n00_see_a_federation.py"), "True"]
