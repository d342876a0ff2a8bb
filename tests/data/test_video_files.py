"""Clips that are video files and streams, decoded by PyAV for real; skipped without it."""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coordvlm.data import video_decode
from coordvlm.utils.errors import DataError
from tests.data.video_layouts import load_clips, shown, write_clips, write_video

av = pytest.importorskip("av")

CAPTION = {"video": "a.mp4", "caption": "a grey clip"}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 frames of 64 x 48 px at 10 per second, a key frame every half second."""
    file = tmp_path_factory.mktemp("video") / "a.mp4"
    write_video(file, 24)
    return file


@pytest.fixture
def root(tmp_path: Path, clip: Path) -> Path:
    (tmp_path / "a.mp4").write_bytes(clip.read_bytes())
    write_clips(tmp_path, CAPTION)
    return tmp_path


def test_every_frame_of_a_file_is_found(root: Path) -> None:
    """Against the numbers that were written, and against all frames decoded one after the other."""
    source = load_clips(root, num_frames=24)
    assert shown(source) == list(range(24))
    with av.open(str(root / "a.mp4")) as container:
        expected = np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])
    assert np.array_equal(source.split("train").sample(0, 0).frames, expected)


@pytest.mark.parametrize("seek_s", [0.05, 0.3, 1.0, 100.0])
@pytest.mark.parametrize(("name", "gop"), [("a.mp4", 5), ("b.mkv", 5), ("c.avi", 100), ("d.mp4", 1)])
def test_seeking_finds_what_decoding_on_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, gop: int, seek_s: float) -> None:
    monkeypatch.setattr(video_decode, "_SEEK_S", seek_s)
    write_video(tmp_path / name, 25, gop=gop)
    write_clips(tmp_path, {"video": name, "caption": "x"})
    for frames, expected in ((1, [12]), (2, [0, 24]), (5, [0, 6, 12, 18, 24]), (4, [0, 8, 16, 24])):
        assert shown(load_clips(tmp_path, num_frames=frames)) == expected


def test_rates_windows_and_durations(root: Path) -> None:
    assert shown(load_clips(root, fps=2.5)) == [3, 15, 23]  # 3, 7, 11, 15, 19, 23 to choose from
    write_clips(root, {**CAPTION, "start": 0.5, "end": 1.0}, {**CAPTION, "end": 9}, {**CAPTION, "start": 2.2})
    source = load_clips(root)
    assert shown(source) == [5, 7, 9]
    with pytest.raises(DataError, match="start and end must lie in the clip"):
        shown(source, 1)
    with pytest.raises(DataError, match=r"at least 3 frames.*got 2"):
        shown(source, 2)
    assert shown(load_clips(root, short="repeat", on_error="skip"), 1) == [22, 23, 23]
    write_clips(root, CAPTION, {**CAPTION, "end": 1.0})
    source = load_clips(root, min_seconds=1.5)
    assert source.split("train").ids.tolist() == [1]
    assert source.dropped("train") == {"below_min_seconds": 1}


def test_points_are_in_the_last_frame(root: Path) -> None:
    write_clips(root, {"video": "a.mp4", "question": "Where?", "point": [64, 1.5]})
    source = load_clips(root, num_frames=1)
    assert shown(source) == [23]
    assert source.truth("train").image_wh.tolist() == [[64, 48]]


def test_a_file_that_is_turned(root: Path) -> None:
    """The matrix of a phone that was held upright: written into the track's header."""
    data = bytearray((root / "a.mp4").read_bytes())
    at = data.index(b"tkhd") + 44
    one = 1 << 16
    assert struct.unpack(">9i", data[at : at + 36]) == (one, 0, 0, 0, one, 0, 0, 0, 1 << 30)
    data[at : at + 36] = struct.pack(">9i", 0, one, 0, -one, 0, 0, 48 * one, 0, 1 << 30)
    (root / "a.mp4").write_bytes(data)
    write_clips(root, {"video": "a.mp4", "question": "Where?", "point": [1, 60]})
    source = load_clips(root)
    assert source.split("train").sample(0, 0).frames.shape == (3, 64, 48, 3)
    assert source.truth("train").image_wh.tolist() == [[48, 64]]


def test_turning_is_clockwise_as_players_show_it(tmp_path: Path) -> None:
    """A matrix (0 1 -1 0) sends the left edge of what is stored to the top."""
    file = tmp_path / "a.mp4"
    with av.open(str(file), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        left = np.zeros((32, 64, 3), dtype=np.uint8)
        left[:, :32] = 255
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(left, format="rgb24")))
        container.mux(stream.encode())
    data = bytearray(file.read_bytes())
    at = data.index(b"tkhd") + 44
    data[at : at + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 32 << 16, 0, 1 << 30)
    file.write_bytes(data)
    write_clips(tmp_path, CAPTION)
    frame = load_clips(tmp_path).split("train").sample(0, 0).frames[0]
    assert frame.shape == (64, 32, 3)
    assert frame[:28].min() > 200
    assert frame[36:].max() < 50


@pytest.mark.parametrize("content", [b"", b"no video at all", None])
def test_a_file_that_is_no_video_or_ends_early(root: Path, clip: Path, content: bytes | None) -> None:
    whole = clip.read_bytes()
    (root / "a.mp4").write_bytes(whole[: len(whole) * 2 // 3] if content is None else content)
    source = load_clips(root)
    with pytest.raises(DataError, match=r"train.jsonl:1: .*a.mp4: the clip must be readable and complete"):
        source.split("train").sample(0, 0)
    assert load_clips(root, on_error="skip").dropped("train") == {}  # met when it is read, and counted by the loader
    write_clips(root, CAPTION, {"video": "frames", "caption": "x"})


def test_what_cannot_be_opened_is_counted_where_clips_are_opened_first(root: Path) -> None:
    (root / "b.mp4").write_bytes(b"no video")
    write_clips(root, CAPTION, {"video": "b.mp4", "caption": "x"})
    source = load_clips(root, min_seconds=0.1, on_error="skip")
    assert source.dropped("train") == {"unreadable_clip": 1}
    assert len(load_clips(root, split="val", min_seconds=0.1, on_error="skip").split("val")) == 2  # the loader counts it
    with pytest.raises(DataError, match=r"b\.mp4"):
        load_clips(root, min_seconds=0.1)


def test_sound_alone_is_no_clip(root: Path) -> None:
    with av.open(str(root / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
        sound.sample_rate = 44100
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    with pytest.raises(DataError, match="must hold a video stream"):
        load_clips(root).split("train").sample(0, 0)


# ---------------------------------------------------------------- streams
class Server(HTTPServer):
    content = b""
    failures = 0
    asked = 0


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked += 1
        if self.path != "/a.mp4":
            self.send_error(404)
        elif self.server.failures:
            self.server.failures -= 1
            self.send_error(503)
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(len(self.server.content)))
            self.end_headers()
            self.wfile.write(self.server.content)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server(clip: Path) -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as running:
        running.content = clip.read_bytes()
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def test_a_stream_is_tried_again(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("coordvlm.data.video_retry.time.sleep", pauses.append)
    address = f"http://127.0.0.1:{server.server_port}"
    write_clips(tmp_path, {"video": f"{address}/a.mp4", "caption": "x"}, {"video": f"{address}/b.mp4", "caption": "x"})
    source = load_clips(tmp_path, retries=2, retry_seconds=0.25)
    server.failures = 2
    assert shown(source) == [0, 12, 23]
    assert pauses == [0.25, 0.5]
    server.failures = 9
    with pytest.raises(DataError, match=r"a.mp4: the clip must be readable \(3 tries\).*5XX"):
        shown(source)
    pauses.clear()
    with pytest.raises(DataError, match="404"):  # does not pass
        shown(source, 1)
    assert pauses == []


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    write_clips(tmp_path, {"video": "http://127.0.0.1:9/a.mp4", "caption": "x"})
    with pytest.raises(DataError, match=r"http://127.0.0.1:9/a.mp4: the clip must be readable \(2 tries\)"):
        shown(load_clips(tmp_path, retries=1))
