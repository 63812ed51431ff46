// A request checked against a bundle: schedule, token ids, and what its inputs are. Nothing is decoded yet. The twin of
// editverse_rt/request/checked.py.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "inputs.hpp"
#include "request.hpp"
#include "spec.hpp"
#include "text.hpp"

namespace ev {

/// The table of a schedule for another number of steps, from one of them on.
using MakeTable = std::function<ScheduleTable(const Schedule&, std::int64_t num_steps, std::int64_t first_step)>;

/// A request that the bundle can serve, as far as can be known before its inputs are decoded. segments: the instruction
/// in order. ids: token ids of each text segment, and last the end of the sequence by itself. negative_ids: of the
/// negative prompt, nothing for a bundle that takes none. The request, and the spec, must outlive it.
struct CheckedRequest {
  const Request* request;
  Schedule schedule;
  std::vector<Segment> segments;
  std::vector<std::vector<std::int64_t>> ids;
  std::optional<std::vector<std::int64_t>> negative_ids;
  ExaminedInputs inputs;

  /// The inputs in the order of the instruction.
  std::vector<std::string> clip_names() const;
  /// Tokens of the instruction, the end of the sequence included.
  std::int64_t num_tokens() const;
};

/// Checks a request and looks at its inputs. Throws EV_ERROR_REQUEST, EV_ERROR_MEDIA.
CheckedRequest check_request(const BundleSpec& spec, const Tokenizer& tokenizer, const Request& request,
                             const MakeTable& make_table);

/// The bundle's schedule that a request names, or its default, with the request's steps and guidance, and of them those
/// that its strength leaves. Throws EV_ERROR_REQUEST for a name that the bundle does not have, and if no step is left.
Schedule choose_schedule(const BundleSpec& spec, const Request& request, const MakeTable& make_table);

}  // namespace ev
