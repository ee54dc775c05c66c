"""QEMU in a container of a Docker engine, for machines that have none: a Mac, say.

Nothing of this machine is mounted, as the engine may be elsewhere: the kernel and the initramfs are
copied into the container. It has no network, no capability and no device: QEMU emulates the
processor. Its standard streams are the guest's port and its console. It ends with them, whatever
ends this program, and has the labels of a lab, so `labctl down` finds it if it does not.
"""

from __future__ import annotations

import queue
import re
import tarfile
import tempfile
import threading
import time
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

from labctl.backends import EngineAt, Progress
from labctl.backends import lease as leases
from labctl.backends.docker import configs, engine, images
from labctl.backends.docker.attach import STDERR, AttachChannel, attach
from labctl.backends.docker.engine import Tolerated, translated
from labctl.backends.docker.nodes import product
from labctl.backends.docker.sweep import LEASE, RUN
from labctl.backends.lease import Lease
from labctl.ground.errors import LabError
from labctl.judge.result import now
from labctl.run.guests.qemu import Hardware, Machine, words

if TYPE_CHECKING:
    from docker.api.client import APIClient

IMAGE, INITRAMFS = Path("/kernel"), Path("/initramfs")
"""Where a container has the files of `Hardware`."""
CONSOLE = "/proc/self/fd/2"
WORK_PERIOD = 1.0
"""Seconds for which an engine's word on the work of a container is good enough: it costs 20 ms."""


def cores(at: EngineAt, progress: Progress) -> int:
    """How many processors an engine has; it then has the image with QEMU, too.

    Raises Unavailable and LabError."""
    with closing(engine.connect(where=at.where)) as client:
        images.ensure_emulator(client, progress)
        with translated("tell of its processors"):
            return int(client.info()["NCPU"])


class Contained(Machine):
    """A guest at an engine."""

    def __init__(self, hardware: Hardware, at: EngineAt, progress: Progress) -> None:
        super().__init__(hardware)
        self._at, self._progress = at, progress
        self._console = b""
        self._heard: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._worked, self._asked = 0.0, 0.0
        self._where = ""

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            client = stack.enter_context(closing(engine.connect(where=self._at.where)))
            self._client = client
            image = images.ensure_emulator(client, self._progress)
            lease = Lease(leases.new_name(), "guest", "QEMU", "docker", now())
            lease.engines = [self._at.where] if self._at.where else []
            self._lease = stack.enter_context(lease)
            with translated("start a guest"):
                self._where = f"in a container of {product(client.version())}"
                inside = replace(self.hardware, image=IMAGE, initramfs=INITRAMFS)
                config = configs.guest(image, words(inside, CONSOLE))
                labels = {RUN: lease.run, LEASE: lease.text}
                made = client.create_container_from_config(  # type: ignore[no-untyped-call]
                    {**config, "Labels": labels}, f"labctl-{lease.run}"
                )
                self._container = str(made["Id"])
                stack.callback(self._remove)
                files = {self.hardware.image: IMAGE, self.hardware.initramfs: INITRAMFS}
                copy_in(files, client, self._container)
                self._channel = AttachChannel(attach(client, self._container), None)
                stack.callback(self._channel.close)
                client.start(self._container)
            threading.Thread(target=self._listen, daemon=True, name="guest").start()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _remove(self) -> None:
        try:
            with translated("remove a guest"), Tolerated(404, 409):  # it is gone, or going
                self._client.remove_container(self._container, force=True)
        except LabError as exc:
            self._lease.keep()
            self._progress(str(exc))

    def _listen(self) -> None:
        with suppress(LabError):  # what it asks of the guest has no answer then
            for descriptor, data in self._channel.frames():
                if descriptor == STDERR:
                    self._console += data
                else:
                    self._heard.put(data)
        self._heard.put(b"")

    def _write(self, data: bytes) -> None:
        self._channel.write(data)

    def _read(self, patience: float) -> bytes | None:
        try:
            return self._heard.get(timeout=patience)
        except queue.Empty:
            return None

    def _written(self) -> tuple[bytes, bytes]:
        return self._console, b""

    @property
    def product(self) -> str:
        found = re.search(rb"version (\d+(?:\.\d+)+)", self._console)
        return f"QEMU {found[1].decode() if found else ''} {self._where}"

    @property
    def work(self) -> float:
        if time.monotonic() - self._asked > WORK_PERIOD:
            with suppress(LabError), translated("tell of a guest's work"), Tolerated(404, 409):
                said = self._client.stats(self._container, stream=False, one_shot=True)
                self._worked = said["cpu_stats"]["cpu_usage"]["total_usage"] / 1e9
            self._asked = time.monotonic()
        return self._worked

    @property
    def said(self) -> int:
        return len(self._console)


def copy_in(files: dict[Path, Path], client: APIClient, container: str) -> None:
    """Copies files into a container, each to a path there, where everybody may read it."""
    with tempfile.TemporaryFile() as archive:
        with tarfile.open(fileobj=archive, mode="w") as tar:
            for here, there in files.items():
                entry = tarfile.TarInfo(str(there).lstrip("/"))
                entry.size, entry.mode = here.stat().st_size, 0o444
                with here.open("rb") as file:
                    tar.addfile(entry, file)
        archive.seek(0)
        client.put_archive(container, "/", archive)
