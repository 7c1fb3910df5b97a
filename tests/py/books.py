"""What must be true of messages, elements, entries and transactions, whatever was harmed.

Everything here has a number of its own. Who does something to it says so, before (it may
have happened from then on, or never) and after the reply (it has happened, once). What
cannot be is noted in `wrong` at once or by `verify`, which asks the server at the end:

- `Messages`: a subscriber gets a message at most once a subscription, one publisher's in
  their order, none from where it is not subscribed, and on one connection all of them;
- `Elements`: what was pushed is in one place, at the call that took it or in the server.
  It may be missing only where a call failed that may have taken it;
- `Entries`: of a stream, handed out once by a group, to the call that they are pending for;
- `Transactions`: all there or nothing of it, and once.
"""

from __future__ import annotations

import fnmatch
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from servers import Server

# Some keys' values a time: the server has one thread.
_SHARE = 2000
_READ = """
local found = {}
for i, key in ipairs(KEYS) do found[i] = redis.call(ARGV[1], key, unpack(ARGV, 2)) end
return found
"""


def values(server: Server, keys: Iterable[str], *command: object) -> Iterator[tuple[str, Any]]:
    """Each key with the reply of the command for it: `values(server, keys, "LRANGE", 0, -1)`."""
    wanted = list(keys)
    for at in range(0, len(wanted), _SHARE):
        share = wanted[at : at + _SHARE]
        yield from zip(share, server.cmd("EVAL", _READ, len(share), *share, *command), strict=True)


# ---- messages ---------------------------------------------------------------------------


class Publisher:
    """One who publishes one message after the other, numbered from 0."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.sent: list[str] = []  # where to
        self.answered: set[int] = set()

    def next(self, channel: str) -> tuple[int, str]:
        """The next message's number and its text."""
        self.sent.append(channel)
        return len(self.sent) - 1, f"{self.number}:{len(self.sent) - 1}:{channel}"


class Messages:
    """All publishers, and what any subscriber noticed."""

    def __init__(self) -> None:
        self.publishers: list[Publisher] = []
        self.wrong: list[str] = []
        self.received = 0
        self.streaks: list[Streak] = []

    def publisher(self) -> Publisher:
        """A new one."""
        made = Publisher(len(self.publishers))
        self.publishers.append(made)
        return made

    def verify(self) -> list[str]:
        """Nothing is left out between two messages that came over one connection.

        The first of them must have been answered: others may be executed late, after the
        next.
        """
        for subscriber, key, publisher, numbers in self.streaks:
            first = min((n for n in numbers if n in publisher.answered), default=max(numbers))
            self.wrong += [
                f"{publisher.number}:{n} never came by {key}"
                for n in range(first, max(numbers))
                if n in publisher.answered
                and fnmatch.fnmatchcase(publisher.sent[n], key[1])
                and (key, publisher.number, n) not in subscriber.seen
            ]
        return self.wrong


class Subscriber:
    """What one PubSub gets.

    A channel that was left is not subscribed to again: what comes late from before could
    not be told from what comes after.
    """

    def __init__(self, messages: Messages, connection: Callable[[], object]) -> None:
        """`connection` gives what is another object after each new connection."""
        self.messages = messages
        self.connection = connection
        self.here: object = None
        self.joined: set[tuple[str, str]] = set()  # (type of its messages, channel or pattern)
        self.tried: set[tuple[str, str]] = set()
        self.leaving: set[tuple[str, str]] = set()
        self.seen: set[tuple[tuple[str, str], int, int]] = set()
        self.highest: dict[int, int] = {}
        self.streaks: dict[tuple[tuple[str, str], str], Streak] = {}

    def joins(self, kind: str, name: str) -> None:
        """It is about to subscribe."""
        assert (kind, name) not in self.tried
        self.tried.add((kind, name))
        self.joined.add((kind, name))

    def leaves(self, kind: str, name: str) -> None:
        """It is about to unsubscribe; over when that is confirmed."""
        self.leaving.add((kind, name))

    def take(self, message: dict[str, Any]) -> None:
        """Any message of get_message(), listen(), or to a handler."""
        kind = message["type"]
        channel = message["channel"].decode()
        pattern = message["pattern"].decode() if message["pattern"] is not None else channel
        if not kind.endswith("message"):
            left = (kind.replace("unsubscribe", "message"), channel)
            if left in self.leaving:
                self.joined.discard(left)
            return
        self._published((kind, pattern), channel, message["data"].decode())

    def _published(self, key: tuple[str, str], channel: str, text: str) -> None:
        wrong, messages = self.messages.wrong, self.messages
        messages.received += 1
        number, index, whereto = text.split(":", 2)
        publisher, n = messages.publishers[int(number)], int(index)
        if publisher.sent[n] != whereto or whereto != channel:
            wrong.append(f"{text} came from {channel}")
        if key not in self.joined or not fnmatch.fnmatchcase(channel, key[1]):
            wrong.append(f"{text} came to who is not subscribed: {key}")
        if (key, publisher.number, n) in self.seen:
            wrong.append(f"{text} came twice by {key}")
        self.seen.add((key, publisher.number, n))
        # One that was not answered may be executed late, after the next.
        if n < self.highest.get(publisher.number, -1) and n in publisher.answered:
            wrong.append(f"{text} came after {self.highest[publisher.number]}")
        self.highest[publisher.number] = max(n, self.highest.get(publisher.number, -1))
        if self.connection() is not self.here:
            self.here = self.connection()
            self.streaks = {}
        streak = self.streaks.get((key, number))
        if streak is None:
            streak = self.streaks[key, number] = (self, key, publisher, [])
            messages.streaks.append(streak)
        streak[3].append(n)


# Of one subscription, what it got from one publisher over one connection.
Streak = tuple[Subscriber, tuple[str, str], Publisher, list[int]]


# ---- elements ---------------------------------------------------------------------------


class Elements:
    """Elements of lists and sorted sets; each is called after its key and has a number."""

    def __init__(self) -> None:
        self.pushed: dict[str, bool] = {}  # whether that was answered
        self.taken: dict[str, list[int]] = defaultdict(list)  # by which calls
        self.failed: list[tuple[int, tuple[str, ...], int]] = []
        self.moves: dict[int, str | None] = {}
        self.wrong: list[str] = []
        self.lost = 0

    def pushing(self, key: str, number: int) -> str:
        """The element, which is about to be pushed."""
        element = f"{key}/{number}"
        self.pushed[element] = False
        return element

    def took(self, call: int, keys: Iterable[str], key: str, elements: Iterable[str]) -> None:
        """A call's reply."""
        for element in elements:
            if key not in keys or element.rpartition("/")[0] != key:
                self.wrong.append(f"{call} asked for {keys} and got {element} of {key}")
            if element not in self.pushed:
                self.wrong.append(f"{call} got {element}, which nobody pushed")
            self.taken[element].append(call)

    def may_have_taken(self, call: int, keys: Iterable[str], count: int = 1) -> None:
        """A call of which nobody knows the end."""
        self.failed.append((call, tuple(keys), count))

    def moving(self, call: int) -> str:
        """A list of a call's own, to which it is about to move an element."""
        self.moves[call] = "?"
        return f"mine:{call}"

    def moved(self, call: int, element: str | None) -> None:
        """Its reply."""
        self.moves[call] = element

    def verify(self, server: Server) -> list[str]:
        wrong = self.wrong
        keys = {element.rpartition("/")[0] for element in self.pushed}
        places: Counter[str] = Counter()
        heaps = {key for key in keys if key.startswith("heap")}
        for key, found in values(server, sorted(keys - heaps), "LRANGE", 0, -1):
            places.update(found)
            wrong += [f"{each} is in {key}" for each in found if each.rpartition("/")[0] != key]
        for key, found in values(server, sorted(heaps), "ZRANGE", 0, -1):
            places.update(found)
            wrong += [f"{each} is in {key}" for each in found if each.rpartition("/")[0] != key]
        mine = [f"mine:{call}" for call in self.moves]
        for (_, found), (call, said) in zip(
            values(server, mine, "LRANGE", 0, -1), self.moves.items(), strict=True
        ):
            places.update(found)
            if len(found) > 1 or (said != "?" and found != ([] if said is None else [said])):
                wrong.append(f"{call} was told {said}, and moved {found}")
        for element, calls in self.taken.items():
            places[element] += len(calls)
        wrong += [f"{each}, which nobody pushed" for each in places if each not in self.pushed]
        wrong += [
            f"{each} is in {count} places, {self.taken.get(each)} took it"
            for each, count in places.items()
            if count > 1
        ]
        self._missing(places)
        return wrong

    def _missing(self, places: Counter[str]) -> None:
        """As many as calls failed that may have taken them, from those very keys."""
        missing = Counter(
            element.rpartition("/")[0]
            for element, answered in self.pushed.items()
            if answered and not places[element]
        )
        room: Counter[str] = Counter()
        for _, keys, count in self.failed:
            for key in keys:
                room[key] += count
        self.lost = missing.total() if hasattr(missing, "total") else sum(missing.values())
        for key, count in missing.items():
            if count > room[key]:
                self.wrong.append(f"{count} of {key} are missing, {room[key]} may be")
        if self.lost > sum(count for _, _, count in self.failed):
            self.wrong.append(f"{self.lost} are missing, of {len(self.failed)} failed calls")


# ---- entries of streams -----------------------------------------------------------------


class Entries:
    """A stream and its group, in which each call is a consumer of its own."""

    group = "readers"

    def __init__(self, key: str, server: Server) -> None:
        self.key = key
        self.added: dict[int, str | None] = {}  # number -> its id, once that is known
        self.seen: dict[str, list[tuple[int, int]]] = defaultdict(list)  # id -> (call, number)
        self.failed: set[int] = set()
        self.acked: dict[str, bool] = {}  # whether that was answered
        self.wrong: list[str] = []
        server.cmd("XGROUP", "CREATE", key, self.group, "0", "MKSTREAM")

    def took(self, call: int, found: Any) -> list[str]:
        """A reply of XREADGROUP, in any protocol's form; the ids in it."""
        streams = found.items() if isinstance(found, dict) else found or []
        ids = []
        for name, entries in streams:
            if name.decode() != self.key:
                self.wrong.append(f"{call} asked for {self.key} and got {name}")
            for identity, fields in entries[0] if isinstance(found, dict) else entries:
                ids.append(identity.decode())
                self.seen[ids[-1]].append((call, int(fields[b"n"])))
        return ids

    def verify(self, server: Server) -> list[str]:
        wrong = self.wrong
        numbers: dict[str, int] = {}
        for identity, fields in server.cmd("XRANGE", self.key, "-", "+"):
            numbers[identity] = int(fields[1])
        wrong += [
            f"entry {n} was added {count} times"
            for n, count in Counter(numbers.values()).items()
            if count > 1 or n not in self.added
        ]
        wrong += [
            f"entry {n} is not at {identity}"
            for n, identity in self.added.items()
            if identity is not None and numbers.get(identity) != n
        ]
        pending = {
            row[0]: int(row[1])
            for row in server.cmd("XPENDING", self.key, self.group, "-", "+", len(numbers) + 1)
        }
        ((_, group),) = [
            (row[1], dict(zip(row[::2], row[1::2], strict=True)))
            for row in server.cmd("XINFO", "GROUPS", self.key)
        ]
        last = self._moment(group["last-delivered-id"])
        for identity, number in numbers.items():
            seen = self.seen.get(identity, [])
            if len(seen) > 1 or any(n != number for _, n in seen):
                wrong.append(f"entry {number} was seen as {seen}")
            if self._moment(identity) > last:
                if seen:
                    wrong.append(f"entry {number} was seen by {seen} and never handed out")
                continue
            self._handed_out(identity, seen, pending.get(identity))
        wrong += [f"{self.seen[each]} saw {each}" for each in self.seen if each not in numbers]
        return wrong

    def _handed_out(self, identity: str, seen: list[tuple[int, int]], consumer: int | None) -> None:
        if consumer is None:
            if identity not in self.acked:
                self.wrong.append(f"{identity} is gone, and nobody confirmed it: {seen}")
        elif self.acked.get(identity):
            self.wrong.append(f"{identity} is pending for {consumer} and was confirmed")
        elif seen and seen[0][0] != consumer:
            self.wrong.append(f"{identity} is pending for {consumer} and came to {seen}")
        elif not seen and consumer not in self.failed:
            self.wrong.append(f"{identity} is pending for {consumer}, which never got it")

    @staticmethod
    def _moment(identity: str) -> tuple[int, ...]:
        return tuple(map(int, identity.split("-")))


# ---- transactions -----------------------------------------------------------------------


class Transactions:
    """Those of one number, and counters that some watch."""

    def __init__(self) -> None:
        self.made: dict[int, tuple[int, bool]] = {}  # number -> (its size, answered)
        self.counted: dict[str, dict[int, str]] = defaultdict(dict)  # counter -> call -> end
        self.wrong: list[str] = []

    def making(self, number: int, size: int) -> tuple[str, str]:
        """The list that it fills with so many, and the key that it sets to its number."""
        self.made[number] = (size, False)
        return f"t:{number}", f"v:{number}"

    def done(self, number: int) -> None:
        """It was answered."""
        self.made[number] = (self.made[number][0], True)

    def verify(self, server: Server) -> list[str]:
        lists = values(server, (f"t:{n}" for n in self.made), "LRANGE", 0, -1)
        marks = values(server, (f"v:{n}" for n in self.made), "GET")
        for (n, (size, answered)), (_, found), (_, mark) in zip(
            self.made.items(), lists, marks, strict=True
        ):
            whole = found == [str(i) for i in range(size)] and mark == str(n)
            if not whole and (answered or found or mark is not None):
                self.wrong.append(f"transaction {n}: {len(found)} of {size} and {mark}")
        for counter, calls in self.counted.items():
            value = int(server.cmd("GET", counter) or 0)
            log = [int(each) for each in server.cmd("LRANGE", f"{counter}:log", 0, -1)]
            if len(log) != value or len(set(log)) != value:
                self.wrong.append(f"{counter} is {value} and has {len(log)}, {len(set(log))} of it")
            for call in log:
                if calls.get(call, "refused") == "refused":
                    self.wrong.append(f"{counter}: {call} was refused, and counted")
            counted = set(log)
            for call, end in calls.items():
                if end == "done" and call not in counted:
                    self.wrong.append(f"{counter}: {call} was told that it counted")
        return self.wrong


class Books:
    """All of it, over one server that is empty at first."""

    def __init__(self, server: Server) -> None:
        self.messages = Messages()
        self.elements = Elements()
        self.entries = [Entries(f"stream:{i}", server) for i in range(2)]
        self.transactions = Transactions()

    def verify(self, server: Server) -> list[str]:
        """What is wrong, once nobody is connected any more."""
        wrong = self.messages.verify() + self.elements.verify(server)
        for entries in self.entries:
            wrong += entries.verify(server)
        wrong += self.transactions.verify(server)
        # Counted up by the number in their name, and once, whoever was told.
        for key, value in values(server, server.cmd("KEYS", "[ci]:*"), "GET"):
            if re.split("[:.]", key)[1] != value:
                wrong.append(f"{key} is {value}")
        return wrong
