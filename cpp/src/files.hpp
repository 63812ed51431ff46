// Files as such: bytes, digests, listings, searches.
#pragma once

#include <cstddef>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace ev {

/// The bytes of a file, mapped and not copied: pages are read when they are touched, and may be dropped again.
class MappedFile {
 public:
  /// Throws `code` if it cannot be read.
  MappedFile(const std::filesystem::path& path, int code);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&&) = delete;

  const char* data() const { return data_; }
  std::size_t size() const { return size_; }

 private:
  const char* data_ = "";
  std::size_t size_ = 0;
};

/// The sha256 of bytes in lower-case hexadecimal digits.
std::string hash_bytes(std::string_view bytes);

/// The sha256 of a file. Throws EV_ERROR_BUNDLE if it cannot be read.
std::string hash_file(const std::filesystem::path& path);

/// Every regular file below root as a relative path with forward slashes; links to folders are not followed.
std::vector<std::string> list_files(const std::filesystem::path& root);

/// Whether the bytes of `text` occur in a file. Throws EV_ERROR_BUNDLE if it cannot be read.
bool file_contains(const std::filesystem::path& path, const std::string& text);

}  // namespace ev
