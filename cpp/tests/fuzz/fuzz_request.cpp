// libFuzzer target: any bytes as a request that is described through the C interface, of the bundle in the environment
// variable EDITVERSE_BUNDLE. Buffers are as long as num_bytes says, so that any read beyond them is seen.
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "editverse_rt.h"

namespace {

/// Takes values off the front of the input; zeros when it has run out.
class Bytes {
 public:
  Bytes(const std::uint8_t* data, std::size_t num_bytes) : data_(data), left_(num_bytes) {}

  template <typename T>
  T take() {
    T value{};
    const std::size_t count = left_ < sizeof(T) ? left_ : sizeof(T);
    if (count > 0) std::memcpy(&value, data_, count);  // an empty input has no address
    data_ += count;
    left_ -= count;
    return value;
  }

  std::string take_text(std::size_t at_most) {
    std::size_t count = take<std::uint8_t>();
    if (count > at_most) count = at_most;
    if (count > left_) count = left_;
    const std::string text(reinterpret_cast<const char*>(data_), count);
    data_ += count;
    left_ -= count;
    return text;
  }

 private:
  const std::uint8_t* data_;
  std::size_t left_;
};

ev_pipeline* open_pipeline() {
  ev_options options;
  ev_options_init(&options, sizeof options);
  options.bundle = std::getenv("EDITVERSE_BUNDLE");
  options.num_threads = 1;
  ev_pipeline* pipeline = nullptr;
  if (ev_open(&pipeline, &options) != EV_OK) {
    std::fprintf(stderr, "%s\n", ev_last_error());
    std::abort();
  }
  return pipeline;
}

/// A field is left at its default more often than not, or everything would be refused at the first one.
template <typename T>
void maybe_set(std::uint16_t flags, unsigned bit, T& field, Bytes& bytes) {
  if ((flags >> bit & 1) != 0) field = bytes.take<T>();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t num_bytes) {
  static ev_pipeline* const pipeline = open_pipeline();
  Bytes bytes(data, num_bytes);
  const auto flags = bytes.take<std::uint16_t>();
  const std::size_t num_inputs = flags >> 14;
  ev_request request;
  ev_request_init(&request, sizeof request);
  maybe_set(flags, 0, request.num_inference_steps, bytes);
  maybe_set(flags, 1, request.guidance_scale, bytes);
  maybe_set(flags, 2, request.seed, bytes);
  maybe_set(flags, 3, request.width_px, bytes);
  maybe_set(flags, 3, request.height_px, bytes);
  maybe_set(flags, 4, request.num_frames, bytes);
  maybe_set(flags, 5, request.fps, bytes);
  maybe_set(flags, 6, request.start_s, bytes);
  maybe_set(flags, 7, request.struct_size, bytes);
  // No struct is larger in memory than it says it is.
  if (request.struct_size > sizeof request && request.struct_size <= 4096) request.struct_size = sizeof request;
  std::string negative_prompt;
  if ((flags >> 9 & 1) != 0) {
    negative_prompt = bytes.take_text(32);
    request.negative_prompt = negative_prompt.c_str();
  }
  std::string schedule;
  if ((flags >> 8 & 1) != 0) {
    schedule = bytes.take_text(32);
    request.schedule = schedule.c_str();
  }
  std::vector<ev_input> inputs(num_inputs);
  std::vector<std::string> names(num_inputs);
  std::vector<std::vector<std::uint8_t>> pixels(num_inputs);
  for (std::size_t i = 0; i < num_inputs; ++i) {
    ev_input& input = inputs[i];
    ev_input_init(&input, sizeof input);
    names[i] = bytes.take_text(32);
    input.name = names[i].c_str();
    const auto input_flags = bytes.take<std::uint16_t>();
    input.num_frames = bytes.take<std::uint8_t>() % 40;
    input.width_px = bytes.take<std::uint8_t>();
    input.height_px = bytes.take<std::uint8_t>();
    maybe_set(input_flags, 0, input.num_frames, bytes);
    maybe_set(input_flags, 1, input.width_px, bytes);
    maybe_set(input_flags, 2, input.height_px, bytes);
    maybe_set(input_flags, 3, input.row_stride_bytes, bytes);
    maybe_set(input_flags, 4, input.frame_stride_bytes, bytes);
    if ((input_flags >> 5 & 1) != 0) {
      pixels[i].resize(bytes.take<std::uint16_t>());
      input.frames = pixels[i].empty() ? nullptr : pixels[i].data();
      input.num_bytes = pixels[i].size();
    }
  }
  request.inputs = inputs.data();
  request.num_inputs = num_inputs;
  const std::string prompt = bytes.take_text(255);
  request.prompt = prompt.c_str();
  ev_request_info info;
  ev_request_info_init(&info, sizeof info);
  std::vector<ev_clip_size> sizes(num_inputs);
  const int code = ev_describe_request(pipeline, &request, &info, sizes.data());
  if (code == EV_ERROR_INTERNAL || code == EV_ERROR_BACKEND || code == EV_ERROR_CANCELLED) std::abort();
  if (code == EV_OK && (info.result.num_frames < 1 || info.sequence_length < 4)) std::abort();
  if (code != EV_OK && ev_last_error()[0] == '\0') std::abort();
  return 0;
}
