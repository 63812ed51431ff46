// TensorRT and TensorRT for RTX in one program: each is loaded by its own functions. both_test LIBNVINFER_STUB
#include <iostream>

#include "../check.hpp"
#include "error.hpp"
#include "trt_library.hpp"

namespace {

template <typename Call>
std::string text_of(const Call& call) {
  try {
    call();
    return "nothing";
  } catch (const ev::Error& error) {
    return error.code() == EV_ERROR_BACKEND ? error.what() : "another error";
  }
}

bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: both_test LIBNVINFER_STUB\n";
    return 2;
  }
  const std::string stub = argv[1];
  CHECK(ev::open_tensorrt(stub)->version() == "10.14.1.48");
  CHECK(ev::open_tensorrt_rtx(stub)->version() == "10.14.1.48");
  for (const auto open : {ev::open_tensorrt, ev::open_tensorrt_rtx}) {
    CHECK(has(text_of([&] { open("/no/such/library.so"); }), "ev_options.tensorrt"));
    CHECK(has(text_of([&] { open("libdl.so.2"); }), "has no getInferLibMajorVersion"));
    const auto library = open(stub);
    CHECK(has(text_of([&] { library->load_plan("garbage", 7, {}); }), "the magic tag does not match"));
  }
  CHECK(has(text_of([&] { ev::open_tensorrt_rtx(""); }), "TensorRT for RTX cannot be loaded"));
  return check::report();
}
