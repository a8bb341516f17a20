"""Run folders: resumable, never half a record, refused when something in them is wrong."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from collegium.evals.records import Record, RecordError, RunFolder, Sample

SAMPLES = [Sample("a", "1 + 1?", "math", "2"), Sample("b", "capital of France?", "general", "B", ("Rome", "Paris"))]
RECORD = Record("a", "math", "auto", "math", True, "2", "It is 2\u2028.", (-0.5, -1.0), 3, 4, 0.25, 1.5, "starter-1")


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with folder.open({"task": "t", "seed": 1}, SAMPLES) as writer:
        writer.append(RECORD)
        writer.append(Record("b", "general", "auto", "", None, error="timed out"))
    assert folder.samples() == SAMPLES
    assert folder.settings() == {"task": "t", "seed": 1}
    assert folder.records() == [RECORD, Record("b", "general", "auto", "", None, error="timed out")]


def test_a_later_record_replaces_the_failed_one(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with folder.open({}, SAMPLES) as writer:
        writer.append(Record("a", "math", "auto", "", None, error="timed out"))
    with folder.open({}, SAMPLES) as writer:
        writer.append(RECORD)
    assert folder.records() == [RECORD]


def test_a_line_cut_by_a_kill_is_dropped_and_the_run_goes_on(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with folder.open({}, SAMPLES) as writer:
        writer.append(RECORD)
    file = tmp_path / "records.jsonl"
    file.write_bytes(file.read_bytes() + b'{"sample": "b", "dom')
    assert folder.records() == [RECORD]
    with folder.open({}, SAMPLES) as writer:
        writer.append(Record("b", "general", "auto", "general", False, "A"))
    assert [record.sample for record in folder.records()] == ["a", "b"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("not json", "is not JSON"),
        ("[1]", "not a JSON object"),
        ('{"sample": "a"}', "missing keys"),
        (
            json.dumps({"sample": "a", "domain": "", "target": "", "expert": "", "correct": 1, "answer": None}),
            "correct is 1",
        ),
        (
            json.dumps(
                {"sample": "a", "domain": "", "target": "", "expert": "", "correct": True, "answer": "", "x": 1}
            ),
            r"unknown keys \['x'\]",
        ),
    ],
)
def test_a_broken_line_is_refused_with_its_number(tmp_path: Path, line: str, reason: str) -> None:
    folder = RunFolder(tmp_path)
    with folder.open({}, SAMPLES) as writer:
        writer.append(RECORD)
    file = tmp_path / "records.jsonl"
    file.write_text(file.read_text() + line + "\n")
    with pytest.raises(RecordError, match=rf"records.jsonl:2.*{reason}"):
        folder.open({}, SAMPLES)


def test_another_runs_folder_is_refused(tmp_path: Path) -> None:
    RunFolder(tmp_path).open({"seed": 1}, SAMPLES).close()
    with pytest.raises(RecordError, match=r"run.json belongs to another run"):
        RunFolder(tmp_path).open({"seed": 2}, SAMPLES)
    with pytest.raises(RecordError, match=r"samples.jsonl belongs to another run"):
        RunFolder(tmp_path).open({"seed": 1}, SAMPLES[:1])


def test_two_writers_are_refused(tmp_path: Path) -> None:
    with RunFolder(tmp_path).open({}, SAMPLES), pytest.raises(RecordError, match="another process writes"):
        RunFolder(tmp_path).open({}, SAMPLES)


def test_a_full_disk_stops_the_run_and_leaves_whole_records(tmp_path: Path) -> None:
    """A file-size limit stands for the full disk: the kernel cuts the write at the same place."""
    script = f"""
import resource, signal
from pathlib import Path
from collegium.evals.records import Record, RecordError, RunFolder, Sample
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
folder = RunFolder(Path({str(tmp_path)!r}))
writer = folder.open({{}}, [Sample("a", "p", "d", "t")])
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    for number in range(100):
        writer.append(Record(str(number), "d", "auto", "e", True, "x"))
except RecordError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=os.environ)
    assert "start again to resume" in done.stdout
    records = RunFolder(tmp_path).records()
    assert [record.sample for record in records] == [str(number) for number in range(len(records))]
    assert 0 < len(records) < 100
    assert (tmp_path / "records.jsonl").read_bytes().endswith(b"\n")
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 1000
