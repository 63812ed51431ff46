// TensorRT for RTX, with its own headers. Their classes have the names of TensorRT's, and a program may hold both: here
// they go by another one.
#define nvinfer1 nvinfer1_rtx  // NOLINT(readability-identifier-naming): the name of TensorRT's namespace

#define EV_TRT_OPEN open_tensorrt_rtx
#define EV_TRT_NAME "TensorRT for RTX"
#define EV_TRT_LIBRARY "libtensorrt_rtx.so."

#include "trt_library.inc"
