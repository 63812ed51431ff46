// The C interface: calls of the library, and exceptions turned into codes. Nothing else.
#include <condition_variable>
#include <memory>
#include <mutex>
#include <set>
#include <string>

#include "capi_read.hpp"
#include "editverse_rt.h"
#include "error.hpp"
#include "last_error.hpp"
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

using ev::Error;
using ev::guard;
using ev::init_struct;
using ev::read_struct;
using ev::require;
using ev::write_struct;

/// The pipelines that are open. Never destroyed: a program's static objects may close theirs at its very end.
struct OpenPipelines {
  std::mutex mutex;  // guards num_users and is_left_to_user as well
  std::condition_variable left;
  std::set<const ev_pipeline*> known;
};

OpenPipelines& open_pipelines() {
  static auto* const pipelines = new OpenPipelines;
  return *pipelines;
}

/// A call on a pipeline, which is not deleted for as long as one of these lives.
class Use {
 public:
  explicit Use(ev_pipeline* pipeline) : pipeline_(require(pipeline, "pipeline")) {
    OpenPipelines& pipelines = open_pipelines();
    const std::lock_guard lock(pipelines.mutex);
    if (pipelines.known.count(pipeline) == 0) {
      throw Error(EV_ERROR_ARGUMENT, "", "pipeline")
          .found("the pipeline is not open")
          .hint("give one that ev_open gave and ev_close did not close");
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

ev_clip_size clip_size(std::int64_t num_frames, std::int64_t width_px, std::int64_t height_px) {
  return {static_cast<std::int32_t>(num_frames), static_cast<std::int32_t>(width_px),
          static_cast<std::int32_t>(height_px)};
}

}  // namespace

extern "C" {

const char* ev_version(void) { return ev::kVersion; }

int ev_has_media(void) { return ev::has_media() ? 1 : 0; }

const char* ev_last_error(void) { return ev::last_error_text(); }

const char* ev_last_error_json(void) { return ev::last_error_json(); }

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

void ev_options_init(ev_options* options, size_t struct_size) {
  init_struct(ev::default_options(), options, struct_size);
}

void ev_input_init(ev_input* input, size_t struct_size) {
  ev_input defaults = {};
  defaults.num_frames = 1;
  init_struct(defaults, input, struct_size);
}

void ev_request_init(ev_request* request, size_t struct_size) {
  init_struct(ev::default_request(), request, struct_size);
}

void ev_request_info_init(ev_request_info* info, size_t struct_size) { init_struct({}, info, struct_size); }

void ev_frames_init(ev_frames* frames, size_t struct_size) { init_struct({}, frames, struct_size); }

int ev_open(ev_pipeline** pipeline, const ev_options* options) {
  const ev::Call call;
  return guard([&] {
    *require(pipeline, "pipeline") = nullptr;
    const ev_options given = read_struct(options, "ev_options", ev::default_options());
    const char* const bundle = require(given.bundle, "ev_options.bundle");
    auto opened = std::make_unique<ev_pipeline>(bundle, ev::read_backend_options(given), given.release_graphs != 0);
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

int ev_describe_request(ev_pipeline* pipeline, const ev_request* request, ev_request_info* info,
                        ev_clip_size* input_sizes) {
  const ev::Call call;
  return guard([&] {
    const Use used(pipeline);
    ev_request_info found = read_struct(require(info, "info"), "ev_request_info");
    const ev::Request read = ev::read_request(request, false);
    const ev::DescribedRequest made = used->describe(read);
    const ev::LaidOutRequest& laid_out = made.laid_out;
    found.result = clip_size(made.num_frames, laid_out.size.second, laid_out.size.first);
    found.fps = laid_out.fps;
    found.num_inference_steps = static_cast<std::int32_t>(laid_out.schedule.num_inference_steps());
    found.num_tokens = static_cast<std::int32_t>(made.num_tokens);
    found.num_windows = static_cast<std::int32_t>(made.num_windows.value_or(0));
    found.sequence_length = static_cast<std::int64_t>(laid_out.cond.layout.layout.size());
    write_struct(found, info, found.struct_size);
    for (std::size_t i = 0; input_sizes != nullptr && i < read.sources.size(); ++i) {
      const std::vector<std::int64_t>& shape = laid_out.sources.at(read.sources[i].name);
      input_sizes[i] = clip_size(shape[0], shape[2], shape[1]);
    }
  });
}

int ev_run(ev_pipeline* pipeline, const ev_request* request, ev_result** result) {
  const ev::Call call;
  return guard([&] {
    *require(result, "result") = nullptr;
    const Use used(pipeline);
    const ev::Request read = ev::read_request(request, true);
    *result = new ev_result{used->run(read, ev::read_step_callback(request), ev::read_window_callback(request))};
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
    found.num_bytes = tensor.data == nullptr ? 0 : static_cast<std::size_t>(tensor.num_elements());
    found.size = clip_size(tensor.shape[0], tensor.shape[2], tensor.shape[1]);
    found.fps = result->result.fps;
    if (!result->result.times_s.empty()) found.times_s = result->result.times_s.data();
    write_struct(found, frames, found.struct_size);
  });
}

int ev_result_save(const ev_result* result, const char* path) {
  const ev::Call call;
  return guard([&] {
    require(result, "result");
    if (result->result.frames.data == nullptr) {
      throw Error(EV_ERROR_ARGUMENT, "", "result")
          .found("the result has no frames: the request's window_callback took them")
          .hint("write them there, or leave the callback out");
    }
    ev::write_clip(require(path, "path"), result->result.frames, result->result.fps, result->result.times_s);
  });
}

int ev_check_target(const char* path, double fps) {
  const ev::Call call;
  return guard(
      [&] { ev::check_target(require(path, "path"), fps == EV_DEFAULT ? std::nullopt : std::optional<double>(fps)); });
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
