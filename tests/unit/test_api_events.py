"""What reaches a slow connection."""

import asyncio

from api.events.feed import event
from api.events.listener import Listener


def make(last_id="", previews=True):
    return Listener(last_id=last_id, wants_previews=previews, until_s=0)


def drain(listener):
    async def run():
        listener.close()
        return [found.raw_data async for found in listener.events()]

    return asyncio.run(run())


def test_a_listener_gets_a_snapshot_or_what_it_may_lack():
    snapshot, estimates = event("snapshot", "whole", state="1"), event("change", "estimates", state="1")
    for last_id, expected in (("", ["whole"]), ("0", ["whole"]), ("1", ["estimates"])):
        listener = make(last_id)
        listener.begin(snapshot, estimates)

        assert drain(listener) == expected


def test_a_listener_that_is_far_behind_gets_a_snapshot_instead_of_what_it_missed():
    listener = make("1")
    listener.begin(event("snapshot", "first", state="1"), None)
    for number in range(100):
        listener.send(event("change", str(number), state="2"))
        if listener.needs_snapshot:
            break

    # The caller's first id is no longer what it has.
    listener.begin(event("snapshot", "whole", state="1"), None)

    assert drain(listener) == ["whole"]


def test_the_last_picture_of_each_image_follows_the_changes():
    listener = make()
    listener.begin(event("snapshot", "whole", state="1"), None)
    for item, picture in (("a:0", "old"), ("a:1", "other"), ("a:0", "new")):
        listener.send_preview(item, event("preview", picture))
    listener.send(event("change", "change", state="2"))

    assert drain(listener) == ["whole", "change", "new", "other"]


def test_no_picture_reaches_who_wants_none_or_has_no_state_yet():
    blind, new = make(previews=False), make()
    blind.begin(event("snapshot", "whole", state="1"), None)
    for listener in (blind, new):
        listener.send_preview("a:0", event("preview", "picture"))

    assert (drain(blind), drain(new)) == (["whole"], [])
