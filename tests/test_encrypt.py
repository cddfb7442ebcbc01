"""Encrypted averaging: the mean that comes out, what the server sees of it, what it costs, and what is refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nvflare.apis.dxo import DXO, DataKind, MetaKey, from_shareable
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.aggregators.intime_accumulate_model_aggregator import InTimeAccumulateWeightedAggregator
from nvflare.app_common.aggregators.weighted_aggregation_helper import WeightedAggregationHelper
from nvflare.app_common.filters.exclude_vars import ExcludeVars
from nvflare.fuel.utils import fobs

from dl.train import Net, load_data, make_loader, train
from faults.faulty_learner import FaultyLearner
from fl.job import PROJECT, build_job
from fl.model_learner import CIFAR10ModelLearner
from tiny import TinyLearner, make_net
from tutorial_utils import deploy
from tutorial_utils import job as general
from tutorial_utils._deploy.kits import copy_project
from tutorial_utils._simulate.guard_checks import find_fault, shapes_of
from tutorial_utils._simulate.job_folder import JobFolder
from tutorial_utils.algorithms.registry import FedOpt, FedProx, Scaffold
from tutorial_utils.ciphertexts import OnlyFinite, RestoreShapes, to_array
from tutorial_utils.ciphertexts import shapes_of as kinds_of
from tutorial_utils.deploy import LocalFederation
from tutorial_utils.encrypt import encrypt, has_tenseal, open_model
from tutorial_utils.errors import DeployedRunError, DeploymentError, EncryptedError, JobError, ResultsError
from tutorial_utils.keep import BestModel
from tutorial_utils.learner import round_seed
from tutorial_utils.results import Run
from tutorial_utils.settings import Training
from tutorial_utils.simulate import simulate
from tutorial_utils.values import LearnerError

TRAINING = Training(batch_size=8)
CLOSE = 1e-6  # of a mean of weights: the cipher keeps about 7 digits after the point
needs_tenseal = pytest.mark.skipif(not has_tenseal(), reason="TenSEAL is not installed: no wheel for this machine?")


def tiny_job(**settings: object) -> general.LearnerJob:
    return general.build_job(TinyLearner(), make_net(), **settings)


def read(job: general.LearnerJob, folder: Path, who: str) -> dict[str, Any]:
    job.export_job(str(folder))
    (path,) = folder.glob(f"*/*/config/config_fed_{who}.json")
    return json.loads(path.read_text())


def last_word(part: dict[str, Any]) -> str:
    return part["path"].rpartition(".")[2]


# What is made of a job


@needs_tenseal
def test_the_job_is_the_same_but_for_the_parts_that_encrypt(tmp_path: Path) -> None:
    plain, job = tiny_job(cross_site="global"), encrypt(tiny_job(cross_site="global"))
    before, after = read(plain, tmp_path / "plain", "server"), read(job, tmp_path / "encrypted", "server")
    names = {part["id"]: last_word(part) for part in after["components"]}
    changed = {part["id"]: last_word(part) for part in before["components"]}
    assert {name: kind for name, kind in names.items() if changed.get(name) != kind} == {
        "aggregator": "HEInTimeAccumulateWeightedAggregator",
        "shareable_generator": "HEModelShareableGenerator",
        "he_serializer": "HEModelSerializeFilter",
    }
    (persistor,) = (part for part in after["components"] if part["id"] == "persistor")
    assert persistor["args"]["filter_id"] == "he_serializer"
    (_, old), (_, new) = before["workflows"], after["workflows"]
    assert last_word(new) == "CiphertextEval" and new["args"] == old["args"]
    assert next((tmp_path / "encrypted").glob("*/*/custom/tutorial_utils/ciphertexts.py"))


@needs_tenseal
def test_filters_of_the_sites_act_before_the_encryption(tmp_path: Path) -> None:
    client = read(encrypt(tiny_job(site_filters=[ExcludeVars(["0.weight"])])), tmp_path, "client")
    out = {
        task: [last_word(part) for part in one["filters"]]
        for one in client["task_result_filters"]
        for task in one["tasks"]
    }
    assert out == {task: ["ExcludeVars", "OnlyFinite", "HEModelEncryptor"] for task in ("train", "submit_model")}
    weighs = {
        task: one["filters"][-1].get("args", {}).get("weigh_by_local_iter", True)
        for one in client["task_result_filters"]
        for task in one["tasks"]
    }
    assert weighs == {"train": True, "submit_model": False}
    (into,) = client["task_data_filters"]
    assert sorted(into["tasks"]) == ["train", "validate"]
    assert [last_word(part) for part in into["filters"]] == ["HEModelDecryptor", "RestoreShapes"]


@needs_tenseal
def test_the_guard_is_told_that_an_encryption_takes_nothing_out(tmp_path: Path) -> None:
    for job, filtered in ((tiny_job(), []), (tiny_job(site_filters=[ExcludeVars(["0.weight"])]), [r"^0\.weight$"])):
        encrypt(job).export_job(str(tmp_path / str(len(filtered))))
        copy = JobFolder(tmp_path / str(len(filtered)) / job.name)
        assert copy.filtered() == filtered and copy.encrypted


@needs_tenseal
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"algorithm": FedOpt()}, "it has a ServerOptimizer"),
        ({"algorithm": Scaffold()}, "it has a ScatterAndGatherScaffold"),
        ({"aggregator": InTimeAccumulateWeightedAggregator(expected_data_kind="WEIGHTS")}, "it has a InTime"),
    ],
)
def test_a_server_that_does_more_than_a_mean_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(JobError, match=f"takes means of weights, and nothing else: .*{words}"):
        encrypt(tiny_job(**settings))


@needs_tenseal
def test_a_job_is_encrypted_once_and_only_where_it_trains() -> None:
    job = encrypt(tiny_job(algorithm=FedProx()))
    with pytest.raises(JobError, match="encrypted already"):
        encrypt(job)
    with pytest.raises(JobError, match="trains nothing"):
        encrypt(general.build_evaluation(TinyLearner(), {"mine": make_net()}))


@needs_tenseal
def test_the_simulator_has_no_keys(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"the simulator has no keys: .*encrypted=True"):
        simulate(encrypt(tiny_job()), runs=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_missing_tenseal_is_a_sentence(sites: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tenseal", None)
    with pytest.raises(JobError, match=r"Encryption needs TenSEAL, .*: pip install tenseal"):
        encrypt(tiny_job())
    with pytest.raises(DeploymentError, match="Encryption needs TenSEAL"):
        deploy.provision(PROJECT, sites, runs=tmp_path, encrypted=True)
    with pytest.raises(ResultsError, match="Encryption needs TenSEAL"):
        open_model(Run(tmp_path, (), 0.0), tmp_path, make_net())
    assert not list(tmp_path.iterdir())


def test_the_builder_of_keys_stands_before_the_one_that_signs(tmp_path: Path) -> None:
    for encrypted in (False, True):
        project, copy = copy_project(PROJECT, tmp_path, encrypted=encrypted)
        kinds = [last_word(one) for one in project["builders"]]
        assert kinds[-1] == "SignatureBuilder" and ("HEBuilder" in kinds) is encrypted
    again, _ = copy_project(copy, tmp_path, encrypted=True)
    assert [last_word(one) for one in again["builders"]] == kinds


def test_an_encrypted_model_is_no_damaged_one(tmp_path: Path) -> None:
    run = Run(tmp_path, ("site-1",), 0.0)
    run.global_model_path.parent.mkdir(parents=True)
    torch.save({"model": {"w": b"cipher", "b": torch.zeros(2)}}, run.global_model_path)
    with pytest.raises(EncryptedError, match=r"is encrypted: tutorial_utils\.encrypt\.open_model opens it"):
        _ = run.global_model


# The arithmetic, by FLARE's own parts


@pytest.fixture(scope="module")
def context() -> Any:
    """As FLARE's HEBuilder makes it by default."""
    tenseal = pytest.importorskip("tenseal", reason="TenSEAL is not installed: no wheel for this machine?")
    kind, secret = tenseal.SCHEME_TYPE.CKKS, tenseal.ENCRYPTION_TYPE.SYMMETRIC
    made = tenseal.context(kind, poly_modulus_degree=8192, coeff_mod_bit_sizes=[60, 40, 40], encryption_type=secret)
    made.generate_relin_keys()
    made.global_scale = 2**40
    return made


def encrypted(state: dict[str, Any], steps: int, context: Any) -> dict[str, Any]:
    from nvflare.app_opt.he.model_encryptor import HEModelEncryptor

    encryptor = HEModelEncryptor()
    encryptor.tenseal_context, encryptor.n_iter, encryptor.encrypt_layers = context, steps, [True]
    return encryptor.encryption({name: np.array(value) for name, value in state.items()}, FLContext())[0]


def test_the_encrypted_mean_is_the_plain_one_and_whole_numbers_stay_whole(context: Any) -> None:
    from nvflare.app_opt.he.model_decryptor import HEModelDecryptor

    states = [make_net(seed).state_dict() for seed in (0, 1, 2)]
    for number, state in enumerate(states):
        state["0.num_batches_tracked"] += 70_000 + 2 * number  # a mean that is rounded up
    weights, server = (10, 700, 3000), WeightedAggregationHelper(weigh_by_local_iter=False)
    for state, weight in zip(states, weights, strict=True):
        server.add(encrypted(state, weight, context), weight, "site", 0)
    decryptor = HEModelDecryptor()
    decryptor.tenseal_context = context
    flat = decryptor.decryption(server.get_result(), dict.fromkeys(states[0], True), FLContext())
    dxo = RestoreShapes(kinds_of(states[0])).process_dxo(DXO(DataKind.WEIGHTS, flat), Shareable(), FLContext())
    for name, value in states[0].items():
        pairs = zip(states, weights, strict=True)
        mean = sum(state[name].numpy().astype(float) * weight for state, weight in pairs) / sum(weights)
        got = dxo.data[name]
        assert got.dtype == value.numpy().dtype and got.shape == tuple(value.shape)
        assert np.abs(got - (np.rint(mean) if got.dtype.kind == "i" else mean)).max() < CLOSE


def test_no_key_travels_with_a_ciphertext(context: Any) -> None:
    """FLARE sends a vector with its context: without the secret, as long as TenSEAL leaves it out by default."""
    from nvflare.app_opt.he import decomposers

    decomposers.register()
    (vector,) = encrypted({"w": np.ones(3)}, 1, context).values()
    arrived = fobs.loads(fobs.dumps({"w": vector}))["w"]
    assert context.has_secret_key() and not arrived.context().has_secret_key()
    with pytest.raises(ValueError, match="secret_key"):
        arrived.decrypt()
    assert arrived.decrypt(context.secret_key()) == pytest.approx([1.0] * 3)


@pytest.mark.parametrize("kind", ["float16", "float32", "float64"])
@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_not_encrypted(kind: str, odd: float) -> None:
    """So a site ends with an error where its weights are: the server could not see it. TenSEAL 0.3.16 lets it pass."""
    sound = {"w": np.ones(2, kind), "count": np.array(3), "flag": np.array([True])}
    let_through(sound)
    with pytest.raises(LearnerError, match=r"^w is not finite, and encrypted nobody could see that: nothing leaves\.$"):
        let_through(sound | {"w": np.array([1.0, odd], kind)})


def let_through(weights: dict[str, np.ndarray]) -> None:
    for kind in (DataKind.WEIGHTS, DataKind.WEIGHT_DIFF):
        passed = OnlyFinite().process(DXO(kind, weights).to_shareable(), FLContext())
        assert from_shareable(passed).data == weights


def test_the_guard_sees_of_an_encrypted_entry_how_many_numbers_it_holds(context: Any) -> None:
    plain = {"w": np.ones((2, 3)), "b": np.ones(2)}
    update = encrypted(plain, 1, context)
    assert find_fault(update, shapes_of(plain)) is None
    shapes = shapes_of(plain | {"w": np.ones((2, 4))})
    assert find_fault(update, shapes) == "w holds 6 encrypted numbers instead of 8"
    assert find_fault({"w": update["w"]}, shapes_of(plain)) == "it lacks b"


def test_arrays_that_came_in_plain_stay_as_they_are() -> None:
    """The first model does, and what a job does not encrypt."""
    first = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": [1.0, 2.0], "other": [3.0]}
    kinds = kinds_of({"w": np.zeros((2, 3)), "b": torch.zeros(1, 2, dtype=torch.bfloat16)})
    data = RestoreShapes(kinds).process_dxo(DXO(DataKind.WEIGHTS, dict(first)), Shareable(), FLContext()).data
    assert data["w"] is first["w"] and data["other"] is first["other"]
    assert data["b"].dtype == np.float32 and data["b"].tolist() == [[1.0, 2.0]]
    assert to_array([4.9999999], "int64", []).tolist() == 5


# A federation


@pytest.fixture(scope="module")
def federation(sites: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFederation]:
    federation = deploy.provision(PROJECT, sites, runs=tmp_path_factory.mktemp("encrypted"), encrypted=True)
    with federation:
        yield federation


def running_job(**settings: object) -> general.LearnerJob:
    return build_job("$SITE_DATA", **{"rounds": 2, "training": TRAINING, **settings})


@pytest.fixture(scope="module")
def plain(federation: LocalFederation) -> Run:
    return federation.run(running_job(name="plain"), progress=False)


@pytest.fixture(scope="module")
def hidden(federation: LocalFederation) -> Run:
    return federation.run(encrypt(running_job(name="hidden")), progress=False)


def apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys() and all(one[name].dtype == other[name].dtype for name in one)
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def mean_after_round(start: dict[str, torch.Tensor], sites: list[Path], number: int) -> dict[str, torch.Tensor]:
    """What the sites' training makes of these weights, averaged in plain, here."""
    parts = []
    for site in sites:
        net, seed = Net(TRAINING.seed), round_seed(TRAINING.seed, site.name, number)
        net.load_state_dict(start)
        loader = make_loader(load_data(site).train, TRAINING.batch_size, seed)
        parts.append((net.state_dict(), train(net, loader, lr=TRAINING.lr, momentum=TRAINING.momentum)))
    total = sum(steps for _, steps in parts)
    return {name: sum(state[name] * float(steps) for state, steps in parts) / total for name in start}


@needs_tenseal
@pytest.mark.slow
def test_the_global_model_is_the_plain_one(
    federation: LocalFederation, plain: Run, hidden: Run, sites: list[Path]
) -> None:
    """In each round the mean of what the sites have sent. From round to round training makes more of a difference of
    1e-7 (as it does of one thread more), so the second round is held against the sites' training from where it began.
    """
    kit = federation.kits.folder / "site-1"
    first, last = (open_model(hidden, kit, Net(0), best=best) for best in (True, False))
    assert apart(first, plain.best_model) < CLOSE
    assert apart(last, mean_after_round(first, sites, 1)) < CLOSE
    other = open_model(hidden, federation.kits.folder / "site-2", Net(0).state_dict())
    assert apart(last, other) == 0, "every site can read it"
    columns = ["round", "site", "weight"]
    assert hidden.rounds[columns].equals(plain.rounds[columns])
    assert hidden.rounds["loss"].to_numpy() == pytest.approx(plain.rounds["loss"].to_numpy(), abs=1e-4)
    assert hidden.cross_site.shape == (2, 4) and (hidden.cross_site - plain.cross_site).abs().max(axis=None) < 0.15


@needs_tenseal
@pytest.mark.slow
def test_the_server_has_no_key_and_nothing_that_it_could_read(federation: LocalFederation, hidden: Run) -> None:
    for read_model in (lambda: hidden.global_model, lambda: hidden.best_model):
        with pytest.raises(EncryptedError, match=r"is encrypted: tutorial_utils\.encrypt\.open_model opens it"):
            read_model()
    server = federation.kits.folder / "server"
    with pytest.raises(ResultsError, match="take the kit of a site"):
        open_model(hidden, server, Net(0))
    import tenseal

    context = tenseal.context_from((server / "startup/server_context.tenseal").read_bytes())
    assert not context.has_secret_key()
    saved = torch.load(hidden.global_model_path, weights_only=True)
    assert all(isinstance(value, bytes) for value in saved["model"].values())
    assert all(saved["meta_props"][MetaKey.PROCESSED_KEYS].values())
    vector = tenseal.ckks_vector_from(context, saved["model"]["fc3.bias"])
    with pytest.raises(ValueError, match="secret_key"):
        vector.decrypt()


@needs_tenseal
@pytest.mark.slow
@pytest.mark.parametrize("site", ["site-1", "site-2"])
def test_the_server_scores_a_site_s_own_model_unread(
    site: str, federation: LocalFederation, plain: Run, hidden: Run
) -> None:
    """In plain its bytes lie at the server; encrypted they do not, and the other site has scored it all the same."""
    ids = federation.jobs().set_index("name")["job_id"]
    for run, is_there in ((plain, True), (hidden, False)):
        (best,) = (federation.kits.folder / site / ids[run.folder.name]).glob("app_*/best_local_model.pt")
        kept = BestModel(best.parent, CIFAR10ModelLearner.metric).load()["params"]["fc3.weight"].numpy().tobytes()
        sent = run.job_folder / "cross_site_val/model_shareables" / site
        assert (kept in sent.read_bytes()) is is_there
    assert hidden.cross_site[site].notna().all()


@needs_tenseal
@pytest.mark.slow
def test_it_costs_bytes(plain: Run, hidden: Run, record_property: Any) -> None:
    record_property("seconds", hidden.seconds - plain.seconds)
    assert hidden.bytes > 10 * plain.bytes


@needs_tenseal
@pytest.mark.slow
def test_a_site_whose_weights_are_not_finite_says_so_itself(federation: LocalFederation) -> None:
    learner = FaultyLearner("$SITE_DATA", **asdict(TRAINING), fault="nan", site="site-2", at_round=0)
    with pytest.raises(DeployedRunError) as caught:
        federation.run(encrypt(general.build_job(learner, Net(0), rounds=1, name="odd")), progress=False)
    assert str(caught.value).startswith("site-2 failed in round 0") and "is not finite" in str(caught.value)


@needs_tenseal
@pytest.mark.slow
def test_a_filter_of_the_sites_goes_with_it(federation: LocalFederation) -> None:
    filtered = running_job(name="filtered", rounds=1, site_filters=[ExcludeVars(["fc3.bias"])], cross_site="none")
    run = federation.run(encrypt(filtered), progress=False)
    opened = open_model(run, federation.kits.folder / "site-2", Net(0))
    assert torch.equal(opened["fc3.bias"], Net(0).fc3.bias.detach()), "as it was"
    assert apart({"w": opened["fc3.weight"]}, {"w": Net(0).fc3.weight.detach()}) > 1e-3
