# The fuzz targets with libFuzzer, for ctest: each runs for EDITVERSE_FUZZ_SECONDS from its committed corpus. They
# need clang, and neither ONNX Runtime nor FFmpeg: what parses is compiled, and no_backend.cpp stands in for the rest.
if(NOT CMAKE_CXX_COMPILER_ID MATCHES "Clang")
  message(FATAL_ERROR "EDITVERSE_FUZZ is on and the compiler is ${CMAKE_CXX_COMPILER_ID}, which has no libFuzzer; "
    "give -DCMAKE_CXX_COMPILER=clang++")
endif()
set(EDITVERSE_FUZZ_SECONDS 20 CACHE STRING "How long each fuzz target runs, in seconds")
set(fuzz_folder ${CMAKE_CURRENT_SOURCE_DIR}/tests/fuzz)
set(fuzz_bundle_folder ${CMAKE_CURRENT_SOURCE_DIR}/../editverse_rt/bundles/nano)
list(APPEND CMAKE_MODULE_PATH ${CMAKE_CURRENT_SOURCE_DIR}/cmake)
find_package(nlohmann_json 3.10 REQUIRED)
find_package(OpenSSL REQUIRED COMPONENTS Crypto)
find_package(SentencePiece REQUIRED)
find_package(Threads REQUIRED)

add_library(editverse_fuzzed OBJECT
  src/bundle.cpp src/capi.cpp src/fields.cpp src/files.cpp src/inputs.cpp src/interface.cpp src/media_absent.cpp
  src/pipeline.cpp src/prompt.cpp src/sequence.cpp src/spec.cpp src/text.cpp src/unicode.cpp
  tests/fuzz/no_backend.cpp)
target_compile_features(editverse_fuzzed PUBLIC cxx_std_17)
target_include_directories(editverse_fuzzed PUBLIC include src)
target_compile_options(editverse_fuzzed
  PRIVATE -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Werror
  PUBLIC -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -O1 -g1)
target_link_libraries(editverse_fuzzed
  PUBLIC nlohmann_json::nlohmann_json OpenSSL::Crypto SentencePiece::sentencepiece Threads::Threads)

enable_testing()
foreach(name bundle request)
  add_executable(fuzz_${name} ${fuzz_folder}/fuzz_${name}.cpp)
  target_link_libraries(fuzz_${name} PRIVATE editverse_fuzzed)
  target_link_options(fuzz_${name} PRIVATE -fsanitize=fuzzer,address,undefined)
  # What is found goes into the build folder; the committed corpus is only read.
  file(MAKE_DIRECTORY ${CMAKE_BINARY_DIR}/found_${name})
  add_test(NAME fuzz_${name} COMMAND fuzz_${name} -max_total_time=${EDITVERSE_FUZZ_SECONDS} -timeout=10
    -max_len=5000 -rss_limit_mb=2048 -print_final_stats=1
    -artifact_prefix=${CMAKE_BINARY_DIR}/${name}-
    found_${name} ${fuzz_folder}/corpus_${name})
  set_tests_properties(fuzz_${name} PROPERTIES
    WORKING_DIRECTORY ${CMAKE_BINARY_DIR} ENVIRONMENT EDITVERSE_BUNDLE=${fuzz_bundle_folder})
endforeach()
