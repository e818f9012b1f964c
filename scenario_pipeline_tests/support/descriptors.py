"""Pipes, files and sockets in the states in which stdout can be.

Belongs here: making a descriptor and taking it away again. Does not belong here: writing to it.
"""

from __future__ import annotations

import fcntl
import os
import resource
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest


@contextmanager
def pipe_of_writes() -> Iterator[tuple[int, Callable[[], list[bytes]]]]:
    """A pipe in packet mode: its writing end, and a function that returns what came, one item a write."""
    reader, writer = os.pipe2(os.O_DIRECT | os.O_NONBLOCK)

    def writes() -> list[bytes]:
        packets = []
        with suppress(BlockingIOError):
            while packet := os.read(reader, 8192):
                packets.append(packet)
        return packets

    try:
        yield writer, writes
    finally:
        os.close(writer)
        os.close(reader)


@contextmanager
def duplicate(fd: int) -> Iterator[int]:
    """Another number for the same open file, far from those that anything else would be given next."""
    copy = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 700)
    try:
        yield copy
    finally:
        os.close(copy)


@contextmanager
def opened(path: Path, flags: int = os.O_WRONLY | os.O_CREAT | os.O_APPEND) -> Iterator[int]:
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def redirected(fd: int, path: Path) -> Iterator[None]:
    """Let `fd` lead to a file, as a captured stdout does."""
    with duplicate(fd) as before:
        with opened(path) as captured:
            os.dup2(captured, fd)
        try:
            yield
        finally:
            os.dup2(before, fd)


@contextmanager
def files_limited_to(size: int) -> Iterator[None]:
    """Let no file grow beyond `size` bytes: the write that reaches the limit is a short one, like on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def closed_descriptor() -> Iterator[int]:
    with pipe_of_writes() as (fd, _), duplicate(fd) as copy:
        number = copy
    yield number


@contextmanager
def broken_pipe() -> Iterator[int]:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        yield writer
    finally:
        os.close(writer)


@contextmanager
def full_disk() -> Iterator[int]:
    with opened(Path("/dev/full"), os.O_WRONLY) as fd:
        yield fd


@contextmanager
def unread_pipe() -> Iterator[tuple[int, int]]:
    """A pipe that nobody reads from: its writing end, and its reading end."""
    reader, writer = os.pipe()
    try:
        yield writer, reader
    finally:
        os.close(writer)
        os.close(reader)


@contextmanager
def unread_pipe_that_does_not_block() -> Iterator[tuple[int, int]]:
    """What a parent leaves behind that reads its pipes in an event loop."""
    with unread_pipe() as (writer, reader):
        os.set_blocking(writer, False)
        yield writer, reader


@contextmanager
def unread_socket() -> Iterator[tuple[int, int]]:
    """What the journal of a host hands to a service."""
    writer, reader = socket.socketpair()
    with writer, reader:
        yield writer.fileno(), reader.fileno()


stallable = pytest.mark.parametrize(
    "target", [unread_pipe, unread_pipe_that_does_not_block, unread_socket], ids=lambda target: target.__name__
)


def drained(reader: int) -> list[bytes]:
    """Return the lines that wait at the reading end."""
    os.set_blocking(reader, False)
    parts = []
    with suppress(BlockingIOError):
        while part := os.read(reader, 65536):
            parts.append(part)
    return b"".join(parts).splitlines(keepends=True)
