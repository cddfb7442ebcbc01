"""A site that was killed and started again gets its running jobs started again.

FLARE 2.9.0 takes such a site for alive, gives it a new token, and waits for ever for what the process of the job that
died was doing. So this part of the server's own kit starts the job there again, as FLARE starts it the first time; its
folder, with what the learner has kept, is still at the site. FLARE then sends the open task once more. The job's
process at the server takes over the new token (pulse.py).

This file goes into local/custom of the server's kit, and is named in its local/resources.json: it needs nvflare alone.
The names of FLARE's engine and of its tables are those of 2.9.0.
"""

from __future__ import annotations

import threading
import time

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import RunProcessKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_scheduler_spec import DispatchInfo
from nvflare.apis.server_engine_spec import ServerEngineSpec

TRY_SECONDS, TRY_AGAIN_SECONDS = 60.0, 1.0  # a site that has just logged in does not answer at once


class Rejoin(FLComponent):
    """At the server: looks, whenever a site logs in, for running jobs in which it takes part under an older token."""

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        peer = fl_ctx.get_peer_context()
        if event_type == EventType.CLIENT_REGISTER_PROCESSED and peer:
            engine, site = fl_ctx.get_engine(), peer.get_identity_name()
            threading.Thread(target=self._look, args=(engine, site), name="rejoin", daemon=True).start()

    def _look(self, engine: ServerEngineSpec, site: str) -> None:
        for job_id, process in list(engine.run_processes.items()):
            client, participants = engine.get_client_from_name(site), process.get(RunProcessKey.PARTICIPANTS) or {}
            others = {token: one for token, one in participants.items() if one.name != site}
            if client and len(others) < len(participants) and client.token not in participants:
                process[RunProcessKey.PARTICIPANTS] = others | {client.token: client}
                self._start(engine, job_id, site)

    def _start(self, engine: ServerEngineSpec, job_id: str, site: str) -> None:
        deadline, said = time.monotonic() + TRY_SECONDS, "it does not answer"
        while time.monotonic() < deadline and (job := engine.job_runner.running_jobs.get(job_id)):
            with engine.new_context() as fl_ctx:
                needs = {site: (job.meta.get("resource_spec") or {}).get(site, {})}
                enough, token = engine.check_client_resources(job, needs, fl_ctx).get(site, (False, said))
                if enough:
                    engine.start_client_job(job, {site: DispatchInfo("app", needs[site], token)}, fl_ctx)
                    self.log_info(fl_ctx, f"{site} was started again, and so is its process of the job {job_id}")
                    return
            said = token or said
            time.sleep(TRY_AGAIN_SECONDS)
        with engine.new_context() as fl_ctx:
            self.log_warning(fl_ctx, f"{site} was started again, and its process of the job {job_id} cannot be: {said}")
