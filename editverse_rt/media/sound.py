"""The sound that a result carries over from its source, as packets in memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import av
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.packet import Packet
from av.stream import Disposition

from editverse_rt.errors import MediaError
from editverse_rt.files import OpenFile, reason
from editverse_rt.media.choosing import choose_stream
from editverse_rt.media.libav import open_input

__all__ = ["MAX_SOUND_BYTES", "Sound", "read_sound"]

MAX_SOUND_BYTES = 1 << 28


class Sound:
    """A file's audio stream, the default one or else the first, as it is coded.

    Its packets are in memory: the file may be deleted or replaced afterwards. codec_name: FFmpeg's word.
    """

    def __init__(
        self, container: InputContainer, stream: AudioStream, packets: list[Packet[Any]], begin_s: Fraction
    ) -> None:
        # The container holds what a copy of the stream is described by; nothing is read from it any more.
        self._container, self._stream = container, stream
        self._packets = [
            (packet, packet.pts or 0, packet.dts or 0, duration, packet.time_base)
            for packet, duration in zip(packets, _durations(packets), strict=True)
        ]
        self._begin_s = begin_s
        self._turn = threading.Lock()
        self.codec_name = stream.codec_context.codec.canonical_name if stream.codec_context else "unknown"

    def add_to(self, output: OutputContainer) -> AudioStream:
        """Add a stream like this one to a file that is being written."""
        return output.add_stream_from_template(self._stream)

    def times_s(self) -> Iterator[Fraction]:
        """When each packet is due, from where the source's video begins."""
        for _, _, dts, _, time_base in self._packets:
            yield (dts - round(self._begin_s / time_base)) * time_base

    def mux(self, number: int, output: OutputContainer, copy: AudioStream) -> None:
        """Write the packet of that number to the stream that `add_to` gave, timed as `times_s` says it.

        Raises what libav raises. The packets are shared by all files that are written at the same time, and libav
        changes their times: so each is set and written in one go.
        """
        packet, pts, dts, duration, time_base = self._packets[number]
        shift = round(self._begin_s / time_base)
        with self._turn:
            packet.time_base, packet.duration = time_base, duration
            packet.pts, packet.dts = pts - shift, dts - shift
            packet.stream = copy
            output.mux(packet)


def _durations(packets: list[Packet[Any]]) -> list[int]:
    """The length of each packet; MP4 loses a last one that states none, so it gets that of the one before."""
    durations: list[int] = []
    for number, packet in enumerate(packets):
        length = packet.duration or 0
        if not length and number + 1 < len(packets):
            length = max(0, (packets[number + 1].dts or 0) - (packet.dts or 0))
        durations.append(length or (durations[-1] if durations else 0))
    return durations


def read_sound(file: OpenFile) -> Sound | None:
    """Read the sound of a file into memory; None where there is none.

    Raises MediaError where it cannot be read, or is longer than MAX_SOUND_BYTES.
    """
    try:
        container = open_input(file.reader())
        if not container.streams.audio:
            container.close()
            return None
        stream = max(
            container.streams.audio, key=lambda s: (bool(s.disposition & Disposition.default), -s.index)
        )
        packets, num_bytes = [], 0
        for packet in container.demux(stream):
            # The last, empty packet flushes decoders; a copy has none.
            if packet.dts is None or packet.pts is None:
                continue
            packets.append(packet)
            num_bytes += packet.size
            if num_bytes > MAX_SOUND_BYTES:
                raise MediaError(
                    f"{file.name}: found more than {MAX_SOUND_BYTES} bytes of audio",
                    hint="leave the audio out",
                    code="media.sound",
                )
        return Sound(container, stream, packets, _begin_of_video_s(container, file.name))
    except (av.FFmpegError, OSError) as error:
        raise MediaError(
            f"{file.name}: its audio cannot be read ({reason(error)})",
            hint="leave the audio out",
            code="media.sound",
        ) from error


def _begin_of_video_s(container: InputContainer, name: str) -> Fraction:
    if not container.streams.video:
        return Fraction(0)
    try:
        video = choose_stream(container, name)
    except MediaError:
        return Fraction(0)
    return video.start_time * video.time_base if video.start_time and video.time_base else Fraction(0)
