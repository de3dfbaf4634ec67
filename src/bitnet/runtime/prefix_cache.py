"""KV blocks: which are free, which sequences hold them, and which tokens' keys and values they keep.

What ended sequences computed stays until its block is needed, and is found again by the tokens from the
beginning of a sequence up to it. Only the scheduler's thread comes here.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from collections.abc import Sequence as TokenIds
from itertools import islice
from weakref import WeakValueDictionary

# A partly filled block is remembered, and copied for a sequence that begins like it, for this many tokens at
# least: fewer are mostly what a chat template puts before every conversation.
MIN_COPIED = 8
# Blocks that are looked at for that, the last known first.
MAX_COMPARED = 64


class _Node:
    """A block whose content is known: the keys and values of `tokens`, which follow those of its parents.

    It has block_size tokens, or fewer where an ended sequence stopped within a block: then it has no
    children. Whoever uses a node uses its parents, too.
    """

    __slots__ = ("__weakref__", "block", "children", "n_users", "parent", "tokens")

    def __init__(self, parent: _Node | None, tokens: tuple[int, ...], block: int) -> None:
        self.parent = parent  # None: the root of a salt, which has no tokens and no block
        self.tokens = tokens
        self.block = block
        self.n_users = 0
        # By all of their tokens: a dict compares them, so that no two texts are taken for each other.
        self.children: dict[tuple[int, ...], _Node] = {}


class BlockTable:
    """The KV blocks of one sequence: position p is in blocks[p // block_size].

    The first len(nodes) are known to the cache, may be used by others as well, and are not written any more.
    salt: only sequences of the same salt share blocks; None = it shares with nobody.
    most_reused: tokens that others may have computed at most, for a sequence that needs the outputs of the
    rest; None = all but the last.
    """

    def __init__(self, salt: str | None, most_reused: int | None = None) -> None:
        self.salt = salt
        self.most_reused = most_reused
        self.blocks: list[int] = []
        self.nodes: list[_Node] = []


def _reusable(table: BlockTable, token_ids: TokenIds[int]) -> int:
    most = len(token_ids) - 1
    return most if table.most_reused is None else min(most, table.most_reused)


class PrefixCache:
    """All KV blocks of a Runner. Each is free, held by sequences, or unused but known."""

    def __init__(self, n_blocks: int, block_size: int) -> None:
        self.n_blocks = n_blocks
        self._block_size = block_size
        self._free = list(reversed(range(n_blocks)))
        # Least recently used first, and children before their parents: who releases a sequence's nodes begins
        # with the last, and nobody uses a child longer than its parent. So the first never has children.
        self._unused: OrderedDict[_Node, None] = OrderedDict()
        # A root lives as long as a child or a running sequence refers to it.
        self._roots: WeakValueDictionary[str, _Node] = WeakValueDictionary()

    @property
    def n_free(self) -> int:
        """Blocks that no sequence holds, known ones included."""
        return len(self._free) + len(self._unused)

    @property
    def n_known(self) -> int:
        """Blocks that no sequence holds, and whose content may be used again."""
        return len(self._unused)

    def admit(
        self, table: BlockTable, token_ids: TokenIds[int], n_spare: int, copy: Callable[[int, int], None]
    ) -> int | None:
        """Blocks for all of token_ids, if n_spare more remain free, else None and nothing is changed.

        Returns how many tokens need not be computed; the last one always does, see BlockTable.
        copy(source, target): copy a block.
        """
        size = self._block_size
        nodes = list(self._known(table, token_ids))
        n_fresh = -(-len(token_ids) // size) - len(nodes)
        if n_fresh + sum(not node.n_users for node in nodes) + n_spare > self.n_free:
            return None
        for node in nodes:
            self._use(table, node)
        n_reused = len(nodes) * size
        if table.salt is not None:
            rest = tuple(token_ids[n_reused : min(n_reused + size, _reusable(table, token_ids))])
            source, n_alike = self._alike(self._parent(table), rest)
            if source is not None:
                if source in self._unused:
                    self._unused.move_to_end(source)
                # Should this be the source's own block, taken from it just now, it holds the content already.
                target = self._take()
                if target != source.block:
                    copy(source.block, target)
                table.blocks.append(target)
                n_reused += n_alike
        while len(table.blocks) * size < len(token_ids):
            table.blocks.append(self._take())
        return n_reused

    def extend(self, table: BlockTable) -> bool:
        """One more block. False = there is none."""
        if not self.n_free:
            return False
        table.blocks.append(self._take())
        return True

    def record(self, table: BlockTable, token_ids: TokenIds[int], n_computed: int) -> None:
        """Make the blocks known that are full with the first n_computed tokens."""
        if table.salt is None:
            return
        size = self._block_size
        for index in range(len(table.nodes), n_computed // size):
            tokens = tuple(token_ids[index * size : (index + 1) * size])
            known = self._parent(table).children.get(tokens)
            if known is None:
                self._make_known(table, tokens, table.blocks[index])
            else:  # another sequence was faster; its values are the same, bit for bit
                self._free.append(table.blocks.pop(index))
                self._use(table, known)

    def adopt(self, table: BlockTable, token_ids: TokenIds[int], n_computed: int) -> int:
        """Use what others made known since `admit`. Returns how many tokens are computed now."""
        size = self._block_size
        if table.salt is None or n_computed != len(table.nodes) * size:
            return n_computed
        for node in self._known(table, token_ids):
            self._free.append(table.blocks.pop(len(table.nodes)))
            self._use(table, node)
        return len(table.nodes) * size

    def next_block(self, table: BlockTable, token_ids: TokenIds[int]) -> Hashable:
        """Equal for two sequences that `adopt` the next block from each other; None if there is none."""
        begin = len(table.nodes) * self._block_size
        end = begin + self._block_size
        if table.salt is None or end > _reusable(table, token_ids):
            return None
        return table.nodes[-1] if table.nodes else table.salt, tuple(token_ids[begin:end])

    def release(self, table: BlockTable, token_ids: TokenIds[int], n_computed: int) -> None:
        """Take all blocks back, and remember the first n_computed tokens."""
        self.record(table, token_ids, n_computed)
        if table.salt is not None:
            rest = tuple(token_ids[len(table.nodes) * self._block_size : n_computed])
            if len(rest) >= MIN_COPIED and rest not in self._parent(table).children:
                self._make_known(table, rest, table.blocks[len(table.nodes)])
        self._free.extend(table.blocks[len(table.nodes) :])
        for node in reversed(table.nodes):
            node.n_users -= 1
            if not node.n_users:
                self._unused[node] = None
        table.blocks.clear()
        table.nodes.clear()

    def _known(self, table: BlockTable, token_ids: TokenIds[int]) -> Iterator[_Node]:
        """The known blocks that come next in token_ids."""
        if table.salt is None:
            return
        size = self._block_size
        node = table.nodes[-1] if table.nodes else self._roots.get(table.salt)
        for begin in range(len(table.nodes) * size, _reusable(table, token_ids) - size + 1, size):
            node = None if node is None else node.children.get(tuple(token_ids[begin : begin + size]))
            if node is None:
                return
            yield node

    def _alike(self, parent: _Node, tokens: tuple[int, ...]) -> tuple[_Node | None, int]:
        """The child of `parent` that begins most like `tokens`, and how many tokens that is."""
        best, most = None, MIN_COPIED - 1
        for child in islice(reversed(parent.children.values()), MAX_COMPARED):
            if child.tokens[: most + 1] == tokens[: most + 1] and len(tokens) > most:
                best = child
                while most < min(len(child.tokens), len(tokens)) and child.tokens[most] == tokens[most]:
                    most += 1
        return best, most

    def _parent(self, table: BlockTable) -> _Node:
        """The node behind which the table's next one goes."""
        if table.nodes:
            return table.nodes[-1]
        assert table.salt is not None
        return self._roots.setdefault(table.salt, _Node(None, (), -1))

    def _make_known(self, table: BlockTable, tokens: tuple[int, ...], block: int) -> None:
        parent = self._parent(table)
        node = _Node(parent, tokens, block)
        node.n_users = 1
        parent.children[tokens] = node
        table.nodes.append(node)

    def _use(self, table: BlockTable, node: _Node) -> None:
        """Put a known block where the table's next one belongs."""
        if not node.n_users:
            del self._unused[node]
        node.n_users += 1
        table.blocks.insert(len(table.nodes), node.block)
        table.nodes.append(node)

    def _take(self) -> int:
        """A block to write to: a free one, else the one that was not used for the longest time."""
        if self._free:
            return self._free.pop()
        node, _ = self._unused.popitem(last=False)
        assert node.parent is not None
        assert not node.children
        del node.parent.children[node.tokens]
        return node.block
