"""The state of the session's objects as one rank holds it: trees, tensors, and where each byte goes.

What an optimizer owns changes only in its `step()`, so it may be read while the next forward and backward passes run.
So may frozen parameters beside them. Everything else (buffers, moving averages, gradients) may change at any moment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trainer_hooks.checkpoint import leaves, shards, tree
from trainer_hooks.checkpoint.layout import Layout, lay_out, parts
from trainer_hooks.checkpoint.manifest import Piece, Stored, is_dense
from trainer_hooks.errors import NotLoadable

if TYPE_CHECKING:
    import torch

EXPOSED, FROZEN, OWNED = range(3)
"""Groups of chunks. Beyond them come the same three for what only this rank holds."""

_SHARDED = 3


@dataclass(frozen=True, slots=True)
class Copy:
    """A stretch of a tensor's bytes within a chunk."""

    tensor: int
    from_byte: int
    to_byte: int
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """`rows` are the tensors' own memory, seen as bytes: nothing was copied yet."""

    state: Mapping[str, Any]  # trees
    tensors: tuple[Stored, ...]
    rows: tuple[torch.Tensor, ...]  # uint8, [bytes of the tensor that this rank holds]
    layout: Layout
    copies: tuple[tuple[Copy, ...], ...]  # of each chunk

    @property
    def replicated_chunks(self) -> int:
        """The first so many chunks are the same on every rank."""
        return sum(group < _SHARDED for group in self.layout.chunk_groups)

    def may_wait(self, chunk: int) -> bool:
        """Whether nothing but an optimizer's step will change what it holds."""
        return self.layout.chunk_groups[chunk] % _SHARDED != EXPOSED

    def is_mine(self, chunk: int, *, rank: int, world_size: int) -> bool:
        """Ranks share the writing of what all of them hold alike.

        Buffers they do not: the statistics of a batch norm are each rank's own, and DDP goes by the first one's.
        """
        if chunk >= self.replicated_chunks:
            return True
        return rank == (chunk % world_size if self.may_wait(chunk) else 0)


@dataclass(frozen=True, slots=True)
class Own:
    """Tensors (by id) that are every rank's own: kept as one, with a first dimension of `world_size`."""

    tensors: frozenset[int] = frozenset()
    rank: int = 0
    world_size: int = 1

    def shard(self, tensor: torch.Tensor) -> shards.Shard:
        if id(tensor) not in self.tensors or self.world_size == 1 or leaves.is_sharded(tensor):
            return shards.local_pieces(tensor)
        shape = tuple(tensor.shape)
        return shards.Shard(
            (self.world_size, *shape), (self.rank, *(0 for _ in shape)), tensor.contiguous()[None], is_mine=True
        )

    def is_part(self, tensor: torch.Tensor) -> bool:
        """Whether this rank holds what no other does."""
        return leaves.is_sharded(tensor) or (id(tensor) in self.tensors and self.world_size > 1)


def image_of(
    components: Mapping[str, Any], *, owned: frozenset[int], frozen: frozenset[int], own: Own | None = None
) -> Image:
    """`owned` and `frozen` are addresses of storages (see `address_of`).

    Raises: NotLoadable: a component holds what cannot be kept without running code.
    """
    found: list[Any] = []
    own = own or Own()
    state = {name: _encoded(name, component, found) for name, component in components.items()}
    held = [own.shard(tensor) for tensor in found]
    locals_ = [_plain(one.local) for one in held]
    rows = tuple(_row(local) if one.is_mine else _row(local)[:0] for one, local in zip(held, locals_, strict=True))
    groups = [
        _group(local, owned, frozen) + (_SHARDED if own.is_part(tensor) else 0)
        for tensor, local in zip(found, locals_, strict=True)
    ]
    layout = lay_out([len(row) for row in rows], groups)
    tensors = tuple(
        Stored(
            dtype=str(local.dtype).removeprefix("torch."),
            shape=tuple(one.global_shape),
            pieces=(Piece(tuple(one.offset), tuple(local.shape), spot),) if one.is_mine else (),
            strides=None if local.is_contiguous() or not is_dense(local.shape, local.stride()) else local.stride(),
        )
        for one, local, spot in zip(held, locals_, layout.spots, strict=True)
    )
    return Image(state=state, tensors=tensors, rows=rows, layout=layout, copies=_copies(rows, layout))


def address_of(tensor: torch.Tensor) -> int:
    """Of the memory behind a tensor; of a sharded one, of this rank's shard."""
    local: torch.Tensor = shards.local_pieces(tensor).local if leaves.is_sharded(tensor) else tensor
    return local.untyped_storage().data_ptr()


def _encoded(name: str, component: Any, found: list[Any]) -> Any:
    try:
        return tree.encode(component, found)
    except NotLoadable as error:
        raise NotLoadable(f"{name}: {error}") from None


def _group(local: torch.Tensor, owned: frozenset[int], frozen: frozenset[int]) -> int:
    address = local.untyped_storage().data_ptr()
    return OWNED if address in owned else FROZEN if address in frozen else EXPOSED


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """Without lazy conjugation, and without gaps between its items."""
    plain = tensor.detach().resolve_conj().resolve_neg()
    return plain if is_dense(plain.shape, plain.stride()) else plain.contiguous()


def _row(tensor: torch.Tensor) -> torch.Tensor:
    import torch

    return tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8)


def _copies(rows: Sequence[torch.Tensor], layout: Layout) -> tuple[tuple[Copy, ...], ...]:
    found: list[list[Copy]] = [[] for _ in layout.chunk_bytes]
    for number, row in enumerate(rows):
        done = 0
        for chunk, start, size in parts(layout.spots[number], len(row), layout.chunk_bytes):
            found[chunk].append(Copy(number, done, start, size))
            done += size
    return tuple(tuple(copies) for copies in found)
