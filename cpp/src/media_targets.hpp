// Names of results: the types that can be written, and names that stand for several files. The twin of
// editverse_rt/media/targets.py, but for GIF, which is not written here.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

namespace ev {

constexpr const char* kVideoSuffixes[] = {".mp4", ".mov", ".mkv", ".webm"};
constexpr const char* kImageSuffixes[] = {".png", ".jpg", ".jpeg", ".webp"};

/// Every suffix that can be written, videos first, with spaces between them.
std::string list_suffixes();

/// The suffix of a name in small letters, "" for none.
std::string suffix_of(const std::filesystem::path& target);

/// The name of picture `number` by a pattern such as out_%04d.png, "" where it is none: exactly one number; every other
/// percent sign is a character like any other.
std::string numbered(const std::string& pattern, std::int64_t number);

}  // namespace ev
