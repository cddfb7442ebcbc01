"""Is a server there, and how to leave it: neither waits without end."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nvflare.fuel.flare_api.flare_api import Session

from tutorial_utils import _flare

ANSWER_SECONDS = 3.0
LEAVE_SECONDS, LEAVE_AGAIN_SECONDS = 5.0, 1.0


def answers(settings: Mapping[str, Any], startup: Path, limit: float = ANSWER_SECONDS) -> bool:
    """Does a server's process answer at its address within `limit` seconds?

    The machine of a process that stands still takes a connection for it: only the handshake tells.

    Args:
        settings: "admin" of an admin's startup/fed_admin.json.
        startup: that folder, which holds the admin's certificate.
    """
    try:
        with socket.create_connection((settings["host"], settings["port"]), timeout=limit) as connection:
            if settings.get("connection_security") == "clear":
                return True
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # who it is FLARE finds out at the login
            context.load_cert_chain(startup / settings["client_cert"], startup / settings["client_key"])
            context.wrap_socket(connection).close()
    except ssl.SSLError:  # it is there, and not content
        return True
    except OSError:
        return False
    return True


def leave(session: Session) -> None:
    """Close a session, within LEAVE_SECONDS.

    FLARE 2.9.0 waits for ever where the connection comes about only after it was closed, as with a server that stood
    still meanwhile: it is closed then too, in the background.
    """
    leaving = threading.Thread(target=_close_until_closed, args=(session,), name="leave", daemon=True)
    leaving.start()
    leaving.join(LEAVE_SECONDS)


def _close_until_closed(session: Session) -> None:
    closing = threading.Thread(target=_close, args=(session,), name="close", daemon=True)
    closing.start()
    closing.join(LEAVE_SECONDS)
    while closing.is_alive():
        _flare.cut_connections(session)
        closing.join(LEAVE_AGAIN_SECONDS)


def _close(session: Session) -> None:
    try:
        session.close()
    except Exception:  # the server may be gone, or the session half open: FLARE has a dozen kinds without a parent
        _flare.cut_connections(session)
