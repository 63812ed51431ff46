// Files as such: digests, listings, searches.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace ev {

/// The sha256 of a file in lower-case hexadecimal digits. Throws EV_ERROR_BUNDLE if it cannot be read.
std::string hash_file(const std::filesystem::path& path);

/// Every regular file below root as a relative path with forward slashes; links to folders are not followed.
std::vector<std::string> list_files(const std::filesystem::path& root);

/// Whether the bytes of `text` occur in a file. Throws EV_ERROR_BUNDLE if it cannot be read.
bool file_contains(const std::filesystem::path& path, const std::string& text);

}  // namespace ev
