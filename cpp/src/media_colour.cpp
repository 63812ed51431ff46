#include "media_colour.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

namespace ev {

namespace {

constexpr int kPq = 16, kHlg = 18;
constexpr int kUnspecified = 2, kBt2020 = 9, kP3Dci = 11, kP3 = 12;
// Linear light in 16.16 fixed point, 1 for the white of standard range: 203 cd/m2 in PQ, 75 % of the signal in HLG
// (ITU-R BT.2408). Matrices to BT.709's primaries in units of 1/16384; rows add up to 1: grey stays grey.
constexpr double kOne = 1 << 16;
constexpr double kSdrWhite_nits = 203, kHlgWhite = 0.265;
using Matrix = std::array<std::array<std::int64_t, 3>, 3>;
constexpr Matrix kBt2020ToBt709 = {{{27205, -9628, -1193}, {-2041, 18562, -137}, {-297, -1648, 18329}}};
constexpr Matrix kP3ToBt709 = {{{20069, -3685, 0}, {-689, 17073, 0}, {-322, -1288, 17994}}};
// Up to here light stays as it is; what is brighter is pressed into the rest.
constexpr double kKnee = 0.85;
constexpr int kCurveShift = 3;

/// Linear light of each 16-bit code value. Source: ITU-R BT.2100 tables 4 and 5; sRGB for the rest.
std::vector<std::int32_t> light_of_codes(int transfer) {
  std::vector<std::int32_t> table(1 << 16);
  for (std::size_t i = 0; i < table.size(); ++i) {
    const double code = static_cast<double>(i) / 65535;
    double light = 0;
    if (transfer == kPq) {
      const double power = std::pow(code, 32.0 / 2523);
      const double share = std::max(power - 3424.0 / 4096, 0.0) / (2413.0 / 128 - 2392.0 / 128 * power);
      light = std::pow(share, 8192.0 / 1305) * (10000 / kSdrWhite_nits);
    } else if (transfer == kHlg) {
      // The scene's light: a display's own gamma would make colours of standard range darker.
      const double bright = (std::exp((code - 0.55991073) / 0.17883277) + 0.28466892) / 12;
      light = (code <= 0.5 ? code * code / 3 : bright) / kHlgWhite;
    } else {
      light = code <= 0.04045 ? code / 12.92 : std::pow((code + 0.055) / 1.055, 2.4);
    }
    table[i] = static_cast<std::int32_t>(std::nearbyint(light * kOne));
  }
  return table;
}

/// The sRGB code of linear light in steps of 1/8192.
std::vector<std::uint8_t> codes_of_light(bool has_knee) {
  std::vector<std::uint8_t> table(static_cast<std::size_t>(has_knee ? 64 << 13 : 1 << 13) + 1);
  for (std::size_t i = 0; i < table.size(); ++i) {
    double light = static_cast<double>(i) / ((1 << 16) >> kCurveShift);
    const double above = (light - kKnee) / (1 - kKnee);
    if (has_knee && above > 0) light = kKnee + (1 - kKnee) * above / (1 + above);
    const double code = light <= 0.0031308 ? light * 12.92 : 1.055 * std::pow(light, 1 / 2.4) - 0.055;
    table[i] = static_cast<std::uint8_t>(std::nearbyint(std::clamp(code, 0.0, 1.0) * 255));
  }
  return table;
}

}  // namespace

std::string_view dynamic_range_name(int transfer) { return transfer == kPq ? "PQ" : transfer == kHlg ? "HLG" : ""; }

std::optional<ColourMapping> find_colour_mapping(int transfer, int primaries) {
  const int range = dynamic_range_name(transfer).empty() ? 0 : transfer;
  const int known = primaries == kP3Dci ? kP3 : primaries;
  const bool is_wide = known == kBt2020 || known == kP3;
  if (range != 0 && !is_wide) return ColourMapping{range, known == kUnspecified ? kBt2020 : 1};
  if (range != 0 || is_wide) return ColourMapping{range, known};
  return std::nullopt;
}

void map_colours(const std::uint16_t* from, std::size_t num_pixels, const ColourMapping& mapping, std::uint8_t* to) {
  // Made once for each transfer that is met.
  static const std::vector<std::int32_t> pq = light_of_codes(kPq), hlg = light_of_codes(kHlg), sdr = light_of_codes(0);
  static const std::vector<std::uint8_t> plain = codes_of_light(false), pressed = codes_of_light(true);
  const auto& light_of = mapping.transfer == kPq ? pq : mapping.transfer == kHlg ? hlg : sdr;
  const auto& code_of = mapping.transfer != 0 ? pressed : plain;
  const auto last = static_cast<std::int64_t>(code_of.size()) - 1;
  const Matrix* const matrix = mapping.primaries == kBt2020 ? &kBt2020ToBt709
                               : mapping.primaries == kP3   ? &kP3ToBt709
                                                            : nullptr;
  for (std::size_t i = 0; i < num_pixels; ++i) {
    const std::array<std::int64_t, 3> given = {light_of[from[3 * i]], light_of[from[3 * i + 1]],
                                               light_of[from[3 * i + 2]]};
    for (std::size_t k = 0; k < 3; ++k) {
      std::int64_t light = given[k];
      if (matrix != nullptr) {
        const auto& row = (*matrix)[k];
        light = (row[0] * given[0] + row[1] * given[1] + row[2] * given[2]) >> 14;
      }
      to[3 * i + k] = code_of[static_cast<std::size_t>(std::clamp(light >> kCurveShift, std::int64_t{0}, last))];
    }
  }
}

}  // namespace ev
