"""Reading clips: what comes out of real files made here, frame numbers written into the pictures."""

import io
import os
import pickle
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from datasets.media.container import MediaError, MediaSettings, read_media
from datasets.media.tracks import PictureTrack

FPS = 20
BITS = 8  # a frame's number, as black and white columns
OPEN_GOP = "open-gop=1:keyint=12:min-keyint=12:bframes=3:b-pyramid=normal:scenecut=0"
SHORT_GOP = "keyint=8:min-keyint=8:bframes=2:scenecut=0"
LONG_GOP = "keyint=250:bframes=3:b-adapt=0:b-pyramid=normal:scenecut=0"
REFRESH = "keyint=15:intra-refresh=1"


def numbered(number: int, height: int = 48, width: int = 64) -> np.ndarray:
    """A picture that holds its number, over a texture that gives the encoder something to predict."""
    texture = np.random.default_rng(1).integers(0, 60, (height, width + 512, 3), np.uint8)
    picture = texture[:, number : number + width].copy()
    column = width // BITS
    for bit in range(BITS):
        picture[: height // 2, bit * column : (bit + 1) * column] = 220 if number >> bit & 1 else 20
    return picture


def number_of(picture: np.ndarray) -> int:
    height, width = picture.shape[:2]
    middles = (np.arange(BITS) + 0.5) * width / BITS
    return sum(int(picture[height // 4, int(x)].mean() > 120) << bit for bit, x in enumerate(middles))


def clicks(seconds: float, rate: int = 48000) -> np.ndarray:
    """(S,) silence with a short click at the middle of every second."""
    sound = np.zeros(round(seconds * rate), np.float32)
    for second in range(int(seconds)):
        middle = round((second + 0.5) * rate)
        sound[middle - 12 : middle + 13] = 0.9 * np.hanning(25)
    return sound


def click_times(waveform: np.ndarray, rate: int = 16000) -> list[float]:
    """Where the clicks are, in seconds."""
    loud = np.flatnonzero(np.abs(waveform) > 4000)
    groups = np.split(loud, np.flatnonzero(np.diff(loud) > rate // 10) + 1)
    return [group[np.argmax(np.abs(waveform[group]))] / rate for group in groups if len(group)]


def write_media(
    path: Path,
    pictures: list[np.ndarray] | None,
    sound: np.ndarray | None,
    x264: str = SHORT_GOP,
    video_delay: float = 0.0,
    audio_delay: float = 0.0,
    rotation: int = 0,
    rate: int = 48000,
    audio_codec: str = "aac",
    options: dict[str, str] | None = None,
) -> Path:
    """Writes H.264 and AAC; ``sound`` is (S,) or (2, S) float32."""
    with av.open(str(path), "w", options=options or {}) as container:
        video = audio = None
        if pictures is not None:
            settings = {"preset": "fast", "crf": "18", "threads": "1", "x264-params": x264}
            video = container.add_stream("libx264", rate=FPS, options=settings)
            video.height, video.width = pictures[0].shape[:2]
            video.pix_fmt = "yuv420p" if video.width % 2 == video.height % 2 == 0 else "yuv444p"
            if rotation:
                video.set_display_rotation(rotation)
        if sound is not None:
            sound = np.atleast_2d(sound)
            audio = container.add_stream(
                audio_codec, rate=rate, layout="stereo" if len(sound) == 2 else "mono"
            )
        packets = []
        for i, picture in enumerate(pictures or []):
            assert video is not None
            frame = av.VideoFrame.from_ndarray(picture)
            frame.pts, frame.time_base = i + round(video_delay * FPS), Fraction(1, FPS)
            packets += video.encode(frame)
        packets += video.encode(None) if video else []
        if sound is not None:
            assert isinstance(audio, av.AudioStream)
            layout = "stereo" if len(sound) == 2 else "mono"
            block = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound), format="fltp", layout=layout)
            block.sample_rate, block.pts, block.time_base = rate, round(audio_delay * rate), Fraction(1, rate)
            packets += [*audio.encode(block), *audio.encode(None)]
        for packet in sorted(packets, key=lambda p: (p.dts or 0) * p.time_base):
            container.mux(packet)
    return path


@pytest.fixture(scope="module")
def long_file(tmp_path_factory) -> Path:
    pictures = [numbered(i) for i in range(12 * FPS)]
    return write_media(tmp_path_factory.mktemp("long") / "long.mp4", pictures, clicks(12), OPEN_GOP)


def full_decode(path: Path) -> dict[float, np.ndarray]:
    """Every frame of a file by its time, nothing skipped."""
    with av.open(str(path)) as container:
        origin = (container.start_time or 0) / av.time_base
        return {
            round(frame.time - origin, 4): frame.reformat(
                format="rgb24", interpolation="BICUBIC"
            ).to_ndarray()
            for frame in container.decode(video=0)
        }


def test_frames_carry_their_true_times(long_file: Path):
    clip = read_media(long_file)
    assert [number_of(frame) for frame in clip.frames] == [round(t * FPS) for t in clip.frame_times]
    np.testing.assert_allclose(clip.frame_times, 12 * (np.arange(10) + 0.5) / 10, atol=1 / FPS)
    assert clip.waveform.dtype == np.int16
    assert len(clip.waveform) == 12 * 16000
    assert not clip.truncated


@pytest.mark.parametrize("x264", [OPEN_GOP, SHORT_GOP, LONG_GOP, "bframes=0:keyint=30", REFRESH])
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_frames_equal_a_full_decode(tmp_path: Path, x264: str, suffix: str):
    path = write_media(tmp_path / f"a.{suffix}", [numbered(i) for i in range(100)], clicks(5), x264)
    frames = full_decode(path)
    for start, end in ((None, None), (2.45, 3.3)):
        clip = read_media(path, start, end, MediaSettings(num_frames=7))
        for time, frame in zip(clip.frame_times, clip.frames, strict=True):
            np.testing.assert_array_equal(frame, frames[round(time + clip.start, 4)])
        if start is not None and end is not None:
            wanted = start + (np.arange(7) + 0.5) / 7 * (end - start)
            shown = [max(t for t in frames if t <= w + 1e-6) for w in wanted]
            np.testing.assert_allclose(np.add(clip.frame_times, start), shown, atol=1e-3)


@pytest.mark.parametrize(("x264", "share"), [(SHORT_GOP, 0.6), (LONG_GOP, 0.8), (OPEN_GOP, 0.7)])
def test_frames_that_nobody_needs_are_not_decoded(tmp_path: Path, monkeypatch, x264: str, share: float):
    path = write_media(tmp_path / "a.mp4", [numbered(i) for i in range(200)], clicks(10), x264)
    decoded = []
    plain = PictureTrack._decode

    def counted(self, runs, wanted):
        for frame in plain(self, runs, wanted):
            decoded.append(frame.pts)
            yield frame

    monkeypatch.setattr(PictureTrack, "_decode", counted)
    read_media(path, settings=MediaSettings(num_frames=6))
    assert 6 <= len(decoded) < share * 200


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_a_segment_is_exact_in_picture_and_sound(tmp_path: Path, suffix: str):
    pictures = [numbered(i) for i in range(12 * FPS)]
    path = write_media(tmp_path / f"a.{suffix}", pictures, clicks(12), OPEN_GOP)
    with av.open(str(path)) as container:  # MPEG-TS begins late: times count from what comes first
        origin = (container.start_time or 0) / av.time_base
        first = (container.streams.video[0].start_time or 0) * float(
            container.streams.video[0].time_base or 0
        )
    lead = first - origin
    clip = read_media(path, 7.3 + lead, 10.1 + lead)
    assert len(clip.waveform) == round(2.8 * 16000)
    numbers = [number_of(frame) for frame in clip.frames]
    np.testing.assert_allclose(np.add(clip.frame_times, 7.3), np.divide(numbers, FPS), atol=1e-3)
    np.testing.assert_allclose(click_times(clip.waveform), [0.2, 1.2, 2.2], atol=2e-3)


def test_a_segment_equals_the_same_part_of_the_whole(long_file: Path):
    whole, part = read_media(long_file), read_media(long_file, 4.0, 6.0)
    difference = whole.waveform[4 * 16000 : 6 * 16000].astype(int) - part.waveform
    assert np.abs(difference[:-50]).max() <= 2  # but for the resampler's filter at the end


def test_late_sound_is_preceded_by_silence(tmp_path: Path):
    path = write_media(tmp_path / "a.mp4", [numbered(i) for i in range(60)], clicks(3), audio_delay=0.4)
    clip = read_media(path)
    np.testing.assert_allclose(click_times(clip.waveform), [0.9, 1.9, 2.9], atol=2e-3)
    assert np.abs(clip.waveform[:6000]).max() < 100
    assert [number_of(frame) for frame in clip.frames] == [round(t * FPS) for t in clip.frame_times]


def test_late_pictures_keep_their_times(tmp_path: Path):
    path = write_media(tmp_path / "a.mp4", [numbered(i) for i in range(60)], clicks(3), video_delay=0.5)
    clip = read_media(path)
    np.testing.assert_allclose(click_times(clip.waveform), [0.5, 1.5, 2.5], atol=2e-3)
    assert min(clip.frame_times) >= 0.5
    assert [number_of(frame) for frame in clip.frames] == [round((t - 0.5) * FPS) for t in clip.frame_times]


@pytest.mark.parametrize("rotation", [0, 90, 180, -90])
def test_frames_are_upright(tmp_path: Path, rotation: int):
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[:24, :32], picture[:24, 32:], picture[24:, :32] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    path = write_media(tmp_path / "a.mp4", [picture] * 20, clicks(1), rotation=rotation)
    with av.open(str(path)) as container:
        assert abs(next(container.decode(video=0)).rotation) == abs(rotation)
    frame = read_media(path).frames[0]
    expected = np.rot90(picture, rotation // 90)  # counter-clockwise, as FFmpeg counts
    assert frame.shape == expected.shape
    assert np.mean(np.abs(frame.astype(int) - expected) > 60) < 0.1


def test_sizes(tmp_path: Path):
    path = write_media(tmp_path / "a.mp4", [numbered(i, 95, 161) for i in range(20)], clicks(1))
    assert read_media(path).frames[0].shape == (95, 161, 3)  # never enlarged
    assert read_media(path, settings=MediaSettings(shorter_side=19)).frames[0].shape == (19, 32, 3)


def test_channels_are_averaged_or_the_first_taken(tmp_path: Path):
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(48000) / 48000).astype(np.float32)
    path = write_media(tmp_path / "a.mp4", [numbered(0)] * 20, np.stack([tone, np.zeros_like(tone)]))
    level = [
        np.std(read_media(path, settings=MediaSettings(first_channel_only=first)).waveform[4000:12000])
        / 32768
        for first in (False, True)
    ]
    np.testing.assert_allclose(np.multiply(level, 2**0.5), [0.25, 0.5], rtol=0.05)


@pytest.mark.parametrize(
    ("codec", "rate"), [("pcm_s16le", 22050), ("flac", 44100), ("libmp3lame", 32000), ("libopus", 48000)]
)
def test_other_codecs_and_rates(tmp_path: Path, codec: str, rate: int):
    sound = np.stack([clicks(3, rate)] * 2)
    pictures = [numbered(i) for i in range(60)]
    clip = read_media(write_media(tmp_path / "a.mkv", pictures, sound, rate=rate, audio_codec=codec))
    np.testing.assert_allclose(click_times(clip.waveform), [0.5, 1.5, 2.5], atol=4e-3)
    assert clip.duration == pytest.approx(3, abs=0.1)


def test_some_of_the_frames(long_file: Path):
    every, some = read_media(long_file), read_media(long_file, frame_indices=[3, 8])
    assert some.frame_times == [every.frame_times[3], every.frame_times[8]]
    np.testing.assert_array_equal(some.frames[1], every.frames[8])
    assert read_media(long_file, frame_indices=[]).frames == []


def test_a_binary_file_will_do(long_file: Path):
    clip, other = read_media(long_file, 3.0, 5.0), read_media(io.BytesIO(long_file.read_bytes()), 3.0, 5.0)
    np.testing.assert_array_equal(clip.waveform, other.waveform)
    np.testing.assert_array_equal(clip.frames, other.frames)


def test_reasons(tmp_path: Path, long_file: Path):
    silent = write_media(tmp_path / "silent.mp4", [numbered(i) for i in range(20)], None)
    blind = write_media(tmp_path / "blind.mp4", None, clicks(1))
    text = tmp_path / "text.mp4"
    text.write_text("this is no video")
    empty = tmp_path / "empty.mp4"
    empty.touch()
    headless = tmp_path / "headless.mp4"
    headless.write_bytes(long_file.read_bytes()[: long_file.stat().st_size // 2])  # the header was at the end
    cases = [
        (silent, None, "no_audio"),
        (blind, None, "no_video"),
        (text, None, "undecodable"),
        (empty, None, "undecodable"),
        (headless, None, "undecodable"),
        (tmp_path / "nothing.mp4", None, "file_missing"),
        (tmp_path, None, "file_missing"),
        ("zero\0byte.mp4", None, "file_missing"),
        (long_file, 40.0, "outside"),
    ]
    for path, start, reason in cases:
        with pytest.raises(MediaError) as caught:
            read_media(path, start)
        assert caught.value.reason == reason, path
        assert pickle.loads(pickle.dumps(caught.value)).detail == caught.value.detail
    with pytest.raises(MediaError, match="the file is empty"):
        read_media(empty)


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_truncated_file_gives_what_decodes(tmp_path: Path, suffix: str):
    fast = {"movflags": "faststart"} if suffix == "mp4" else {}
    pictures = [numbered(i) for i in range(100)]
    path = write_media(tmp_path / f"a.{suffix}", pictures, clicks(5), options=fast)
    path.write_bytes(path.read_bytes()[: round(0.6 * path.stat().st_size)])
    clip = read_media(path)
    assert clip.truncated
    assert 1 < clip.duration < 4.5
    assert len(clip.frames) == 10
    assert [number_of(frame) for frame in clip.frames] == [round(t * FPS) for t in clip.frame_times]
    assert not read_media(path, 0.0, 1.0).truncated  # nothing of this segment is missing


def test_damage_in_the_middle_is_told(tmp_path: Path, long_file: Path):
    content = bytearray(long_file.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4000] = bytes(4000)
    path = tmp_path / "damaged.mp4"
    path.write_bytes(content)
    clip = read_media(path)
    assert clip.truncated
    assert len(clip.frames) == 10


def test_damaged_sound_is_truncated_whatever_error_its_decoder_gives(tmp_path: Path, long_file: Path):
    content = bytearray(long_file.read_bytes())
    noise = np.random.default_rng(0)
    with av.open(str(long_file)) as container:
        sound = [packet for packet in container.demux(audio=0) if packet.size and packet.pos is not None]
    errors = set()
    decoder = av.CodecContext.create("aac", "r")
    for packet in sound[len(sound) // 2 :]:
        assert packet.pos is not None
        content[packet.pos : packet.pos + packet.size] = noise.bytes(packet.size)
    path = tmp_path / "noise.mp4"
    path.write_bytes(content)
    with av.open(str(path)) as container:
        decoder.extradata = container.streams.audio[0].codec_context.extradata
        for packet in container.demux(audio=0):
            try:
                decoder.decode(packet)
            except av.FFmpegError as error:
                errors.add(type(error).__name__)
    assert errors - {"InvalidDataError"}, "the damage was to give other errors too"
    clip = read_media(path)
    assert clip.truncated
    assert clip.duration > 1


def test_impossible_segments_are_the_callers_mistake(long_file: Path):
    for start, end in ((-1.0, None), (3.0, 3.0), (float("nan"), None)):
        with pytest.raises(ValueError, match="0 <= start < end"):
            read_media(long_file, start, end)
    with pytest.raises(ValueError, match="num_frames"):
        MediaSettings(num_frames=0)


@pytest.mark.skipif("EARSIGHT_CLIPS" not in os.environ, reason="EARSIGHT_CLIPS names no folder of real clips")
def test_real_clips():
    for path in sorted(Path(os.environ["EARSIGHT_CLIPS"]).glob("*.mp4")):
        try:
            clip = read_media(path)
        except MediaError as error:
            assert error.reason in ("no_audio", "no_video")  # noqa: PT017
            continue
        frames = full_decode(path)
        assert all(round(time, 4) in frames for time in clip.frame_times)
        assert len(clip.frames) == 10
        assert not clip.truncated
        assert clip.waveform.any()
