// What the library reads of a file, for test_media_cases.py: read_clip FILE NUM_FRAMES HEIGHT WIDTH START_S FPS. A size
// of 0: the file's own; FPS 0: every frame. Prints lines of facts, an empty line, and the frames' bytes; or one line
// with the error, and ends with 1.
#include <cstdio>
#include <cstdlib>
#include <iostream>

#include "error.hpp"
#include "media.hpp"

int main(int argc, char** argv) try {
  if (argc != 7) return 2;
  const auto file = ev::open_file(argv[1]);
  const ev::MediaInfo info = ev::probe_file(*file);
  const std::int64_t height = std::atoll(argv[3]) > 0 ? std::atoll(argv[3]) : info.height_px;
  const std::int64_t width = std::atoll(argv[4]) > 0 ? std::atoll(argv[4]) : info.width_px;
  const double fps = std::atof(argv[6]);
  const ev::Clip clip = ev::read_clip(*file, std::atof(argv[5]), std::atoll(argv[2]),
                                      fps > 0 ? std::optional(fps) : std::nullopt, height, width);
  std::printf("%s %lld %lld %.17g %lld\n", info.kind.c_str(), static_cast<long long>(info.width_px),
              static_cast<long long>(info.height_px), info.fps.value_or(0),
              static_cast<long long>(info.num_frames.value_or(0)));
  std::printf("%lld %.17g %d %lld\n", static_cast<long long>(clip.frames.shape[0]), clip.fps,
              clip.covers_source ? 1 : 0, static_cast<long long>(clip.num_damaged));
  for (const std::string& line : clip.notices) std::printf("%s\n", line.c_str());
  std::printf("\n");
  std::fwrite(clip.frames.data, 1, static_cast<std::size_t>(clip.frames.num_elements()), stdout);
  return 0;
} catch (const ev::Error& error) {
  std::cout << error.what() << "\n";
  return 1;
}
