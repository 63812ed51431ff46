// Results written to files, in one thread and in two, and every way in which that is refused: save_test BUNDLE.
// It is for the sanitizers; what the files hold is read by test_save.py.
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <string>
#include <thread>

#include "check.hpp"
#include "editverse_rt.hpp"

namespace {

namespace fs = std::filesystem;

using editverse::Result;

int save(const Result& result, const fs::path& path) {
  try {
    result.save(path.string());
  } catch (const editverse::MediaError& error) {
    CHECK(!std::string(error.what()).empty());
    return error.code();
  }
  return EV_OK;
}

std::size_t count(const fs::path& folder) {
  return static_cast<std::size_t>(std::distance(fs::directory_iterator(folder), fs::directory_iterator()));
}

void check_written(const Result& clip, const Result& picture, const fs::path& folder) {
  for (const char* name : {"a.mp4", "a.mov", "a.mkv", "a.webm"}) {
    CHECK_MSG(save(clip, folder / name) == EV_OK, name);
  }
  for (const char* name : {"a.png", "a.jpg", "a.webp"}) CHECK_MSG(save(picture, folder / name) == EV_OK, name);
  CHECK(save(picture, folder / "a.png") == EV_OK);  // again, over the one that is there
  CHECK(count(folder) == 7);
  CHECK(save(clip, folder / "pictures") == EV_OK && count(folder / "pictures") == 5);
  CHECK(save(clip, folder / "p_%03d.png") == EV_OK && count(folder) == 8 + 5);
}

void check_refused(const Result& clip, const fs::path& folder) {
  fs::create_directories(folder / "taken.mp4");
  fs::create_directories(folder / "full");
  std::ofstream(folder / "full" / "file") << "old";
  fs::create_directories(folder / "q_3.png");  // pictures 1 and 2 can be moved into their places, this one cannot
  for (const char* name :
       {"a.gif", "a.png", "no/such/a.mp4", "taken.mp4", "full", "a%sb.png", "%d%d.png", "q_%d.png"}) {
    CHECK_MSG(save(clip, folder / name) == EV_ERROR_MEDIA, name);
    CHECK_MSG(count(folder) == 3, name);
  }
  CHECK(ev_result_save(nullptr, "a.mp4") == EV_ERROR_ARGUMENT);
}

/// One result may be written by several threads at once.
void check_two_threads(const Result& clip, const fs::path& folder) {
  int other = EV_ERROR_INTERNAL;
  std::thread thread([&] {
    try {
      clip.save((folder / "other.mp4").string());
      other = EV_OK;
    } catch (const editverse::Error& error) {
      other = error.code();
    }
  });
  CHECK(save(clip, folder / "one.mp4") == EV_OK);
  thread.join();
  CHECK(other == EV_OK && count(folder) == 2);
  CHECK(fs::file_size(folder / "one.mp4") == fs::file_size(folder / "other.mp4"));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: save_test BUNDLE\n";
    return 2;
  }
  std::string made = (fs::temp_directory_path() / "save_test_XXXXXX").string();
  if (mkdtemp(made.data()) == nullptr) return 2;
  const fs::path folder = made;
  for (const char* name : {"written", "refused", "threads"}) fs::create_directory(folder / name);
  editverse::Pipeline pipeline(editverse::Options{argv[1], "auto", "", 1});
  editverse::Request request("A red circle");
  request.num_inference_steps = 1;
  request.num_frames = 1;
  const Result picture = pipeline.run(request);
  request.num_frames = 5;
  const Result clip = pipeline.run(request);
  check_written(clip, picture, folder / "written");
  check_refused(clip, folder / "refused");
  check_two_threads(clip, folder / "threads");
  fs::remove_all(folder);
  return check::report();
}
