# The fuzz targets, for ctest: each runs for EDITVERSE_FUZZ_SECONDS from its committed corpus, under AddressSanitizer and
# UndefinedBehaviorSanitizer. With EDITVERSE_FUZZ by libFuzzer, which needs clang; else by tests/fuzz/drive.cpp, as a part
# of the tests. What parses is compiled, and no_backend.cpp stands in for the rest: no ONNX Runtime, no FFmpeg.
set(EDITVERSE_FUZZ_SECONDS 10 CACHE STRING "How long each fuzz target runs, in seconds")
set(fuzz_folder ${CMAKE_CURRENT_LIST_DIR}/../tests/fuzz)
set(fuzz_bundle_folder ${CMAKE_CURRENT_LIST_DIR}/../../editverse_rt/bundles/nano)
list(APPEND CMAKE_MODULE_PATH ${CMAKE_CURRENT_LIST_DIR})
find_package(nlohmann_json 3.10 REQUIRED)
find_package(OpenSSL REQUIRED COMPONENTS Crypto)
find_package(SentencePiece REQUIRED)
find_package(Threads REQUIRED)

set(fuzz_sources bundle capi capi_read checked description families/editverse families/families families/wan fields files
  inputs interface last_error lifetime media_absent memory_frames pipeline prompt request schedule sequence spec stages
  text unicode windows)
list(TRANSFORM fuzz_sources PREPEND ${PROJECT_SOURCE_DIR}/src/)
list(TRANSFORM fuzz_sources APPEND .cpp)
add_library(editverse_fuzzed OBJECT ${fuzz_sources} ${fuzz_folder}/no_backend.cpp)
target_compile_features(editverse_fuzzed PUBLIC cxx_std_17)
target_include_directories(editverse_fuzzed PUBLIC ${PROJECT_SOURCE_DIR}/include ${PROJECT_SOURCE_DIR}/src)
target_link_libraries(editverse_fuzzed
  PUBLIC nlohmann_json::nlohmann_json OpenSSL::Crypto SentencePiece::sentencepiece Threads::Threads)
target_compile_options(editverse_fuzzed PRIVATE -Wall -Wextra -Wpedantic -Werror
  PUBLIC -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -O1 -g1)
target_link_options(editverse_fuzzed PUBLIC -fsanitize=address,undefined)

if(EDITVERSE_FUZZ)
  if(NOT CMAKE_CXX_COMPILER_ID MATCHES "Clang")
    message(FATAL_ERROR "EDITVERSE_FUZZ is on and the compiler is ${CMAKE_CXX_COMPILER_ID}, which has no libFuzzer; "
      "give -DCMAKE_CXX_COMPILER=clang++")
  endif()
  target_compile_options(editverse_fuzzed PUBLIC -fsanitize=fuzzer-no-link)
  target_link_options(editverse_fuzzed PUBLIC -fsanitize=fuzzer)
else()
  target_compile_options(editverse_fuzzed PRIVATE -fsanitize-coverage=trace-pc)
endif()

enable_testing()
foreach(name bundle request)
  add_executable(fuzz_${name} ${fuzz_folder}/fuzz_${name}.cpp)
  target_link_libraries(fuzz_${name} PRIVATE editverse_fuzzed)
  if(EDITVERSE_FUZZ)
    # What is found goes into the build folder; the committed corpus is only read.
    file(MAKE_DIRECTORY ${CMAKE_BINARY_DIR}/found_${name})
    add_test(NAME fuzz_${name} COMMAND fuzz_${name} -max_total_time=${EDITVERSE_FUZZ_SECONDS} -timeout=10
      -max_len=5000 -rss_limit_mb=2048 -print_final_stats=1 -artifact_prefix=${CMAKE_BINARY_DIR}/${name}-
      found_${name} ${fuzz_folder}/corpus_${name})
  else()
    target_sources(fuzz_${name} PRIVATE ${fuzz_folder}/drive.cpp)
    add_test(NAME fuzz_${name} COMMAND fuzz_${name} ${fuzz_folder}/corpus_${name} ${EDITVERSE_FUZZ_SECONDS})
  endif()
  set_tests_properties(fuzz_${name} PROPERTIES
    WORKING_DIRECTORY ${CMAKE_BINARY_DIR} ENVIRONMENT "EDITVERSE_BUNDLE=${fuzz_bundle_folder}")
endforeach()
