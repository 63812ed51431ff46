# Plans on NVIDIA GPUs, for EDITVERSE_TENSORRT. Headers are all that a build needs: TensorRT, TensorRT for RTX and the
# driver are loaded when a bundle is opened. TENSORRT_ROOT and TENSORRT_RTX_ROOT, as variables or in the environment, say
# where they are installed; a backend without its headers is refused by its name.
set(EDITVERSE_HEADERS "${PROJECT_BINARY_DIR}/headers" CACHE PATH "Where fetched headers lie, or are put")
find_package(CUDAToolkit QUIET)
find_path(CUDA_INCLUDE_DIR cuda.h HINTS ${CUDAToolkit_INCLUDE_DIRS} $ENV{CUDA_HOME} PATH_SUFFIXES include REQUIRED)
find_path(TENSORRT_RTX_INCLUDE_DIR NvInferRuntime.h
  HINTS ${TENSORRT_RTX_ROOT} $ENV{TENSORRT_RTX_ROOT} PATH_SUFFIXES include NO_DEFAULT_PATH)
find_path(TENSORRT_INCLUDE_DIR NvInferRuntime.h
  HINTS ${TENSORRT_ROOT} $ENV{TENSORRT_ROOT} "${EDITVERSE_HEADERS}" PATH_SUFFIXES include)
if(EDITVERSE_FETCH_HEADERS AND NOT TENSORRT_INCLUDE_DIR AND NOT TENSORRT_RTX_INCLUDE_DIR)
  find_package(Python3 REQUIRED COMPONENTS Interpreter)
  message(STATUS "Fetching headers to ${EDITVERSE_HEADERS}")
  execute_process(
    COMMAND "${Python3_EXECUTABLE}" "${CMAKE_CURRENT_SOURCE_DIR}/plugin/fetch_headers.py" "${EDITVERSE_HEADERS}"
    COMMAND_ERROR_IS_FATAL ANY)
  find_path(TENSORRT_INCLUDE_DIR NvInferRuntime.h HINTS "${EDITVERSE_HEADERS}" PATH_SUFFIXES include)
endif()
if(NOT TENSORRT_INCLUDE_DIR AND NOT TENSORRT_RTX_INCLUDE_DIR)
  message(FATAL_ERROR "EDITVERSE_TENSORRT is on and there are no headers of TensorRT nor of TensorRT for RTX; give "
    "-DTENSORRT_ROOT=FOLDER or -DTENSORRT_RTX_ROOT=FOLDER, or let TensorRT's be fetched (-DEDITVERSE_FETCH_HEADERS=ON)")
endif()

target_sources(editverse_rt_core PRIVATE src/cuda.cpp src/trt.cpp)
set_source_files_properties(src/cuda.cpp PROPERTIES COMPILE_OPTIONS "-isystem${CUDA_INCLUDE_DIR}")
set(tensorrt_backends)
foreach(pair tensorrt:TENSORRT rtx:TENSORRT_RTX)
  string(REGEX REPLACE ":.*" "" file ${pair})
  string(REGEX REPLACE ".*:" "" name ${pair})
  if(${name}_INCLUDE_DIR)
    target_sources(editverse_rt_core PRIVATE src/trt_${file}.cpp)
    # Each with headers of its own.
    set_source_files_properties(src/trt_${file}.cpp PROPERTIES
      COMPILE_OPTIONS "-isystem${${name}_INCLUDE_DIR};-isystem${CUDA_INCLUDE_DIR}")
    list(APPEND tensorrt_backends EDITVERSE_HAS_${name}=1)
  endif()
endforeach()
set_source_files_properties(src/trt.cpp PROPERTIES COMPILE_DEFINITIONS "${tensorrt_backends}")
message(STATUS "TensorRT: ${tensorrt_backends}")
