# ONNX Runtime's C header, and where its shared library lies, if it does: the library is loaded when a bundle is
# opened, so a build needs the header only. Give onnxruntime_ROOT, or a prefix in CMAKE_PREFIX_PATH.
# Sets onnxruntime_INCLUDE_DIRS and onnxruntime_LIBRARY_DIR.
find_path(onnxruntime_INCLUDE_DIR onnxruntime_c_api.h
  PATH_SUFFIXES include include/onnxruntime include/onnxruntime/core/session onnxruntime)
find_library(onnxruntime_LIBRARY NAMES onnxruntime libonnxruntime.so.1)
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(onnxruntime
  REQUIRED_VARS onnxruntime_INCLUDE_DIR
  REASON_FAILURE_MESSAGE "Set onnxruntime_ROOT, or fetch the header with cpp/tools/fetch_deps.sh")
set(onnxruntime_INCLUDE_DIRS ${onnxruntime_INCLUDE_DIR})
set(onnxruntime_LIBRARY_DIR "")
if(onnxruntime_LIBRARY)
  get_filename_component(onnxruntime_LIBRARY_DIR ${onnxruntime_LIBRARY} DIRECTORY)
endif()
mark_as_advanced(onnxruntime_INCLUDE_DIR onnxruntime_LIBRARY)
