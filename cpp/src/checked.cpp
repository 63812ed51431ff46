#include "checked.hpp"

#include <algorithm>

#include "error.hpp"

namespace ev {

namespace {

// That of diffusers' WanVideoToVideoPipeline.
constexpr double kDefaultStrength = 0.8;

/// Refuses by name what this bundle cannot do.
void check_capabilities(const BundleSpec& spec, const Request& request) {
  const Capabilities& can = spec.capabilities;
  if (request.negative_prompt && !can.negative_prompt) {
    throw Error(EV_ERROR_REQUEST, "request.unsupported", "negative_prompt")
        .found("negative_prompt is given")
        .hint("this bundle's guidance leaves the text out; leave the negative prompt out");
  }
  if (request.strength && (!can.strength || request.sources.empty())) {
    throw Error(EV_ERROR_REQUEST, "request.unsupported", "strength")
        .found("strength is given")
        .hint("it needs a video and a bundle that begins with a noised source; leave it out");
  }
  if (request.sources.empty() && !can.generates) {
    throw Error(EV_ERROR_REQUEST, "request.unsupported", "inputs")
        .found("no video and no image is given")
        .expected("at least one: this bundle edits and does not generate");
  }
  if (!request.sources.empty() && !can.edits) {
    std::string names;
    for (const Source& source : request.sources) names += (names.empty() ? "" : ", ") + source.name;
    throw Error(EV_ERROR_REQUEST, "request.unsupported", "inputs")
        .found(names, " is given")
        .expected("no input: this bundle generates and does not edit");
  }
}

std::vector<std::int64_t> join(const std::vector<std::vector<std::int64_t>>& parts) {
  std::vector<std::int64_t> whole;
  for (const auto& part : parts) whole.insert(whole.end(), part.begin(), part.end());
  return whole;
}

}  // namespace

std::vector<std::string> CheckedRequest::clip_names() const {
  std::vector<std::string> names;
  for (const Segment& segment : segments) {
    if (const auto* vision = std::get_if<VisionSegment>(&segment)) names.push_back(vision->name);
  }
  return names;
}

std::int64_t CheckedRequest::num_tokens() const { return static_cast<std::int64_t>(join(ids).size()); }

Schedule choose_schedule(const BundleSpec& spec, const Request& request, const MakeTable& make_table) {
  const std::string name = request.schedule.value_or(spec.default_schedule);
  const Schedule* found = spec.find_schedule(name);
  if (found == nullptr) {
    std::string known;
    for (const Schedule& other : spec.schedules) known += (known.empty() ? "" : ", ") + other.name;
    throw Error(EV_ERROR_REQUEST, "request.unknown_schedule", "schedule")
        .found("schedule is \"", name, "\"")
        .hint("this bundle has ", known);
  }
  Schedule schedule = *found;
  const std::int64_t own = schedule.num_inference_steps(), steps = request.num_inference_steps.value_or(own);
  std::int64_t first = 0;
  if (spec.capabilities.strength && !request.sources.empty()) {
    const double strength = request.strength.value_or(kDefaultStrength);
    first = steps - std::min(static_cast<std::int64_t>(static_cast<double>(steps) * strength), steps);
    if (first == steps) {
      throw Error(EV_ERROR_REQUEST, "request.option", "strength")
          .found("strength ", strength, " leaves none of ", steps, " steps")
          .hint("give a larger strength or more steps");
    }
  }
  if (first != 0 || steps != own) {
    if (schedule.is_fixed()) {
      throw Error(EV_ERROR_REQUEST, "request.option", steps != own ? "num_inference_steps" : "strength")
          .found(steps - first, " steps of schedule \"", schedule.name, "\"")
          .expected("its ", own, " steps, whose noise levels are fixed")
          .hint("leave the number of steps out, give strength 1, or take another schedule");
    }
    schedule.table = make_table(schedule, steps, first);
  }
  return request.guidance_scale ? schedule.with_guidance(*request.guidance_scale) : schedule;
}

CheckedRequest check_request(const BundleSpec& spec, const Tokenizer& tokenizer, const Request& request,
                             const MakeTable& make_table) {
  check_options(request);
  check_capabilities(spec, request);
  std::vector<std::string> names, words;
  for (const Source& source : request.sources) names.push_back(source.name);
  const bool is_interleaved = spec.conditioning == "interleaved";
  std::vector<Segment> segments = parse_prompt(with_tags(request.prompt, names), names);
  for (const Segment& segment : segments) {
    if (const auto* text = std::get_if<TextSegment>(&segment)) words.push_back(text->text);
  }
  if (!is_interleaved) {
    std::string whole;
    for (const std::string& text : words) whole += (whole.empty() ? "" : " ") + text;
    words = {whole};
  }
  std::optional<std::vector<std::int64_t>> negative_ids;
  if (spec.unconditional == "prompt") {
    const std::string text = request.negative_prompt.value_or(spec.default_negative_prompt);
    std::vector<std::string> negative;
    if (!text.empty()) negative.push_back(text);
    negative_ids = join(tokenizer.encode_segments(negative));
  }
  Schedule schedule = choose_schedule(spec, request, make_table);
  std::vector<std::vector<std::int64_t>> ids = tokenizer.encode_segments(words);
  return {&request,       std::move(schedule),     std::move(segments),
          std::move(ids), std::move(negative_ids), examine_inputs(request, spec.geometry, spec.conditioning)};
}

}  // namespace ev
