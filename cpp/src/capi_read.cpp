#include "capi_read.hpp"

#include <exception>
#include <optional>
#include <string>

#include "lifetime.hpp"

namespace ev {

namespace {

std::optional<std::int64_t> unless_default(std::int32_t value) {
  return value == EV_DEFAULT ? std::nullopt : std::optional<std::int64_t>(value);
}

std::optional<double> unless_default(double value) {
  return value == EV_DEFAULT ? std::nullopt : std::optional<double>(value);
}

Source read_input(const ev_input& given, std::size_t index, bool with_pixels) {
  Source source;
  const std::string place = join_text("ev_request.inputs[", index, "]");
  if (given.name == nullptr) {
    throw Error(EV_ERROR_ARGUMENT, "", place + ".name")
        .found(place, ".name is NULL")
        .hint("give \"video1\" or the like");
  }
  source.name = given.name;
  check_input_name(source.name);
  if (given.path != nullptr && given.frames != nullptr) {
    throw Error(EV_ERROR_ARGUMENT, "", place)
        .found(source.name, " has both a path and frames")
        .hint("give one of them");
  }
  if (given.path != nullptr) {
    source.path = given.path;
    if (source.path.empty()) {
      throw Error(EV_ERROR_MEDIA, "request.input_type", place + ".path")
          .found(source.name, " has an empty path")
          .hint("give that of a video or image");
    }
    return source;
  }
  if (with_pixels && given.frames == nullptr) {
    throw Error(EV_ERROR_ARGUMENT, "", place)
        .found(source.name, " has neither a path nor frames")
        .hint("give one of them");
  }
  source.data = given.frames;
  source.num_bytes = given.num_bytes;
  source.num_frames = given.num_frames;
  source.width_px = given.width_px;
  source.height_px = given.height_px;
  const bool has_pixels = given.width_px > 0 && given.height_px > 0;
  source.row_stride_bytes = given.row_stride_bytes;
  if (source.row_stride_bytes == 0 && has_pixels) {
    source.row_stride_bytes = static_cast<std::size_t>(given.width_px) * 3;
  }
  source.frame_stride_bytes = given.frame_stride_bytes;
  if (source.frame_stride_bytes == 0 && has_pixels) {
    const auto rows = static_cast<std::size_t>(given.height_px);
    const std::size_t stride = source.row_stride_bytes;
    if (stride > SIZE_MAX / rows) {
      throw Error(EV_ERROR_MEDIA, "request.input_type", place + ".row_stride_bytes")
          .found(source.name, " has rows of ", stride, " bytes, too many for ", rows, " rows");
    }
    source.frame_stride_bytes = stride * rows;
  }
  return source;
}

/// Calls the caller's code; whether it says to go on.
template <typename Call>
bool call_back(const Call& call) {
  const CallersCode callers_code;
  try {
    return call() == 0;
  } catch (const std::exception& error) {
    throw Error(EV_ERROR_CANCELLED).found("the callback threw an exception: ", error.what());
  } catch (...) {
    throw Error(EV_ERROR_CANCELLED).found("the callback threw an exception");
  }
}

}  // namespace

ev_request default_request() {
  ev_request defaults = {};
  defaults.num_inference_steps = EV_DEFAULT;
  defaults.guidance_scale = EV_DEFAULT;
  defaults.width_px = EV_DEFAULT;
  defaults.height_px = EV_DEFAULT;
  defaults.num_frames = EV_DEFAULT;
  defaults.fps = EV_DEFAULT;
  defaults.strength = EV_DEFAULT;
  return defaults;
}

ev_options default_options() {
  ev_options defaults = {};
  defaults.num_threads = EV_DEFAULT;
  defaults.device = EV_DEFAULT;
  defaults.weight_budget_bytes = EV_DEFAULT;
  return defaults;
}

BackendOptions read_backend_options(const ev_options& given) {
  BackendOptions backend;
  if (given.backend != nullptr) backend.name = given.backend;
  if (given.onnxruntime != nullptr) backend.onnxruntime = given.onnxruntime;
  if (given.tensorrt != nullptr) backend.tensorrt = given.tensorrt;
  backend.allow_unverified = given.allow_unverified != 0;
  if (given.num_threads != EV_DEFAULT) {
    if (given.num_threads < 1) {
      throw Error(EV_ERROR_REQUEST, "request.option", "num_threads")
          .value(given.num_threads)
          .hint("give at least 1, or EV_DEFAULT for one a core");
    }
    backend.num_threads = given.num_threads;
  }
  if (given.device != EV_DEFAULT) {
    if (given.device < 0) {
      throw Error(EV_ERROR_REQUEST, "request.option", "device")
          .value(given.device)
          .hint("give a GPU's number, 0 or more");
    }
    backend.gpu.device = given.device;
  }
  if (given.weight_budget_bytes != EV_DEFAULT) {
    if (given.weight_budget_bytes < 0) {
      throw Error(EV_ERROR_REQUEST, "request.option", "weight_budget_bytes")
          .value(given.weight_budget_bytes)
          .hint("give 0 or more");
    }
    backend.gpu.weight_budget_bytes = given.weight_budget_bytes;
  }
  backend.gpu.cuda_graphs = given.cuda_graphs != 0;
  if (given.plugin != nullptr) backend.gpu.plugin = given.plugin;
  return backend;
}

Request read_request(const ev_request* pointer, bool with_pixels) {
  const auto given = read_struct(pointer, "ev_request", default_request());
  Request request;
  request.prompt = require(given.prompt, "ev_request.prompt");
  if (given.num_inputs > 0) {
    require(given.inputs, "ev_request.inputs");
    // All elements have the size that the caller's header gives them.
    const std::size_t stride = check_struct_size<ev_input>(given.inputs->struct_size, "ev_input");
    if (given.num_inputs > 1024) {
      throw Error(EV_ERROR_ARGUMENT, "", "ev_request.num_inputs").value(given.num_inputs).expected("up to 1024");
    }
    for (std::size_t i = 0; i < given.num_inputs; ++i) {
      const auto* bytes = reinterpret_cast<const unsigned char*>(given.inputs) + i * stride;
      const auto input = read_struct(reinterpret_cast<const ev_input*>(bytes), "ev_input");
      if (input.struct_size != stride) {
        throw Error(EV_ERROR_ARGUMENT, "", join_text("ev_request.inputs[", i, "].struct_size"))
            .found("inputs[", i, "] has struct_size ", input.struct_size, ", but inputs[0] has ", stride)
            .hint("prepare each with ev_input_init");
      }
      request.sources.push_back(read_input(input, i, with_pixels));
    }
  }
  if (given.schedule != nullptr) request.schedule = given.schedule;
  request.num_inference_steps = unless_default(given.num_inference_steps);
  request.guidance_scale = unless_default(given.guidance_scale);
  request.seed = given.seed;
  const auto width = unless_default(given.width_px), height = unless_default(given.height_px);
  if (width.has_value() != height.has_value()) {
    throw Error(EV_ERROR_REQUEST, "request.option", "size")
        .found("only one of width_px and height_px is given")
        .hint("give both or neither");
  }
  if (width) request.size = Size(*height, *width);
  request.num_frames = unless_default(given.num_frames);
  if (given.length != nullptr) request.length = given.length;
  request.fps = unless_default(given.fps);
  request.start_s = given.start_s;
  request.strength = unless_default(given.strength);
  if (given.negative_prompt != nullptr) request.negative_prompt = given.negative_prompt;
  return request;
}

StepCallback read_step_callback(const ev_request* pointer) {
  const auto given = read_struct(pointer, "ev_request", default_request());
  if (given.callback == nullptr) return nullptr;
  return [given](const FinishedStep& done) {
    const ev_step facts = {
        sizeof(ev_step), static_cast<std::int32_t>(done.step),   static_cast<std::int32_t>(done.num_inference_steps),
        done.timestep,   static_cast<std::int32_t>(done.window), static_cast<std::int32_t>(done.num_windows)};
    return call_back([&] { return given.callback(given.user_data, &facts); });
  };
}

WindowCallback read_window_callback(const ev_request* pointer) {
  const auto given = read_struct(pointer, "ev_request", default_request());
  if (given.window_callback == nullptr) return nullptr;
  return [given](const FinishedWindow& done) {
    const std::vector<std::int64_t>& shape = done.frames.shape;
    const ev_window facts = {sizeof(ev_window),
                             static_cast<std::int32_t>(done.window),
                             static_cast<std::int32_t>(done.num_windows),
                             done.begin,
                             done.frames.as<const std::uint8_t>(),
                             static_cast<std::size_t>(done.frames.num_elements()),
                             static_cast<std::int32_t>(shape[0]),
                             static_cast<std::int32_t>(shape[2]),
                             static_cast<std::int32_t>(shape[1])};
    return call_back([&] { return given.window_callback(given.user_data, &facts); });
  };
}

}  // namespace ev
