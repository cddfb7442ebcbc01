"""A federated job of any ModelLearner and any torch module: trained in rounds, then scored by every site.

job = build_job(MyLearner("data/sites"), MyNet(), sites=["hospital-a", "hospital-b"], rounds=10)
run = simulate(job)
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from numbers import Integral
from pathlib import Path
from typing import Any, Literal, get_args

import tutorial_utils.versions  # noqa: F401  isort: skip  (it speaks before an import fails)
import torch
from nvflare.apis.executor import Executor
from nvflare.apis.filter import Filter
from nvflare.apis.impl.controller import Controller
from nvflare.app_common.abstract.aggregator import Aggregator
from nvflare.app_common.widgets.intime_model_selector import IntimeModelSelector
from nvflare.app_common.widgets.streaming import AnalyticsReceiver
from nvflare.app_common.widgets.validation_json_generator import ValidationJsonGenerator
from nvflare.app_common.workflows.cross_site_model_eval import CrossSiteModelEval
from nvflare.app_opt.pt.file_model_locator import PTFileModelLocator
from nvflare.app_opt.pt.file_model_persistor import PTFileModelPersistor
from nvflare.job_config.defs import FilterType
from nvflare.job_config.script_runner import ScriptRunner
from nvflare.widgets.widget import Widget
from torch import Tensor, nn

from tutorial_utils import _checks, tracking
from tutorial_utils import learner as shipped
from tutorial_utils._checks import check_count
from tutorial_utils._flare import SplitJob
from tutorial_utils._ship import files_of, find_files, is_library
from tutorial_utils.algorithms.aggregator import OrderedAggregator
from tutorial_utils.algorithms.registry import FedAvg
from tutorial_utils.errors import JobError
from tutorial_utils.evaluation import GivenModels
from tutorial_utils.learner import ModelLearner
from tutorial_utils.metric import Metric
from tutorial_utils.round_metrics import MetricsArtifactWriter
from tutorial_utils.sites import check_site_names

try:
    from nvflare.app_common.executors.model_learner_executor import ModelLearnerExecutor
except ModuleNotFoundError:  # FLARE has let go of it, and of ModelLearner
    from tutorial_utils.model_learner import ModelLearnerExecutor

TASKS = ["train", "validate", "submit_model"]  # what the server asks of a site
FIRST_MODEL = "first_model.pt"
CrossSite = Literal["all", "global", "none"]
SitePart = ModelLearner | Executor | ScriptRunner


class LearnerJob(SplitJob):
    """A FedJob that knows what it was made of. More can be added to it: to_server, to_clients, add_file_to_clients.

    Attributes:
        learner: the site's part.
        net: the first model's state dict, on the CPU.
        sites: their names.
        rounds: how often the models are averaged; 0 for an evaluation alone.
        named: the sites, where the job goes to these names alone, and the first model to the server alone; else ().
    """

    def __init__(
        self,
        name: str,
        learner: SitePart,
        net: dict[str, Tensor],
        sites: Sequence[str],
        rounds: int,
        props: dict[str, Any],
        named: bool = False,
    ) -> None:
        super().__init__(name=name, min_clients=len(sites), meta_props={"custom_props": props})
        self.learner = learner
        self.net = net
        self.sites = tuple(sites)
        self.rounds = rounds
        self.named = self.sites if named else ()
        self._files = tempfile.TemporaryDirectory(prefix="job-")  # ends with the job: it is read when it is exported

    def add_sources(self, *parts: object, to_server: bool = False) -> None:
        """The reader's own files that these parts need, packages whole, beside those that FedJob finds itself."""
        add = self.add_file_to_server if to_server else self.add_file_to_clients
        for part in parts:
            if part is not None and not is_library(type(part)):
                for path, folder in find_files(type(part)).items():
                    add(str(path), dest_dir=folder)

    def add_weights(self, state: Mapping[str, Tensor], file: str) -> None:
        """Put weights into the server's part of the job, as `file` below custom/."""
        path = Path(self._files.name, file)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(dict(state), path)
        self.add_file_to_server(str(path), dest_dir=str(Path(file).parent))


def build_job(
    learner: SitePart,
    net: nn.Module,
    *,
    sites: int | Sequence[str] = 2,
    rounds: int = 5,
    name: str = "federation",
    algorithm: FedAvg | None = None,
    checkpoint: str | Path | None = None,
    metric: Metric | None = None,
    cross_site: CrossSite = "all",
    min_sites: int | None = None,
    aggregator: Aggregator | None = None,
    selector: Widget | None = None,
    workflow: Controller | None = None,
    site_filters: Sequence[Filter] = (),
    server_filters: Sequence[Filter] = (),
    track: AnalyticsReceiver | None = None,
    files: Sequence[str | Path] = (),
) -> LearnerJob:
    """Federated training, then cross-site evaluation, as a FedJob.

    The very weights of `net` are the first model. Its class need not be known to the server, nor be one that a job
    could write down: the learner makes its own net at the site. All of the learner's code ships: its module, what that
    imports of yours, and where it lies in a package, the whole package with its data files.

    Args:
        learner: what runs at every site: a ModelLearner (or an Executor, or FLARE's ScriptRunner). A relative path or
            one with ~ in its argument `data`, or in one that begins with "./", "../" or "~", is resolved from here.
        sites: how many (they are called site-1, site-2, ...), or their names.
        rounds: how often the models are averaged.
        name: of the job: letters, digits, "_" and "-".
        algorithm: FedAvg() by default; see tutorial_utils.algorithms.registry.
        checkpoint: a file of weights to begin with, in place of the net's own: a state dict, or one under "model" or
            "state_dict", as FLARE and others save it. It must fit the net.
        metric: which number decides; by default the learner's own.
        cross_site: after training every site scores "all" models, its own data's test part under the others' models
            too: so each site's own un-averaged model goes to every other site. "global": the averages alone, no
            site's model leaves for another. "none": no evaluation.
        min_sites: a round goes on with so many answers, ten seconds after they are there; by default all. It is for
            slow sites: that a lost one does not end the run is said to simulate and to Federation.run.
        aggregator, selector, workflow: in place of OrderedAggregator, of FLARE's IntimeModelSelector (by the metric),
            and of the algorithm's ScatterAndGather. A workflow finds the ids persistor, aggregator and
            shareable_generator.
        site_filters: of what leaves a site (its update, and the model that it hands out), in this order.
        server_filters: of the model that leaves the server for training.
        track: FLARE's receiver of metrics at the server, TBAnalyticsReceiver() say: see tutorial_utils.tracking.
        files: more Python files for the sites, each with what it imports; a ScriptRunner's script, say.

    Raises: JobError for what cannot work, before anything starts.
    """
    names = check_site_names(sites)
    rounds = getattr(workflow, "num_rounds", None) or getattr(workflow, "_num_rounds", None) or rounds
    rounds = check_count("rounds", rounds)
    min_sites = len(names) if min_sites is None else check_count("min_sites", min_sites, most=len(names))
    if cross_site not in get_args(CrossSite):
        raise JobError(f"cross_site is {cross_site!r}: choose all, global or none.")
    algorithm, metric = _checks.choose_algorithm(learner, algorithm), _checks.choose_metric(learner, metric)
    _checks.check_one_metric(learner, metric)
    first = _checks.fit_checkpoint(net, checkpoint)
    for part in filter(None, (*site_filters, *server_filters, aggregator, selector, workflow)):
        _checks.check_written(part)
    _checks.check_filters(site_filters, algorithm.sends, cross_site)
    _checks.check_keep_local(learner, first)
    site_part = algorithm.site()
    job = _begin(learner, first, sites, rounds, name, metric, files)
    job.add_weights(job.net, FIRST_MODEL)
    job.to_server(PTFileModelPersistor(source_ckpt_file_full_name=FIRST_MODEL), id="persistor")
    job.to_server(PTFileModelLocator(pt_persistor_id="persistor"), id="locator")
    job.to_server(generator := algorithm.generator(net), id="shareable_generator")
    sends = algorithm.sends if isinstance(algorithm.sends, str) else dict(algorithm.sends)
    job.to_server(aggregator or OrderedAggregator(sends), id="aggregator")
    chosen = selector or IntimeModelSelector(key_metric=metric.name, negate_key_metric=not metric.higher_is_better)
    job.to_server(chosen, id="model_selector")
    job.to_server(MetricsArtifactWriter(), id="metrics_writer")
    job.to_server(workflow or _workflow(algorithm, len(names), min_sites, rounds), id="scatter_and_gather")
    if cross_site != "none":
        _add_evaluation(job, "locator", cross_site)
    if site_part:
        job.to_clients(site_part, id="algorithm")
    if track is not None:
        tracking.track(job, _checks.check_receiver(track))
    for one in site_filters:
        job.to_clients(one, tasks=["train", "submit_model"], filter_type=FilterType.TASK_RESULT)
    for one in server_filters:
        job.to_server(one, tasks=["train"], filter_type=FilterType.TASK_DATA)
    job.add_sources(*site_filters, site_part)
    job.add_sources(*server_filters, aggregator, selector, workflow, generator, to_server=True)
    return job


def build_evaluation(
    learner: ModelLearner,
    models: Mapping[str, nn.Module | Mapping[str, Tensor]],
    *,
    sites: int | Sequence[str] = 2,
    name: str = "evaluation",
    metric: Metric | None = None,
) -> LearnerJob:
    """Every site scores the given models on its test data, and nothing is trained: `Run.cross_site` has a column each.

    Args:
        models: by name (letters, digits, "_" and "-"), nets or state dicts.
        learner, sites, name, metric: as in build_job.
    """
    if not models:
        raise JobError("There is no model to score: give some by name, as {'mine': net}.")
    for key in models:  # a column of the matrix, and a file
        _checks.check_name("A model cannot be called", key)
        if key in check_site_names(sites):
            raise JobError(f"A model cannot be called {key!r}: a site has that name.")
    states = {key: _checks.state_of(key, model) for key, model in models.items()}
    job = _begin(learner, next(iter(states.values())), sites, 0, name, _checks.choose_metric(learner, metric), ())
    for key, state in states.items():
        job.add_weights(state, f"models/{key}.pt")
    job.to_server(GivenModels(), id="locator")
    _add_evaluation(job, "locator", "global")
    return job


def _begin(
    learner: SitePart,
    state: dict[str, Tensor],
    sites: int | Sequence[str],
    rounds: int,
    name: str,
    metric: Metric,
    files: Sequence[str | Path],
) -> LearnerJob:
    """A job with what every one has: the site's part with its files, and the notes that a runner reads."""
    names = check_site_names(sites)
    _checks.check_name("name is", name)
    _checks.check_list("files", files)
    _checks.settle_arguments(learner)
    _checks.check_arguments(learner)
    props: dict[str, Any] = {"sites": list(names), "metric": asdict(metric)}
    if isinstance(data := getattr(learner, "data", None), str) and _checks.holds_sites(data, names):
        props["data"] = data
    job = LearnerJob(name, learner, state, names, rounds, props, named=not isinstance(sites, Integral))
    if isinstance(learner, ModelLearner):
        job.to_clients(learner, id="learner")
        job.to_clients(ModelLearnerExecutor(learner_id="learner"), tasks=TASKS)
    else:
        job.to_clients(learner, tasks=TASKS)
    ships = find_files(shipped.PTModelLearner)
    if not isinstance(learner, ScriptRunner):
        ships |= find_files(type(learner))
    for file in files:
        ships |= files_of(Path(file).resolve())
    for path, folder in ships.items():
        job.add_file_to_clients(str(path), dest_dir=folder)
    # By default a site sleeps 2 s after every task: half of a short run.
    job.to_server({"server": {"task_request_interval": 0.05}})
    return job


def _workflow(algorithm: FedAvg, sites: int, min_sites: int, rounds: int) -> Controller:
    return algorithm.workflow(
        min_clients=min_sites,
        num_rounds=rounds,
        wait_time_after_min_received=0 if min_sites == sites else 10,
        aggregator_id="aggregator",
        persistor_id="persistor",
        shareable_generator_id="shareable_generator",
        task_check_period=0.02,
    )


def _add_evaluation(job: LearnerJob, locator: str, which: CrossSite) -> None:
    """Sites hand out their own models only where all are to be scored: FLARE asks for none without a task's name."""
    asked = {} if which == "all" else {"submit_model_task_name": ""}
    evaluation = CrossSiteModelEval(model_locator_id=locator, task_check_period=0.02, **asked)
    job.to_server(evaluation, id="cross_site_eval")
    job.to_server(ValidationJsonGenerator(), id="json_generator")
