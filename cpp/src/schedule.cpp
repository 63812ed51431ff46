#include "schedule.hpp"

#include <algorithm>
#include <cmath>

#include "error.hpp"

namespace ev {

Schedule Schedule::with_guidance(double scale) const {
  if (!std::isfinite(scale) || scale < 0) {
    throw Error(EV_ERROR_REQUEST, "request.option", "guidance_scale")
        .value(scale)
        .expected("a number of at least 0 (1: no guidance)");
  }
  const auto is_one = [](double row) { return row == 1.0; };
  const bool unguided = std::all_of(table.guidance.begin(), table.guidance.end(), is_one);
  Schedule result = *this;
  result.guidance_scale = scale;
  for (double& row : result.table.guidance) row = unguided || !is_one(row) ? scale : row;
  return result;
}

}  // namespace ev
