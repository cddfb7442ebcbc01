"""What must not live: each breaks the code in one place, and names the tests that should notice. See mutate.py."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutation:
    """A change of a line or two.

    Attributes:
        file: from the project's root.
        old, new: the text in it (there once), and what stands there instead.
        tests: what pytest is given: the narrowest that should notice.
        lives: why it may live, where no test can tell; None for all that must not.
    """

    id: str
    what: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    lives: str | None = None


def at(module: str, *tests: str) -> tuple[str, ...]:
    """All tests of a file, or some by name."""
    return tuple(f"tests/test_{module}.py::{test}" for test in tests) or (f"tests/test_{module}.py",)


LEARNER, KEEP, VALUES = (f"tutorial_utils/{name}.py" for name in ("learner", "keep", "values"))
JOB, CHECKS, SHIP = (f"tutorial_utils/{name}.py" for name in ("job", "_checks", "_ship"))
DRIVE, ANSWERS, METRIC = (f"tutorial_utils/{name}.py" for name in ("drive", "_answers", "metric"))
SCRIPT, RESULTS = "code/dl/train.py", "tutorial_utils/results.py"

THE_LEARNER = [
    Mutation(
        "L1",
        "cross-site evaluation scores valid, not test",
        LEARNER,
        "self.valid_split if before_training else self.test_split",
        "self.valid_split",
        at("learner"),
    ),
    Mutation(
        "L2",
        "ties: the latest instead of the first best",
        KEEP,
        'not self.metric.better(score, self.load()["score"])',
        'self.metric.better(self.load()["score"], score)',
        at("keep"),
    ),
    Mutation(
        "L3",
        "nothing is seeded before training",
        LEARNER,
        "        seed_everything(self.seed_of_round())\n        self._batches = None\n",
        "        self._batches = None\n",
        at("learner"),
    ),
    Mutation(
        "L3b",
        "nothing is seeded before validation",
        LEARNER,
        "        seed_everything(self.seed_of_round())  # a script may draw where it validates\n",
        "",
        at("learner"),
    ),
    Mutation("L3c", "torch is not seeded", LEARNER, "    torch.manual_seed(seed)\n", "", at("learner")),
    Mutation("L3d", "Python's random is not seeded", LEARNER, "    random.seed(seed)\n", "", at("learner")),
    Mutation(
        "L4",
        "the weight reported is 1",
        LEARNER,
        "FLMetaKey.NUM_STEPS_CURRENT_ROUND: weight,",
        "FLMetaKey.NUM_STEPS_CURRENT_ROUND: 1,",
        at("learner"),
    ),
    Mutation(
        "L5",
        "the threads setting is ignored",
        LEARNER,
        "        torch.set_num_threads(self.threads)\n",
        "",
        at("learner"),
    ),
    Mutation(
        "L6",
        "save_safely is not atomic",
        KEEP,
        "    torch.save(value, half_written)\n    half_written.replace(path)",
        "    torch.save(value, path)",
        at("keep"),
    ),
    Mutation("L7", "to_numpy shares memory with the net", VALUES, ".numpy().copy() for", ".numpy() for", at("values")),
    Mutation(
        "L8",
        "finalize keeps the net",
        LEARNER,
        '        self.net = None\n        self.info("is done")',
        '        self.info("is done")',
        at("learner"),
    ),
    Mutation(
        "L9",
        "the last instead of the best local model",
        KEEP,
        'if self.path.is_file() and not self.metric.better(score, self.load()["score"]):',
        "if False:",
        at("keep"),
    ),
    Mutation(
        "M1",
        "a metric's direction is ignored",
        METRIC,
        "return score > than if self.higher_is_better else score < than",
        "return score > than",
        at("metric"),
    ),
    Mutation(
        "M2",
        "NaN stays the best for ever",
        METRIC,
        "            return math.isfinite(score)\n",
        "            return False\n",
        at("metric"),
    ),
    Mutation(
        "S3",
        "a round takes the state that it left itself",
        KEEP,
        "before is None or number < before",
        "before is None or number <= before",
        at("keep"),
    ),
    Mutation("S4", "the state of the round before is not kept", KEEP, "[-2:]", "[-1:]", at("keep")),
    Mutation(
        "S5",
        "no state is kept",
        LEARNER,
        "            kept.save(self.current_round or 0, state, local)\n",
        "            pass\n",
        at("learner"),
    ),
    Mutation(
        "K2",
        "what stays at home is sent",
        LEARNER,
        "params=self._shared(self.params()), meta=meta)",
        "params=self.params(), meta=meta)",
        at("learner"),
    ),
    Mutation(
        "K3",
        "what stays at home is overwritten by what comes",
        LEARNER,
        "self.net.load_state_dict(own | local | came)",
        "self.net.load_state_dict(own | came)",
        at("learner"),
    ),
    Mutation(
        "K4",
        "its own best model comes home without what stayed here",
        LEARNER,
        "        if owner == self.site_name:",
        "        if owner is None:",
        at("learner"),
    ),
    Mutation(
        "N1",
        "a watched loader does not stop",
        LEARNER,
        "            if self.learner.is_aborted():\n                return\n            self.learner._batches += 1",
        "            self.learner._batches += 1",
        at("learner"),
    ),
    Mutation(
        "N2",
        "batches are counted on from round to round",
        LEARNER,
        "        self._batches = None\n        trained",
        "        trained",
        at("learner"),
    ),
    Mutation(
        "N3",
        "a model of an aborted round is kept",
        LEARNER,
        "            return ReturnCode.TASK_ABORTED\n",
        "            self.keep_if_best()\n            return ReturnCode.TASK_ABORTED\n",
        at("learner"),
    ),
    Mutation(
        "N4",
        "seeds are the same in every round",
        LEARNER,
        "return round_seed(self.seed, self.site_name, self.current_round or 0)",
        "return round_seed(self.seed, self.site_name, 0)",
        at("learner"),
    ),
    Mutation(
        "D3",
        "weights of another shape pass a test drive",
        ANSWERS,
        "    if array.shape != sent.shape:\n",
        "    if False:\n",
        at("drive"),
    ),
    Mutation(
        "D4",
        "a proof looks at the last entry alone",
        DRIVE,
        "            first = first or name\n",
        "            first = name\n",
        at("drive"),
    ),
    Mutation(
        "D5",
        "a NaN is lost in the largest difference",
        DRIVE,
        "float(np.max([apart, ",
        "float(np.nanmax([apart, ",
        at("drive"),
    ),
]

THE_JOB = [
    Mutation(
        "B2",
        "the best global model by the sites' steps",
        JOB,
        "IntimeModelSelector(key_metric=metric.name, ",
        "IntimeModelSelector(key_metric=metric.name, weigh_by_local_iter=True, ",
        at("build_job"),
    ),
    Mutation(
        "B6",
        "the selector does not know that lower is better",
        JOB,
        ", negate_key_metric=not metric.higher_is_better)",
        ")",
        at("build_job"),
    ),
    Mutation(
        "B7",
        "a job hands every site's own model to the others, whatever was asked",
        JOB,
        'asked = {} if which == "all" else {"submit_model_task_name": ""}',
        "asked = {}",
        at("build_job"),
    ),
    Mutation(
        "B8",
        "the first model is the net's memory itself",
        CHECKS,
        "value.detach().cpu().clone() for name, value in state.items()",
        "value.detach().cpu() for name, value in state.items()",
        at("build_job"),
    ),
    Mutation(
        "B9",
        "a checkpoint keeps types that the net has not",
        CHECKS,
        "state[name].to(own[name].dtype).clone()",
        "state[name].clone()",
        at("build_job"),
    ),
    Mutation(
        "B10",
        "a relative path stays relative",
        CHECKS,
        "            setattr(part, name, str(Path(value).expanduser().resolve()))\n",
        "            pass\n",
        at("build_job"),
    ),
    Mutation(
        "B11",
        "filters of what leaves a site do not see its own model",
        JOB,
        'tasks=["train", "submit_model"], filter_type=FilterType.TASK_RESULT',
        'tasks=["train"], filter_type=FilterType.TASK_RESULT',
        at("build_job"),
    ),
    Mutation(
        "C1",
        "a package ships without its other files",
        SHIP,
        "            files |= {path: path.parent.relative_to(root).as_posix() for path in _whole(root / package)}\n",
        "            pass\n",
        at("ship"),
    ),
    Mutation(
        "C2",
        "a module that parses arguments at import is shipped",
        SHIP,
        'AT_IMPORT = ("parse_args", "parse_known_args", ',
        "AT_IMPORT = (",
        at("ship"),
    ),
    Mutation(
        "C3",
        "installed packages ship",
        SHIP,
        '        if first != "tutorial_utils" and _is_library(folder):\n            continue\n',
        "",
        at("ship"),
    ),
    Mutation(
        "B4",
        "the executor seeds nothing",
        "code/fl/executor.py",
        "        seed_everything(seed)\n",
        "",
        at("clients", "test_training_starts_from_the_seed_of_site_and_round"),
    ),
    Mutation(
        "B12",
        "the Client API script seeds nothing",
        "code/fl/client_api.py",
        "    seed_everything(seed)\n",
        "",
        at("clients", "test_training_starts_from_the_seed_of_site_and_round"),
    ),
]

THE_SCRIPT_AND_THE_DATA = [
    Mutation(
        "T1",
        "the script chooses its epoch on TEST images",
        SCRIPT,
        'valid = evaluate(net, data.valid)["accuracy"]',
        'valid = evaluate(net, data.test)["accuracy"]',
        at("train"),
    ),
    Mutation(
        "T2",
        "the script keeps the last epoch, not the best",
        SCRIPT,
        "        if valid >= best:\n            best = valid\n            torch.save(net.state_dict(), args.out)",
        "        torch.save(net.state_dict(), args.out)",
        at("train"),
    ),
    Mutation("T3", "no net.train()", SCRIPT, "        net.train()  # each time", "        # each time", at("train")),
    Mutation(
        "P1",
        "every try draws the same shares",
        "tutorial_utils/partition.py",
        "value, (seed, attempt))",
        "value, (seed, 0))",
        at("partition"),
    ),
    Mutation(
        "P2",
        "a site may have no valid or test image",
        "tutorial_utils/partition.py",
        'least = {"train": card["min_images"], "valid": 1, "test": 1}',
        'least = {"train": card["min_images"], "valid": 0, "test": 0}',
        at("partition"),
    ),
    Mutation(
        "P3",
        "a rounding debt is not paid back",
        "tutorial_utils/shares.py",
        "        owed[rounded_up] -= 1\n",
        "",
        at("partition"),
    ),
    Mutation(
        "F1",
        "new_folder swallows any error of a rename",
        "tutorial_utils/folder.py",
        "            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):\n                raise",
        "            pass",
        at("data"),
    ),
    Mutation("D1", "a subset is unsorted", "tutorial_utils/data.py", "array[np.sort(few)]", "array[few]", at("data")),
    Mutation(
        "D2",
        "a subset is made anew each time",
        "tutorial_utils/data.py",
        "    if ready := _prepared(target, dataset.name):\n        if ready",
        "    if ready := None:\n        if ready",
        at("data"),
    ),
    Mutation(
        "B1",
        "a score on VALID images",
        "code/fl/by_hand.py",
        "load_data(folder).test for",
        "load_data(folder).valid for",
        at("by_hand"),
    ),
    Mutation(
        "B5",
        "a study's workers use all threads",
        "tutorial_utils/study.py",
        "    torch.set_num_threads(1)\n",
        "",
        at("study"),
    ),
]

THE_AVERAGE = [
    Mutation(
        "A1",
        "the aggregator does not sort",
        "tutorial_utils/algorithms/aggregator.py",
        "for site in sorted(held)",
        "for site in held",
        at("aggregator"),
    ),
    Mutation(
        "A2",
        "held updates are never dropped",
        "tutorial_utils/algorithms/aggregator.py",
        "held, self._held = self._held, {}",
        "held = self._held",
        at("aggregator"),
    ),
    Mutation(
        "A3",
        "a late update is averaged",
        "tutorial_utils/algorithms/aggregator.py",
        "        if sent != now:\n",
        "        if False:\n",
        at("aggregator"),
    ),
    Mutation(
        "A4",
        "what all sites send alike moves in its last digits",
        "tutorial_utils/algorithms/aggregator.py",
        "    if all(np.array_equal(first, other, equal_nan=floats) for other in arrays[1:]):\n        return first\n",
        "",
        at("aggregator"),
    ),
    Mutation(
        "A5",
        "whole numbers become fractions",
        "tutorial_utils/algorithms/aggregator.py",
        "return np.asarray(mean if floats else np.rint(mean)).astype(kind, copy=False)",
        "return np.asarray(mean)",
        at("aggregator"),
    ),
    Mutation(
        "B3",
        "a hook acts on foreign optimizers",
        "tutorial_utils/algorithms/steps.py",
        'if any(id(param) in ours for group in optimizer.param_groups for param in group["params"]):',
        "if True:",
        at("algorithms", "test_only_the_steps_of_this_net_are_seen_and_only_inside"),
    ),
]

THE_RESULTS = [
    Mutation(
        "R1",
        "a fingerprint depends on the order of the dict",
        RESULTS,
        "    for name in sorted(state):\n",
        "    for name in state:\n",
        at("results"),
    ),
    Mutation(
        "R2",
        "a fingerprint ignores names, types and shapes",
        RESULTS,
        '        digest.update(f"{name} {array.dtype} {array.shape}".encode())\n',
        "",
        at("results"),
    ),
    Mutation(
        "R3",
        "the mean of a round is not weighted",
        RESULTS,
        'weights = told["weight"].fillna(0).astype(float)',
        'weights = told["weight"].fillna(0).astype(float) * 0 + 1',
        at("results"),
    ),
    Mutation(
        "R4",
        "of two checkpoints the older is taken",
        RESULTS,
        "return found[max(whole)] if whole else None",
        "return found[min(whole)] if whole else None",
        at("results"),
    ),
    Mutation(
        "PL1",
        "a band from the median, not the lowest",
        "tutorial_utils/_draw.py",
        'spread = by_x.agg(["mean", "min", "max"])',
        'spread = by_x.agg(["mean", "median", "max"])',
        at("plots"),
    ),
    Mutation(
        "PL2",
        "all boxes of the matrix in the first row",
        "tutorial_utils/plots.py",
        "sites.index(site) - 0.46",
        "0 - 0.46",
        at("plots"),
    ),
]

GUARD, FILES, PACE = (f"tutorial_utils/_simulate/{name}.py" for name in ("guard", "guard_files", "pace"))
WATCH, VERDICT = (f"tutorial_utils/_simulate/{name}.py" for name in ("watch", "verdict"))

THE_RUNNER = [
    Mutation(
        "G1",
        "no update is checked",
        GUARD,
        "            AppEventType.BEFORE_CONTRIBUTION_ACCEPT: self._check_update,\n",
        "",
        at("guard"),
    ),
    Mutation(
        "G2",
        "a refused update is not noticed",
        GUARD,
        "            AppEventType.AFTER_CONTRIBUTION_ACCEPT: self._check_accepted,\n",
        "",
        at("guard"),
    ),
    Mutation(
        "G3",
        "old checkpoints stay beside the new one",
        FILES,
        "        if old != new:\n            shutil.rmtree(old)",
        "        pass",
        at("guard"),
    ),
    Mutation(
        "G4",
        "numbers that are not finite pass",
        "tutorial_utils/_simulate/guard_checks.py",
        'return f"{name} holds numbers that are not finite" if odd.any() and not as_sent else None',
        "return None",
        at("guard"),
    ),
    Mutation(
        "G5",
        "write_json is not atomic",
        FILES,
        '    half_written.write_text(json.dumps(value, indent=1), encoding="utf-8")\n    half_written.replace(path)',
        '    path.write_text(json.dumps(value, indent=1), encoding="utf-8")',
        at("guard"),
    ),
    Mutation(
        "G6",
        "a resumed run forgets the best score so far",
        GUARD,
        "                selector.best_val_metric = score\n",
        "                pass\n",
        at("guard"),
    ),
    Mutation(
        "G7",
        "a resumed run forgets what a site has kept",
        FILES,
        "            shutil.copy2(kept, app_folder)\n",
        "            pass\n",
        at("guard"),
    ),
    Mutation(
        "G8",
        "an update that cannot be checked is averaged",
        GUARD,
        'self._fail(f"{what} ({type(error).__name__}: {error})", fl_ctx, _peer(fl_ctx))',
        "self.log_exception(fl_ctx, what)",
        at("guard"),
    ),
    Mutation(
        "G9",
        "a round that is done again gets the state that it has left",
        FILES,
        "if _round_of(path) < rounds]",
        "if _round_of(path) <= rounds]",
        at("guard"),
    ),
    Mutation(
        "G10",
        "weights that stay at home may leave",
        "tutorial_utils/_simulate/guard_checks.py",
        "if leak := sorted(at_home & set(data or ())):",
        "if leak := []:",
        at("guard"),
    ),
    Mutation(
        "J1",
        "the guard is the first instead of the last component",
        "tutorial_utils/_simulate/job_folder.py",
        '[*content.pop("components", []), part]',
        '[part, *content.pop("components", [])]',
        at("job_folder"),
    ),
    Mutation(
        "K1",
        "the keeper does not end the family",
        "tutorial_utils/_simulate/keeper.py",
        "    end_family(token)\n    try:",
        "    try:",
        at("watch"),
    ),
    Mutation(
        "S1",
        "a resumed run keeps the line of the round that was cut",
        "tutorial_utils/_simulate/resume.py",
        'if line["round"] < earlier.rounds_kept',
        'if line["round"] <= earlier.rounds_kept',
        at("resume"),
    ),
    Mutation(
        "S2", "no pace", "tutorial_utils/simulate.py", "        copy.add_pace()\n", "        pass\n", at("simulate")
    ),
    Mutation(
        "S6",
        "a card is handed on by its number, whatever CUDA_VISIBLE_DEVICES calls it",
        "tutorial_utils/_simulate/cards.py",
        "names = named if any(named) else",
        "names =",
        at("cards", "test_a_card_keeps_the_name_that_the_variable_gives_it_here"),
    ),
    Mutation(
        "S7",
        "a site's port may be given to others",
        "tutorial_utils/_simulate/start.py",
        "    runner.get_open_ports = partial(keep_ports, deque(maxlen=KEPT_PORTS))\n",
        "    from nvflare.fuel.utils import network_utils\n    runner.get_open_ports = network_utils.get_open_ports\n",
        at("pace", "test_a_site_s_port_is_kept_for_its_process"),
    ),
    Mutation(
        "V1",
        "holes in the sites' columns of the matrix are not seen",
        VERDICT,
        "wanted += here if asked.local_models else []",
        "wanted += []",
        at("verdict"),
    ),
    Mutation(
        "V2",
        "off by one in the last saved round",
        VERDICT,
        "if run.rounds_kept <= (",
        "if run.rounds_kept < (",
        at("verdict"),
    ),
    Mutation(
        "W1",
        "the runner does not wait for the sites to finalize",
        WATCH,
        "            if _all_finalized(run) or time.monotonic() - ended > END_SECONDS:\n                return None",
        "            return None",
        at("watch"),
    ),
    Mutation(
        "W2",
        "a machine that slept is a run that hangs",
        WATCH,
        "min(now - self._last, STEP_SECONDS)",
        "now - self._last",
        at("watch"),
    ),
    Mutation(
        "U1",
        "as if upstream renamed ServerRunnerConfig.workflows: the pace is dead, the job still runs",
        PACE,
        "for workflow in self._runner.config.workflows:",
        "for workflow in self._runner.config.flows:",
        at("pace"),
    ),
    Mutation(
        "U2",
        "as if upstream renamed ServerRunner.current_wf",
        PACE,
        "workflow = self._runner.current_wf",
        "workflow = self._runner.current_workflow",
        at("pace"),
    ),
]

PARTS = "code/fl/parts_by_hand.py"

THE_PARTS_AT_HOME = [
    Mutation(
        "H1",
        "a site forgets what stayed with it",
        PARTS,
        "received = folder.name, Parts(shared, own).at(folder.name)",
        "received = folder.name, shared",
        at("parts_at_home", "test_by_hand_it_is_what_the_papers_say"),
    ),
    Mutation(
        "H2",
        "what stays is sent too",
        PARTS,
        "for name in trained if name not in kept}",
        "for name in trained}",
        at("parts_at_home", "test_by_hand_it_is_what_the_papers_say"),
    ),
    Mutation(
        "H3",
        "who trains on by himself goes on sharing",
        PARTS,
        'for parts in ([keep_local, ["*"]] if tuned',
        "for parts in ([keep_local, []] if tuned",
        at("parts_at_home", "test_what_is_tuned_makes_as_many_steps_as_what_is_federated"),
    ),
    Mutation(
        "H4",
        "test images pass for validation images",
        PARTS,
        '(model, "valid", own.valid)',
        '(model, "valid", own.test)',
        at("parts_at_home", "test_every_model_meets_every_site_and_validation_stays_at_home"),
    ),
    Mutation(
        "H5",
        "a newcomer gets nothing of the federation",
        PARTS,
        "    load(net, given.shared)\n",
        "    load(net, to_numpy(kind(seed).state_dict()))\n",
        at("parts_at_home", "test_a_newcomer_is_looked_at_after_so_many_of_its_own_steps"),
    ),
    Mutation(
        "H6",
        "after a look the newcomer trains on with BatchNorm switched off",
        PARTS,
        "            net.train()  # which scoring has ended\n",
        "",
        at("parts_at_home", "test_a_newcomer_is_looked_at_after_so_many_of_its_own_steps"),
    ),
]

AGREE, ROWS, REHEARSE, OWN = (
    "tutorial_utils/agree.py",
    "tutorial_utils/site_rows.py",
    "tutorial_utils/rehearse.py",
    "code/own/script.py",
)

WHAT_SITES_AGREE_ON = [
    Mutation(
        "Y1",
        "sites that differ in their means are taken for alike",
        AGREE,
        "math.fsum(within + between)",
        "math.fsum(within)",
        at("agree", "test_merged_sums_are_the_pooled_scaler_s"),
    ),
    Mutation(
        "Y2",
        "a column of one value is divided by what rounding made of it",
        AGREE,
        "1.0 if _is_constant(variance, mean, count) else math.sqrt(variance)",
        "math.sqrt(variance) or 1.0",
        at("agree", "test_a_column_of_one_value_is_left_as_it_is"),
    ),
    Mutation("Y3", "FLARE's own rounding", AGREE, "DECIMALS = 300", "DECIMALS = 4", at("agree")),
    Mutation(
        "Y4",
        "a site with just enough rows says nothing",
        ROWS,
        "len(frame) < self.min_rows",
        "len(frame) <= self.min_rows",
        at("agree", "test_a_site_reads_its_own_folder"),
    ),
    Mutation(
        "Y5",
        "a rehearsal trains in the job's own learner",
        REHEARSE,
        "placed(copy.deepcopy(job.learner), site",
        "placed(job.learner, site",
        at("rehearse", "test_a_second_rehearsal_begins_anew"),
    ),
    Mutation(
        "Y6",
        "a rehearsal adds in the order of the list",
        REHEARSE,
        "for site in sorted(job.sites)",
        "for site in job.sites",
        at("rehearse", "test_with_state_batchnorm_and_unequal_weights_too"),
    ),
    Mutation(
        "Y7",
        "a batch of one row reaches BatchNorm",
        OWN,
        "drop_last=len(data) % batch_size == 1",
        "drop_last=False",
        at("own", "test_only_a_batch_of_one_row_is_left_out"),
    ),
]

DPSGD, ENCRYPT, CIPHERTEXTS = (f"tutorial_utils/{name}.py" for name in ("dpsgd", "encrypt", "ciphertexts"))
WHAT_LEAVES_A_SITE = [
    Mutation(
        "X1",
        "the gradients of DP-SGD are made, and the step is taken with the script's own",
        DPSGD,
        "before=lambda _: gradients.pre_step()",
        "before=lambda _: None",
        at("dpsgd", "test_no_image_moves_the_weights_by_more_than_the_clip"),
    ),
    Mutation(
        "X2",
        "noise that anyone with the seed can draw again",
        DPSGD,
        "    if secret:\n        generator.seed()",
        "    if False:\n        generator.seed()",
        at("dpsgd", "test_noise_of_the_machine_differs_from_run_to_run_and_of_the_seed_does_not"),
    ),
    Mutation(
        "X3",
        "each round's epsilon begins anew",
        DPSGD,
        "    if STATE in learner.state:",
        "    if STATE in ():",
        at("dpsgd", "test_epsilon_is_opacus_s_over_all_rounds"),
    ),
    Mutation(
        "X4",
        "a step is divided by Opacus's rounded size of a batch",
        DPSGD,
        "len(loader.dataset) / len(loader)  #",
        "len(loader.dataset) // len(loader) - 1  #",
        at("dpsgd", "test_without_noise_clip_and_sampling_it_is_the_script"),
    ),
    Mutation(
        "X5",
        "a site's own model goes to the server in plain",
        ENCRYPT,
        'for task, weigh in (("train", True), ("submit_model", False)):',
        'for task, weigh in (("train", True),):',
        at("encrypt", "test_filters_of_the_sites_act_before_the_encryption"),
    ),
    Mutation(
        "X6",
        "encrypted updates count alike, whatever their steps",
        ENCRYPT,
        '(("train", True)',
        '(("train", False)',
        at("encrypt", "test_filters_of_the_sites_act_before_the_encryption"),
    ),
    Mutation(
        "X7",
        "whole numbers come out of an encryption cut, not rounded",
        CIPHERTEXTS,
        "np.rint(array)",
        "np.floor(array)",
        at("encrypt", "test_the_encrypted_mean_is_the_plain_one_and_whole_numbers_stay_whole"),
    ),
]

PULSE, DEPLOY = "tutorial_utils/_deploy/pulse.py", "tutorial_utils/_deploy"
BACK = at("guard", "test_a_lost_site_that_answers_takes_part_from_the_next_round_on")
OWN_CODE = at("guard", "test_a_killed_process_of_a_site_is_no_failure_of_the_job_for_flare")

WHAT_A_FEDERATION_BEARS = [
    Mutation("O1", "a lost site never comes back", PULSE, "(site, 0) < lately", "(site, 0) < math.inf", BACK),
    Mutation("O2", "a lost site comes back though it is silent", PULSE, "(site, 0) < lately", "(site, 0) < 0", BACK),
    Mutation(
        "O3",
        "a round does not wait for a site that is back",
        PULSE,
        'self._runner.current_wf.controller.communicator.client_is_active(site, "it answers again", fl_ctx)',
        "pass",
        BACK,
    ),
    Mutation(
        "O4",
        "a server that stood still takes its sites for lost",
        PULSE,
        "{*answered, *up}",
        "answered",
        at("guard", "test_who_stood_still_itself_has_heard_nothing_and_says_nothing"),
    ),
    Mutation(
        "O5",
        "a site that is silent is never lost",
        PULSE,
        "self._heard |= dict.fromkeys(answered, now)",
        "self._heard |= dict.fromkeys(up, now)",
        at("guard", "test_a_site_that_is_silent_is_lost_and_a_slow_answer_counts"),
    ),
    Mutation(
        "O6",
        "a site whose process is gone is not noted before the round closes",
        PULSE,
        '        if site not in self._state["lost"]:\n            self._lose(site, len',
        '        if site in self._state["lost"]:\n            self._lose(site, len',
        at("guard", "test_a_site_whose_process_is_gone_is_lost_before_flare_goes_on"),
    ),
    Mutation(
        "O7",
        "a killed process of one site ends the job for all",
        PULSE,
        "JobReturnCode.UNKNOWN)",
        "JobReturnCode.EXECUTION_ERROR)",
        OWN_CODE,
    ),
    Mutation("O8", "how a site's job ended is never said", PULSE, ".unlink(missing_ok=True)", ".exists()", OWN_CODE),
    Mutation(
        "O9",
        "a site that is back owes the round before nothing that it owes",
        "tutorial_utils/_simulate/verdict.py",
        "(since or 0) <= number < back",
        "(since or 0) <= number <= back",
        at("verdict", "test_a_gap_is_no_lack_and_what_is_outside_of_it_is"),
    ),
    Mutation(
        "O10",
        "what we asked a job too early is why it failed",
        "tutorial_utils/_flare.py",
        "if ASKED_TOO_EARLY not in (",
        "if None is not (",
        at("deploy", "test_a_killed_process_of_the_server_is_named_and_what_we_asked_it_is_no_cause"),
    ),
    Mutation(
        "O11",
        "a job whose server was started again is waited for",
        f"{DEPLOY}/orphans.py",
        ".timestamp() < server_start",
        ".timestamp() < 0",
        at("deploy", "test_a_job_that_began_before_its_server_is_gone"),
    ),
    Mutation(
        "O12",
        "a server that has ended is waited for, and one that is silent is not",
        f"{DEPLOY}/waiting.py",
        "if self._server_ended():",
        "if not self._server_ended():",
        at("deploy", "test_a_silent_server_is_borne_for_a_while"),
    ),
    Mutation(
        "O13",
        "a kit names the port that another program has taken",
        f"{DEPLOY}/ports.py",
        'part.endswith(f":{before}")',
        'part.endswith(f"={before}")',
        at("deploy", "test_a_port_that_is_taken_by_the_start_is_left_and_every_kit_says_so"),
    ),
    Mutation(
        "O15",
        "a machine whose process stands still is taken for a server",
        f"{DEPLOY}/reach.py",
        "            context.wrap_socket(connection).close()\n",
        "",
        at("deploy", "test_a_machine_that_takes_connections_for_a_process_that_stands_still"),
    ),
    Mutation(
        "O16",
        "a site that is started again is not told of its job",
        f"{DEPLOY}/rejoin.py",
        "if client and len(others) < len(participants)",
        "if client and len(others) > len(participants)",
        at("deploy", "test_a_site_that_logs_in_again_gets_the_jobs_that_it_takes_part_in"),
    ),
    Mutation(
        "O17",
        "the job goes on with the old token of a site that was started again",
        f"{DEPLOY}/rejoin.py",
        "others | {client.token: client}",
        "participants",
        at("deploy", "test_a_site_that_logs_in_again_gets_the_jobs_that_it_takes_part_in"),
    ),
    Mutation(
        "O14",
        "a site's kit does not carry its interval",
        f"{DEPLOY}/heartbeat.py",
        'f"{SETTINGS} heart_beat_interval={self.interval:g}"',
        "SETTINGS",
        at("deploy", "test_a_heartbeat_stands_in_the_kits_where_flare_reads_it"),
    ),
]

MUTATIONS = [
    *THE_RUNNER,
    *THE_RESULTS,
    *THE_LEARNER,
    *THE_JOB,
    *THE_SCRIPT_AND_THE_DATA,
    *THE_AVERAGE,
    *THE_PARTS_AT_HOME,
]
MUTATIONS += WHAT_SITES_AGREE_ON
MUTATIONS += WHAT_LEAVES_A_SITE
MUTATIONS += WHAT_A_FEDERATION_BEARS
