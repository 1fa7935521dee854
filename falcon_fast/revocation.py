"""Revoked tokens: rules that take tokens back before they expire, asked for each token, in memory.

A rule is about one token (its ``jti``), all tokens of a user issued before a time, or all tokens
issued before a time. It is kept until the tokens it is about have expired, and no longer. Taking a
rule back does not delete it: a withdrawn rule stays where the rules are, so that who has missed the
withdrawal cannot bring the rule back.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

import orjson

from falcon_fast.identity import Identity

__all__ = ["GRACE", "Kind", "Revocation", "Revocations", "is_token_id", "is_user_id"]

Kind = Literal["token", "user", "all"]

GRACE: Final = 20
"""Seconds beyond `expires_at` for which a rule is kept: twice the most that clocks may differ."""

MAX_UNIX_TIME: Final = 253_402_300_799
"""The last second of the year 9999, as for tokens."""

_ID: Final = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
_USER_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_TOKEN_ID: Final = re.compile("[^\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]{1,128}")


def is_token_id(text: str) -> bool:
    """Tell whether a token may have this ``jti``: 1 to 128 printable characters."""
    return _TOKEN_ID.fullmatch(text) is not None


def is_user_id(text: str) -> bool:
    """Tell whether a token may have this ``user_id``."""
    return _USER_ID.fullmatch(text) is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Revocation:
    """One rule; times are seconds since 1970 UTC, as in tokens.

    Attributes:
        id: What the rule is called: 1 to 128 characters of ``[A-Za-z0-9_.:-]``.
        kind: What it is about.
        target: The ``jti``, or the user's id; empty for all tokens.
        issued_before: Tokens with an ``iat`` before this are revoked, and those without one; 0 for
            a rule about one token.
        expires_at: When the last of the tokens has expired.
        created_at: When the rule was made.
        withdrawn: Whether it was taken back.
    """

    id: str
    kind: Kind
    target: str
    issued_before: int
    expires_at: int
    created_at: int
    withdrawn: bool = False

    def to_json(self) -> bytes:
        """Write the rule, but for its id, as stores keep it."""
        document: dict[str, object] = {"all": True}
        if self.kind == "token":
            document = {"token_id": self.target}
        elif self.kind == "user":
            document = {"user_id": self.target}
        if self.kind != "token":
            document["issued_before"] = self.issued_before
        document |= {"expires_at": self.expires_at, "created_at": self.created_at}
        if self.withdrawn:
            document["withdrawn"] = True
        return orjson.dumps(document)

    @classmethod
    def read(cls, ident: str, document: bytes) -> Revocation | str:
        """Read a rule as `from_json` does; return what is wrong with it if it is none."""
        try:
            return cls.from_json(ident, document)
        except ValueError as error:
            return str(error)

    @classmethod
    def from_json(cls, ident: str, document: bytes) -> Revocation:
        """Read a rule, which another program may have written.

        Args:
            ident: Its id.
            document: As `to_json` writes it; ``created_at`` may be absent, other members are
                passed over.

        Raises:
            ValueError: It is no rule; says what is wrong, and holds nothing of the document.
        """
        if _ID.fullmatch(ident) is None:
            raise ValueError("its id is malformed")
        members = _object(document)
        if members is None:
            raise ValueError("it is not a JSON object")
        named = [name for name in ("token_id", "user_id", "all") if name in members]
        if len(named) != 1:
            raise ValueError("it must have one of token_id, user_id and all")
        issued_before = _time(members, "issued_before", missing=0)
        target = members[named[0]]
        kind: Kind
        if named == ["all"]:
            kind, target = "all", "" if target is True else None
        elif named == ["user_id"]:
            kind, target = "user", target if _fits(target, _USER_ID) else None
        else:
            kind, target = "token", target if _fits(target, _TOKEN_ID) else None
        if not isinstance(target, str):
            raise ValueError(f"its {named[0]} is malformed")  # noqa: TRY004
        if kind != "token" and not issued_before:
            raise ValueError("it must have issued_before")
        return cls(
            id=ident,
            kind=kind,
            target=target,
            issued_before=0 if kind == "token" else issued_before,
            expires_at=_time(members, "expires_at"),
            created_at=_time(members, "created_at", missing=0),
            withdrawn=members.get("withdrawn") is True,
        )


def _object(document: bytes) -> dict[str, object] | None:
    try:
        members = orjson.loads(document)
    except orjson.JSONDecodeError:
        return None
    return members if isinstance(members, dict) else None


def _fits(value: object, pattern: re.Pattern[str]) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def _time(members: dict[str, object], name: str, *, missing: int | None = None) -> int:
    value = members.get(name, missing)
    if type(value) is not int or not 0 <= value <= MAX_UNIX_TIME:
        raise ValueError(f"its {name} is not an integer of seconds")
    return value


class Revocations:
    """The rules that are known here.

    Asking costs the same whatever their number; a rule takes some 500 bytes.
    """

    __slots__ = (
        "_all",
        "_all_before",
        "_rules",
        "_tokens",
        "_user_rules",
        "_users",
        "any",
        "is_complete",
    )

    def __init__(self) -> None:
        #: Whether the rules made before the start are known; only the revoker says otherwise.
        self.is_complete = True
        #: Whether there is any rule in force; looked at before `covers` is called.
        self.any = False
        self._rules: dict[str, Revocation] = {}
        # What is in force: how many rules name a token; from when on a user's tokens are good.
        self._tokens: dict[str, int] = {}
        self._users: dict[str, int] = {}
        self._user_rules: dict[str, dict[str, int]] = {}
        self._all: dict[str, int] = {}
        self._all_before = 0

    def __len__(self) -> int:
        return len(self._rules)

    def __iter__(self) -> Iterator[Revocation]:
        """Go through all rules, withdrawn ones included, those known longest first."""
        return iter(self._rules.values())

    def get(self, ident: str) -> Revocation | None:
        """Return a rule by its id, also a withdrawn one."""
        return self._rules.get(ident)

    def covers(self, identity: Identity) -> bool:
        """Tell whether the token of an identity is revoked."""
        issued_at = identity.issued_at
        return (
            issued_at < self._all_before
            or issued_at < self._users.get(identity.user_id, 0)
            or identity.token_id in self._tokens
        )

    def put(self, rule: Revocation) -> bool:
        """Take a rule, in place of one of the same id; a withdrawn one stays withdrawn.

        Returns:
            Whether more tokens may be revoked now than before.
        """
        before = self._rules.get(rule.id)
        if before == rule or (before is not None and before.withdrawn and not rule.withdrawn):
            return False
        if before is not None and not before.withdrawn:
            self._lift(before)
        self._rules[rule.id] = rule
        if not rule.withdrawn:
            self._enforce(rule)
        self.any = bool(self._tokens or self._users or self._all)
        return not rule.withdrawn

    def purge(self, now: float) -> list[str]:
        """Forget rules whose tokens have all expired, and return their ids."""
        gone = [rule.id for rule in self._rules.values() if is_over(rule, now)]
        for ident in gone:
            rule = self._rules.pop(ident)
            if not rule.withdrawn:
                self._lift(rule)
        if gone:
            self.any = bool(self._tokens or self._users or self._all)
        return gone

    def _enforce(self, rule: Revocation) -> None:
        if rule.kind == "token":
            self._tokens[rule.target] = self._tokens.get(rule.target, 0) + 1
        elif rule.kind == "user":
            rules = self._user_rules.setdefault(rule.target, {})
            rules[rule.id] = rule.issued_before
            self._users[rule.target] = max(rules.values())
        else:
            self._all[rule.id] = rule.issued_before
            self._all_before = max(self._all.values())

    def _lift(self, rule: Revocation) -> None:
        if rule.kind == "token":
            self._tokens[rule.target] -= 1
            if not self._tokens[rule.target]:
                del self._tokens[rule.target]
        elif rule.kind == "user":
            rules = self._user_rules[rule.target]
            del rules[rule.id]
            if rules:
                self._users[rule.target] = max(rules.values())
            else:
                del self._user_rules[rule.target], self._users[rule.target]
        else:
            del self._all[rule.id]
            self._all_before = max(self._all.values(), default=0)


def is_over(rule: Revocation, now: float) -> bool:
    """Tell whether all tokens that a rule is about have expired, on any clock."""
    return rule.expires_at + GRACE <= now
