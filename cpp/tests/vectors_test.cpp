// Holds the C++ host to the vectors that the Python host wrote: vectors_test FOLDER.
#include <iostream>
#include <list>

#include "bundle.hpp"
#include "clip.hpp"
#include "families/base.hpp"
#include "media_timing.hpp"
#include "sequence.hpp"
#include "vectors.hpp"
#include "windows.hpp"

namespace {

using ev::Json;
using vectors::apply_edits, vectors::check_list, vectors::compare, vectors::named_field, vectors::outcome,
    vectors::read_vectors;

template <typename T>
std::optional<T> optional_of(const Json& value) {
  return value.is_null() ? std::nullopt : std::optional<T>(value.get<T>());
}

ev::Geometry geometry_of(const Json& value) {
  ev::Geometry g;
  g.temporal_ratio = value.at("temporal_ratio");
  g.spatial_ratio = value.at("spatial_ratio");
  g.patch_size = value.at("patch_size");
  g.patch_dim = value.at("patch_dim");
  g.clean_dim = value.at("clean_dim");
  g.min_area_px = value.at("min_area_px");
  g.max_area_px = value.at("max_area_px");
  g.max_side_px = value.at("max_side_px");
  g.max_frames = value.at("max_frames");
  g.default_height_px = value.at("default_height_px");
  g.default_width_px = value.at("default_width_px");
  g.default_frames = value.at("default_frames");
  g.default_fps = value.at("default_fps");
  g.shared_frames = value.at("shared_frames");
  return g;
}

Json prompt_result(const Json& one) {
  Json segments = Json::array();
  for (const ev::Segment& segment : ev::parse_prompt(one.at("prompt"), one.at("inputs"))) {
    if (const auto* text = std::get_if<ev::TextSegment>(&segment)) {
      segments.push_back({"text", text->text});
    } else {
      segments.push_back({"vision", std::get<ev::VisionSegment>(segment).name});
    }
  }
  return segments;
}

Json size_result(const Json& one, const ev::Geometry& geometry) {
  std::map<std::string, ev::Size> sources;
  for (const auto& [name, size] : one.at("sources").items()) sources[name] = size.get<ev::Size>();
  const auto [target, sizes] = ev::choose_sizes(sources, optional_of<std::string>(one.at("main")), geometry,
                                                optional_of<ev::Size>(one.at("size")));
  return {target, sizes};
}

Json layout_result(const Json& one) {
  const auto grid = [](const Json& value) { return ev::Grid{value.at(0), value.at(1), value.at(2)}; };
  std::vector<std::variant<std::int64_t, ev::Grid>> items;
  for (const Json& item : one.at("items")) {
    if (item.is_array()) {
      items.emplace_back(grid(item));
    } else {
      items.emplace_back(item.get<std::int64_t>());
    }
  }
  const ev::Layout made = ev::lay_out(items, grid(one.at("target")), one.at("with_text"));
  return {{"layout", made.layout},
          {"positions", made.positions},
          {"counts", {made.num_text, made.num_clean, made.num_noisy}}};
}

/// The guidance of each step under a caller's scale.
Json schedule_result(const Json& one) {
  ev::Schedule schedule;
  schedule.table.guidance = one.at("guidance").get<std::vector<double>>();
  return schedule.with_guidance(one.at("scale")).table.guidance;
}

/// Frames of one pixel that show their number.
class NumberedFrames final : public ev::FrameReader {
 public:
  NumberedFrames(const Json& one, const std::vector<std::pair<double, double>>& times)
      : FrameReader(1, 1), times_(times) {
    begin(one.at("start_s"), optional_of<double>(one.at("fps")), [&] { return one.at("source_fps").get<double>(); });
  }

 private:
  std::optional<Span> move_on() override {
    const std::size_t next = next_++;
    if (next >= times_.size()) return std::nullopt;
    return Span{times_[next].first, times_[next].second};
  }

  void render(char* picture) override {
    // The one that is shown stands before the one that was decoded last.
    picture[0] = static_cast<char>(std::min(next_, times_.size() + 1) - 2);
  }

  const std::vector<std::pair<double, double>>& times_;
  std::size_t next_ = 0;
};

/// The frames that a reader takes, up to 60, a few at a time.
Json reading_result(const Json& one) {
  const std::vector<std::pair<double, double>> times = one.at("times");
  NumberedFrames reader(one, times);
  Json frames = Json::array();
  for (std::int64_t count = 0; frames.size() < 60; count = (count + 1) % 4) {
    if (count == 2 && !reader.has_more()) break;
    for (const ev::Tensor& picture : reader.take(std::min<std::int64_t>(count, 60 - static_cast<int>(frames.size())))) {
      frames.push_back(static_cast<int>(picture.as<unsigned char>()[0]));
    }
  }
  CHECK(reader.times_s().size() == frames.size());
  return frames;
}

/// The frames that a clip of up to 60 takes, each shown by its number in the bytes of a 1x1 picture.
Json sampling_result(const Json& one) {
  const std::vector<std::pair<double, double>> times = one.at("times");
  ev::ClipTaker taker(one.at("start_s"), 60, optional_of<double>(one.at("fps")), one.at("source_fps"), 1, 1);
  bool wanted = true;
  for (std::size_t i = 0; i < times.size() && wanted; ++i) {
    const double until_s = i + 1 < times.size() ? times[i + 1].first : times[i].second;
    wanted = taker.show_until(until_s, times[i].first, [&](char* picture) { picture[0] = static_cast<char>(i); });
  }
  Json frames = Json::array();
  if (const auto clip = taker.finish()) {
    for (std::int64_t i = 0; i < clip->frames.shape[0]; ++i) {
      frames.push_back(static_cast<int>(ev::slice_rows(clip->frames, i, 1).as<unsigned char>()[0]));
    }
  }
  return frames;
}

/// A long request as windows: videos of one pixel, as lists of grey levels.
Json windows_result(const Json& one) {
  ev::Geometry geometry;
  geometry.temporal_ratio = one.at("bundle").at(0);
  geometry.max_frames = one.at("bundle").at(1);
  geometry.shared_frames = one.at("bundle").at(2);
  ev::Request request;
  request.start_s = one.at("start_s");
  ev::ExaminedInputs examined;
  examined.geometry = &geometry;
  examined.request = &request;
  examined.size = {1, 1};
  examined.num_frames = geometry.max_frames;
  examined.total_frames = one.at("total").get<std::int64_t>();
  examined.fps = 8.0;
  std::list<std::vector<std::uint8_t>> pixels;
  std::list<ev::Source> sources;
  for (const auto& [name, levels] : one.at("videos").items()) {
    pixels.emplace_back();
    for (const std::uint8_t level : levels) pixels.back().insert(pixels.back().end(), 3, level);
    const auto count = static_cast<std::int64_t>(levels.size());
    sources.push_back({name, "", pixels.back().data(), pixels.back().size(), count, 1, 1, 3, 3});
    examined.names.push_back(name);
    examined.sources[name] = &sources.back();
    examined.media[name] = {"video", 1, 1, 8.0, count, false};
    examined.sizes[name] = {1, 1};
  }
  Json found = Json::array();
  const auto windows = ev::read_windows(examined, [] {});
  while (const auto window = windows->next()) {
    Json levels = Json::object();
    for (const auto& [name, clip] : window->footage.clips) {
      for (std::int64_t i = 0; i < clip.shape[0]; ++i) levels[name].push_back(clip.as<const std::uint8_t>()[3 * i]);
    }
    found.push_back({{"window", {window->index, window->begin, window->num_shared, window->num_frames}},
                     {"padded", window->footage.num_frames},
                     {"levels", levels}});
  }
  const ev::WholeFootage& whole = windows->whole();
  const Json times_s = whole.times_s.empty() ? Json() : Json(whole.times_s);
  return {{"windows", found}, {"whole", {whole.num_frames, whole.fps, times_s, whole.notices}}};
}

/// A request of the Wan family laid out, from the shapes of its clips.
Json wan_layout_result(const Json& one, const ev::Geometry& geometry) {
  ev::BundleSpec spec;
  spec.conditioning = one.at("conditioning");
  spec.geometry = geometry;
  const ev::Request request;
  ev::CheckedRequest checked{&request, {}, {}, {}, {}, {}};
  ev::Footage footage{{}, one.at("num_frames"), 8.0, {}, {}};
  for (const auto& [name, shape] : one.at("clips").items()) {
    checked.inputs.names.push_back(name);
    footage.clips[name] = ev::make_tensor("uint8", {shape.at(0), shape.at(1), shape.at(2), 3});
  }
  checked.inputs.size = one.at("size").get<ev::Size>();
  const ev::LaidOutRequest made = ev::family_of("wan").lay_out(spec, checked, footage);
  const ev::Layout& layout = made.cond.layout;
  return {{"layout", layout.layout},
          {"positions", layout.positions},
          {"counts", {layout.num_text, layout.num_clean, layout.num_noisy}},
          {"target", {made.target.frames, made.target.rows, made.target.columns}},
          {"texts", {made.cond.text.value(), made.uncond.text.value()}},
          {"num_kept", made.num_kept},
          {"num_dropped", made.num_dropped},
          {"start", made.start ? Json(*made.start) : Json()}};
}

/// The first step that is run of a noised source.
Json first_step_result(const Json& one) {
  ev::Schedule schedule{"table", "schedule_euler", 5.0, {{0.0}, {0.0}, {5.0}, {{{1.0, 1.0}}}, {0}}, {}};
  ev::BundleSpec spec;
  spec.capabilities.strength = true;
  spec.schedules = {schedule};
  spec.default_schedule = "table";
  ev::Request request;
  request.sources.emplace_back();
  request.num_inference_steps = one.at("steps").get<std::int64_t>();
  request.strength = one.at("strength").get<double>();
  std::int64_t asked = 0;
  ev::choose_schedule(spec, request, [&](const ev::Schedule& given, std::int64_t, std::int64_t first_step) {
    asked = first_step;
    return given.table;
  });
  return asked;
}

/// A schedule without a graph runs its own table, and no other number of steps.
void check_fixed_schedule() {
  ev::BundleSpec spec;
  spec.schedules = {{"fast", "", 1.0, {{0.0, 0.5}, {0.0, 0.5}, {1.0, 1.0}, {}, {0, 0}}, {}}};
  spec.default_schedule = "fast";
  const auto no_table = [](const ev::Schedule&, std::int64_t, std::int64_t) -> ev::ScheduleTable {
    throw std::logic_error("a fixed schedule has no graph to run");
  };
  ev::Request request;
  CHECK(ev::choose_schedule(spec, request, no_table).num_inference_steps() == 2);
  request.num_inference_steps = 3;
  std::string said;
  try {
    ev::choose_schedule(spec, request, no_table);
  } catch (const ev::Error& error) {
    said = error.what();
  }
  CHECK(said.find("3 steps of schedule \"fast\"; expected its 2 steps, whose noise levels are fixed") == 0);
}

/// outcome() with the error's code and field.
template <typename Call>
Json coded_outcome(const Call& call) {
  try {
    return {{"result", call()}};
  } catch (const ev::Error& error) {
    return {{"error", ev_error_name(error.code())},
            {"code", error.facts().code},
            {"field", error.facts().field},
            {"text", error.what()}};
  }
}

void check_wan(const std::string& folder) {
  const Json given = read_vectors(folder, "wan.json");
  const ev::Geometry geometry = geometry_of(given.at("geometry").at(0));
  const auto check_part = [&](const char* part, const auto& result) {
    std::size_t index = 0;
    for (const Json& one : given.at(part)) {
      const Json found = coded_outcome([&]() -> Json { return result(one); });
      const std::string name = std::string("wan.json ") + part;
      compare(found, one, name, index);
      for (const char* field : {"code", "field"}) {
        CHECK_MSG(found.value(field, Json()) == one.value(field, Json()),
                  name + " case " + std::to_string(index) + ": " + field + " is " + found.dump());
      }
      ++index;
    }
  };
  check_part("layouts", [&](const Json& one) { return wan_layout_result(one, geometry); });
  check_part("fits", [](const Json& one) -> Json {
    return ev::fit_inside(one.at("source").get<ev::Size>(), one.at("target").get<ev::Size>());
  });
  check_part("strengths", first_step_result);
  check_part("tags", [](const Json& one) -> Json { return ev::with_tags(one.at("prompt"), one.at("inputs")); });
}

void check_bundles(const std::string& folder) {
  const Json given = read_vectors(folder, "bundles.json");
  std::size_t index = 0;
  for (const Json& one : given.at("cases")) {
    const std::string text = apply_edits(given.at("base"), one.at("edits"));
    Json found = outcome([&]() -> Json { return ev::spec_from_json(text, "bundle.json").name; });
    Json expected = one;
    for (Json* value : {&found, &expected}) {
      if (!value->contains("text")) continue;
      // What was found is shown in the manner of each language, so of most texts only the field's name counts.
      const std::string whole = (*value)["text"];
      (*value)["text"] = whole.find("an older version") == std::string::npos ? named_field(whole) : whole;
    }
    compare(found, expected, "bundles.json", index++);
  }
}

template <typename Result>
void check_with_geometries(const std::string& folder, const std::string& name, const Result& result) {
  const Json given = read_vectors(folder, name);
  std::size_t index = 0;
  for (const Json& one : given.at("cases")) {
    const ev::Geometry geometry = geometry_of(given.at("geometries").at(one.at("geometry").get<std::size_t>()));
    compare(outcome([&]() -> Json { return result(one, geometry); }), one, name, index++);
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: vectors_test FOLDER\n";
    return 2;
  }
  const std::string folder = argv[1];
  check_list(read_vectors(folder, "prompts.json"), "prompts.json", prompt_result);
  check_list(read_vectors(folder, "layouts.json"), "layouts.json", layout_result);
  check_list(read_vectors(folder, "schedules.json"), "schedules.json", schedule_result);
  check_fixed_schedule();
  check_list(read_vectors(folder, "windows.json"), "windows.json", windows_result);
  check_list(read_vectors(folder, "sampling.json"), "sampling.json", sampling_result);
  check_list(read_vectors(folder, "sampling.json"), "sampling.json, read", reading_result);
  check_list(read_vectors(folder, "rates.json"), "rates.json", [](const Json& one) -> Json {
    const auto [numerator, denominator] = ev::fraction_of_rate(one.at("fps"));
    return {numerator, denominator};
  });
  check_with_geometries(folder, "sizes.json", size_result);
  check_with_geometries(folder, "frames.json", [](const Json& one, const ev::Geometry& geometry) -> Json {
    return ev::choose_num_frames(optional_of<std::int64_t>(one.at("num_frames")), one.at("has_video"),
                                 one.at("has_image"), geometry);
  });
  check_bundles(folder);
  check_wan(folder);
  return check::report();
}
