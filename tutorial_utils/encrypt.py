"""Encrypted averaging: the server adds up the sites' weights and can read neither them nor their mean.

job = encrypt(build_job(MyLearner("$SITE_DATA"), MyNet(), sites=["hospital-a", "hospital-b"]))
with deploy.provision("project.yml", folders, encrypted=True) as federation:
    run = federation.run(job)
weights = open_model(run, federation.kits.folder / "hospital-a", MyNet())      # at a site: the server has no key

The cipher is CKKS (Cheon et al. 2017, https://eprint.iacr.org/2016/421), by TenSEAL, which FLARE's parts in
nvflare.app_opt.he call. All sites share one secret key, which lies in their startup kits; the server's kit has none.
One site that helps the server is enough to open everything.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import torch
from nvflare.app_common.shareablegenerators.full_model_shareable_generator import FullModelShareableGenerator
from nvflare.app_common.workflows.scatter_and_gather import ScatterAndGather
from nvflare.app_opt.pt.file_model_persistor import PTFileModelPersistor
from nvflare.job_config.defs import FilterType
from torch import Tensor, nn

from tutorial_utils._read import reading
from tutorial_utils._ship import find_files
from tutorial_utils.algorithms.aggregator import OrderedAggregator
from tutorial_utils.ciphertexts import CiphertextEval, OnlyFinite, RestoreShapes, shapes_of, to_array
from tutorial_utils.errors import JobError, ResultsError
from tutorial_utils.job import FIRST_MODEL, LearnerJob
from tutorial_utils.results import Run

EVALUATION = ("model_locator_id", "task_check_period", "submit_model_task_name")  # what build_job sets of it
SITE_KEY = "startup/client_context.tenseal"  # in a site's startup kit (nvflare 2.9.0)


def has_tenseal() -> bool:
    """Is TenSEAL installed here? There are wheels for Python 3.11 and newer on Linux (x86-64) and on newer Macs."""
    return find_spec("tenseal") is not None


def check_tenseal(error: type[Exception] = JobError) -> None:
    """Raise the error where TenSEAL is missing."""
    if not has_tenseal():
        raise error(
            "Encryption needs TenSEAL, here, at the server and at every site: pip install tenseal (there are wheels "
            "for Python 3.11 and newer, on Linux and on Macs with an M processor)."
        )


def encrypt(job: LearnerJob) -> LearnerJob:
    """The same job, changed in place: what sites send is encrypted, averaged so, and decrypted at the sites again.

    Each site multiplies its weights by its steps, encrypts and sends them; the server adds and divides. The site's
    model for the cross-site evaluation is encrypted too: the server cannot read it, the other sites can. Metrics and
    counts travel as before, in plain.

    Args:
        job: from build_job, with the algorithm FedAvg or FedProx: what a server computes beyond a mean (FedOpt's
            steps, SCAFFOLD's controls) it cannot do blindly. Filters of its sites act before the encryption.

    Raises: JobError for another job, and where TenSEAL is missing.
    """
    check_tenseal()
    _check(job)
    from nvflare.app_opt.he.intime_accumulate_model_aggregator import HEInTimeAccumulateWeightedAggregator
    from nvflare.app_opt.he.model_decryptor import HEModelDecryptor
    from nvflare.app_opt.he.model_encryptor import HEModelEncryptor
    from nvflare.app_opt.he.model_serialize_filter import HEModelSerializeFilter
    from nvflare.app_opt.he.model_shareable_generator import HEModelShareableGenerator

    persistor = PTFileModelPersistor(source_ckpt_file_full_name=FIRST_MODEL, filter_id="he_serializer")
    job.replace("persistor", persistor)
    job.replace("aggregator", HEInTimeAccumulateWeightedAggregator(expected_data_kind="WEIGHTS"))
    job.replace("shareable_generator", HEModelShareableGenerator())
    if evaluation := job.part("cross_site_eval"):
        kept = {name: getattr(evaluation, f"_{name}") for name in EVALUATION}
        job.replace("cross_site_eval", CiphertextEval(**kept))
    job.to_server(HEModelSerializeFilter(), id="he_serializer")
    for part in (HEModelDecryptor(), RestoreShapes(shapes_of(job.net))):
        job.to_clients(part, tasks=["train", "validate"], filter_type=FilterType.TASK_DATA)
    for task, weigh in (("train", True), ("submit_model", False)):
        job.add_last_filter(task, OnlyFinite())
        job.add_last_filter(task, HEModelEncryptor(weigh_by_local_iter=weigh))
    for path, folder in find_files(RestoreShapes).items():
        job.add_file_to_clients(str(path), dest_dir=folder)
        job.add_file_to_server(str(path), dest_dir=folder)
    return job


def _check(job: LearnerJob) -> None:
    """JobError unless the server only takes means of weights."""
    if not job.rounds:
        raise JobError("The job trains nothing, so there is nothing to encrypt.")
    parts = {name: type(job.part(name)) for name in ("aggregator", "shareable_generator", "scatter_and_gather")}
    if parts["aggregator"].__module__.startswith("nvflare.app_opt.he."):
        raise JobError("The job is encrypted already.")
    wanted = (OrderedAggregator, FullModelShareableGenerator, ScatterAndGather)
    for found, known in zip(parts.values(), wanted, strict=True):
        if found is not known:
            raise JobError(
                "An encrypted server takes means of weights, and nothing else: build the job with FedAvg or FedProx, "
                f"and without an aggregator or a workflow of its own (it has a {found.__name__})."
            )


def open_model(
    run: Run, kit: str | Path, net: nn.Module | Mapping[str, Tensor], best: bool = False
) -> dict[str, Tensor]:
    """The global model of an encrypted run, with a site's key: what each site can do, and the server cannot.

    Keep what comes out from whoever runs the server while the key is in use: numbers out of CKKS carry an error that
    tells of the key to one who has the ciphertext too (Li and Micciancio 2021, https://eprint.iacr.org/2020/1533).

    Args:
        run: what the server has given back.
        kit: a site's startup kit, a folder that holds startup/client_context.tenseal.
        net: a net (or its state dict) of the same shapes.
        best: the model that scored best on the validation data, in place of the last one (see Run.best_model).

    Returns: the state dict. What is not encrypted in the file stays as it is.

    Raises: ResultsError where there is no key, or no such model.
    """
    check_tenseal(ResultsError)
    import tenseal

    key = Path(kit) / SITE_KEY
    if not key.is_file():
        raise ResultsError(f"{kit} holds no {SITE_KEY}: take the kit of a site, made with provision(encrypted=True).")
    path = run.global_model_path.with_name("best_FL_global_model.pt") if best else run.global_model_path
    with reading(path, "an encrypted model"):
        saved = torch.load(path, map_location="cpu", weights_only=True)["model"]
    context = tenseal.context_from(key.read_bytes())
    kinds = shapes_of(net.state_dict() if isinstance(net, nn.Module) else net)
    opened = {}
    for name, value in saved.items():
        if isinstance(value, bytes):
            value = to_array(tenseal.ckks_vector_from(context, value).decrypt(), *kinds[name])
        opened[name] = torch.as_tensor(value)
    return opened
