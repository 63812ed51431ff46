// TensorRT, with its own headers.
#define EV_TRT_OPEN open_tensorrt
#define EV_TRT_NAME "TensorRT"
#define EV_TRT_LIBRARY "libnvinfer.so."

#include "trt_library.inc"
