"""What a server takes from its clients before it says no."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 2**20


@dataclass(frozen=True)
class Limits:
    """upload_bytes, upload_seconds: of one file that is searched by; decode_seconds: what reading its frames may take. uploads: how many
    are worked on at a time; as many again wait. searches: how many wait for a thread. streams: files that are sent at a time;
    stall_seconds: how long a client may take nothing of what it is sent. header_seconds: how long a request's head may take, connections:
    how many there are at a time. topk, query_chars: of one search.
    """

    upload_bytes: int = 64 * MIB
    upload_seconds: float = 30.0
    decode_seconds: float = 20.0
    uploads: int = 2
    searches: int = 128
    streams: int = 64
    stall_seconds: float = 30.0
    header_seconds: float = 10.0
    connections: int = 512
    topk: int = 200
    query_chars: int = 1000
