"""`nftrace show` and `nftrace export`: the log told as follow would have, and to other tools."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from exporters.anonymize import KEY_BYTES, Anonymizer
from exporters.json_lines import render_journey
from exporters.log import LogOptions, LogWriter
from tests.journeys import article
from tracer.cli.export import export
from tracer.core.events import PACKET

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
LOG = ROOT / "tests" / "exporters" / "fixtures" / "log-1"
FIRST, SECOND = article()
NETWORK = bytes.fromhex("45000034bcf040003e06000bb73e0f76ac111569")
TRANSPORT = bytes.fromhex("57b100163e948e3a000000005002ffff00000000")
ADDRESSES = ("183.62.15.118", "172.17.21.105", "61.146.164.120")


def nftrace(*words: object, **options: object) -> subprocess.CompletedProcess[str]:
    """Run the command line and return what it said."""
    return subprocess.run(
        [sys.executable, "-m", "tracer.cli.main", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "TZ": "UTC"},
        **options,  # type: ignore[call-overload]
    )


def lines(*words: object) -> list[dict[str, object]]:
    """Return what export writes as JSON to standard output."""
    done = CliRunner().invoke(export, ["--log", str(LOG), "--json", "-", *map(str, words)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_show_tells_the_packet_through_all_namespaces() -> None:
    """Either of a packet's journeys leads to both, the place of death last."""
    told = [nftrace("show", "--log", LOG, one.id) for one in (FIRST, SECOND)]
    text = told[0].stdout

    assert [0, 0] == [done.returncode for done in told]
    assert text == told[1].stdout
    assert "SYN 183.62.15.118:22449 → 61.146.164.120:10174" in text
    assert text.index("vr1") < text.index("vr2")
    assert "DROPPED in vr2, mangle PREROUTING" in text
    assert "FIREWALL_172.17.21.105, rule 5: -j DROP" in text
    assert ["", ""] == [done.stderr for done in told]


def test_show_json_is_the_line_that_was_followed() -> None:
    """With -o json the one journey is told, as `nftrace.journey/1`."""
    done = nftrace("show", "--log", LOG, SECOND.id, "-o", "json")
    told = json.loads(done.stdout)

    assert ("nftrace.journey/1", SECOND.id, "vr2") == (told["schema"], told["id"], told["netns"])
    assert 5 == told["ending"]["rule"]


def test_show_of_an_unknown_journey_says_so() -> None:
    """An id that the log does not have is one line and status 1."""
    done = nftrace("show", "--log", LOG, "nonesuch")

    assert (1, "") == (done.returncode, done.stdout)
    assert 1 == done.stderr.count("\n")
    assert "has no journey nonesuch" in done.stderr


def test_show_takes_the_beginning_of_an_id(tmp_path: Path) -> None:
    """One that is no other's leads to the journey; else those that it may be are named."""
    ids = ["18ea-1", "18ea-10", "18eb-1"]
    told = [render_journey(replace(FIRST, id=one)) for one in ids]
    with LogWriter(tmp_path, "h", LogOptions(group="root")) as writer:
        writer.append("journeys", {"id": ids, "json": told, "time_ns": FIRST.start_ns}, 3)
    shown = [nftrace("show", "--log", tmp_path, one, "-o", "json") for one in ("18eb", "18ea-1")]
    several = nftrace("show", "--log", tmp_path, "18e")

    assert ["18eb-1", "18ea-1"] == [json.loads(done.stdout)["id"] for done in shown]
    assert (2, "", 1) == (several.returncode, several.stdout, several.stderr.count("\n"))
    assert ", ".join(ids) in several.stderr


def test_no_name_for_a_folder_or_a_table_is_said() -> None:
    """Empty words, as a script's unset variables give them, are wrong usage."""
    for words in (["timeline", "--log", ""], ["blame", " ", "--log", LOG]):
        done = nftrace(*words)

        assert (2, "", 1) == (done.returncode, done.stdout, done.stderr.count("\n"))


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["--json", "-", "--log", "/nonexistent"], 4, "the log /nonexistent cannot be read"),
        ([], 2, "nothing to write to"),
        (["--json", "-", "--csv", "-"], 2, "cannot share standard output"),
        (["--pcap", "-"], 2, "it is no text"),
        (["--pcap", "x", "--events", "changes"], 2, "changes and losses are no packets"),
        (["--csv", "x", "--events", "drops", "--events", "losses"], 2, "--csv holds one table"),
        (["--json", "-", "--since", "soon"], 2, "--since soon: not a time"),
        (["--json", "-", "--since", "1h", "--until", "2h"], 2, "is after --until"),
        (["--json", "/nonexistent/x"], 4, "No such file or directory"),
        (["--json", "/dev/full"], 4, "No space left on device"),
        (["--json", "-", "--anonymize-key", "/nonexistent"], 2, "head -c 32"),
        (["--json", "-", "--anonymize-key", "/dev/null"], 2, "a key has 32 bytes, not 0"),
        (["--json", "-", "--src", "10.0.0.300"], 2, "not an address"),
    ],
)
def test_what_cannot_be_is_one_line(words: list[str], status: int, said: str) -> None:
    """Wrong words and files that cannot be written are said in one line, with a remedy."""
    log = [] if "--log" in words else ["--log", str(LOG)]
    done = nftrace("export", *log, *words)

    assert status == done.returncode, done.stderr
    assert said in done.stderr
    assert 1 == done.stderr.count("\n")


def test_json_tells_all_events_in_the_order_they_were_written() -> None:
    """Every row of the four tables is one object."""
    told = lines()
    kinds = [str(one["schema"]) for one in told]

    assert 48 == len(told)
    assert ["nftrace.loss/1", "nftrace.change/1", *["nftrace.journey/1"] * 2] == kinds[:4]
    assert ["nftrace.drop/1"] * 44 == kinds[4:]


@pytest.mark.parametrize(
    ("words", "drops", "journeys"),
    [
        (["--dst", "172.17.21.105", "--dport", "22"], 44, 2),
        (["--dst", "61.146.164.120"], 0, 1),
        (["--dst", "172.17.0.0/16", "--netns", "vr1"], 0, 1),
        (["--src", "183.62.15.118", "--sport", "22449"], 2, 2),
        (["--src", "2001:db8::/32"], 0, 0),
        (["--proto", "udp"], 0, 0),
        (["--chain", "FIREWALL_172.17.21.105", "--verdict", "drop"], 44, 1),
        (["--table", "filter"], 0, 1),
        (["--in", "eth2"], 44, 2),
        (["--out", "eth0"], 0, 1),
        (["--hook", "forward"], 0, 1),
        (["--since", "2026-11-23T17:22:15"], 13, 0),
        (["--until", "2026-11-23T17:22:14.035955"], 6, 2),
        (["--since", "2026-11-23T17:22:14.032", "--until", "2026-11-23T17:22:14.034"], 2, 0),
        (["--netns", "vr2"], 44, 1),
        (["--netns", "all"], 44, 2),
    ],
)
def test_filters_choose(words: list[str], drops: int, journeys: int) -> None:
    """Each word chooses exactly; journeys by their addresses before the NAT and after."""
    told = lines(*words, "--events", "drops", "--events", "journeys")
    kinds = [str(one["schema"]) for one in told]

    assert (drops, journeys) == (
        kinds.count("nftrace.drop/1"),
        kinds.count("nftrace.journey/1"),
    )


def test_csv_and_parquet_hold_the_table(tmp_path: Path) -> None:
    """CSV has a head and addresses as text; Parquet has the log's own columns."""
    done = nftrace(
        *("export", "--log", LOG, "--csv", tmp_path / "d.csv", "--parquet", tmp_path / "d.parquet")
    )
    with (tmp_path / "d.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    table = pq.read_table(tmp_path / "d.parquet")

    assert (0, "44 events written\n") == (done.returncode, done.stderr)
    assert (44, 44) == (len(rows), table.num_rows)
    assert ("183.62.15.118", "172.17.21.105", "22", "FIREWALL_172.17.21.105", "5") == tuple(
        rows[0][name] for name in ("src", "dst", "dport", "chain", "rule")
    )
    assert "2026-11-23T17:22:14.030955Z" == rows[0]["time"]
    assert [5] * 44 == table["rule"].to_pylist()


def test_a_capture_is_read_by_tshark(tmp_path: Path) -> None:
    """A reader of captures finds each packet, its place of death as comment, no bad checksum."""
    capture = tmp_path / "out.pcapng"
    done = nftrace("export", "--log", LOG, "--pcap", capture)
    fields = ("ip.src", "tcp.srcport", "ip.dst", "tcp.dstport", "ip.ttl", "frame.comment")
    command = ["tshark", "-r", str(capture), "-o", "ip.check_checksum:TRUE", "-T", "fields"]
    for field in (*fields, "ip.checksum.status"):
        command += ["-e", field]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = [line.split("\t") for line in shown.stdout.splitlines()]

    # The fixture's journeys have no headers: what is not there is no packet.
    said = "44 events written, 2 more are no IP packets\n"
    assert (0, said) == (done.returncode, done.stderr)
    assert 44 == len(rows)
    assert ["183.62.15.118", "22449", "172.17.21.105", "22", "62"] == rows[0][:5]
    assert (
        "vr2: dropped by prerouting legacy mangle FIREWALL_172.17.21.105 rule 5 "
        "(NETFILTER_DROP); headers rebuilt from the log"
    ) == rows[0][5]
    assert {"1"} == {row[6] for row in rows}


def test_a_journey_in_a_capture_has_its_bytes_and_its_line(tmp_path: Path) -> None:
    """The packet is as it was traced, and the comment is follow's compact line."""
    packets = np.zeros(1, PACKET)
    packets["family"], packets["proto"], packets["length"] = 4, 6, 52
    packets["network_length"] = packets["transport_length"] = 20
    packets["raw"][0] = np.frombuffer(NETWORK + bytes(20) + TRANSPORT, np.uint8)
    with LogWriter(tmp_path / "log", "h") as writer:
        writer.append_journeys([SECOND], packets)
        writer.flush()
        done = nftrace("export", "--log", tmp_path / "log", "--pcap", tmp_path / "out.pcapng")
    command = ["tshark", "-r", str(tmp_path / "out.pcapng"), "-T", "fields"]
    for field in ("ip.id", "tcp.seq_raw", "frame.len", "frame.comment"):
        command += ["-e", field]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert (0, "1 events written\n") == (done.returncode, done.stderr)
    fields = shown.rstrip("\n").split("\t")
    assert ["0xbcf0", "1049923130", "52"] == fields[:3]
    assert "FIREWALL_172.17.21.105" in fields[3]


def test_anonymized_exports_hold_no_address(tmp_path: Path) -> None:
    """In no form does an address stay, and with one key it is the same in all of them."""
    key = tmp_path / "key"
    key.write_bytes(bytes(range(KEY_BYTES)))
    names = {form: tmp_path / form for form in ("json", "csv", "parquet", "pcap")}
    words = [word for form, name in names.items() for word in (f"--{form}", name)]
    done = nftrace("export", "--log", LOG, "--anonymize-key", key, *words)
    told = names["json"].read_text(encoding="utf-8") + names["csv"].read_text(encoding="utf-8")
    told += str(pq.read_table(names["parquet"]).to_pylist())
    hidden = Anonymizer(key.read_bytes())
    packets = names["pcap"].read_bytes()

    assert 0 == done.returncode, done.stderr
    for address in ADDRESSES:
        packed = bytes(map(int, address.split(".")))
        assert address not in told
        assert address.encode() not in packets
        assert packed not in packets
        assert hidden.address(address) in told
    assert f"FIREWALL_{hidden.address('172.17.21.105')}" in told


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """Give a folder that every user can get to, which pytest's own are not."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_a_copied_log_is_read_without_root(open_folder: Path) -> None:
    """Another user tells a copy that may not be written, and nothing is left beside it."""
    copy = open_folder / "log"
    shutil.copytree(LOG, copy)
    for path in [*copy.rglob("*"), copy]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = sorted(path.name for path in copy.rglob("*"))
    nobody = {"user": 65534, "group": 65534, "extra_groups": []}
    probe = nftrace("--version", **nobody)
    if probe.returncode:
        pytest.skip(f"needs a checkout that others may read: as nobody, {probe.stderr[-200:]}")
    done = nftrace("export", "--log", copy, "--json", "-", **nobody)

    assert (0, "48 events written\n") == (done.returncode, done.stderr)
    assert before == sorted(path.name for path in copy.rglob("*"))


def test_what_is_damaged_is_said_beside_the_rest(tmp_path: Path) -> None:
    """Problems of the log go to standard error, each a line; the rest is told."""
    copy = tmp_path / "log"
    shutil.copytree(LOG, copy)
    victim = next(copy.glob("drops-*.parquet"))
    victim.write_bytes(victim.read_bytes()[:-7])
    (copy / "notes.txt").write_text("foreign")
    done = nftrace("export", "--log", copy, "--json", "-", "--events", "drops")

    assert 0 == done.returncode
    assert 13 == len(done.stdout.splitlines())
    assert f"nftrace: {victim.name}: damaged: not what was sealed; 31 rows" in done.stderr
    assert "nftrace: notes.txt: foreign" in done.stderr
