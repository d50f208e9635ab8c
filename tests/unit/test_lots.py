"""Requests counted by the lot: the page says the same as if each had been counted alone."""

from __future__ import annotations

import random

from snapd import counters
from snapd.nbd.lots import Lot, Lots
from tests.support.nbd_peer import Peer, request, write
from tests.unit.test_nbd_transmission import READ_C

READ, WRITE = counters.IO["origin", "read"], counters.IO["origin", "write"]


def test_every_request_is_in_the_page_once_with_its_length_and_time() -> None:
    """Any mixture of operations and lengths, answered in any order over many turns: as one by one."""
    rng = random.Random(5)
    page, alone = (memoryview(bytearray(counters.PAGE_BYTES)).cast("Q") for _ in range(2))
    lots, waiting = Lots(page), []
    for now in range(1000, 200_000, 1000):
        for _ in range(rng.randrange(3)):
            lot = Lot(rng.choice((READ, WRITE)), 512 << rng.randrange(4), now)
            lot.left = rng.randrange(1, 5)
            lots.order.append(lot)
            waiting += [lot] * lot.left
        rng.shuffle(waiting)
        for _ in range(rng.randrange(len(waiting) // 2 + 1)):
            lot = waiting.pop()
            if not lot.answered:
                lots.fresh.append(lot)
            lot.answered += 1
            counters.note(alone, lot.row, lot.length, now - lot.started)
        lots.settle(now)
        assert lots.oldest() == min((lot.started for lot in waiting), default=0)
    assert page == alone and page[READ] > 50 and page[WRITE] > 50


def test_requests_that_came_together_are_one_lot_until_their_length_or_operation_changes() -> None:
    """Two reads, one longer, a write, a read: four lots, and each row has what belongs to it."""
    peer = Peer()
    peer.volume.hold = True
    peer.say(
        request(READ_C, 0, 512, 1)
        + request(READ_C, 512, 512, 2)
        + request(READ_C, 0, 1024, 3)
        + write(0, b"x" * 512, 4)
        + request(READ_C, 0, 512, 5)
    )
    assert [(lot.length, lot.left) for lot in peer.desk.lots.order] == [(512, 2), (1024, 1), (512, 1), (512, 1)]
    assert peer.desk.inflight == 5
    peer.now = 9000
    peer.volume.release()
    peer.desk.now = peer.now
    peer.desk.lots.settle(peer.desk.now)
    assert (peer.words[READ], peer.words[READ + counters.BYTES]) == (4, 2560)
    assert (peer.words[WRITE], peer.words[WRITE + counters.SUM]) == (1, 8000)
    assert not peer.desk.lots.order and peer.desk.inflight == 0


def test_a_payload_that_never_came_is_not_counted() -> None:
    """Its lot goes with it, and it is not the oldest request for ever."""
    peer = Peer()
    peer.say(write(0, b"x" * 4096, 1)[:2000])
    assert peer.desk.lots.oldest() and peer.talk.partial is not None
    peer.talk.close()
    peer.desk.lots.settle(5)
    assert not peer.desk.lots.oldest() and peer.words[WRITE] == 0 and peer.talk.partial is None
