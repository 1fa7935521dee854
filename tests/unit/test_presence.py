"""Subscriptions to users: who is told of whose coming and going."""

from __future__ import annotations

from collections.abc import Callable

from falcon_fast.presence import GRACE, MAX_WATCHED, Presence

HALL = frozenset({"group:hall"})
HERE = "process 1"
ELSEWHERE = "process 2"


class Watcher:
    def __init__(self, *rooms: str) -> None:
        self.rooms = set(rooms)
        self.told: list[tuple[str, str]] = []

    def is_in_any(self, rooms: frozenset[str]) -> bool:
        return not rooms.isdisjoint(self.rooms)

    def tell_presence(self, user_id: str, status: str) -> None:
        self.told.append((user_id, status))


class Timers:
    """``call_later``, to be run by hand."""

    class Timer:
        def __init__(self, seconds: float, callback: Callable[[], None]) -> None:
            self.seconds = seconds
            self.callback = callback
            self.cancelled = False

        def cancel(self) -> None:
            self.cancelled = True

    def __init__(self) -> None:
        self.started: list[Timers.Timer] = []

    def __call__(self, seconds: float, callback: Callable[[], None]) -> Timers.Timer:
        self.started.append(self.Timer(seconds, callback))
        return self.started[-1]

    def fire(self) -> int:
        """Run what was not cancelled; returns how many that were."""
        due = [timer for timer in self.started if not timer.cancelled]
        self.started.clear()
        for timer in due:
            assert timer.seconds == GRACE
            timer.callback()
        return len(due)


def presence() -> tuple[Presence[Watcher], Timers]:
    timers = Timers()
    return Presence(timers, watched=lambda users: None), timers


def test_who_watches_and_shares_a_room_is_told() -> None:
    watching, timers = presence()
    near, far, deaf = Watcher("group:hall"), Watcher("group:cellar"), Watcher("group:hall")
    assert watching.watch(near, ["ann"])
    assert watching.watch(far, ["ann"])
    assert watching.watch(deaf, ["bob"])
    watching.came("ann", HERE, HALL)
    watching.went("ann", HERE, HALL)
    assert near.told == [("ann", "online")]
    assert timers.fire() == 1
    assert near.told == [("ann", "online"), ("ann", "offline")]
    assert far.told == deaf.told == []


def test_the_room_counts_at_the_time_of_telling() -> None:
    watching, timers = presence()
    watcher = Watcher("group:hall")
    watching.watch(watcher, ["ann"])
    watching.went("ann", HERE, HALL)
    watcher.rooms.clear()
    assert timers.fire() == 1
    assert watcher.told == []


def test_a_reload_is_not_news() -> None:
    watching, timers = presence()
    watcher = Watcher("group:hall")
    watching.watch(watcher, ["ann"])
    watching.went("ann", HERE, HALL)
    watching.came("ann", HERE, HALL)
    assert timers.fire() == 0
    assert watcher.told == []


def test_gone_for_good_although_it_came_back_for_a_moment_before_its_rooms_were_known() -> None:
    watching, timers = presence()
    watcher = Watcher("group:hall")
    watching.watch(watcher, ["ann"])
    watching.went("ann", HERE, HALL)
    watching.went("ann", HERE, frozenset({"user:ann"}))
    assert timers.fire() == 1
    assert watcher.told == [("ann", "offline")]


def test_nobody_waits_for_a_user_nobody_watches() -> None:
    watching, timers = presence()
    watching.went("ann", HERE, HALL)
    assert timers.started == []


def test_a_subscription_taken_twice_is_told_once() -> None:
    watching, _ = presence()
    watcher = Watcher("group:hall")
    watching.watch(watcher, ["ann", "ann"])
    watching.watch(watcher, ["ann", "bob"])
    watching.came("ann", HERE, HALL)
    assert watcher.told == [("ann", "online")]


def test_the_limit_refuses_the_whole_request() -> None:
    watching, _ = presence()
    watcher = Watcher("group:hall")
    users = [f"u{i}" for i in range(MAX_WATCHED)]
    assert watching.watch(watcher, users)
    assert watching.watch(watcher, users[:5])
    assert not watching.watch(watcher, ["ann"])
    watching.came("ann", HERE, HALL)
    assert watcher.told == []
    watching.unwatch(watcher, ["u0"])
    assert watching.watch(watcher, ["ann"])


def test_unwatching_some_and_then_the_rest_leaves_nothing_behind() -> None:
    watching, _ = presence()
    one, other = Watcher("group:hall"), Watcher("group:hall")
    watching.watch(one, ["ann", "bob"])
    watching.watch(other, ["ann"])
    watching.unwatch(one, ["ann", "nobody"])
    watching.came("ann", HERE, HALL)
    assert (one.told, other.told) == ([], [("ann", "online")])
    watching.unwatch(one)
    watching.unwatch(other)
    watching.unwatch(other)
    watching.unwatch(one, ["bob"])
    assert watching._watchers == {}
    assert watching._watched == {}


def test_a_watcher_may_unwatch_while_it_is_told() -> None:
    watching, _ = presence()

    class Leaving(Watcher):
        def tell_presence(self, user_id: str, status: str) -> None:
            super().tell_presence(user_id, status)
            watching.unwatch(self)

    watchers = [Leaving("group:hall"), Leaving("group:hall")]
    for watcher in watchers:
        watching.watch(watcher, ["ann"])
    watching.came("ann", HERE, HALL)
    assert [watcher.told for watcher in watchers] == [[("ann", "online")]] * 2


def test_after_close_nobody_is_told() -> None:
    watching, timers = presence()
    watcher = Watcher("group:hall")
    watching.watch(watcher, ["ann"])
    watching.went("ann", HERE, HALL)
    watching.close()
    assert timers.fire() == 0
    assert watcher.told == []


def test_who_is_watched_anew_is_asked_for_once() -> None:
    asked: list[list[str]] = []
    watching: Presence[Watcher] = Presence(Timers(), watched=asked.append)
    one, other = Watcher("group:hall"), Watcher("group:hall")
    watching.watch(one, ["ann"])
    watching.watch(other, ["ann", "bob"])
    assert asked == [["ann"], ["bob"]]
    watching.unwatch(one)
    watching.unwatch(other)
    watching.watch(one, ["ann"])
    assert asked == [["ann"], ["bob"], ["ann"]]
    assert watching.watched == ["ann"]


def test_only_the_first_and_the_last_process_are_news() -> None:
    watching, timers = presence()
    watcher = Watcher("group:hall")
    watching.watch(watcher, ["ann"])
    watching.came("ann", HERE, HALL)
    watching.came("ann", ELSEWHERE, HALL)
    watching.went("ann", HERE, HALL)
    assert timers.fire() == 0
    watching.went("ann", ELSEWHERE, HALL)
    assert timers.fire() == 1
    assert watcher.told == [("ann", "online"), ("ann", "offline")]


def test_who_is_found_to_be_there_is_no_news_and_neither_is_a_second_place() -> None:
    watching, timers = presence()
    watcher = Watcher("group:hall")
    watching.watch(watcher, ["ann"])
    watching.found("ann", ELSEWHERE, HALL)
    watching.found("bob", ELSEWHERE, HALL)
    watching.came("ann", HERE, HALL)
    watching.went("ann", HERE, HALL)
    assert timers.fire() == 0
    assert watcher.told == []


def test_who_is_found_elsewhere_has_not_gone() -> None:
    watching, timers = presence()
    watcher = Watcher("group:hall")
    watching.watch(watcher, ["ann"])
    watching.went("ann", HERE, HALL)
    watching.found("ann", ELSEWHERE, HALL)
    assert timers.fire() == 0
    assert watcher.told == []


def test_who_is_found_to_be_gone_has_gone_unheard() -> None:
    watching, timers = presence()
    watcher = Watcher("group:hall")
    watching.watch(watcher, ["ann"])
    watching.found("ann", ELSEWHERE, None)
    watching.came("ann", ELSEWHERE, HALL)
    watching.found("ann", ELSEWHERE, None)
    assert timers.fire() == 1
    assert watcher.told == [("ann", "online"), ("ann", "offline")]


def test_p02_a_process_that_dies_takes_its_users_along_once() -> None:
    watching, timers = presence()
    watcher = Watcher("group:hall")
    watching.watch(watcher, ["ann", "bob"])
    watching.found("ann", ELSEWHERE, HALL)
    watching.found("bob", ELSEWHERE, HALL)
    watching.found("bob", HERE, HALL)
    watching.forget_process(ELSEWHERE)
    watching.forget_process(ELSEWHERE)
    assert timers.fire() == 1
    assert watcher.told == [("ann", "offline")]
    assert watching._places == {"bob": {HERE: HALL}}


def test_nothing_is_kept_of_users_nobody_watches() -> None:
    watching, timers = presence()
    watcher = Watcher("group:hall")
    watching.came("ann", HERE, HALL)
    watching.watch(watcher, ["ann"])
    watching.went("ann", HERE, HALL)
    watching.unwatch(watcher)
    watching.came("ann", ELSEWHERE, HALL)
    assert timers.fire() == 0
    assert [watching._places, watching._watchers, watching._leaving] == [{}, {}, {}]
