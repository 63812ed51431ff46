// The C interface: checks of arguments, and exceptions turned into codes. Nothing else.
#include <algorithm>
#include <array>
#include <condition_variable>
#include <cstddef>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <set>
#include <string>
#include <type_traits>

#include "editverse_rt.h"
#include "error.hpp"
#include "lifetime.hpp"
#include "media.hpp"
#include "pipeline.hpp"

struct ev_pipeline {
  ev_pipeline(const char* bundle, const ev::BackendOptions& options, bool release_graphs)
      : pipeline(bundle, options, release_graphs) {}

  ev::Pipeline pipeline;
  int num_users = 0;             // calls on it that are under way
  bool is_left_to_user = false;  // the last of them deletes it
};

struct ev_result {
  ev::Result result;
};

namespace {

using ev::fail;

#define EV_TEXT_OF(x) #x
#define EV_TEXT(x) EV_TEXT_OF(x)
constexpr const char* kVersion = EV_TEXT(EV_VERSION_MAJOR) "." EV_TEXT(EV_VERSION_MINOR) "." EV_TEXT(EV_VERSION_PATCH);
// Larger than any version of a struct; a struct_size above it was never set.
constexpr std::size_t kMaxStructBytes = 4096;

/// Set even where memory has run out: a fixed room, cut short if need be.
thread_local char last_error[1024] = "";

int remember(int code, const char* text) {
  std::size_t i = 0;
  for (; text[i] != '\0' && i + 1 < sizeof last_error; ++i) last_error[i] = text[i] == '\n' ? ' ' : text[i];
  // Not in the middle of a character.
  if (text[i] != '\0') {
    while (i > 0 && (static_cast<unsigned char>(last_error[i - 1]) & 0xC0) == 0x80) --i;
    if (i > 0 && static_cast<unsigned char>(last_error[i - 1]) >= 0xC0) --i;
  }
  last_error[i] = '\0';
  return code;
}

/// Runs body and turns what it throws into a code and ev_last_error's text.
template <typename Body>
int guard(const Body& body) noexcept {
  try {
    body();
    return EV_OK;
  } catch (const ev::Error& error) {
    return remember(error.code(), error.what());
  } catch (const std::bad_alloc&) {
    return remember(EV_ERROR_MEMORY, "memory ran out; try a smaller size or fewer frames");
  } catch (const std::length_error&) {
    return remember(EV_ERROR_MEMORY, "more memory is needed than there can be; try a smaller size or fewer frames");
  } catch (const std::exception& error) {
    return remember(EV_ERROR_INTERNAL, error.what());
  } catch (...) {
    return remember(EV_ERROR_INTERNAL, "an exception of an unknown type");
  }
}

template <typename T>
T* require(T* pointer, const char* name) {
  if (pointer == nullptr) fail(EV_ERROR_ARGUMENT, name, " is NULL; give a pointer");
  return pointer;
}

/// The sizes that a struct had in older versions of the header.
template <typename T>
constexpr std::array<std::size_t, 0> kOlderBytes = {};
template <>
constexpr std::array<std::size_t, 2> kOlderBytes<ev_options> = {offsetof(ev_options, tensorrt),
                                                                offsetof(ev_options, release_graphs)};

/// Refuses what no version of the header says: a struct that was never prepared.
template <typename T>
std::size_t check_struct_size(std::size_t struct_size, const char* name) {
  const auto& sizes = kOlderBytes<T>;
  const bool older = std::find(sizes.begin(), sizes.end(), struct_size) != sizes.end();
  const bool newer = struct_size >= sizeof(T) && struct_size <= kMaxStructBytes;
  if (!older && !newer) {
    fail(EV_ERROR_ARGUMENT, name, " has struct_size ", struct_size, ", expected ", sizeof(T), "; prepare it with ",
         name, "_init");
  }
  return struct_size;
}

/// Lays a struct of this version into one of the caller's, as far as that reaches; zeros beyond what is known here.
template <typename T>
void write_struct(const T& value, T* target, std::size_t struct_size) {
  static_assert(std::is_trivially_copyable_v<T>);
  std::memcpy(target, &value, std::min(struct_size, sizeof value));
  if (struct_size > sizeof value) {
    std::memset(reinterpret_cast<unsigned char*>(target) + sizeof value, 0, struct_size - sizeof value);
  }
  std::memcpy(target, &struct_size, sizeof struct_size);
}

/// What the ev_*_init functions do. A size that no struct has is left to the call that is given the struct.
template <typename T>
void init_struct(const T& defaults, T* target, std::size_t struct_size) {
  if (target != nullptr && struct_size >= sizeof struct_size && struct_size <= kMaxStructBytes) {
    write_struct(defaults, target, struct_size);
  }
}

/// The struct that a caller gave, as this version knows it. What an older one lacks is as in `defaults`; a newer one
/// may only hold zeros in what is not known here.
template <typename T>
T read_struct(const T* given, const char* name, T defaults = {}) {
  static_assert(std::is_trivially_copyable_v<T>);
  require(given, name);
  std::size_t struct_size = 0;
  std::memcpy(&struct_size, given, sizeof struct_size);
  check_struct_size<T>(struct_size, name);
  const auto* bytes = reinterpret_cast<const unsigned char*>(given);
  for (std::size_t i = sizeof(T); i < struct_size; ++i) {
    if (bytes[i] != 0) {
      fail(EV_ERROR_ARGUMENT, name, " sets a field that version ", kVersion, " of the library does not know");
    }
  }
  std::memcpy(&defaults, given, std::min(struct_size, sizeof defaults));
  return defaults;
}

/// The pipelines that are open. Never destroyed: a program's static objects may close theirs at its very end.
struct OpenPipelines {
  std::mutex mutex;  // guards num_users and is_left_to_user as well
  std::condition_variable left;
  std::set<const ev_pipeline*> known;
};

OpenPipelines& open_pipelines() {
  static OpenPipelines* const pipelines = new OpenPipelines;
  return *pipelines;
}

/// A call on a pipeline, which is not deleted for as long as one of these lives.
class Use {
 public:
  explicit Use(ev_pipeline* pipeline) : pipeline_(require(pipeline, "pipeline")) {
    OpenPipelines& pipelines = open_pipelines();
    const std::lock_guard lock(pipelines.mutex);
    if (pipelines.known.count(pipeline) == 0) {
      fail(EV_ERROR_ARGUMENT, "the pipeline is not open; give one that ev_open gave and ev_close did not close");
    }
    ++pipeline->num_users;
  }

  ~Use() {
    OpenPipelines& pipelines = open_pipelines();
    bool is_to_be_deleted = false;
    {
      const std::lock_guard lock(pipelines.mutex);
      is_to_be_deleted = --pipeline_->num_users == 0 && pipeline_->is_left_to_user;
      // Under the lock, because whoever waits for it deletes the pipeline.
      pipelines.left.notify_all();
    }
    if (is_to_be_deleted) delete pipeline_;
  }

  Use(const Use&) = delete;
  Use& operator=(const Use&) = delete;

  ev::Pipeline* operator->() const { return &pipeline_->pipeline; }

 private:
  ev_pipeline* pipeline_;
};

/// Stops what runs on a pipeline and deletes it when no call on it is left.
void close_pipeline(ev_pipeline* pipeline) {
  OpenPipelines& pipelines = open_pipelines();
  std::unique_lock lock(pipelines.mutex);
  if (pipelines.known.erase(pipeline) == 0) return;
  pipeline->pipeline.refuse_requests();
  if (pipeline->pipeline.runs_in_this_thread()) {
    pipeline->is_left_to_user = true;
    return;
  }
  pipelines.left.wait(lock, [&] { return pipeline->num_users == 0; });
  lock.unlock();
  delete pipeline;
}

std::optional<std::int64_t> unless_default(std::int32_t value) {
  return value == EV_DEFAULT ? std::nullopt : std::optional<std::int64_t>(value);
}

std::optional<double> unless_default(double value) {
  return value == EV_DEFAULT ? std::nullopt : std::optional<double>(value);
}

ev_options default_options() {
  ev_options defaults = {};
  defaults.num_threads = EV_DEFAULT;
  defaults.device = EV_DEFAULT;
  defaults.weight_budget_bytes = EV_DEFAULT;
  return defaults;
}

ev::BackendOptions read_backend_options(const ev_options& given) {
  ev::BackendOptions backend;
  if (given.backend != nullptr) backend.name = given.backend;
  if (given.onnxruntime != nullptr) backend.onnxruntime = given.onnxruntime;
  if (given.tensorrt != nullptr) backend.tensorrt = given.tensorrt;
  backend.allow_unverified = given.allow_unverified != 0;
  if (given.num_threads != EV_DEFAULT) {
    if (given.num_threads < 1) {
      fail(EV_ERROR_REQUEST, "num_threads is ", given.num_threads, "; give at least 1, or EV_DEFAULT for one a core");
    }
    backend.num_threads = given.num_threads;
  }
  if (given.device != EV_DEFAULT) {
    if (given.device < 0) fail(EV_ERROR_REQUEST, "device is ", given.device, "; give a GPU's number, 0 or more");
    backend.gpu.device = given.device;
  }
  if (given.weight_budget_bytes != EV_DEFAULT) {
    if (given.weight_budget_bytes < 0) {
      fail(EV_ERROR_REQUEST, "weight_budget_bytes is ", given.weight_budget_bytes, "; give 0 or more");
    }
    backend.gpu.weight_budget_bytes = given.weight_budget_bytes;
  }
  backend.gpu.cuda_graphs = given.cuda_graphs != 0;
  if (given.plugin != nullptr) backend.gpu.plugin = given.plugin;
  return backend;
}

ev::Source read_input(const ev_input& given, std::size_t index, bool with_pixels) {
  ev::Source source;
  if (given.name == nullptr) fail(EV_ERROR_ARGUMENT, "inputs[", index, "].name is NULL; give \"video1\" or the like");
  source.name = given.name;
  ev::check_input_name(source.name);
  if (given.path != nullptr && given.frames != nullptr) {
    fail(EV_ERROR_ARGUMENT, source.name, " has both a path and frames; give one of them");
  }
  if (given.path != nullptr) {
    source.path = given.path;
    if (source.path.empty()) fail(EV_ERROR_MEDIA, source.name, " has an empty path; give that of a video or image");
    return source;
  }
  if (with_pixels && given.frames == nullptr) {
    fail(EV_ERROR_ARGUMENT, source.name, " has neither a path nor frames; give one of them");
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
      fail(EV_ERROR_MEDIA, source.name, " has rows of ", stride, " bytes, too many for ", rows, " rows");
    }
    source.frame_stride_bytes = stride * rows;
  }
  return source;
}

ev::Request read_request(const ev_request* pointer, bool with_pixels) {
  const auto given = read_struct(pointer, "ev_request");
  ev::Request request;
  request.prompt = require(given.prompt, "ev_request.prompt");
  if (given.num_inputs > 0) {
    require(given.inputs, "ev_request.inputs");
    // All elements have the size that the caller's header gives them.
    const std::size_t stride = check_struct_size<ev_input>(given.inputs->struct_size, "ev_input");
    if (given.num_inputs > 1024) fail(EV_ERROR_ARGUMENT, "num_inputs is ", given.num_inputs, "; expected up to 1024");
    for (std::size_t i = 0; i < given.num_inputs; ++i) {
      const auto* bytes = reinterpret_cast<const unsigned char*>(given.inputs) + i * stride;
      const auto input = read_struct(reinterpret_cast<const ev_input*>(bytes), "ev_input");
      if (input.struct_size != stride) {
        fail(EV_ERROR_ARGUMENT, "inputs[", i, "] has struct_size ", input.struct_size, ", but inputs[0] has ", stride,
             "; prepare each with ev_input_init");
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
    fail(EV_ERROR_REQUEST, "only one of width_px and height_px is given; give both or neither");
  }
  if (width) request.wanted.size = ev::Size(*height, *width);
  request.wanted.num_frames = unless_default(given.num_frames);
  request.wanted.fps = unless_default(given.fps);
  request.wanted.start_s = given.start_s;
  if (given.callback != nullptr && with_pixels) {
    request.callback = [given](std::int64_t step, std::int64_t num_inference_steps, double timestep) {
      const ev_step facts = {sizeof(ev_step), static_cast<std::int32_t>(step),
                             static_cast<std::int32_t>(num_inference_steps), timestep};
      const ev::CallersCode callers_code;
      try {
        return given.callback(given.user_data, &facts) == 0;
      } catch (const std::exception& error) {
        fail(EV_ERROR_CANCELLED, "the callback threw an exception: ", error.what());
      } catch (...) {
        fail(EV_ERROR_CANCELLED, "the callback threw an exception");
      }
    };
  }
  return request;
}

ev_clip_size clip_size(std::int64_t num_frames, std::int64_t width_px, std::int64_t height_px) {
  return {static_cast<std::int32_t>(num_frames), static_cast<std::int32_t>(width_px),
          static_cast<std::int32_t>(height_px)};
}

}  // namespace

extern "C" {

const char* ev_version(void) { return kVersion; }

int ev_has_media(void) { return ev::has_media() ? 1 : 0; }

const char* ev_last_error(void) { return last_error; }

const char* ev_error_name(int code) {
  switch (code) {
    case EV_OK: return "OK";
    case EV_ERROR_BUNDLE: return "BundleError";
    case EV_ERROR_MEDIA: return "MediaError";
    case EV_ERROR_REQUEST: return "RequestError";
    case EV_ERROR_BACKEND: return "BackendError";
    case EV_ERROR_CANCELLED: return "RequestCancelled";
    case EV_ERROR_ARGUMENT: return "TypeError";
    case EV_ERROR_MEMORY: return "MemoryError";
    case EV_ERROR_INTERNAL: return "InternalError";
    default: return "unknown";
  }
}

void ev_options_init(ev_options* options, size_t struct_size) { init_struct(default_options(), options, struct_size); }

void ev_input_init(ev_input* input, size_t struct_size) {
  ev_input defaults = {};
  defaults.num_frames = 1;
  init_struct(defaults, input, struct_size);
}

void ev_request_init(ev_request* request, size_t struct_size) {
  ev_request defaults = {};
  defaults.num_inference_steps = EV_DEFAULT;
  defaults.guidance_scale = EV_DEFAULT;
  defaults.width_px = EV_DEFAULT;
  defaults.height_px = EV_DEFAULT;
  defaults.num_frames = EV_DEFAULT;
  defaults.fps = EV_DEFAULT;
  init_struct(defaults, request, struct_size);
}

void ev_plan_info_init(ev_plan_info* plan, size_t struct_size) { init_struct({}, plan, struct_size); }

void ev_frames_init(ev_frames* frames, size_t struct_size) { init_struct({}, frames, struct_size); }

int ev_open(ev_pipeline** pipeline, const ev_options* options) {
  const ev::Call call;
  return guard([&] {
    *require(pipeline, "pipeline") = nullptr;
    const ev_options given = read_struct(options, "ev_options", default_options());
    const char* const bundle = require(given.bundle, "ev_options.bundle");
    auto opened = std::make_unique<ev_pipeline>(bundle, read_backend_options(given), given.release_graphs != 0);
    const std::lock_guard lock(open_pipelines().mutex);
    open_pipelines().known.insert(opened.get());
    *pipeline = opened.release();
  });
}

void ev_close(ev_pipeline** pipeline) {
  if (pipeline == nullptr || *pipeline == nullptr) return;
  const ev::Call call;
  ev_pipeline* const closed = *pipeline;
  *pipeline = nullptr;
  guard([&] { close_pipeline(closed); });
}

const char* ev_info(const ev_pipeline* pipeline) {
  const std::lock_guard lock(open_pipelines().mutex);
  return open_pipelines().known.count(pipeline) == 0 ? nullptr : pipeline->pipeline.info().c_str();
}

int ev_plan(ev_pipeline* pipeline, const ev_request* request, ev_plan_info* plan, ev_clip_size* input_sizes) {
  const ev::Call call;
  return guard([&] {
    const Use used(pipeline);
    ev_plan_info info = read_struct(require(plan, "plan"), "ev_plan_info");
    const ev::Request read = read_request(request, false);
    const ev::Plan made = used->plan(read);
    info.result = clip_size(made.num_frames, made.size.second, made.size.first);
    info.fps = made.fps;
    info.num_inference_steps = static_cast<std::int32_t>(made.schedule.num_inference_steps());
    info.num_tokens = static_cast<std::int32_t>(made.ids.size());
    info.sequence_length = static_cast<std::int64_t>(made.layout.layout.size());
    write_struct(info, plan, info.struct_size);
    for (std::size_t i = 0; input_sizes != nullptr && i < read.sources.size(); ++i) {
      const std::vector<std::int64_t>& shape = made.sources.at(read.sources[i].name);
      input_sizes[i] = clip_size(shape[0], shape[2], shape[1]);
    }
  });
}

int ev_run(ev_pipeline* pipeline, const ev_request* request, ev_result** result) {
  const ev::Call call;
  return guard([&] {
    *require(result, "result") = nullptr;
    const Use used(pipeline);
    *result = new ev_result{used->run(read_request(request, true))};
  });
}

void ev_cancel(ev_pipeline* pipeline) {
  if (pipeline == nullptr) return;
  const ev::Call call;
  try {
    Use(pipeline)->cancel();
  } catch (const ev::Error&) {
    // It is closed, so nothing runs on it.
  }
}

int ev_result_frames(const ev_result* result, ev_frames* frames) {
  return guard([&] {
    require(result, "result");
    ev_frames found = read_struct(require(frames, "frames"), "ev_frames");
    const ev::Tensor& tensor = result->result.frames;
    found.data = tensor.as<const std::uint8_t>();
    found.num_bytes = static_cast<std::size_t>(tensor.num_elements());
    found.size = clip_size(tensor.shape[0], tensor.shape[2], tensor.shape[1]);
    found.fps = result->result.fps;
    write_struct(found, frames, found.struct_size);
  });
}

int ev_result_save(const ev_result* result, const char* path) {
  const ev::Call call;
  return guard([&] {
    require(result, "result");
    ev::write_clip(require(path, "path"), result->result.frames, result->result.fps);
  });
}

const char* ev_result_notice(const ev_result* result, size_t index) {
  if (result == nullptr || index >= result->result.notices.size()) return nullptr;
  return result->result.notices[index].c_str();
}

void ev_result_free(ev_result** result) {
  if (result == nullptr) return;
  delete *result;
  *result = nullptr;
}

}  // extern "C"
