"""Servers that know the conditions of a write only in part: a proxy in front of one that knows them all."""

from typing import Literal

from tests.servers.proxy import Action, Proxy

Knowledge = Literal["known", "bare", "bare_unread", "refused", "ignored", "501"]
"""What a server does with a condition: `bare`: it knows an etag without quotes alone, as Ceph's radosgw 16;
`bare_unread`: it refuses one with quotes and does not read one without; `refused`: it is never met."""

NOWHERE = '"nowhere"'
"""An etag that nothing has."""


class ConditionProxy(Proxy):
    """`if_match`, `if_none_match`: what the server behind it seems to do with them."""

    def __init__(self, target: str, if_match: Knowledge = "known", if_none_match: Knowledge = "known") -> None:
        self.knowledge = {"If-Match": if_match, "If-None-Match": if_none_match}
        self.etags: list[str] = []
        """What writes named in If-Match, as they came."""
        super().__init__(target)

    def answer_to_condition(self, headers: dict[str, str]) -> Action | None:
        if "If-Match" in headers:
            self.etags.append(headers["If-Match"])
        for name in self.knowledge.keys() & headers.keys():
            knowledge, quoted = self.knowledge[name], headers[name].startswith('"')
            if knowledge == "501":
                return "501"
            if knowledge == "refused" or (knowledge in ("bare", "bare_unread") and quoted):
                headers["If-Match"] = NOWHERE
            elif knowledge in ("ignored", "bare_unread"):
                del headers[name]
        return None
