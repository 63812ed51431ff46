// Edits a video, as edit.c does, with the C++ interface:
//
//     edit_cpp BUNDLE INPUT OUTPUT INSTRUCTION
//     edit_cpp editverse_rt/bundles/nano in.mp4 out.mp4 "<video1> Make it night"
//
// Objects free what they hold, and every failure is an exception whose text says what to do. Ctrl-C stops the request.
//
// A library that was built without FFmpeg reads and writes no files. For it, INPUT and OUTPUT may be uncompressed
// pictures, one after the other in a file that ends in .ppm.
#include <csignal>
#include <fstream>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

#include "editverse_rt.hpp"

namespace {

volatile std::sig_atomic_t interrupted = 0;

/// Frames in memory: 8-bit RGB.
struct Clip {
  std::vector<std::uint8_t> pixels;
  editverse::ClipSize size{0, 0, 0};
};

bool is_ppm(const std::string& path) { return path.size() > 4 && path.substr(path.size() - 4) == ".ppm"; }

/// Reads every picture of a PPM file; all have one size.
Clip read_ppm(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  Clip clip;
  std::string magic, depth;
  int width = 0, height = 0;
  while (file >> magic >> width >> height >> depth && magic == "P6" && depth == "255" && file.get() != EOF) {
    if (width < 1 || height < 1 || width > 16384 || height > 16384) break;
    if (clip.size.num_frames > 0 && (width != clip.size.width_px || height != clip.size.height_px)) break;
    std::vector<std::uint8_t> picture(static_cast<std::size_t>(width) * static_cast<std::size_t>(height) * 3);
    if (!file.read(reinterpret_cast<char*>(picture.data()), static_cast<std::streamsize>(picture.size()))) break;
    clip.pixels.insert(clip.pixels.end(), picture.begin(), picture.end());
    clip.size = {clip.size.num_frames + 1, width, height};
  }
  if (clip.size.num_frames == 0) throw std::runtime_error(path + ": found no pictures; expected PPM with 255 levels");
  return clip;
}

void write_ppm(const std::string& path, const editverse::Frames& frames) {
  std::ofstream file(path, std::ios::binary);
  const auto count = static_cast<std::size_t>(frames.num_frames);
  const std::size_t picture_bytes = frames.num_bytes / count;
  for (std::size_t i = 0; i < count; ++i) {
    file << "P6\n" << frames.width_px << " " << frames.height_px << "\n255\n";
    file.write(reinterpret_cast<const char*>(frames.data + i * picture_bytes),
               static_cast<std::streamsize>(picture_bytes));
  }
  if (!file.flush()) throw std::runtime_error(path + ": cannot be written; check the folder and its permissions");
}

void edit(const std::string& bundle, const std::string& input, const std::string& output,
          const std::string& instruction) {
  // 1. Open a bundle. This program runs one request, so a graph is not needed again after its last run.
  editverse::Options options{bundle};
  options.release_graphs = true;
  editverse::Pipeline pipeline(options);

  // 2. Describe the request. The instruction mentions the input by its tag, <video1>.
  editverse::Request request(instruction);
  Clip clip;  // lives until the request has run
  if (is_ppm(input)) {
    clip = read_ppm(input);
    request.add_frames("video1", clip.pixels, clip.size);
  } else {
    request.add_path("video1", input);
  }

  // 3. Say what is called after each step of the solver; returning false stops the request.
  request.on_step = [](const editverse::Step& step) {
    std::cerr << "\rstep " << step.step + 1 << " of " << step.num_inference_steps;
    return interrupted == 0;
  };

  // 4. Run it.
  const editverse::Result result = pipeline.run(request);

  // 5. Keep the result, and say what the user should know: that the input was cut, for example.
  for (const std::string& notice : result.notices()) std::cerr << "\n" << notice;
  std::cerr << "\n";
  if (is_ppm(output)) {
    write_ppm(output, result.frames());
  } else {
    result.save(output);
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 5) {
    std::cerr << "usage: edit_cpp BUNDLE INPUT OUTPUT INSTRUCTION\n";
    return 2;
  }
  std::signal(SIGINT, [](int) { interrupted = 1; });
  try {
    edit(argv[1], argv[2], argv[3], argv[4]);
    return 0;
  } catch (const std::exception& error) {
    std::cerr << "\n" << error.what() << "\n";
    return 1;
  }
}
