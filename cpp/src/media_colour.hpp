// Wide colours and high dynamic range as sRGB, in integers, so that every host gives the same. The twin of the last
// part of editverse_rt/media/pixels.py.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace ev {

/// The transfer and the primaries of a frame that has to be mapped to sRGB, as ITU-T H.273 numbers them; transfer 0: of
/// standard range.
struct ColourMapping {
  int transfer = 0;
  int primaries = 0;
};

/// The mapping that a frame of these colours needs, or nothing.
std::optional<ColourMapping> find_colour_mapping(int transfer, int primaries);

/// "PQ" or "HLG" for a transfer of high dynamic range, else "".
std::string_view dynamic_range_name(int transfer);

/// Maps num_pixels pixels of 3 16-bit values each to 8-bit sRGB.
void map_colours(const std::uint16_t* from, std::size_t num_pixels, const ColourMapping& mapping, std::uint8_t* to);

}  // namespace ev
