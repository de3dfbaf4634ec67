"""The books of the KV blocks: every block is in one place, and what is reused is what was computed."""

from __future__ import annotations

import gc
import random

import pytest

from bitnet.runtime.prefix_cache import MIN_COPIED, BlockTable, PrefixCache
from serving import BLOCK, some_ids


class Memory:
    """What a Runner's KV store would hold: for each slot, the tokens from the beginning up to it."""

    def __init__(self, n_blocks: int) -> None:
        self.cache = PrefixCache(n_blocks, BLOCK)
        self.slots: dict[tuple[int, int], tuple[str | None, tuple[int, ...]]] = {}
        self.n_copies = 0

    def copy(self, source: int, target: int) -> None:
        assert source != target
        self.n_copies += 1
        for slot in range(BLOCK):
            self.slots.pop((target, slot), None)
            if (source, slot) in self.slots:
                self.slots[target, slot] = self.slots[source, slot]


class Reader:
    """A sequence that computes its tokens, and at every step looks whether its blocks hold them."""

    def __init__(self, memory: Memory, token_ids: list[int], salt: str | None = "") -> None:
        self.memory, self.cache = memory, memory.cache
        self.token_ids, self.salt = token_ids, salt
        self.table = BlockTable(salt)
        self.n_computed = 0
        self.n_reused = -1

    def admit(self, n_spare: int = 0) -> bool:
        n_reused = self.cache.admit(self.table, self.token_ids, n_spare, self.memory.copy)
        if n_reused is None:
            assert self.table.blocks == self.table.nodes == []
            return False
        assert len(self.table.blocks) == -(-len(self.token_ids) // BLOCK)
        self.n_computed = self.n_reused = n_reused
        self.check()
        return True

    def compute(self, count: int) -> None:
        for position in range(self.n_computed, self.n_computed + count):
            block = position // BLOCK
            assert block >= len(self.table.nodes), "this block is shared"
            known = (self.salt, tuple(self.token_ids[: position + 1]))
            self.memory.slots[self.table.blocks[block], position % BLOCK] = known
        self.n_computed += count
        self.cache.record(self.table, self.token_ids, self.n_computed)
        self.check()

    def adopt(self) -> None:
        self.n_computed = self.cache.adopt(self.table, self.token_ids, self.n_computed)
        self.check()

    def release(self) -> None:
        self.check()
        self.cache.release(self.table, self.token_ids, self.n_computed)

    def check(self) -> None:
        """Values of other salts are the same, but must not be seen."""
        for position in range(self.n_computed):
            found = self.memory.slots[self.table.blocks[position // BLOCK], position % BLOCK]
            assert found == (self.salt, tuple(self.token_ids[: position + 1]))


def computed(memory: Memory, token_ids: list[int], salt: str | None = "") -> Reader:
    reader = Reader(memory, token_ids, salt)
    assert reader.admit()
    reader.compute(len(token_ids) - reader.n_computed)
    return reader


def test_full_blocks_are_shared_while_in_use_and_afterwards() -> None:
    memory = Memory(10)
    ids = some_ids(1, 100)
    first = computed(memory, ids)
    second = Reader(memory, ids[:70] + some_ids(2, 20))
    assert second.admit()
    assert second.n_reused == 64
    assert second.table.blocks[:2] == first.table.blocks[:2]
    assert memory.cache.n_free == 10 - 4 - 1
    first.release()
    second.release()
    # The blocks at 64 are partly filled: by `ids`, while the other's was never computed.
    assert (memory.cache.n_free, memory.cache.n_known) == (10, 3)
    third = Reader(memory, ids)
    assert third.admit()
    assert third.n_reused == 96


def test_the_last_token_is_always_computed() -> None:
    memory = Memory(8)
    ids = some_ids(1, 64)
    computed(memory, ids).release()
    again = Reader(memory, ids)
    assert again.admit()
    assert (again.n_reused, memory.n_copies) == (63, 1)
    for length in (1, 2, MIN_COPIED, MIN_COPIED + 1, 31, 32, 33):
        shorter = Reader(memory, ids[:length])
        assert shorter.admit()
        assert shorter.n_reused == (length - 1 if length > MIN_COPIED else 0)
        shorter.release()


def test_a_partly_filled_block_is_copied() -> None:
    memory = Memory(8)
    ids = some_ids(1, 50)
    computed(memory, ids).release()
    longer = Reader(memory, ids + some_ids(2, 30))
    assert longer.admit()
    assert longer.n_reused == 50
    diverging = Reader(memory, ids[:45] + some_ids(3, 30))
    assert diverging.admit()
    assert diverging.n_reused == 45
    barely = Reader(memory, ids[: 32 + MIN_COPIED - 1] + some_ids(4, 30))
    assert barely.admit()
    assert (barely.n_reused, memory.n_copies) == (32, 2)


def test_the_block_that_begins_most_alike_is_copied() -> None:
    memory = Memory(8)
    ids = some_ids(1, 32)
    for n_alike in (10, 25, 15):
        computed(memory, ids[:n_alike] + some_ids(n_alike, 32 - n_alike)).release()
    reader = Reader(memory, ids)
    assert reader.admit()
    assert reader.n_reused == 25


def test_a_source_that_is_evicted_for_its_copy_is_used_in_place() -> None:
    memory = Memory(2)
    ids = some_ids(1, 60)
    computed(memory, ids).release()
    again = Reader(memory, [*ids, 1])
    assert again.admit()
    assert (again.n_reused, memory.n_copies) == (60, 0)


def test_the_least_recently_used_block_is_evicted_and_children_before_parents() -> None:
    memory = Memory(4)
    old, middle, new = some_ids(1, 65), some_ids(2, 33), some_ids(3, 33)

    def n_reused(ids: list[int]) -> int:
        reader = Reader(memory, ids)
        assert reader.admit()
        reader.release()
        return reader.n_reused

    computed(memory, old[:64]).release()
    computed(memory, middle[:32]).release()
    computed(memory, new[:32]).release()
    n_reused(some_ids(4, 20))  # takes the second block of `old`
    assert n_reused(old[:40]) == 32  # which is now the most recently used
    computed(memory, some_ids(5, 64)).release()  # takes the block of `middle`, and a free one
    assert n_reused(old[:32] + some_ids(6, 30)) == 32  # takes the block of `new`
    assert n_reused(middle) == 0


def test_salts_do_not_share() -> None:
    memory = Memory(12)
    ids = some_ids(1, 75)
    computed(memory, ids, "a").release()
    for salt, n_reused in (("b", 0), (None, 0), ("", 0), ("a", 74)):
        reader = Reader(memory, ids, salt)
        assert reader.admit()
        assert reader.n_reused == n_reused
        reader.release()


def test_salts_are_forgotten_with_their_last_block() -> None:
    memory = Memory(2)
    for i in range(100):
        computed(memory, some_ids(i, 33), f"salt {i}").release()
    gc.collect()
    assert len(memory.cache._roots) <= 2


def test_who_is_late_takes_the_known_block_and_gives_its_own_back() -> None:
    memory = Memory(8)
    ids = some_ids(1, 64)
    first, second = Reader(memory, ids), Reader(memory, ids)
    assert first.admit()
    assert second.admit()
    first.compute(64)
    second.compute(40)
    assert second.table.blocks[0] == first.table.blocks[0]
    assert memory.cache.n_free == 8 - 3
    third = Reader(memory, [*ids, 1])
    assert third.admit()
    assert third.n_reused == 64


def test_adopting_what_others_computed_meanwhile() -> None:
    memory = Memory(12)
    ids = some_ids(1, 120)
    first, second = Reader(memory, ids), Reader(memory, ids[:100] + some_ids(2, 30))
    assert first.admit()
    assert second.admit()
    key = memory.cache.next_block(first.table, first.token_ids)
    assert key is not None
    assert key == memory.cache.next_block(second.table, second.token_ids)
    first.compute(70)
    second.adopt()
    assert second.n_computed == 64
    second.compute(10)
    second.adopt()  # in the middle of a block: nothing to adopt
    assert second.n_computed == 74
    first.compute(50)
    second.compute(len(second.token_ids) - 74)
    assert memory.cache.next_block(second.table, second.token_ids) is None


def test_admission_leaves_spare_blocks() -> None:
    memory = Memory(4)
    reader = Reader(memory, some_ids(1, 65))
    assert not reader.admit(n_spare=2)
    assert not Reader(memory, some_ids(1, 129)).admit()
    assert reader.admit(n_spare=1)
    assert memory.cache.n_free == 1
    assert memory.cache.extend(reader.table)
    assert not memory.cache.extend(reader.table)
    reader.release()
    assert memory.cache.n_free == 4
    # Known blocks that nobody uses count as free until they are reused.
    computed(memory, some_ids(2, 64)).release()
    assert memory.cache.n_known == 2
    assert not Reader(memory, some_ids(2, 97)).admit(n_spare=1)
    assert Reader(memory, some_ids(2, 97)).admit()


@pytest.mark.parametrize("seed", range(6))
def test_random_sequences_of_few_words(seed: int) -> None:
    """Whatever happens: what is reused is what was computed, and no block is lost or held twice."""
    draw = random.Random(seed)
    memory = Memory(20)
    words = [some_ids(i, draw.randint(1, 40)) for i in range(6)]
    readers: list[Reader] = []
    n_reused = 0
    for _ in range(1500):
        action = draw.random()
        if action < 0.3:
            ids = [token for _ in range(draw.randint(1, 6)) for token in draw.choice(words)]
            reader = Reader(memory, ids, draw.choice(["", "", "", "b", None]))
            if reader.admit(draw.randint(0, 2)):
                readers.append(reader)
                n_reused += reader.n_reused
        elif readers:
            reader = draw.choice(readers)
            n_pending = len(reader.token_ids) - reader.n_computed
            if action < 0.75 and n_pending:
                reader.adopt()
                n_pending = len(reader.token_ids) - reader.n_computed
                reader.compute(draw.randint(1, n_pending))
            elif action < 0.8:  # the answer goes on
                reader.compute(n_pending)
                reader.token_ids = reader.token_ids + some_ids(draw.randint(0, 3), 5)
                while len(reader.table.blocks) * BLOCK < len(reader.token_ids):
                    if not memory.cache.extend(reader.table):
                        reader.token_ids = reader.token_ids[: reader.n_computed]
            elif action > 0.85:
                reader.release()
                readers.remove(reader)
        held = {block for reader in readers for block in reader.table.blocks}
        known = {node.block for node in memory.cache._unused}
        free = set(memory.cache._free)
        assert len(memory.cache._free) + len(memory.cache._unused) == memory.cache.n_free
        assert len(free) == len(memory.cache._free)
        assert held | known | free == set(range(20))
        assert len(held) + len(known) + len(free) == 20
        private = [block for reader in readers for block in reader.table.blocks[len(reader.table.nodes) :]]
        assert len(private) == len(set(private))
    assert n_reused > 300
    for reader in readers:
        reader.release()
    assert memory.cache.n_free == 20
