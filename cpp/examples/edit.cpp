// Edits a video with the C++ interface: edit_cpp BUNDLE IN OUT.ppm INSTRUCTION, with <video1> in the instruction.
// IN is a file that FFmpeg reads, so the library must be built with -DEDITVERSE_FFMPEG=ON; edit.c does without.
// OUT.ppm holds pictures in a row: `ffmpeg -i out.ppm out.mp4`. Ctrl-C stops between two steps.
#include <csignal>
#include <fstream>
#include <iostream>

#include "editverse_rt.hpp"

namespace {
volatile std::sig_atomic_t interrupted = 0;
}

int main(int argc, char** argv) try {
  if (argc != 5) {
    std::cerr << "usage: edit_cpp BUNDLE IN OUT.ppm INSTRUCTION\n";
    return 2;
  }
  std::signal(SIGINT, [](int) { interrupted = 1; });

  editverse::Pipeline pipeline(argv[1]);
  editverse::Request request(argv[4]);
  request.add_path("video1", argv[2]);
  request.on_step = [](const editverse::Step& step) {
    std::cerr << "\rstep " << step.step + 1 << " of " << step.num_inference_steps;
    return interrupted == 0;
  };
  const editverse::Plan plan = pipeline.plan(request);
  std::cerr << plan.result.num_frames << " frames of " << plan.result.width_px << "x" << plan.result.height_px << "\n";
  const editverse::Result result = pipeline.run(request);
  for (const std::string& notice : result.notices()) std::cerr << "\n" << notice;

  const editverse::Frames frames = result.frames();
  std::ofstream out(argv[3], std::ios::binary);
  const std::size_t size = frames.num_bytes / static_cast<std::size_t>(frames.num_frames);
  for (const std::uint8_t* picture = frames.data; picture != frames.data + frames.num_bytes; picture += size) {
    out << "P6\n" << frames.width_px << " " << frames.height_px << "\n255\n";
    out.write(reinterpret_cast<const char*>(picture), static_cast<std::streamsize>(size));
  }
  out.close();
  if (!out) throw std::runtime_error(std::string(argv[3]) + " cannot be written");
  std::cerr << "\n";
  return 0;
} catch (const editverse::RequestCancelled& stopped) {
  std::cerr << "\n" << stopped.what() << "\n";
  return 130;
} catch (const std::exception& error) {
  std::cerr << "\n" << error.what() << "\n";
  return 1;
}
