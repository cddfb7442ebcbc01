"""The exercise of notebook 10: the two participants that a third hospital adds to the project file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from checks.reply import Reply, exercise, not_yet, right

SITE, RESEARCHER, ORG = "site-3", "researcher@hospital-c.org", "hospital_c"


@exercise(
    "fill in the two participants, and put the list of them in answer.",
    "It is a list of dicts, one a participant, with the keys of the project file.",
)
def newcomers(answer: Sequence[Mapping[str, str]]) -> Reply:
    if not (isinstance(answer, list | tuple) and all(isinstance(one, Mapping) for one in answer)):
        return not_yet("answer must be a list of dicts, one a participant, with the keys of the project file.")
    found = {str(one.get("name")): one for one in answer}
    if lack := {SITE, RESEARCHER} - set(found):
        return not_yet(f"{' and '.join(sorted(lack))} must get a kit: give each participant its name.")
    if len(answer) > 2:
        return not_yet("Only the two newcomers: the others keep their kits, and the server's is not made again.")
    site, researcher = found[SITE], found[RESEARCHER]
    if site.get("type") != "client":
        return not_yet(f"FLARE's word for the type of a site is client, and {SITE} has {site.get('type')!r}.")
    if researcher.get("type") != "admin":
        return not_yet("Whoever logs in at the server is of the type admin; what the person may do, the role says.")
    for one in answer:
        if not re.fullmatch(r"\w+", str(one.get("org", ""))):
            return not_yet(f"nvflare provision takes letters, digits and _ in an org, and not {one.get('org')!r}.")
    if {site["org"], researcher["org"]} != {ORG}:
        return not_yet(f"Both belong to {ORG}: a site's rules can ask whether a job comes from its own org.")
    if "role" in site:
        return not_yet("A site has no role: it does not log in as an admin does. Leave the role out there.")
    return _role(researcher.get("role"))


def _role(role: object) -> Reply:
    if role == "lead":
        return right("A kit each: site-3's for the hospital's machine, the researcher's for their own.")
    if role == "project_admin":
        return not_yet("A project_admin may do everything, at every site: more than was asked. Read the table again.")
    if role in ("org_admin", "member"):
        return not_yet(f"May a {role} submit a job? Look at the row submit_job of the table.")
    return not_yet(f"There is no role {role!r}: choose a column of the table above.")
