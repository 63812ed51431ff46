// Reading of files with FFmpeg, whole and damaged ones: media_test VIDEO. That pixels are right is for test_files.py to
// say; here it is that nothing else happens than a clip or EV_ERROR_MEDIA.
#include <sys/resource.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "check.hpp"
#include "error.hpp"
#include "media.hpp"
#include "media_file.hpp"

namespace {

namespace fs = std::filesystem;

ev::MediaInfo probe(const std::string& path) { return ev::probe_file(*ev::open_file(path)); }

template <typename... Options>
ev::Clip read(const std::string& path, const Options&... options) {
  return ev::read_clip(*ev::open_file(path), options...);
}

std::string read_bytes(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

std::string write_bytes(const fs::path& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
  return path.string();
}

/// The text of the error that call() throws, "" if it throws none; another error than EV_ERROR_MEDIA is a failure.
template <typename Call>
std::string error_of(const Call& call) {
  try {
    call();
    return "";
  } catch (const ev::Error& error) {
    CHECK_MSG(error.code() == EV_ERROR_MEDIA, error.what());
    return error.what();
  }
}

void check_whole(const std::string& video) {
  const ev::MediaInfo info = probe(video);
  CHECK(info.kind == "video" && info.fps && info.num_frames.value_or(0) > 1 && info.width_px > 0);
  const std::int64_t count = *info.num_frames;
  const ev::Clip all = read(video, 0, count, std::nullopt, info.height_px, info.width_px);
  CHECK(all.frames.shape == std::vector<std::int64_t>({count, info.height_px, info.width_px, 3}));
  CHECK(all.covers_source && !all.is_short && all.num_damaged == 0 && all.fps == *info.fps);
  for (const auto& [height, width] : {std::pair(1, 1), std::pair(37, 53), std::pair(501, 3), std::pair(64, 64)}) {
    const ev::Clip clip = read(video, 0.3, 3, 7.0, height, width);
    CHECK(clip.frames.shape == std::vector<std::int64_t>({3, height, width, 3}));
  }
  const ev::Clip more = read(video, 0, count + 5, std::nullopt, 16, 16);
  CHECK(more.is_short && more.frames.shape[0] == count);
  const std::string late = error_of([&] { read(video, 1e6, 1, std::nullopt, 16, 16); });
  CHECK(late.find("start earlier") != std::string::npos);
  CHECK(!error_of([&] { read(video, 0, 1, 1e9, 16, 16); }).empty());
}

void check_pictures(const fs::path& folder) {
  std::string pixels;
  for (int i = 0; i < 5 * 3 * 3; ++i) pixels += static_cast<char>(i * 5);
  const std::string path = write_bytes(folder / "a.ppm", "P6\n5 3\n255\n" + pixels);
  const ev::MediaInfo info = probe(path);
  CHECK(info.kind == "image" && info.width_px == 5 && info.height_px == 3 && !info.fps);
  const ev::Clip same = read(path, 9, 7, std::nullopt, 3, 5);
  CHECK(same.frames.shape[0] == 1 && std::memcmp(same.frames.data, pixels.data(), pixels.size()) == 0);
  // Resized in memory, from rows that lie apart, the last of which ends where its memory does.
  std::vector<std::uint8_t> apart(20 * 2 + 15);
  for (std::size_t y = 0; y < 3; ++y) std::memcpy(apart.data() + 20 * y, pixels.data() + 15 * y, 15);
  for (const auto& [height, width] : {std::pair(3, 5), std::pair(1, 1), std::pair(2, 2), std::pair(40, 7)}) {
    std::vector<char> target(static_cast<std::size_t>(height * width * 3));
    ev::resize_picture("image1", {apart.data(), 3, 5, 20}, height, width, target.data());
    const ev::Clip resized = read(path, 0, 1, std::nullopt, height, width);
    CHECK(std::memcmp(resized.frames.data, target.data(), target.size()) == 0);
  }
}

void check_bad(const fs::path& folder, const std::string& video) {
  const auto refuse = [&](const std::string& path, const std::string& part) {
    const std::string text = error_of([&] { probe(path); });
    CHECK_MSG(text.find(part) != std::string::npos, text);
    CHECK(!error_of([&] { read(path, 0, 9, std::nullopt, 16, 16); }).empty());
  };
  refuse((folder / "none.mp4").string(), "no such file");
  refuse(folder.string(), "found a folder");
  refuse(write_bytes(folder / "empty.mp4", ""), "is empty");
  refuse(write_bytes(folder / "noise.mp4", std::string(5000, 'x')), "no video or image");
  refuse(write_bytes(folder / "a.txt", "words\n"), "");

  const std::string whole = read_bytes(video);
  const std::string path = (folder / "damaged.mp4").string();
  std::size_t num_read = 0;
  const auto try_it = [&](const std::string& bytes) {
    write_bytes(path, bytes);
    if (error_of([&] { probe(path); }).empty()) ++num_read;
    error_of([&] { read(path, 0, 17, std::nullopt, 48, 80); });
    error_of([&] { read(path, 0.6, 5, 5.0, 33, 21); });
  };
  for (std::size_t part = 1; part < 16; ++part) try_it(whole.substr(0, whole.size() * part / 16));
  std::mt19937 random(1);
  for (int i = 0; i < 60; ++i) {
    std::string bytes = whole;
    for (int flips = 1 << (i % 8); flips > 0; --flips) bytes[random() % bytes.size()] = static_cast<char>(random());
    try_it(bytes);
  }
  std::printf("%zu of 75 damaged files can be probed\n", num_read);
}

/// Headers of any bytes behind each type's beginning: whatever they say, the answer is within its bounds.
void check_headers() {
  using namespace std::string_literals;
  std::mt19937 random(2);
  const std::string starts[] = {"\xff\xd8\xff\xe1\0\x40"s + "Exif\0\0II*\0"s,
                                "\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR"s,
                                "GIF89a"s,
                                "RIFF\x40\0\0\0WEBPVP8X"s,
                                "BM"s,
                                "II*\0\x08\0\0\0\x02\0"s,
                                "MM\0*\0\0\0\x08\0\x02"s,
                                "\0\0\1\0\2\0"s,
                                "\0\0\0\x18"
                                "ftypheic\0\0\0\0mif1heic\0\0\0\x20meta"s,
                                "\0\0\0"s};
  bool is_bounded = true;
  for (const std::string& start : starts) {
    for (int i = 0; i < 3000; ++i) {
      std::string bytes = start;
      for (std::size_t count = random() % 200; count > 0; --count) {
        // Small numbers lead further than any.
        bytes += static_cast<char>(random() % 3 == 0 ? random() : random() % 16);
      }
      const ev::FileHeader header = ev::examine_file(bytes);
      is_bounded = is_bounded && header.orientation >= 1 && header.orientation <= 8 && header.height_px >= 0;
      ev::is_picture_type(bytes);
      ev::is_list(bytes);
      ev::profile_of(bytes + std::string(200, 'R'));
    }
  }
  CHECK(is_bounded);
}

/// A TIFF of nothing but a directory: entries of 65,536 long values each, which all lie in the same place.
std::string long_directory(const std::vector<unsigned int>& tags) {
  using namespace std::string_literals;
  constexpr std::size_t kValues = 1 << 16;
  std::string bytes = "II*\0"s;
  const auto append = [&](std::size_t value, int count) {
    for (; count > 0; --count, value >>= 8) bytes += static_cast<char>(value & 0xFF);
  };
  append(8, 4);
  append(tags.size(), 2);
  for (const unsigned int tag : tags) {
    append(tag, 2);
    append(4, 2);
    append(kValues, 4);
    append(10 + 12 * tags.size(), 4);
  }
  return bytes + std::string(4 * kValues, '\1');
}

double peak_mb() {
  struct rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_maxrss) / 1e3;
}

/// What a directory says of tags that are not read takes no memory, nor does one that comes again and again.
void check_long_directories() {
  std::vector<unsigned int> others(4000), same(4000, 0x0111);
  for (std::size_t i = 0; i < others.size(); ++i) others[i] = 0x8000 + static_cast<unsigned int>(i);
  for (const std::vector<unsigned int>& tags : {others, same}) {
    const std::string bytes = long_directory(tags);
    const double before = peak_mb();
    const ev::FileHeader header = ev::examine_file(bytes);
    CHECK(header.kind == "tiff" && header.width_px == 0);
    CHECK(peak_mb() - before < 100);
  }
}

/// A header that runs past the end of its file keeps its kind, as in the Python host.
void check_cut_headers() {
  using namespace std::string_literals;
  const std::pair<const char*, std::string> cut[] = {{"png", "\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR"s},
                                                     {"gif", "GIF89a\1"s},
                                                     {"webp", "RIFF\x40\0\0\0WEBPVP8X\x0a\0\0\0"s},
                                                     {"bmp", "BM\0\0"s},
                                                     {"tiff", "II*\0\x08\0\0\0\x02\0"s},
                                                     {"ico", "\0\0\1\0\2\0"s}};
  for (const auto& [kind, bytes] : cut) {
    const ev::FileHeader header = ev::examine_file(bytes);
    CHECK_MSG(header.kind == kind && header.is_cut && header.width_px == 0, kind);
  }
  CHECK(ev::examine_file("\0\0\1\0\x64\0"s).kind == "container");  // an ICO has fewer than a hundred pictures
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: media_test VIDEO\n";
    return 2;
  }
  const fs::path folder = fs::temp_directory_path() / ("editverse-media-" + std::to_string(getpid()));
  fs::create_directories(folder);
  check_whole(argv[1]);
  check_pictures(folder);
  check_headers();
  check_long_directories();
  check_cut_headers();
  check_bad(folder, argv[1]);
  fs::remove_all(folder);
  return check::report();
}
