// Reads files as a request does, for fuzz_media.py: fuzz_media, with lines "PATH START_S FPS" at its input. FPS 0:
// every frame. For each it prints how it ended ("read", "damaged" or the error's code) and the peak of its memory in
// KiB.
#include <sys/resource.h>

#include <cstdio>
#include <iostream>
#include <sstream>
#include <stdexcept>
#include <string>

#include "error.hpp"
#include "media.hpp"

namespace {

std::string read_everything(const std::string& path, double start_s, double fps) try {
  const auto file = ev::open_file(path);
  ev::probe_file(*file);
  bool is_damaged = false;
  for (const double from_s : {0.0, start_s}) {
    const ev::Clip clip = ev::read_clip(*file, from_s, 9, fps > 0 ? std::optional(fps) : std::nullopt, 32, 48);
    if (clip.frames.shape[1] != 32 || clip.frames.shape[2] != 48) throw std::logic_error("a clip of another size");
    const std::vector<double> times_s = ev::uneven_times_s(clip, clip.frames.shape[0]);
    for (std::size_t i = 1; i < times_s.size(); ++i) {
      if (!(times_s[i - 1] <= times_s[i])) throw std::logic_error("times that are not in order");
    }
    is_damaged = is_damaged || clip.num_damaged > 0;
  }
  return is_damaged ? "damaged" : "read";
} catch (const ev::Error& error) {
  const std::string text = error.what();
  if (error.code() != EV_ERROR_MEDIA || error.facts().code.rfind("media.", 0) != 0) return "FOUND " + text;
  return text.find('\n') == std::string::npos ? error.facts().code : "FOUND an error of several lines";
}

}  // namespace

int main() {
  std::string line;
  while (std::getline(std::cin, line)) {
    std::istringstream words(line);
    std::string path;
    double start_s = 0, fps = 0;
    words >> path >> start_s >> fps;
    const std::string ended = read_everything(path, start_s, fps);
    struct rusage usage = {};
    getrusage(RUSAGE_SELF, &usage);
    std::printf("%s\t%ld\n", ended.c_str(), usage.ru_maxrss);
    std::fflush(stdout);
  }
  return 0;
}
