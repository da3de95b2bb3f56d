"""The events that the simulator replays: a plain list of tuples, the first entry says which.

| event | meaning |
|---|---|
| ``(ALLOC, id, bytes, stream)`` | a storage of ``bytes`` requested on ``stream`` (0 is the default stream); ``id`` is any hashable name, free for reuse after its FREE; 0 bytes allocate nothing |
| ``(FREE, id)`` | its last reference is gone |
| ``(USE, id, stream)`` | ``tensor.record_stream(stream)``: another stream uses it too |
| ``(EMPTY_CACHE,)`` | ``torch.cuda.empty_cache()`` |
| ``(SYNC,)`` | ``torch.cuda.synchronize()``: all pending uses are over |
| ``(MARK, label)`` | nothing happens; peaks between marks are reported under the label (not empty) that opened the span |
| ``(POOL_BEGIN, pool, stream, capture)`` | allocations of ``stream`` (None: of all streams) go to private pool number ``pool`` (>= 1): a graph capture (``capture`` true) or ``torch.cuda.use_mem_pool`` |
| ``(POOL_END, pool)`` | they no longer do |
| ``(POOL_RELEASE, pool)`` | the graph or pool is gone; its memory may be given back once free |

Tuples may be longer: what stands behind the named entries is carried along for others and not read here. A FREE or USE
of an unknown id is ignored, so that a recording may start in the middle of a run.
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

ALLOC, FREE, USE, EMPTY_CACHE, SYNC, MARK, POOL_BEGIN, POOL_END, POOL_RELEASE = range(9)

Event = tuple[Any, ...]
Id = Hashable

NAMES = ("alloc", "free", "use", "empty_cache", "sync", "mark", "pool_begin", "pool_end", "pool_release")
