// Edits a video: edit_cpp BUNDLE IN OUT INSTRUCTION, with <video1> in the instruction. IN, OUT: videos, or PPM pictures
// in a row for a library without FFmpeg (`ffmpeg -i in.mp4 -f image2pipe -c:v ppm in.ppm`). Ctrl-C stops it.
#include <csignal>
#include <fstream>
#include <iostream>
#include <vector>

#include "editverse_rt.hpp"

namespace {

volatile std::sig_atomic_t interrupted = 0;

/// The pixels of every picture of a PPM stream, and their size; no frames if it is none.
std::pair<std::vector<std::uint8_t>, editverse::ClipSize> read_ppm(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::pair<std::vector<std::uint8_t>, editverse::ClipSize> clip{{}, {0, 0, 0}};
  auto& [pixels, size] = clip;
  std::string magic, depth;
  while (file >> magic >> size.width_px >> size.height_px >> depth && magic == "P6" && file.get() != EOF) {
    std::vector<std::uint8_t> picture(static_cast<std::size_t>(size.width_px) * size.height_px * 3);
    file.read(reinterpret_cast<char*>(picture.data()), static_cast<std::streamsize>(picture.size()));
    pixels.insert(pixels.end(), picture.begin(), picture.end());
    ++size.num_frames;
  }
  return clip;
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc != 5) throw std::invalid_argument("usage: edit_cpp BUNDLE IN OUT INSTRUCTION");
  std::signal(SIGINT, [](int) { interrupted = 1; });
  const auto [pixels, size] = read_ppm(argv[2]);
  editverse::Options options{argv[1]};
  options.release_graphs = true;  // there is one request only
  editverse::Pipeline pipeline(options);
  editverse::Request request(argv[4]);
  if (size.num_frames > 0)
    request.add_frames("video1", pixels, size);
  else
    request.add_path("video1", argv[2]);  // needs a library with FFmpeg
  request.on_step = [](const editverse::Step& step) {
    std::cerr << "\rstep " << step.step + 1 << " of " << step.num_inference_steps;
    return interrupted == 0;
  };
  const editverse::Result result = pipeline.run(request);
  for (const std::string& notice : result.notices()) std::cerr << "\n" << notice;
  const std::string path = argv[3];
  if (path.size() < 4 || path.substr(path.size() - 4) != ".ppm") return result.save(path), 0;
  const editverse::Frames frames = result.frames();
  std::ofstream out(path, std::ios::binary);
  for (std::size_t i = 0, count = static_cast<std::size_t>(frames.num_frames); i < count; ++i) {
    const auto picture = frames.bytes().subspan(i * frames.num_bytes / count, frames.num_bytes / count);
    out << "P6\n" << frames.width_px << " " << frames.height_px << "\n255\n";
    out.write(reinterpret_cast<const char*>(picture.data()), static_cast<std::streamsize>(picture.size()));
  }
  return out.flush() ? 0 : 1;
} catch (const std::exception& error) {
  std::cerr << "\n" << error.what() << "\n";
  return 1;
}
