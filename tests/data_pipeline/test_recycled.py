from __future__ import annotations

import gc
from multiprocessing.connection import Connection

import torch
import torch.multiprocessing

from data_pipeline.recycled import Recycled, SharedRecycled, receive


def test_memory_is_used_again_when_nothing_shares_it_any_more() -> None:
    recycled = Recycled()
    first = recycled.take(1024)
    place, part = first.data_ptr(), first.view(torch.int32)[5:]
    del first
    assert recycled.take(1024).data_ptr() != place
    del part
    gc.collect()
    places = {recycled.take(1024).data_ptr() for _ in range(2)}
    assert place in places


def test_memory_in_use_is_never_given_twice() -> None:
    recycled = Recycled()
    held = [recycled.take(64).fill_(number) for number in range(20)]
    for number in range(0, 20, 3):
        held[number] = recycled.take(64).fill_(100 + number)
    assert [int(block[0]) for block in held] == [n if n % 3 else 100 + n for n in range(20)]


def test_another_size_begins_anew() -> None:
    recycled = Recycled()
    del_me = recycled.take(64)
    del del_me
    assert len(recycled.take(128)) == 128
    assert len(recycled.take(64)) == 64


def _fill(to_reader: Connection, from_reader: Connection) -> None:
    recycled = SharedRecycled()
    places = []
    for value in range(4):
        block = recycled.take(256)
        places.append(block.data_ptr())
        to_reader.send(block.fill_(value))
        from_reader.recv()
    to_reader.send([places.index(place) for place in places])


def test_a_shared_block_is_used_again_once_its_receiver_has_let_it_go() -> None:
    context = torch.multiprocessing.get_context("fork")
    here, to_reader = context.Pipe(duplex=False)
    from_reader, there = context.Pipe(duplex=False)
    process = context.Process(target=_fill, args=(to_reader, from_reader))
    process.start()
    kept = receive(here.recv())[8:]  # held all the time, by a view
    there.send(None)
    for value in (1, 2, 3):
        block = receive(here.recv())
        assert block.unique().tolist() == [value]
        assert kept.unique().tolist() == [0]
        del block
        gc.collect()
        there.send(None)
    assert here.recv() == [0, 1, 1, 1]
    process.join()
    assert process.exitcode == 0


def test_a_shared_block_of_another_size_leaves_one_that_is_still_held_as_it_is() -> None:
    recycled = SharedRecycled()
    small = receive(recycled.take(64).fill_(1))
    large = receive(recycled.take(256).fill_(2))
    assert small.unique().tolist() == [1]
    assert large.unique().tolist() == [2]
    place = large.data_ptr()
    del small, large
    gc.collect()
    assert recycled.take(256).data_ptr() == place  # and those of the size before are gone
    assert [len(block) for block in recycled._blocks] == [64 + 256]
