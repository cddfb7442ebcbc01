"""Write down what arrives: at the server from each site, and at each site from the server.

A filter sees every message of a job just after it came in. This one changes nothing and takes notes.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.filter import Filter
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.app_constant import AppConstants

NOTES = "wiretap.jsonl"  # in the folder of the run at the server and at each site, one message a line
BYTES = 256  # of the largest array: by these it can be found again in a file


class Wiretap(Filter):
    """Notes of each message: the task, who sent it, whose model it is, and what kinds of data it
    holds."""

    def process(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        peer = fl_ctx.get_peer_context()
        note = {
            "task": fl_ctx.get_prop(FLContextKey.TASK_NAME),
            "from": peer.get_identity_name() if peer else None,
            "owner": shareable.get_header(AppConstants.MODEL_OWNER),
            "parts": [],
        }
        with suppress(ValueError):  # a request, or an answer without data
            note["parts"] = [describe(part) for part in parts_of(from_shareable(shareable))]
        with (Path(fl_ctx.get_prop(FLContextKey.APP_ROOT)).parent / NOTES).open("a") as file:
            file.write(json.dumps(note) + "\n")
        return shareable


def parts_of(dxo: DXO) -> list[DXO]:
    return list(dxo.data.values()) if dxo.data_kind == DataKind.COLLECTION else [dxo]


def describe(dxo: DXO) -> dict[str, Any]:
    """Its kind, its numbers, the plain entries beside them, and some bytes of its largest array."""
    arrays = {name: value for name, value in (dxo.data or {}).items() if isinstance(value, np.ndarray)}
    plain = {
        name: value for name, value in (dxo.data or {}).items() if isinstance(value, (int, float, str))
    }
    largest = max(arrays.values(), key=lambda array: array.nbytes, default=np.empty(0))
    return {
        "kind": dxo.data_kind,
        "numbers": int(sum(array.size for array in arrays.values())),
        "values": plain,
        "meta": {
            name: value for name, value in dxo.meta.items() if isinstance(value, (int, float, str, dict))
        },
        "bytes": largest.tobytes()[:BYTES].hex(),
    }
