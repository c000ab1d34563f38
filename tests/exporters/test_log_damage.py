"""Logs that are not as they were written: what is whole is told, the rest is named."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporters.log import LogOptions, LogReader, LogWriter
from exporters.log.encode import StreamEncoder, read_stream
from exporters.log.rulesets import content_name, read_text, store_text
from exporters.log.seal import crc_of, seal
from exporters.log.segments import list_segments
from tests.exporters.log_case import drops
from tests.journeys import START_NS, article
from tracer.core.log_rows import Change, Loss
from tracer.core.log_schema import DROPS, VERSION

FIXTURE = Path(__file__).parent / "fixtures" / "log-1"
TEXT = "-A FIREWALL -j DROP\n" * 40


@pytest.fixture(scope="module")
def stream() -> bytes:
    """Make an open segment of three batches."""
    encoder = StreamEncoder(DROPS)
    return b"".join(encoder.encode({**drops(n), "ordinal": range(n)}, n) for n in (3, 5, 7))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a file to write streams into."""
    return tmp_path_factory.mktemp("stream") / "drops-0000000000000000.arrows"


def _rows(file: Path) -> list[int]:
    return [batch.num_rows for batch in read_stream(file).batches]


def test_a_stream_cut_anywhere_tells_its_whole_batches(stream: bytes, file: Path) -> None:
    """Whatever the length that is left: a beginning of the batches, more with more bytes."""
    seen = []
    for cut in range(0, len(stream), 41):
        file.write_bytes(stream[:cut])
        seen.append(len(_rows(file)))
    file.write_bytes(stream)

    assert [3, 5, 7] == _rows(file)
    assert sorted(seen) == seen
    assert {0, 1, 2} == set(seen)


@given(data=st.data())
def test_a_flipped_bit_never_makes_other_rows(
    stream: bytes, file: Path, data: st.DataObject
) -> None:
    """With any bit wrong, the batches told are those that were written, or fewer."""
    at = data.draw(st.integers(0, len(stream) - 1))
    bit = data.draw(st.integers(0, 7))
    file.write_bytes(stream[:at] + bytes([stream[at] ^ 1 << bit]) + stream[at + 1 :])
    read = read_stream(file)
    numbers = [
        batch["tcp_seq"].to_pylist() for batch in read.batches if "tcp_seq" in batch.schema.names
    ]

    assert [list(range(n)) for n in (3, 5, 7)][: len(numbers)] == numbers


@given(st.binary(max_size=300))
def test_no_bytes_make_reading_a_stream_fail(file: Path, content: bytes) -> None:
    """Whatever a file holds, reading it as a segment says what was wrong, or tells rows."""
    file.write_bytes(content)
    read = read_stream(file)

    assert read.batches or read.why


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a log of three sealed segments of drops and a loss."""
    directory = tmp_path_factory.mktemp("written")
    with LogWriter(directory, "h", LogOptions(segment_bytes=1)) as writer:
        for number in range(3):
            writer.append_drops(drops(11, first=number * 11), 11)
            writer.flush()
        writer.append_losses([Loss(START_NS, "trace", "lost", 3)])
    return directory


@pytest.fixture
def log(written: Path, tmp_path: Path) -> Path:
    """Give a copy of that log."""
    shutil.copytree(written, tmp_path / "log")
    return tmp_path / "log"


def _told(log: Path) -> tuple[list[int], list[tuple[str, str]]]:
    with LogReader(log) as reader:
        numbers = [row[0] for row in reader.query("SELECT tcp_seq FROM drops ORDER BY ordinal")]
        assert [Loss(START_NS, "trace", "lost", 3)] == reader.losses()
        return numbers, [(problem.name, problem.kind) for problem in reader.problems]


def test_a_sealed_segment_that_is_cut_or_flipped_is_named_and_passed_over(log: Path) -> None:
    """With any byte of it wrong or its end missing, a segment is named; the others are told."""
    victim = list_segments(log).sealed[1].path
    assert victim.name.startswith("drops")
    whole = victim.read_bytes()
    others = [*range(11), *range(22, 33)]

    for at in range(0, len(whole), 1009):
        victim.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        assert (others, [(victim.name, "damaged")]) == _told(log)
    for cut in (0, 1, 4, len(whole) // 2, len(whole) - 1):
        victim.write_bytes(whole[:cut])
        assert (others, [(victim.name, "damaged")]) == _told(log)
    victim.write_bytes(whole)
    assert (list(range(33)), []) == _told(log)


def test_foreign_files_are_named_and_passed_over(log: Path) -> None:
    """What is no segment, or no Parquet under a segment's name, is named; all rows are told."""
    names = ["notes.txt", "drops-1.parquet", "elephants-0000000000000000.arrows"]
    for name in names:
        (log / name).write_text("no segment")
    lying = log / "x.parquet"
    pq.write_table(pa.table({"a": [1]}), lying)
    crc = crc_of(lying)
    name = f"changes-{77:016x}-{78:016x}-{0:016x}-{1 << 60:016x}-{crc:08x}.parquet"
    lying.rename(log / name)
    stream = "drops-00000000000fffff.arrows"
    (log / stream).write_text("no stream at all, but a longer text")
    numbers, problems = _told(log)
    with LogReader(log) as reader:
        assert [] == reader.changes()
        assert (name, "foreign") in {(p.name, p.kind) for p in reader.problems}

    assert list(range(33)) == numbers
    assert sorted([*((one, "foreign") for one in names), (stream, "damaged")]) == problems


def test_a_segment_of_which_nothing_can_be_read_is_put_aside(tmp_path: Path, stream: bytes) -> None:
    """Sealing what is no stream keeps its bytes under another name and goes on."""
    path = tmp_path / "drops-0000000000000000.arrows"
    path.write_bytes(b"\xff\xff\xff\xff" + stream[8:])
    result = seal(list_segments(tmp_path).open[0], "nftrace")
    with LogReader(tmp_path) as reader:
        problems = [(problem.name, problem.kind) for problem in reader.problems]

    assert (None, 0, len(stream) - 4) == (result.name, result.rows, result.left_bytes)
    assert [("drops-0000000000000000.damaged", "damaged")] == problems


def test_a_torn_segment_is_sealed_up_to_the_tear(tmp_path: Path, stream: bytes) -> None:
    """The next writer seals what is whole, says how much was not, and goes on counting."""
    (tmp_path / "drops-0000000000000000.arrows").write_bytes(stream[:-20])
    with LogWriter(tmp_path, "h") as writer:
        writer.append_drops(drops(2, first=100), 2)
        writer.flush()
        while not any(loss.what == "torn" for loss in _losses(tmp_path)):
            writer.flush()
    with LogReader(tmp_path) as reader:
        rows = reader.query("SELECT count(*), max(tcp_seq) FROM drops")
        losses = {loss.what: loss for loss in reader.losses()}

    assert [(10, 101)] == rows
    assert {"not_closed", "torn"} == losses.keys()
    assert 0 < losses["torn"].count < len(stream)


def _losses(log: Path) -> list[Loss]:
    with LogReader(log) as reader:
        return reader.losses()


def test_a_log_of_version_1_is_read(tmp_path: Path) -> None:
    """All of an older log is told, what it had no column for with its default."""
    shutil.copytree(FIXTURE, tmp_path / "log")
    with LogReader(tmp_path / "log") as reader:
        rows = reader.query("SELECT count(*), max(expected), min(chain), sum(rule) FROM drops")
        journeys = [stored.journey for stored in reader.journeys()]
        changes = reader.changes()
        texts = [reader.text(name) for name in (changes[0].before, changes[0].after)]

        assert [] == reader.problems
    assert [(44, 0, "FIREWALL_172.17.21.105", 220)] == rows
    assert list(article()) == journeys
    assert ["-P INPUT ACCEPT\n", "-P INPUT DROP\n"] == texts
    assert [("vr2", "ruleset", "mangle")] == [(c.netns, c.what, c.subject) for c in changes]


def test_a_log_of_version_1_is_written_on(tmp_path: Path) -> None:
    """A newer writer seals the older segment that was left open, and numbers go on."""
    shutil.copytree(FIXTURE, tmp_path / "log")
    with LogReader(tmp_path / "log") as reader:
        before = reader.query("SELECT max(ordinal) FROM drops")[0][0]
    with LogWriter(tmp_path / "log", "router") as writer:
        writer.append_changes([Change(START_NS, "vr2", "route", "gone")])

        assert writer.flush() > before
    with LogReader(tmp_path / "log") as reader:
        assert [(44,)] == reader.query("SELECT count(*) FROM drops")
        assert [] == reader.problems


def test_a_log_of_a_later_version_is_read_and_named(tmp_path: Path) -> None:
    """Columns that we do not know are passed over, and the reader says that there may be some."""
    with LogWriter(tmp_path, "h") as writer:
        writer.append_drops(drops(5), 5)
    sealed = list_segments(tmp_path).sealed[0]
    table = pq.read_table(sealed.path).append_column("colour", pa.array(["red"] * 5))
    metadata = {"nftrace.table": "drops", "nftrace.version": str(VERSION + 1)}
    sealed.path.unlink()
    pq.write_table(table.replace_schema_metadata(metadata), tmp_path / ".new")
    name = sealed.name.replace(f"{sealed.crc:08x}", f"{crc_of(tmp_path / '.new'):08x}")
    (tmp_path / ".new").rename(tmp_path / name)
    with LogReader(tmp_path) as reader:
        assert [(n,) for n in range(5)] == reader.query("SELECT tcp_seq FROM drops ORDER BY 1")
        assert [(name, "newer")] == [(p.name, p.kind) for p in reader.problems]


def test_a_text_is_what_was_stored_or_nothing(tmp_path: Path) -> None:
    """A ruleset that was cut, flipped or swapped is never told as the one that was asked for."""
    name = store_text(tmp_path, TEXT, "nftrace")
    path = tmp_path / "rulesets" / f"{name}.gz"
    whole = path.read_bytes()

    assert TEXT == read_text(tmp_path, name)
    assert read_text(tmp_path, content_name("other")) is None
    assert read_text(tmp_path, "../../etc/passwd") is None
    for at in range(0, len(whole), 2):
        # The bytes of gzip's head that say nothing of the content may be anything.
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x40]) + whole[at + 1 :])
        with LogReader(tmp_path) as reader:
            told = reader.text(name)

            assert told == TEXT or [("rulesets/" + path.name, "damaged")] == [
                (p.name, p.kind) for p in reader.problems
            ]
