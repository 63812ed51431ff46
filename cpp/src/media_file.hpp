// A file that is open for reading, and what libav reads of it. libav is given no name: neither a suffix nor a pattern
// in it decides what is read, and no other file is opened.
#pragma once

#include <cstdint>
#include <string>

#include "libav.hpp"
#include "media_header.hpp"

namespace ev {

/// A video or a picture that is opened once; what was opened stays readable after its name is gone.
class InputFile {
 public:
  /// Throws EV_ERROR_MEDIA if there is no such file, if it is no file, empty, not readable, or a picture that is too
  /// large or of a kind that is not read here: its header decides, before anything is decoded.
  explicit InputFile(const std::string& path);
  ~InputFile();
  InputFile(const InputFile&) = delete;
  InputFile& operator=(const InputFile&) = delete;

  const std::string& path() const { return path_; }
  std::int64_t num_bytes() const { return num_bytes_; }
  const FileHeader& header() const { return header_; }

  /// Reads up to count bytes; fewer at the end of the file, -1 if the system refuses.
  std::int64_t read_at(std::int64_t offset, std::uint8_t* target, std::int64_t count) const;
  std::string read_at(std::int64_t offset, std::int64_t count) const;

 private:
  void check_header();

  std::string path_;
  int handle_ = -1;
  std::int64_t num_bytes_ = 0;
  FileHeader header_;
};

/// libav's view of a file, with a place of its own, at the beginning. The file must outlive it.
class FileReader {
 public:
  explicit FileReader(const InputFile& file);
  ~FileReader();
  FileReader(const FileReader&) = delete;
  FileReader& operator=(const FileReader&) = delete;

  AVIOContext* context() const { return context_; }

 private:
  static int read(void* reader, std::uint8_t* buffer, int count);
  static std::int64_t seek(void* reader, std::int64_t offset, int whence);

  const InputFile& file_;
  std::int64_t place_ = 0;
  AVIOContext* context_ = nullptr;
};

/// Throws EV_ERROR_MEDIA if frames of this size are more than a source may have.
void check_source_area(const std::string& path, std::int64_t width_px, std::int64_t height_px);

/// Opens what a reader holds as a container or a picture, by its content. Throws EV_ERROR_MEDIA.
FormatPointer open_container(const InputFile& file, const FileReader& reader);

/// The error for what libav cannot read.
[[noreturn]] void fail_to_decode(const InputFile& file, int code);

/// The largest frame of a source, in pixels.
constexpr std::int64_t kMaxSourceAreaPx = 1 << 26;

}  // namespace ev
