"""Guest kernels: which there are, how a guest is started, and what it says."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from labctl.backends.wire import Said
from labctl.ground.errors import LabError, Unavailable, UsageError
from labctl.language.document import Document
from labctl.language.scenario import load_document
from labctl.record.events import Event
from labctl.record.lines import read_events
from labctl.record.store import new_folder
from labctl.run import guests as kernels
from labctl.run.guests import Known, apt, kconfig, listed, messages, qemu, root, runs
from labctl.run.guests.guest import WARM_UP, Guest, Port, Teller
from labctl.run.runner import Performance, Silent
from tests.fake import FakeBackend, scenario, tcp
from tests.played import Labctl

OPTION = re.compile(r"`CONFIG_(\w+)`")
BOOTED = messages.Booted(t=0.0).as_line()


BOOKWORM = """\
linux-headers-6.1.0-50-cloud-amd64
linux-image-6.1.0-47-cloud-amd64
linux-image-6.1.0-50-cloud-amd64
linux-image-6.1.0-50-cloud-amd64-dbg
linux-image-6.1.0-50-rt-amd64
linux-image-cloud-amd64
linux-image-cloud-amd64-dbg
"""
BACKPORTS = """\
linux-base-7.3.4+deb13-cloud-amd64
linux-binary-6.19.14+deb13-cloud-amd64
linux-binary-7.3.4+deb13-cloud-amd64
linux-binary-unsigned-7.3.4+deb13-cloud-amd64
linux-image-6.18.5+deb13-cloud-amd64
linux-image-6.18.15+deb13-cloud-amd64
linux-image-6.19.14+deb13-cloud-amd64
linux-image-7.3.4+deb13-cloud-amd64
linux-modules-7.3.4+deb13-cloud-amd64
"""


pytestmark = pytest.mark.usefixtures("qemu_is_asked")


def known() -> list[Known]:
    return [
        *kernels.newest("bookworm", BOOKWORM.split()),
        *kernels.newest("trixie-backports", BACKPORTS.split()),
        *kernels.newest("sid", ["linux-image-6.18.2+deb14-cloud-amd64"]),
    ]


# --- Which kernels there are ----------------------------------------------------------------------


def test_the_newest_of_each_minor_version_is_known() -> None:
    assert [(k.name, k.version) for k in kernels.newest("bookworm", BOOKWORM.split())] == [
        ("6.1", "6.1.0-50")
    ]
    assert [(k.name, k.version) for k in kernels.newest("b", BACKPORTS.split())] == [
        ("6.18", "6.18.15+deb13"),
        ("6.19", "6.19.14+deb13"),
        ("7.3", "7.3.4+deb13"),
    ]


def test_a_version_means_the_newest_that_any_suite_has() -> None:
    assert kernels.choose("6.18", known()).release == "6.18.15+deb13-cloud-amd64"
    assert kernels.choose("6.1.0-50", known()).suite == "bookworm"


def test_a_suite_means_its_own_kernel_rather_than_its_newest() -> None:
    depends = ["linux-base", "linux-image-5.10.0-36-cloud-amd64"]
    assert kernels.own("bullseye-security", depends).name == "5.10"
    with pytest.raises(LabError, match="no package linux-image-cloud-amd64 now"):
        kernels.own("bullseye-security", ["linux-image-6.1-cloud-amd64"])


def test_packages_that_hold_no_kernel_are_none() -> None:
    names = ["linux-image-6.1-cloud-amd64", "linux-image-6.1.0-0.deb11.35-cloud-amd64"]
    (found,) = kernels.newest("bullseye-security", names)
    assert found.release == "6.1.0-0.deb11.35-cloud-amd64"


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"--kernel 6\.2: .*bookworm.*6\.1, 6\.18.*bzImage"):
        kernels.choose("6.2", known())


def test_the_mirror_is_the_machines_own() -> None:
    targets = """\
Nodesource|Node Source|https://elsewhere.example/node/
Debian|Debian|http://mirror.example/debian/
Debian|Debian|http://mirror.example/debian/
Debian|Debian-Security|http://mirror.example/security/
$(ORIGIN)|$(LABEL)|http://not.updated.example/
"""
    assert apt.parse_targets(targets) == {
        "Debian": "http://mirror.example/debian/",
        "Debian-Security": "http://mirror.example/security/",
    }


def test_a_mirror_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABCTL_DEBIAN_MIRROR", "http://mirror.example/debian/")
    assert apt.archive() == (
        "http://mirror.example/debian",
        "http://mirror.example/debian-security",
    )


# --- A kernel of one's own ------------------------------------------------------------------------


def bzimage(path: Path, version: str) -> Path:
    """The head of an image, as the boot protocol has it."""
    head = bytearray(0x1000)
    head[0x1FE:0x200] = b"\x55\xaa"
    head[0x202:0x206] = b"HdrS"
    head[0x20E:0x210] = (0x600).to_bytes(2, "little")
    text = f"{version} (somebody@somewhere) #1 SMP\0".encode()
    head[0x800 : 0x800 + len(text)] = text
    path.write_bytes(head)
    return path


def test_an_image_says_its_version_and_has_its_modules_beside_it(tmp_path: Path) -> None:
    image = bzimage(tmp_path / "bzImage", "6.6.6-mine")
    (tmp_path / "lib" / "modules" / "6.6.6-mine").mkdir(parents=True)
    found = kernels.find(str(image), print)
    assert (found.version, found.modules.name) == ("6.6.6-mine", "6.6.6-mine")


def test_an_image_without_modules_is_told_where_they_belong(tmp_path: Path) -> None:
    image = bzimage(tmp_path / "bzImage", "6.6.6-mine")
    with pytest.raises(UsageError, match=r"no modules of Linux 6\.6\.6-mine; put them where"):
        kernels.local(image)


@pytest.mark.parametrize("content", [b"", b"\x7fELF" + bytes(0x1000)])
def test_what_is_no_image_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "vmlinux"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="no bzImage"):
        kernels.local(path)


def test_a_missing_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        kernels.local(tmp_path / "bzImage")


# --- What a guest is started with -----------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="guests need Linux")
def test_a_module_that_was_added_is_in_the_next_guest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(tmp_path, monkeypatch, "exit 1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    image, modules = tmp_path / "bzImage", tmp_path / "modules"
    modules.mkdir()
    image.touch()
    root.place("sid").mkdir(parents=True)
    (root.place("sid") / "root.cpio").touch()
    mine = runs.Ground(kernels.Kernel("mine", "6.6.6", image, modules), True, "sid")
    before = runs.prepare(mine, print)
    (modules / "veth.ko").write_bytes(b"ELF")
    after = runs.prepare(mine, print)
    assert after.initramfs != before.initramfs
    assert b"modules/veth" in after.initramfs.read_bytes()
    assert runs.prepare(mine, print) == after


@pytest.mark.skipif(sys.platform != "linux", reason="guests need Linux")
@pytest.mark.parametrize(
    ("script", "works"),
    [(f"echo '{BOOTED}'; cat", True), ("echo no KVM; exit 1", False), ("cat", False)],
)
def test_kvm_is_what_boots_a_guest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, works: bool
) -> None:
    """It is tried once for each kernel, as it is now."""
    tried, image = tmp_path / "tried", tmp_path / "bzImage"
    hardware = replace(HARDWARE, image=image)
    image.touch()
    stand_in(tmp_path, monkeypatch, f"echo >> {shlex.quote(str(tried))}; {script}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kernels.cache().mkdir(parents=True)
    tried.touch()
    assert [runs.accelerated(hardware, print, tried, 0.5) for _ in range(2)] == [works, works]
    assert tried.read_text() == "\n"
    image.write_bytes(b"built anew")
    assert runs.accelerated(hardware, print, tried, 0.5) == works
    assert tried.read_text() == "\n\n"
    assert not runs.accelerated(replace(hardware, virtual=True), print, tried, 0.5)


# --- QEMU -----------------------------------------------------------------------------------------

HARDWARE = qemu.Hardware(Path("/k/vmlinuz"), Path("/k/cpio"))


def test_a_virtual_clock_skips_idle_time() -> None:
    assert "-icount" not in qemu.command(HARDWARE, 3, 4, None)
    virtual = qemu.Hardware(HARDWARE.image, HARDWARE.initramfs, virtual=True)
    words = qemu.command(virtual, 3, 4, None)
    assert words[words.index("-icount") + 1] == "shift=1,sleep=off"


def test_a_saved_state_is_read_by_a_shell() -> None:
    words = qemu.command(HARDWARE, 3, 4, Path("/k/it's"))
    assert words[-2:] == ["-incoming", "exec:exec cat " + shlex.quote("/k/it's")]


def test_the_kernel_kills_qemu_with_its_parent() -> None:
    assert qemu.command(HARDWARE, 3, 4, None)[:4] == ["setpriv", "--pdeathsig", "KILL", "--"]


def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """A shell script for QEMU 10. Its standard input and output are the guest's port."""
    program = tmp_path / qemu.PROGRAM
    told = '[ "$1" = --version ] && echo "QEMU emulator version 10.0.0" && exit'
    program.write_text(f"#!/bin/sh\n{told}\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")


@pytest.mark.skipif(sys.platform != "linux", reason="setpriv is Linux's")
def test_a_guest_is_heard_and_obeyed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard = shlex.quote(str(tmp_path / "heard"))
    ready = messages.Greeted(t=1.0, kernel="6.6").as_line()
    stand_in(
        tmp_path,
        monkeypatch,
        f"echo '{BOOTED}'; read line; echo $line > {heard}; echo '{ready}'; cat",
    )
    with qemu.Here(HARDWARE) as machine:
        runs.expect(machine, messages.Booted, 10)
        machine.send(messages.Greet(7.0, "00", "QEMU", virtual=True))
        assert machine.receive(10) == messages.Greeted(t=1.0, kernel="6.6")
        assert machine.receive(0.01) is None
        machine.send(messages.Greet(7.0, "00", "QEMU", virtual=True))  # which cat says
        with pytest.raises(qemu.GuestEnded, match=r"not make sense: .*no object with a kind"):
            machine.receive(10)
    assert '"do": "hello"' in (tmp_path / "heard").read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="setpriv is Linux's")
def test_a_guest_that_dies_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, monkeypatch, "echo 'no such disk' >&2; exit 1")
    with qemu.Here(HARDWARE) as machine:
        with pytest.raises(qemu.GuestEnded, match="no such disk"):
            runs.expect(machine, messages.Booted, 10)


@pytest.mark.skipif(sys.platform != "linux", reason="setpriv is Linux's")
def test_a_guest_that_says_nothing_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(tmp_path, monkeypatch, "exec cat")
    with qemu.Here(HARDWARE) as machine:
        with pytest.raises(qemu.GuestEnded, match=r"not booted within 0\.1 s"):
            runs.expect(machine, messages.Booted, 0.1)


def test_without_qemu_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(Unavailable, match="install the package qemu-system-x86"):
        qemu.version()


# --- The guest's program --------------------------------------------------------------------------


def test_the_warm_up_is_a_scenario() -> None:
    (case,) = load_document(Document("warm up", WARM_UP), WARM_UP, "warm", {})
    assert set(case.hosts) == {"server", "client"}


def test_a_kernel_that_brings_no_lab_up_is_told_of_and_not_saved(tmp_path: Path) -> None:
    """Such as one whose modules lack veth."""
    port = tmp_path / "port"
    port.touch()

    def lacking(_: FakeBackend) -> None:
        raise LabError("Error: Unknown device type.")

    with pytest.raises(SystemExit, match=r"Unknown device type.*; it needs veth"):
        Guest(Port(str(port)), lambda *_: FakeBackend({"up": lacking})).serve()
    assert port.read_text() == ""


def ground(folder: Path) -> runs.Ground:
    """What the stand-ins below pretend to run."""
    return runs.Ground(kernels.Kernel("k", "6.1", folder, folder), True, "sid")


@pytest.mark.skipif(sys.platform != "linux", reason="setpriv is Linux's")
def test_what_a_guest_tells_is_recorded_and_judged_as_if_it_were_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for QEMU says what a performance told, and the controller makes a run of it."""
    text = (
        'title: A lesson\nhosts: {server: {calls: "socket; await"}, client: {run: cat}}\n'
        "steps:\n- wait: {sockets: {server: LISTEN}}\n- wait: {sockets: {server: ESTAB}}\n"
        "  within: 10ms\n"
    )
    case = scenario(text)
    fake = FakeBackend({"up": lambda lab: lab.sockets("server", tcp("LISTEN", ":80"))})
    lines: list[Said] = []
    teller = Teller(lines.append)
    performance = Performance(case, fake, teller, Silent())
    performance.perform()
    teller.add_packets("server", b"")
    lines += [messages.Tick(t=1.0), messages.CaseEnded(t=1.0, how=asdict(performance.ended))]
    (tmp_path / "said").write_text("".join(f"{said.as_line()}\n" for said in lines))
    stand_in(tmp_path, monkeypatch, f"read line; cat {shlex.quote(str(tmp_path / 'said'))}; cat")

    seen: list[Event] = []
    with qemu.Here(HARDWARE) as machine:
        guests = runs.Guests(ground(tmp_path), print, machine)
        found = guests.run(
            case, {}, new_folder(tmp_path, "out"), lambda event, history: seen.append(event)
        )
    assert [verdict.result for verdict in found.verdicts] == ["pass", "fail"]
    assert (found.result, found.backend, found.reason) == ("fail", "netns", None)
    assert found.environment["kernel"] == "6.1.0-fake"
    recorded = (found.folder / "history.jsonl").read_text().splitlines()
    assert list(read_events(recorded)) == seen == [*found.history.events]
    (result,) = json.loads((found.folder / "result.json").read_text())["runs"]
    assert result == json.loads(json.dumps(found.as_json()))


@pytest.mark.skipif(sys.platform != "linux", reason="setpriv is Linux's")
def test_a_guest_that_dies_in_a_case_is_its_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(tmp_path, monkeypatch, "read line; echo 'it is burning' >&2; exit 1")
    (case,) = load_document(Document("warm up", WARM_UP), WARM_UP, "warm", {})
    with qemu.Here(HARDWARE) as machine:
        guests = runs.Guests(ground(tmp_path), print, machine)
        found = guests.run(case, {}, new_folder(tmp_path, "out"), lambda event, history: None)
    assert found.result == "error"
    assert found.reason and "it is burning" in found.reason
    assert (found.folder / "console.txt").exists()
    assert (found.folder / "result.json").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="setpriv is Linux's")
def test_a_guest_that_never_waits_is_ended_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It works, and its virtual clock does not get on."""
    tick = messages.Tick(t=7.0).as_line()
    stand_in(tmp_path, monkeypatch, f"read line; echo '{tick}'; while :; do :; done")
    case = scenario("title: t\nhosts: {a: {calls: socket}, b: {}}\nsteps: [start: a]\n")
    with qemu.Here(HARDWARE) as machine:
        guests = runs.Guests(ground(tmp_path), print, machine, busy=0.2)
        found = guests.run(case, {}, new_folder(tmp_path, "out"), lambda event, history: None)
    assert found.result == "error"
    assert "something in this scenario never waits; give its sends an `every`" in str(found.reason)


def test_what_is_half_made_is_never_there(tmp_path: Path) -> None:
    target = tmp_path / "it"
    with pytest.raises(RuntimeError), kernels.assembled(target) as folder:
        (folder / "part").write_text("x")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(LabError, match="make room there"), kernels.assembled(target):
        raise OSError(28, "No space left on device")
    with kernels.assembled(target) as folder:
        (folder / "part").write_text("x")
    assert [p.name for p in target.iterdir()] == ["part"]
    assert [p.name for p in tmp_path.iterdir()] == ["it"]


# --- What a kernel must be built with -------------------------------------------------------------


def built(folder: Path, config: str) -> kernels.Kernel:
    """A kernel in the tree where it was built, whose only module is veth's."""
    image = folder / "arch" / "x86" / "boot" / "bzImage"
    (folder / "modules").mkdir(parents=True)
    (folder / "modules" / "veth.ko.xz").touch()
    image.parent.mkdir(parents=True)
    (folder / ".config").write_text(config)
    image.touch()
    return kernels.Kernel("mine", "6.6.6", image, folder / "modules")


@pytest.mark.parametrize(
    ("config", "lack"),
    [
        ("# CONFIG_VETH is not set\n", r"CONFIG_VETH \(=m or =y: links\)"),
        ("CONFIG_BINFMT_SCRIPT=m\n", r"CONFIG_BINFMT_SCRIPT \(=y: its first program, a script\)"),
        ("CONFIG_BRIDGE=m\n", "the module bridge of CONFIG_BRIDGE=m"),
    ],
)
def test_a_kernel_without_what_every_guest_needs_is_not_booted(
    tmp_path: Path, config: str, lack: str
) -> None:
    kernel = built(tmp_path, config)
    with pytest.raises(LabError, match=rf"Linux 6\.6\.6 lacks {lack}.*\.config; every guest"):
        kconfig.demand(kernel)
    os.utime(tmp_path / ".config", (2e9, 2e9))  # it has been changed since
    kconfig.demand(kernel)
    (kernel.image.parent / "config-6.6.6").write_text(config)
    with pytest.raises(LabError, match=rf"{lack}.*config-6\.6\.6;"):
        kconfig.demand(kernel)


@pytest.mark.parametrize(
    "config",
    ["CONFIG_VETH=m\nCONFIG_BRIDGE=y\n# CONFIG_NET_SCH_NETEM is not set\n", "# Linux/x86\n"],
)
def test_a_kernel_that_may_be_a_guest_is_booted(tmp_path: Path, config: str) -> None:
    kconfig.demand(built(tmp_path, config))


def test_the_docs_list_what_kernels_need() -> None:
    text = (Path(__file__).parents[2] / "docs" / "kernels.md").read_text("utf-8")
    section = text.partition("## What a kernel must be built with\n")[2].partition("\n## ")[0]
    every, _, some = section.partition("only some scenarios need")
    for part, options in ((every, kconfig.EVERY), (some, kconfig.SOME)):
        rows = [line.split(" | ") for line in part.splitlines() if "`CONFIG_" in line[1:]]
        told = {(row[0].removeprefix("| "), n) for row in rows for n in OPTION.findall(row[-1])}
        assert told == {(option.what, option.name) for option in options}


# --- Which there are here -------------------------------------------------------------------------


def test_each_kernel_is_listed_by_the_names_that_mean_it_now() -> None:
    """6.1 means the one that was fetched, until the newer one is."""
    offered = [*known(), Known("sid", "7.2.13+deb14")]
    rows = listed.arranged(
        {"6.1": "6.1.0-47-cloud-amd64", "sid": "6.1.0-47-cloud-amd64"},
        ["6.1.0-47-cloud-amd64", "5.10.0-9-cloud-amd64"],
        offered,
        {"sid": offered[-1], "bookworm": offered[0]},
    )
    assert [(row.names, row.state, row.suite) for row in rows] == [
        (["5.10.0-9-cloud-amd64"], "here", None),
        (["6.1", "sid"], "here", None),
        (["bookworm"], "offered", "bookworm"),
        (["6.18.2+deb14"], "offered", "sid"),
        (["6.18"], "offered", "trixie-backports"),
        (["6.19"], "offered", "trixie-backports"),
        (["7.2"], "offered", "sid"),
        (["7.3"], "offered", "trixie-backports"),
    ]


def test_files_of_this_machine_are_listed_if_they_can_be_taken(tmp_path: Path) -> None:
    for version in ("6.6.1", "6.6.2", "6.6.3"):
        (tmp_path / "boot").mkdir(exist_ok=True)
        bzimage(tmp_path / "boot" / f"vmlinuz-{version}", version)
        if version != "6.6.3":
            (tmp_path / "lib" / "modules" / version).mkdir(parents=True)
    (tmp_path / "boot" / "config-6.6.2").write_text("# CONFIG_VETH is not set\n")
    bzimage(tmp_path / "lib" / "modules" / "6.6.1" / "vmlinuz", "6.6.1")
    rows = list(listed.files(tmp_path))
    assert [row.names for row in rows] == [[f"{tmp_path}/boot/vmlinuz-6.6.{n}"] for n in (1, 2)]
    assert rows[0].where == "a file of this machine"
    assert "; Linux 6.6.2 lacks CONFIG_VETH" in rows[1].where


def test_without_a_mirror_and_without_qemu_it_lists_what_is_here(
    labctl: Labctl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", "/nonexistent")
    for name in ("images/6.1.0-47-cloud-amd64", "names"):
        (kernels.cache() / name).mkdir(parents=True)
    (kernels.cache() / "names" / "6.1").write_text("6.1.0-47-cloud-amd64")
    status, out, err = labctl("kernels", "list")
    assert status == 0
    assert re.search(r"^6\.1 +6\.1\.0-47-cloud-amd64 +here *$", out, re.MULTILINE)
    assert "only what is here is listed" in err
    assert "none of them boots here: " in err
