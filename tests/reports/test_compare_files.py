from __future__ import annotations

import csv
import io
from pathlib import Path

from coordvlm.reports.compare_files import write_comparison_files
from tests.reports.comparisons import comparison


def test_every_file_is_written_and_numbers_keep_their_precision(tmp_path: Path) -> None:
    files = write_comparison_files(tmp_path, comparison())
    assert sorted(f.name for f in files) == [
        "compare.md", "curves.csv", "groups.csv", "left_out.csv", "pairs.csv", "readouts.csv", "runs.csv"
    ]
    tables = {f.name: list(csv.DictReader(io.StringIO(f.read_text()))) for f in files if f.suffix == ".csv"}
    first = tables["pairs.csv"][0]
    assert (first["first"], first["second"], first["metric"]) == ("hybrid", "ce", "AP")
    assert (float(first["difference"]), float(first["low"]), float(first["p_holm"])) == (0.031, 0.012, 0.001)
    assert len(tables["runs.csv"]) == 6
    assert tables["groups.csv"][0]["group"] == "hybrid"
    assert next(r for r in tables["groups.csv"] if r["metric"] == "AR10")["mean"] == ""
    assert {r["column"] for r in tables["curves.csv"]} == {"val/AP", "val/px_median", "val/coord_probe/entropy"}
    assert tables["readouts.csv"][0] == {"group": "hybrid", "readout": "argmax", "metric": "AP", "mean": "0.53", "sd_over_seeds": "0.01"}
    assert tables["left_out.csv"][0]["folder"] == "/out/broken"


def test_markdown_begins_with_the_verdict_and_its_tables_are_whole(tmp_path: Path) -> None:
    write_comparison_files(tmp_path, comparison(left_out=[("/out/a|b", "<why>\nbroken")]))
    text = (tmp_path / "compare.md").read_text(encoding="utf-8")
    assert text.index("- hybrid beats ce by 3.1 AP") < text.index("| group |")
    assert "| hybrid | 3 | 63.0 ± 1.0 [61.0, 65.0] |" in text
    assert "- /out/a\\|b: &lt;why> broken" in text
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert all(len({line.count(" | ") for line in table if "---" not in line}) == 1 for table in tables)
