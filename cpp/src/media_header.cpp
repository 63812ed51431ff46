#include "media_header.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <set>
#include <stdexcept>
#include <tuple>
#include <vector>

namespace ev {

namespace {

using namespace std::string_view_literals;
using Text = std::string_view;

constexpr Text kPng = "\x89PNG\r\n\x1a\n";
constexpr std::array<Text, 8> kPictureStarts = {"\xff\xd8\xff"sv, kPng,      "GIF87a"sv, "GIF89a"sv,
                                                "BM"sv,           "II*\0"sv, "MM\0*"sv,  "\0\0\1\0"sv};
const std::set<Text> kHeifBrands = {"mif1", "mif2", "heic", "heix", "heim", "heis", "avif", "miaf"};
const std::set<Text> kSequenceBrands = {"msf1", "hevc", "hevx", "hevm", "hevs", "avis"};
constexpr std::size_t kMaxTagValues = 1 << 16;
// Tags of a TIFF's directory. Of the first three one number is read, of the others a list.
constexpr unsigned int kWidth = 0x0100, kHeight = 0x0101, kOrientation = 0x0112;
constexpr unsigned int kStripOffsets = 0x0111, kStripSizes = 0x0117, kTileOffsets = 0x0144, kTileSizes = 0x0145;
// Red, green and blue of sRGB and Display P3 as profiles state them: XYZ, adapted to D50.
constexpr std::pair<const char*, std::array<double, 9>> kColorants[] = {
    {"", {0.4361, 0.2225, 0.0139, 0.3851, 0.7169, 0.0971, 0.1431, 0.0606, 0.7141}},
    {"p3", {0.5151, 0.2412, -0.0011, 0.2919, 0.6922, 0.0419, 0.1571, 0.0666, 0.7841}}};
constexpr double kColorantTolerance = 0.004;

bool starts_with(Text text, Text start) { return text.substr(0, start.size()) == start; }

/// The bytes of a file as numbers; std::out_of_range where the file ends before.
class Bytes {
 public:
  explicit Bytes(Text data, bool is_little = false) : data_(data), is_little_(is_little) {}

  std::size_t size() const { return data_.size(); }
  unsigned int byte(std::size_t at) const { return number(at, 1); }
  unsigned int two(std::size_t at) const { return number(at, 2); }
  unsigned int three(std::size_t at) const { return number(at, 3); }
  unsigned int four(std::size_t at) const { return number(at, 4); }
  Text text(std::size_t at, std::size_t count) const { return at > size() ? Text() : data_.substr(at, count); }

 private:
  unsigned int number(std::size_t at, std::size_t count) const {
    if (at > size() || size() - at < count) throw std::out_of_range("the file ends");
    unsigned int value = 0;
    for (std::size_t i = 0; i < count; ++i) {
      const std::size_t place = is_little_ ? at + count - 1 - i : at + i;
      value = value << 8 | static_cast<unsigned char>(data_[place]);
    }
    return value;
  }

  Text data_;
  bool is_little_;
};

std::set<Text> brands_of(Text start) {
  std::set<Text> brands = {start.substr(8, 4)};
  const std::size_t length = Bytes(start).four(0);
  for (std::size_t at = 16; at < std::min(length, kHeadBytes) && at < start.size(); at += 4) {
    brands.insert(start.substr(at, 4));
  }
  return brands;
}

bool have_common(const std::set<Text>& one, const std::set<Text>& other) {
  return std::any_of(one.begin(), one.end(), [&](Text name) { return other.count(name) != 0; });
}

/// The short and long values of the wanted tags of a TIFF's first directory. Of a list all, and none where it is longer
/// than kMaxTagValues; of other tags the first. What a file says of other tags takes no memory, and of a tag that comes
/// again the last entry counts, so that what is read is bounded whatever the directory says.
std::map<unsigned int, std::vector<unsigned int>> read_tiff_tags(const Bytes& data,
                                                                 const std::set<unsigned int>& wanted) {
  struct Entry {
    std::size_t where, number, size;
  };
  std::map<unsigned int, Entry> entries;
  const std::size_t begin = data.four(4);
  const std::size_t count = data.two(begin);
  for (std::size_t entry = begin + 2; entry < begin + 2 + 12 * count; entry += 12) {
    const unsigned int tag = data.two(entry), kind = data.two(entry + 2);
    const std::size_t number = data.four(entry + 4), size = kind == 3 ? 2 : kind == 4 ? 4 : 0;
    if (wanted.count(tag) == 0 || size == 0 || number < 1 || number > kMaxTagValues) continue;
    entries[tag] = {number * size <= 4 ? entry + 8 : data.four(entry + 8), number, size};
  }
  std::map<unsigned int, std::vector<unsigned int>> tags;
  for (const auto& [tag, entry] : entries) {
    const bool is_one = tag == kWidth || tag == kHeight || tag == kOrientation;
    for (std::size_t i = 0; i < (is_one ? 1 : entry.number); ++i) {
      const std::size_t at = entry.where + entry.size * i;
      tags[tag].push_back(entry.size == 2 ? data.two(at) : data.four(at));
    }
  }
  return tags;
}

bool is_webp(Text data) { return starts_with(data, "RIFF") && data.size() >= 12 && data.substr(8, 4) == "WEBP"; }

/// Whether a file begins as those of ISO/IEC 14496-12 do.
bool is_iso_media(Text data) { return data.size() >= 8 && data.substr(4, 4) == "ftyp"; }

bool is_tiff(Text data) { return starts_with(data, "II*\0"sv) || starts_with(data, "MM\0*"sv); }

/// Tag 0x0112 of the first directory of an EXIF block, 1 where it has none that is valid.
int orientation_of(Text exif) {
  if (!is_tiff(exif)) return 1;
  try {
    const auto tags = read_tiff_tags(Bytes(exif, exif[0] == 'I'), {kOrientation});
    const auto found = tags.find(kOrientation);
    return found != tags.end() && found->second[0] >= 1 && found->second[0] <= 8 ? static_cast<int>(found->second[0])
                                                                                 : 1;
  } catch (const std::out_of_range&) {
    return 1;
  }
}

FileHeader read_jpeg(Text text) {
  const Bytes data(text);
  FileHeader header{"jpeg"};
  std::size_t at = 2, scan = 0;
  while (at + 4 <= data.size() && data.byte(at) == 0xFF) {
    const unsigned int marker = data.byte(at + 1);
    if (marker == 0xFF || (marker >= 0xD0 && marker <= 0xD8) || marker == 0x01) {
      at += marker == 0xFF ? 1 : 2;
      continue;
    }
    if (marker == 0xD9) break;
    const std::size_t length = data.two(at + 2), body = at + 4;
    if (marker == 0xDA) {
      scan = body;
      break;
    }
    const bool has_size = marker >= 0xC0 && marker <= 0xCF && marker != 0xC4 && marker != 0xC8 && marker != 0xCC;
    if (has_size) {
      header.height_px = data.two(body + 1);
      header.width_px = data.two(body + 3);
    } else if (marker == 0xE1 && data.text(body, 6) == "Exif\0\0"sv) {
      header.orientation = orientation_of(data.text(body + 6, length < 8 ? 0 : length - 8));
    }
    at += 2 + length;
  }
  header.is_cut = scan == 0 || text.find("\xff\xd9", scan) == Text::npos;
  return header;
}

FileHeader read_png(Text text) {
  const Bytes data(text);
  FileHeader header{"png", data.four(16), data.four(20)};
  header.is_cut = true;
  for (std::size_t at = 8; at + 12 <= data.size();) {
    const std::size_t length = data.four(at);
    const Text kind = data.text(at + 4, 4);
    if (kind == "eXIf") {
      header.orientation = orientation_of(data.text(at + 8, length));
    } else if (kind == "acTL") {
      header.is_animated = data.four(at + 8) > 1;
    } else if (kind == "IEND") {
      header.is_cut = false;
      break;
    }
    at += 12 + length;
  }
  return header;
}

FileHeader read_gif(Text text) {
  const Bytes data(text, true);
  FileHeader header{"gif", data.two(6), data.two(8)};
  header.is_cut = true;
  const auto table_bytes = [](unsigned int flags) -> std::size_t { return flags & 0x80 ? 3U << ((flags & 7) + 1) : 0; };
  std::size_t at = 13 + table_bytes(data.byte(10));
  const auto pass_blocks = [&](std::size_t begin) {
    at = begin;
    while (data.byte(at) != 0) at += 1 + data.byte(at);
    ++at;
  };
  int num_pictures = 0;
  try {
    while (true) {
      const unsigned int kind = data.byte(at);
      if (kind == 0x3B) header.is_cut = false;
      if (kind == 0x21) {
        pass_blocks(at + 2);
      } else if (kind == 0x2C) {
        pass_blocks(at + 11 + table_bytes(data.byte(at + 9)));
        ++num_pictures;
      } else {
        break;
      }
    }
  } catch (const std::out_of_range&) {
    ++num_pictures;
  }
  header.is_animated = num_pictures > 1;
  return header;
}

FileHeader read_webp(Text text) {
  const Bytes data(text, true);
  FileHeader header{"webp"};
  const std::size_t length = data.four(4), end = std::min(data.size(), length + 8);
  for (std::size_t at = 12; at + 8 <= end;) {
    const Text name = data.text(at, 4);
    const std::size_t body = at + 8, size = data.four(at + 4);
    if (name == "VP8X") {
      header.is_animated = (data.byte(body) & 2) != 0;
      header.width_px = 1 + data.three(body + 4);
      header.height_px = 1 + data.three(body + 7);
    } else if (name == "VP8 " && header.width_px == 0) {
      header.width_px = data.two(body + 6) & 0x3FFF;
      header.height_px = data.two(body + 8) & 0x3FFF;
    } else if (name == "VP8L" && header.width_px == 0) {
      const unsigned int bits = data.four(body + 1);
      header.width_px = 1 + (bits & 0x3FFF);
      header.height_px = 1 + (bits >> 14 & 0x3FFF);
    } else if (name == "EXIF") {
      Text exif = data.text(body, std::min(size, end - body));
      if (starts_with(exif, "Exif\0\0"sv)) exif.remove_prefix(6);
      header.orientation = orientation_of(exif);
    }
    at = body + size + size % 2;
  }
  header.is_cut = length + 8 > data.size() + length % 2;
  return header;
}

FileHeader read_bmp(Text text) {
  const Bytes data(text, true);
  const std::set<unsigned int> known = {12, 40, 52, 56, 64, 108, 124};
  const std::size_t offset = data.four(10), size = data.four(14);
  if (known.count(static_cast<unsigned int>(size)) == 0) return {};
  const bool is_old = size == 12;
  const std::int64_t width = is_old ? data.two(18) : static_cast<std::int32_t>(data.four(18));
  const std::int64_t height = is_old ? data.two(20) : static_cast<std::int32_t>(data.four(22));
  const std::int64_t bits = data.two(is_old ? 24 : 28);
  const unsigned int compression = is_old ? 0 : data.four(30);
  FileHeader header{"bmp", width, std::abs(height)};
  const bool is_plain = compression == 0 || compression == 3;
  const std::int64_t stored = is_plain && width > 0 ? (width * bits + 31) / 32 * 4 * std::abs(height) : 0;
  header.is_cut = static_cast<std::int64_t>(offset) + stored > static_cast<std::int64_t>(data.size());
  return header;
}

FileHeader read_tiff(Text text) {
  const Bytes data(text, text[0] == 'I');
  const auto tags =
      read_tiff_tags(data, {kWidth, kHeight, kStripOffsets, kOrientation, kStripSizes, kTileOffsets, kTileSizes});
  const auto values = [&](unsigned int tag) {
    const auto found = tags.find(tag);
    return found == tags.end() ? std::vector<unsigned int>() : found->second;
  };
  const auto first = [&](unsigned int tag) { return values(tag).empty() ? 0U : values(tag)[0]; };
  FileHeader header{"tiff", first(kWidth), first(kHeight)};
  const unsigned int orientation = first(kOrientation);
  if (orientation >= 1 && orientation <= 8) header.orientation = static_cast<int>(orientation);
  const auto offsets = values(kStripOffsets).empty() ? values(kTileOffsets) : values(kStripOffsets);
  const auto sizes = values(kStripSizes).empty() ? values(kTileSizes) : values(kStripSizes);
  header.is_cut = offsets.empty();
  for (std::size_t i = 0; i < std::min(offsets.size(), sizes.size()); ++i) {
    header.is_cut = header.is_cut || static_cast<std::size_t>(offsets[i]) + sizes[i] > data.size();
  }
  return header;
}

FileHeader read_ico(Text text) {
  const Bytes data(text, true);
  const std::size_t count = data.two(4);
  if (count == 0 || count >= 100) return {};
  FileHeader header{"ico"};
  const auto side_of = [](unsigned int stored) -> std::int64_t { return stored == 0 ? 256 : stored; };
  for (std::size_t at = 6; at < 6 + 16 * count; at += 16) {
    header.width_px = std::max(header.width_px, side_of(data.byte(at)));
    header.height_px = std::max(header.height_px, side_of(data.byte(at + 1)));
    header.is_cut = header.is_cut || static_cast<std::size_t>(data.four(at + 8)) + data.four(at + 12) > data.size();
  }
  return header;
}

/// The contents of a box of the file's top level; nothing if there is none.
const char* find_box(Text text, Text wanted, std::size_t& num_bytes) {
  const Bytes data(text);
  for (std::size_t at = 0; at + 8 <= text.size();) {
    std::uint64_t length = data.four(at);
    const Text name = data.text(at + 4, 4);
    if (length == 1 && at + 16 <= text.size()) {
      length = static_cast<std::uint64_t>(data.four(at + 8)) << 32 | data.four(at + 12);
    }
    if (name == wanted) {
      num_bytes = std::min<std::uint64_t>(length < 8 ? text.size() : length, text.size() - at);
      return text.data() + at;
    }
    if (length < 8 || length > text.size() - at) return nullptr;
    at += length;
  }
  return nullptr;
}

FileHeader read_heif(Text text) {
  std::size_t num_bytes = 0;
  // A sequence has tracks; the still picture beside them is its poster.
  if (find_box(text, "moov", num_bytes) != nullptr ||
      !have_common(brands_of(text.substr(0, kHeadBytes)), kHeifBrands)) {
    return {};
  }
  FileHeader header{"heif"};
  if (const char* const meta = find_box(text, "meta", num_bytes)) {
    const Text box(meta, num_bytes);
    for (const Text part : {"grid", "iden", "iovl", "irot", "imir", "clap", "auxC"}) {
      header.is_assembled = header.is_assembled || box.find(part) != Text::npos;
    }
  }
  return header;
}

}  // namespace

bool is_picture_type(Text start) {
  if (is_iso_media(start)) {
    const auto brands = brands_of(start);
    return have_common(brands, kHeifBrands) || have_common(brands, kSequenceBrands);
  }
  if (is_webp(start)) return true;
  return std::any_of(kPictureStarts.begin(), kPictureStarts.end(),
                     [&](Text known) { return starts_with(start, known); });
}

bool is_list(Text start) {
  if (starts_with(start, "\xef\xbb\xbf")) start.remove_prefix(3);
  start.remove_prefix(std::min(start.find_first_not_of(" \t\n\r\f\v"), start.size()));
  for (const Text begin : {"#EXTM3U", "ffconcat", "<?xml", "<MPD", "v=0", "[playlist]", "[Reference]"}) {
    if (starts_with(start, begin)) return true;
  }
  return false;
}

std::string profile_of(Text icc) {
  if (icc.size() < 132 || icc.substr(16, 4) != "RGB ") return "";
  const Bytes data(icc);
  std::map<Text, std::size_t> places;
  const std::size_t end = std::min<std::uint64_t>(132 + 12ULL * data.four(128), icc.size() - 11);
  for (std::size_t at = 132; at < end; at += 12) places[icc.substr(at, 4)] = data.four(at + 4);
  std::array<double, 9> found{};
  std::size_t count = 0;
  for (const Text name : {"rXYZ", "gXYZ", "bXYZ"}) {
    const auto place = places.find(name);
    if (place == places.end() || place->second + 20 > icc.size()) return "";
    for (std::size_t i = 0; i < 3; ++i) {
      found[count++] = static_cast<std::int32_t>(data.four(place->second + 8 + 4 * i)) / 65536.0;
    }
  }
  for (const auto& [profile, colorants] : kColorants) {
    bool is_same = true;
    for (std::size_t i = 0; i < 9; ++i) is_same = is_same && std::abs(found[i] - colorants[i]) <= kColorantTolerance;
    if (is_same) return profile;
  }
  return "other";
}

FileHeader examine_file(Text data) {
  using Read = FileHeader (*)(Text);
  const std::tuple<bool, const char*, Read> kinds[] = {
      {starts_with(data, "\xff\xd8\xff"), "jpeg", read_jpeg},
      {starts_with(data, kPng), "png", read_png},
      {starts_with(data, "GIF87a") || starts_with(data, "GIF89a"), "gif", read_gif},
      {is_webp(data), "webp", read_webp},
      {starts_with(data, "BM"), "bmp", read_bmp},
      {is_tiff(data), "tiff", read_tiff},
      {starts_with(data, "\0\0\1\0"sv), "ico", read_ico},
      {is_iso_media(data), "container", read_heif}};
  for (const auto& [is_kind, kind, read] : kinds) {
    if (!is_kind) continue;
    try {
      return read(data);
    } catch (const std::out_of_range&) {
      FileHeader cut{kind};  // its end is missing before its size was found
      cut.is_cut = true;
      return cut;
    }
  }
  return {};
}

}  // namespace ev
