// What the first bytes of a file say, before anything of it is decoded. The twin of editverse_rt/media/headers.py.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace ev {

/// How many bytes of a file is_picture_type takes.
constexpr std::size_t kHeadBytes = 256;

/// kind: "jpeg", "png", "gif", "webp", "bmp", "tiff", "ico", "heif", or "container" for everything else. The size is in
/// pixels as stored, 0 where it is unknown; orientation is EXIF's, 1 to 8; is_cut: the file's end is missing.
struct FileHeader {
  std::string kind = "container";
  std::int64_t width_px = 0;
  std::int64_t height_px = 0;
  int orientation = 1;
  bool is_cut = false;
  bool is_animated = false;
  bool is_assembled = false;  // a HEIF picture of several parts, or one that its file turns or cuts
};

/// Whether the first kHeadBytes of a file are those of a picture, or of an animation in such a format.
bool is_picture_type(std::string_view start);

/// Whether a file that begins like this names other files: a playlist, a list for FFmpeg, a manifest.
bool is_list(std::string_view start);

/// What the bytes of an ICC profile say of RGB colours: "p3" those of Display P3, "other" neither these nor sRGB's, ""
/// sRGB's, or a profile that is not read.
std::string profile_of(std::string_view icc);

/// Examines the bytes of a whole file. Damage is no error here: what cannot be found keeps its default.
FileHeader examine_file(std::string_view data);

}  // namespace ev
