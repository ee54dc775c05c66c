"""The images of a lab, for its hosts and its processes, for any operating system.

Their tags hold a hash of their sources (the folder images/), so an image is built once and never
stale. Where the variable LABCTL_IMAGES says that they are published, they are pulled instead. Their
base comes from the engine, from a registry, or, for Debian, from its packages by mmdebstrap(1). All
of them have a label of ours:

    docker image ls --filter label=io.github.labctl-tcp.image
"""

from __future__ import annotations

import hashlib
import io
import os
import queue
import re
import tarfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labctl.backends import Progress, debian
from labctl.backends.docker.engine import Lost, Tolerated, translated
from labctl.backends.docker.sweep import DOMAIN
from labctl.backends.lease import alone
from labctl.ground import resources
from labctl.ground.data import dataclass
from labctl.ground.errors import LabError, Unavailable

if TYPE_CHECKING:
    from docker.api.client import APIClient

PUBLISHED = "LABCTL_IMAGES"
"""The variable with the repository, `REGISTRY/OWNER/NAME`, below which images are published."""

PULL_PATIENCE = 20.0
"""Seconds without a word from a registry after which a pull is given up."""

BOOTSTRAP = {"11": "bullseye", "12": "bookworm", "13": "trixie", "sid": "sid"}
"""Releases of Debian that are built from packages if no registry answers, and their names."""

BUILT_HERE = ", ".join(f"debian:{release}" for release in BOOTSTRAP) + " (mmdebstrap builds them)"
LOAD = "or load it on this engine: docker load < FILE (of {})"
TOOLS = "python3,iproute2,nftables,procps,tcpdump"
CHUNK = 1 << 18
COLOUR = re.compile(r"\x1b\[\d*m")
BUILDER = re.compile(r"\s*$|Step \d|STEP \d| ---> |Removing intermediate container ")
"""The engine's own lines about a build, between those of the build's programs."""
KINDS = ("host", "peer")
EMULATOR, EMULATOR_SYSTEM = "qemu-system-x86", "debian:13"
"""The package of QEMU, and a system whose QEMU is good: that of Debian 12 crashes now and then."""
LENT = "/.labctl"
"""Where hosts have a Python for other images; see images/host/portable.py."""
LENT_PEER = (
    f"{LENT}/start", "--inhibit-cache", "--library-path", f"{LENT}/lib", f"{LENT}/bin/python3",
    "-IS", f"{LENT}/peer.pyc",
)  # fmt: skip
"""How to start the peer program by that, whatever the image has made of its own files."""


@dataclass(frozen=True)
class Images:
    """Tags of the images of one operating system."""

    host: str
    peer: str


def ensure(client: APIClient, system: str, progress: Progress, lost: Lost = lambda: None) -> Images:
    """The images for an operating system such as `debian:12`; builds those that do not exist yet;
    `lost`: see `translated`.

    Raises Unavailable if there is no base, LabError if the base lacks what an image needs."""
    sources = read_sources(resources.images())
    wanted = tags(system, sources)
    with translated("provide the images", lost):
        if _missing(client, wanted):
            with alone("images", progress):
                _fetch(client, wanted, progress)
                missing = _missing(client, wanted)
                base = _base(client, system, _local(client), progress) if missing else ""
                for kind in missing:
                    tag = getattr(wanted, kind)
                    progress(f"building {tag} on {base}")
                    _build(client, sources, kind, base, tag)
    return wanted


def ensure_emulator(client: APIClient, progress: Progress) -> str:
    """The image with QEMU, for guests in a container. Raises as `ensure` does."""
    sources = {
        name: content
        for name, content in read_sources(resources.images()).items()
        if name == "install.sh" or name.startswith("qemu/")
    }
    tag = f"labctl/qemu:{_version(EMULATOR_SYSTEM, sources)}"
    with translated("provide the image with QEMU"):
        if not present(client, tag):
            with alone("images", progress):
                if not present(client, tag):
                    local = _local(client)
                    base = _base(client, EMULATOR_SYSTEM, local, progress, EMULATOR)
                    progress(f"building {tag} on {base}")
                    _build(client, sources, "qemu", base, tag)
    return tag


@dataclass(frozen=True)
class Command:
    """What an image runs by itself: its entrypoint and the arguments that follow it; and the signal
    that asks that to end, if the image says which."""

    entrypoint: tuple[str, ...]
    arguments: tuple[str, ...]
    stop: str = ""

    def words(self, run: Sequence[str] | None) -> tuple[str, ...]:
        """The whole command line; `run` takes the place of the arguments."""
        return (*self.entrypoint, *(run or self.arguments))


def obtain(client: APIClient, name: str, progress: Progress) -> Command:
    """Makes somebody else's image available, and says what it runs. Raises LabError."""
    with translated(f"find {name}"):
        if not present(client, _with_tag(name)):
            try:
                _pull(client, name, progress)
            except LabError as exc:
                raise LabError(f"no image {name}: {exc}", "load it: docker load < FILE") from exc
        config = client.inspect_image(name)["Config"] or {}  # type: ignore[no-untyped-call]
    entrypoint, arguments = (tuple(config.get(key) or ()) for key in ("Entrypoint", "Cmd"))
    return Command(entrypoint, arguments, config.get("StopSignal") or "")


def read_sources(folder: Path) -> dict[str, bytes]:
    """The sources of images: a name relative to `folder` and the content of each file."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(files)
        if "__pycache__" not in path.parts
    }


def tags(system: str, sources: Mapping[str, bytes]) -> Images:
    """The tags of the images for an operating system, made from these sources."""
    version = _version(system, sources)
    return Images(f"labctl/host:{version}", f"labctl/peer:{version}")


def _version(system: str, sources: Mapping[str, bytes]) -> str:
    key = hashlib.sha256(system.encode())
    for name, content in sorted(sources.items()):
        key.update(f"\0{name}\0{len(content)}\0".encode() + content)
    return f"{_slug(system)}-{key.hexdigest()[:12]}"


def context(sources: Mapping[str, bytes]) -> bytes:
    """The sources as a tar archive: always and everywhere the same bytes."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, content in sorted(sources.items()):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            entry.mode = 0o644
            tar.addfile(entry, io.BytesIO(content))
    return archive.getvalue()


def _missing(client: APIClient, wanted: Images) -> list[str]:
    return [kind for kind in KINDS if not present(client, getattr(wanted, kind))]


def _fetch(client: APIClient, wanted: Images, progress: Progress) -> None:
    """Takes the images that somebody has published, if there are any of these sources."""
    where = os.environ.get(PUBLISHED, "").rstrip("/")
    try:
        for kind in _missing(client, wanted) if where else ():
            repository, _, version = getattr(wanted, kind).partition(":")
            _pull(client, f"{where}/{kind}:{version}", progress)
            client.tag(f"{where}/{kind}:{version}", repository, version)
    except LabError as exc:
        progress(f"{exc}: building it here")


def present(client: APIClient, name: str) -> bool:
    """Whether the engine has an image of this name. A list of all images takes ten times as
    long."""
    with Tolerated(404):
        client.inspect_image(name)  # type: ignore[no-untyped-call]
        return True
    return False


def _local(client: APIClient) -> set[str]:
    """All names that the engine has for its images. Podman puts a registry before Docker's."""
    found: set[str] = set()
    for image in client.images():
        found |= {image["Id"], *(image.get("RepoTags") or ()), *(image.get("RepoDigests") or ())}
    return found | {re.sub(r"^(localhost|[^/]+\.[^/]+/library)/", "", name) for name in found}


def suite_name(system: str) -> str:
    """The suite with Debian's packages for a system; empty for other systems."""
    release = _debian(system)
    return BOOTSTRAP.get(release, release if release in BOOTSTRAP.values() else "")


def _debian(system: str) -> str:
    debian = re.fullmatch(r"debian:(\w+?)(-slim)?", system)
    return debian.group(1) if debian else ""


def _base(
    client: APIClient, system: str, local: set[str], progress: Progress, packages: str = TOOLS
) -> str:
    """An image of a system; one that is built here has these packages, which others may lack."""
    release = _debian(system)
    candidates = [f"debian:{release}-slim", f"debian:{release}"] if release else [_with_tag(system)]
    tools = hashlib.sha256(packages.encode()).hexdigest()[:6]  # others need another base
    built = f"labctl/base:{_slug(system).removesuffix('-slim')}-{tools}"
    for candidate in (*candidates, built):
        if candidate in local:
            return candidate
    try:
        _pull(client, candidates[0], progress)
        return candidates[0]
    except LabError as exc:
        suite, lack, load = suite_name(system), debian.lacking(), LOAD.format(candidates[0])
        if not suite:
            hint = f"without a registry, take {BUILT_HERE}"
        elif lack:
            hint = "; ".join(lack)
        else:
            progress(f"{exc}: building Debian {suite} from its packages, for about half a minute")
            try:
                _bootstrap(client, suite, packages, built, progress)
            except Unavailable as failed:
                raise Unavailable(failed.message, f"{failed.hint}; {load}") from failed
            return built
        raise Unavailable(f"no base image for {system!r}: {exc}", f"{hint}; {load}") from exc


def _pull(client: APIClient, name: str, progress: Progress) -> None:
    """Raises LabError, at the latest PULL_PATIENCE after the last sign of life."""
    news: queue.SimpleQueue[dict[str, Any] | Exception | None] = queue.SimpleQueue()

    def work() -> None:
        try:
            for message in client.pull(_with_tag(name), stream=True, decode=True):
                news.put(message)
            news.put(None)
        except Exception as exc:
            news.put(exc)

    progress(f"pulling {name}")
    # A thread, since the engine may take minutes to give up, and a pull has no deadline of its own.
    threading.Thread(target=work, daemon=True, name=f"pull {name}").start()
    try:
        while (message := news.get(timeout=PULL_PATIENCE)) is not None:
            if isinstance(message, Exception):
                reason = getattr(message, "explanation", None) or message
            elif not (reason := message.get("error")):
                continue
            raise LabError(f"{name} can't be pulled ({reason})")
    except queue.Empty:
        raise LabError(f"{name} can't be pulled (no answer in {PULL_PATIENCE:g} s)") from None


def _bootstrap(client: APIClient, suite: str, packages: str, tag: str, progress: Progress) -> None:
    """Imports a Debian with these packages."""
    repository, _, version = tag.partition(":")

    def take(tree: debian.Tree) -> None:
        # Its error aborts the request, so the engine does not tag half a root.
        chunks = iter(lambda: tree.read(CHUNK), b"")
        label = f"LABEL {DOMAIN}.image=yes"
        client.import_image_from_data(chunks, repository, version, changes=[label])

    words = ["--variant=minbase", f"--include={packages}", suite, "-"]
    debian.bootstrap(suite, words, take, progress)


def _build(client: APIClient, sources: Mapping[str, bytes], kind: str, base: str, tag: str) -> None:
    said, error = "", None
    for message in client.build(  # to its end, or its connection is left open
        fileobj=io.BytesIO(context(sources)),
        custom_context=True,
        dockerfile=f"{kind}/Dockerfile",
        buildargs={"BASE": base},
        tag=tag,
        rm=True,
        forcerm=True,
        decode=True,
    ):
        said += str(message.get("stream", ""))
        error = error or message.get("error")
    if error:
        last = [line for line in COLOUR.sub("", said).splitlines() if not BUILDER.match(line)]
        reason = f" ({last[-1].strip()})" if last else ""
        raise LabError(
            f"{tag} can't be built: {error}{reason}",
            "take a base that has the tools, or a network that serves its packages",
        )


def _with_tag(name: str) -> str:
    return name if ":" in name.rpartition("/")[2] or "@" in name else f"{name}:latest"


def _slug(system: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", system).strip("-.")[:100]
